"""Learners of fastai 0.7, 1 and 2, rebuilt here by hand, and what swipr makes of their weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from imagefiles import picture
from torch import nn

from swiprd.folder.spec import load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.inference import architectures
from swiprd.inference.model import load_model
from swiprd.inference.torchvision_import import import_torchvision

pytestmark = pytest.mark.timeout(60)

models = import_torchvision().models
torch.set_num_threads(1)
TOLERANCE = 1e-4
SIZE = 96


class MaxThenMean(nn.Module):
    """What AdaptiveConcatPool2d is in all three versions."""

    def __init__(self) -> None:
        super().__init__()
        self.ap = nn.AdaptiveAvgPool2d(1)
        self.mp = nn.AdaptiveMaxPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.mp(x), self.ap(x)], 1)


class Branches(nn.Sequential):
    """Torch7's ConcatTable, with the CAddTable behind it: names as in fastai 0.7's resnexts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum((branch(x) for branch in self), torch.zeros(()))


def old_head(features: int, classes: int, last: nn.Module) -> list[nn.Module]:
    return [
        *(MaxThenMean(), nn.Flatten()),
        *(nn.BatchNorm1d(2 * features), nn.Dropout(0.25), nn.Linear(2 * features, 512), nn.ReLU()),
        *(nn.BatchNorm1d(512), nn.Dropout(0.5), nn.Linear(512, classes), last),
    ]


def old_resnext(depths: list[int]) -> list[nn.Module]:
    """A 32x4d body as converted from Torch7: everything is a Sequential."""
    layers: list[nn.Module] = [
        *(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for level, depth in enumerate(depths):
        width, outputs = 128 << level, 256 << level
        blocks = []
        for number in range(depth):
            stride = 2 if level and not number else 1
            inner = nn.Sequential(
                *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
                nn.Conv2d(width, width, 3, stride, 1, groups=32, bias=False),
                *(nn.BatchNorm2d(width), nn.ReLU()),
            )
            main = nn.Sequential(
                inner, nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )
            short: nn.Module = nn.Sequential()
            if not number:
                short = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )
            blocks.append(nn.Sequential(Branches(main, short), nn.Identity(), nn.ReLU()))
            inputs = outputs
        layers.append(nn.Sequential(*blocks))
    return layers


def old_body(name: str) -> list[nn.Module]:
    """What fastai 0.7's `cut_model` leaves: eight layers of a resnet, `features` of the others."""
    if name.startswith("resnext"):
        return old_resnext([3, 4, 6, 3] if "50" in name else [3, 4, 23, 3])
    module = models.get_model(name, weights=None)
    return list(module.children())[:8] if name.startswith("resnet") else [module.features]


def lively(module: nn.Module, pictures: torch.Tensor | None = None) -> nn.Module:
    """Give it statistics and weights with which the answers differ from picture to picture."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, tensor in module.named_buffers():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
        last = [one for one in module.modules() if isinstance(one, nn.Linear)][-1]
        inputs: list[torch.Tensor] = []
        hook = last.register_forward_pre_hook(lambda _, given: inputs.extend(given))
        module.eval()(crops() if pictures is None else pictures)
        hook.remove()
        outputs = nn.functional.linear(inputs[0], last.weight)
        scale = 1 / float(outputs.std(dim=0).mean())  # from picture to picture
        last.weight.mul_(scale)
        if last.bias is not None:
            last.bias.copy_(-scale * outputs.mean(dim=0))
    return module.eval()


def crops() -> torch.Tensor:
    """Three pictures: [3, 3, size, size]."""
    return torch.stack(
        [
            torch.frombuffer(bytearray(picture(SIZE, SIZE, seed=n).tobytes()), dtype=torch.uint8)
            .view(SIZE, SIZE, 3)
            .permute(2, 0, 1)
            / 128
            - 1
            for n in (1, 2, 3)
        ]
    )


def folder_of(
    folder: Path,
    architecture: str,
    state: dict[str, torch.Tensor],
    *,
    match: str = "order",
    activation: str = "log_softmax",
    classes: int = 2,
) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "weights.pth")
    (folder / "labels.txt").write_text("".join(f"class{i}\n" for i in range(classes)))
    (folder / "model.toml").write_text(
        f'name = "learner"\narchitecture = "{architecture}"\nhead = "fastai"\n'
        f'match = "{match}"\nweights = "weights.pth"\nlabels = "labels.txt"\n'
        f'activation = "{activation}"\n[preprocess]\ncrop = {SIZE}\n'
    )
    return folder


def answers(folder: Path) -> torch.Tensor:
    """Answer the three pictures: [3, labels]."""
    rows = load_model(load_spec(folder)).probabilities(crops().unsqueeze(1).numpy())
    (folder / "weights.pth").unlink()  # pytest keeps three runs' folders
    return torch.from_numpy(rows)


FEATURES = {
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "resnext50_32x4d": 2048,
    "resnext101_32x4d": 2048,
    "vgg16_bn": 512,
    "vgg19_bn": 512,
    "densenet121": 1024,
    "densenet161": 2208,
    "densenet169": 1664,
    "densenet201": 1920,
}


@pytest.mark.parametrize("name", FEATURES)
def test_a_learner_of_fastai_0_7(tmp_path: Path, name: str) -> None:
    layers = [*old_body(name), *old_head(FEATURES[name], 2, nn.LogSoftmax(dim=1))]
    learner = lively(nn.Sequential(*layers))
    state = {
        one: tensor
        for one, tensor in learner.state_dict().items()
        if not one.endswith("num_batches_tracked")  # torch 0.3 had none
    }
    rows = answers(folder_of(tmp_path / "model", name, state))
    with torch.no_grad():
        expected = learner(crops()).exp()
    assert torch.allclose(rows, expected, rtol=0, atol=TOLERANCE)
    assert rows.std(dim=0).min() > 0.001  # else any weights would have done


def test_names_of_fastai_0_7_are_positions() -> None:
    names = list(nn.Sequential(*old_resnext([3, 4, 6, 3])).state_dict())
    assert "4.0.0.0.0.0.weight" in names
    assert names[0] == "0.weight"


def test_several_labels_at_once_in_fastai_0_7(tmp_path: Path) -> None:
    learner = lively(nn.Sequential(*old_body("resnet18"), *old_head(512, 5, nn.Sigmoid())))
    made = folder_of(
        tmp_path / "model", "resnet18", learner.state_dict(), activation="sigmoid", classes=5
    )
    with torch.no_grad():
        expected = learner(crops())
    assert torch.allclose(answers(made), expected, rtol=0, atol=TOLERANCE)


def new_learner(
    name: str,
    features: int,
    classes: int,
    *,
    cut: Callable[[nn.Module], list[nn.Module]],
    hidden: tuple[int, ...] = (512,),
    bias: bool = True,
    dropout: float = 0.5,
    pool: str = "concat",
    last_norm: bool = False,
) -> nn.Module:
    """Sequential(body, head), as fastai 1 and 2 have it; Dropout is left out where it is 0."""
    body = nn.Sequential(*cut(models.get_model(name, weights=None)))
    size = 2 * features if pool == "concat" else features
    head: list[nn.Module] = [MaxThenMean() if pool == "concat" else nn.AdaptiveAvgPool2d(1)]
    head.append(nn.Flatten())
    for outputs in (*hidden, classes):
        head.append(nn.BatchNorm1d(size))
        if dropout:
            head.append(nn.Dropout(dropout))
        head += [nn.Linear(size, outputs, bias=bias), nn.ReLU()]
        size = outputs
    head.pop()
    if last_norm:
        head.append(nn.BatchNorm1d(classes))
    return lively(nn.Sequential(body, nn.Sequential(*head)))


def features(module: nn.Module) -> list[nn.Module]:
    return [module.get_submodule("features")]


def before_the_pool(module: nn.Module) -> list[nn.Module]:
    """fastai 2's rule: everything before the last child that pools."""
    children = list(module.children())
    pools = [n for n, child in enumerate(children) if any(
        type(one).__name__.endswith("Pool2d") for one in child.modules())]  # fmt: skip
    return children[: pools[-1]]


@pytest.mark.parametrize("match", ["name", "order"])
@pytest.mark.parametrize("bias", [True, False], ids=["fastai1", "fastai2"])
def test_a_learner_of_fastai_1_and_2(tmp_path: Path, bias: bool, match: str) -> None:
    learner = new_learner("resnet18", 512, 3, cut=before_the_pool, bias=bias)
    made = folder_of(
        tmp_path / "model",
        "resnet18",
        learner.state_dict(),
        match=match,
        activation="softmax",
        classes=3,
    )
    with torch.no_grad():
        expected = learner(crops()).softmax(dim=1)
    assert torch.allclose(answers(made), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "size", "cut"),
    [
        ("alexnet", 256, features),
        ("squeezenet1_1", 512, features),
        ("densenet121", 1024, features),
        ("vgg11", 512, features),
        ("mobilenet_v2", 1280, features),
        ("mobilenet_v3_small", 576, before_the_pool),
        ("efficientnet_b0", 1280, before_the_pool),
        ("convnext_tiny", 768, before_the_pool),
        ("regnet_x_400mf", 400, before_the_pool),
        ("swin_t", 768, before_the_pool),
        ("mnasnet0_5", 1280, lambda module: list(module.children())[:-1]),
        ("wide_resnet50_2", 2048, before_the_pool),
    ],
)
def test_bodies_as_fastai_cuts_them(
    tmp_path: Path, name: str, size: int, cut: Callable[[nn.Module], list[nn.Module]]
) -> None:
    learner = new_learner(name, size, 3, cut=cut, bias=False)
    made = folder_of(
        tmp_path / "model",
        name,
        learner.state_dict(),
        match="name",
        activation="softmax",
        classes=3,
    )
    with torch.no_grad():
        expected = learner(crops()).softmax(dim=1)
    assert torch.allclose(answers(made), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("hidden", [(), (64,), (128, 64, 32)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("pool", "last_norm"), [("concat", False), ("mean", True)])
def test_heads_of_every_make(
    tmp_path: Path, hidden: tuple[int, ...], bias: bool, pool: str, last_norm: bool
) -> None:
    learner = new_learner(
        "resnet18",
        512,
        3,
        cut=before_the_pool,
        hidden=hidden,
        bias=bias,
        pool=pool,
        last_norm=last_norm,
        dropout=0.0,
    )
    made = folder_of(
        tmp_path / "model", "resnet18", learner.state_dict(), activation="softmax", classes=3
    )
    with torch.no_grad():
        expected = learner(crops()).softmax(dim=1)
    assert torch.allclose(answers(made), expected, rtol=0, atol=TOLERANCE)


def refusal(folder: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load_model(load_spec(folder))
    return str(caught.value).replace(f"{folder}/", "")


def old_state(name: str, classes: int = 2) -> dict[str, torch.Tensor]:
    layers = [*old_body(name), *old_head(FEATURES[name], classes, nn.LogSoftmax(dim=1))]
    return {
        one: tensor
        for one, tensor in nn.Sequential(*layers).state_dict().items()
        if not one.endswith("num_batches_tracked")
    }


RESNET = "resnet18 with a fastai head and 2 labels"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda state: state.update({"4.1.conv1.weight": torch.zeros(64, 64, 1, 1)}),
            "4.1.conv1.weight: expected float32 of shape [64, 64, 3, 3], "
            f"as 0.4.1.conv1.weight has it ({RESNET}), found float32 of shape [64, 64, 1, 1]",
        ),
        (
            lambda state: [state.pop("16.weight"), state.pop("16.bias")],
            f"1.8.weight: expected float32 of shape [2, 512] ({RESNET}), "
            "found nothing more after 14.running_var",
        ),
        (
            lambda state: state.update({"17.weight": torch.zeros(1)}),
            f"17.weight: expected only the tensors of {RESNET}, found one more",
        ),
        (
            lambda state: state.update({"12.weight": torch.zeros(512, 7)}),
            "12.weight: expected float32 of shape [512, 1024], "
            f"as 1.4.weight has it ({RESNET}), found float32 of shape [512, 7]",
        ),
        (
            lambda state: state.update({"1.weight": torch.zeros(64).half()}),
            "1.weight: expected float32 of shape [64], "
            f"as 0.1.weight has it ({RESNET}), found float16 of shape [64]",
        ),
    ],
)
def test_the_first_tensor_that_differs_is_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], text: str
) -> None:
    state = old_state("resnet18")
    change(state)
    assert refusal(folder_of(tmp_path / "model", "resnet18", state)) == f"weights.pth: {text}"


def test_another_body_and_another_number_of_labels(tmp_path: Path) -> None:
    state = old_state("resnet18")
    found = refusal(folder_of(tmp_path / "model", "resnet34", state))
    assert found == (
        "weights.pth: 5.0.conv1.weight: expected float32 of shape [64, 64, 3, 3], as "
        "0.4.2.conv1.weight has it (resnet34 with a fastai head and 2 labels), "
        "found float32 of shape [128, 64, 3, 3]"
    )
    found = refusal(folder_of(tmp_path / "model", "resnet18", state, classes=3))
    assert found.startswith("weights.pth: 16.weight: expected float32 of shape [3, 512], as 1.8.w")


def test_step_counts_are_ignored_on_either_side(tmp_path: Path) -> None:
    state = OrderedDict(
        (name, tensor)
        for n, (name, tensor) in enumerate(
            new_learner("resnet18", 512, 2, cut=before_the_pool).state_dict().items()
        )
        if n % 2 or not name.endswith("num_batches_tracked")
    )
    load_model(load_spec(folder_of(tmp_path / "model", "resnet18", state)))


@pytest.mark.parametrize("name", ["vit_b_16", "googlenet", "shufflenet_v2_x0_5", "maxvit_t"])
def test_a_body_whose_cut_is_not_known_is_refused_by_name(tmp_path: Path, name: str) -> None:
    assert refusal(folder_of(tmp_path / "model", name, {"a": torch.zeros(1)})) == (
        f"model.toml: head: expected default: how fastai cuts {name} is not known here, "
        'found "fastai"'
    )


def test_a_head_without_weights_is_the_usual_one() -> None:
    module = architectures.build("resnet18", classes=4, head="fastai", state={})
    shapes = [(name, list(one.shape)) for name, one in module[1].named_parameters()]  # type: ignore[index]
    assert shapes == [
        *(("2.weight", [1024]), ("2.bias", [1024]), ("4.weight", [512, 1024]), ("4.bias", [512])),
        *(("6.weight", [512]), ("6.bias", [512]), ("8.weight", [4, 512]), ("8.bias", [4])),
    ]
