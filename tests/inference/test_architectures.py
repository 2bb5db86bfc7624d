"""architectures.py: every classifier of torchvision, and timm's, loads and answers as the plain
module does; safetensors are weights as good as any."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imagefiles import encoded, picture
from PIL import Image
from torch import nn

from swiprd.folder.spec import load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.inference import architectures, decode
from swiprd.inference.architectures import import_timm
from swiprd.inference.model import LoadedModel, load_model
from swiprd.inference.preprocess import preprocess
from swiprd.inference.skeleton import Skeleton
from swiprd.inference.state_dict import shapes
from swiprd.inference.torchvision_import import import_torchvision
from swiprd.pack.preprocessing import for_timm

pytestmark = pytest.mark.timeout(60)

torchvision = import_torchvision()
torch.set_num_threads(1)
CLASSIFIERS = torchvision.models.list_models(module=torchvision.models)
TOLERANCE = 1e-4
CLASSES = 3


@pytest.fixture(autouse=True)
def _no_weights_left_behind(tmp_path: Path) -> Iterator[None]:
    """pytest keeps three runs' folders."""
    yield
    for file in tmp_path.glob("model/weights.*"):
        file.unlink()


def random_state(wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make random weights under which signals neither die nor explode, in little memory.

    Rows of a large matrix are windows that overlap in a small one, and tensors with as many
    inputs share it: 644 million weights fit into a few megabytes, and into a file of that size.
    """
    generator = torch.Generator().manual_seed(12)
    extents: dict[int, int] = {}

    def fan_in(tensor: torch.Tensor) -> int:
        return math.prod(tensor.shape[1:])

    for tensor in wanted.values():
        if tensor.dim() > 1:
            extent = 17 * tensor.shape[0] + fan_in(tensor)
            extents[fan_in(tensor)] = max(extent, extents.get(fan_in(tensor), 0))
    pools = {
        fan: torch.randn(extent, generator=generator) * math.sqrt(1.5 / fan)
        for fan, extent in extents.items()
    }
    state = {}
    for name, tensor in wanted.items():
        if not tensor.is_floating_point():
            state[name] = torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor
        elif tensor.dim() > 1:
            inner = torch.empty(tensor.shape[1:], device="meta").stride()
            state[name] = pools[fan_in(tensor)].as_strided(tensor.shape, (17, *inner))
        elif name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
            state[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        else:
            state[name] = torch.rand(tensor.shape, generator=generator) * 0.2
    return state


def make_folder(
    folder: Path,
    architecture: str,
    state: dict[str, torch.Tensor],
    *,
    size: int = 64,
    classes: int = CLASSES,
    weights: str = "weights.pth",
    more: str = "",
) -> Path:
    folder.mkdir(exist_ok=True)
    if weights.endswith(".pth"):
        torch.save(state, folder / weights)
    else:
        importlib.import_module("safetensors.torch").save_file(state, folder / weights)
    (folder / "labels.txt").write_text("".join(f"class{i}\n" for i in range(classes)))
    (folder / "model.toml").write_text(
        f'name = "test"\narchitecture = "{architecture}"\nweights = "{weights}"\n'
        f'labels = "labels.txt"\nactivation = "softmax"\n{more}\n[preprocess]\ncrop = {size}\n'
    )
    return folder


def crops(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def plain_outputs(module: nn.Module, state: dict[str, torch.Tensor], size: int) -> torch.Tensor:
    whole = module.state_dict()  # and with it the version, which MNASNet asks for
    assert whole.keys() == state.keys()
    whole.update(state)
    module.load_state_dict(whole, strict=True, assign=True)
    with torch.inference_mode():
        # In this layout sums are made in the same order: such weights magnify any difference.
        batch = crops(size).to(memory_format=torch.channels_last)
        outputs: torch.Tensor = module.eval()(batch)
    return outputs


def check_outputs(loaded: LoadedModel, expected: torch.Tensor, size: int) -> None:
    """As probabilities, the outputs of such weights are mostly 0 and 1: compare them as such."""
    spec = replace(loaded.spec, activation="none")
    engine = replace(loaded, spec=spec)
    rows = torch.from_numpy(engine.probabilities(crops(size).unsqueeze(1).numpy()))
    assert rows.isfinite().all()
    assert (rows - expected).abs().max() < TOLERANCE * expected.abs().max()
    assert expected.std(dim=1).min() > 1e-2 * expected.abs().max(), "any weights would do"


SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}
"""Where 64 pixels are not enough, or do not fit."""


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_of_torchvision_answers(tmp_path: Path, name: str) -> None:
    size = SIZES.get(name, 64)
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, "aux_logits": True}  # as downloaded checkpoints have it
    elif name.startswith("vit_"):
        options = {"image_size": size}
    with Skeleton(meta=False):
        module = torchvision.models.get_model(name, num_classes=CLASSES, **options)
    state = random_state(module.state_dict())
    loaded = load_model(load_spec(make_folder(tmp_path / "model", name, state, size=size)))
    check_outputs(loaded, plain_outputs(module, state, size), size)


def test_fastai_s_resnext101() -> None:
    module = architectures.build("resnext101_32x4d", classes=3, state={})
    assert dict(shapes(module))["layer3.22.conv2.weight"] == (512, 16, 3, 3)


def answer(loaded: LoadedModel, jpeg: bytes) -> torch.Tensor:
    crops = decode.decode(jpeg, loaded.spec.preprocess)
    return torch.from_numpy(loaded.probabilities(crops[None]))[0]


def test_chexnet_with_and_without_its_ten_crops(tmp_path: Path) -> None:
    """DenseNet121, 14 findings at once: resize to 256, ten crops of 224, mean of the answers."""
    from torchvision import transforms

    module = torchvision.models.densenet121(num_classes=14)
    state = random_state(module.state_dict())
    module.load_state_dict(state)
    normal = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    recipe = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.TenCrop(224),
            transforms.Lambda(
                lambda ten: torch.stack([normal(transforms.ToTensor()(one)) for one in ten])
            ),
        ]
    )
    image = picture(320, 280)
    with torch.inference_mode():
        each = module.eval()(recipe(Image.open(_file(image)).convert("RGB"))).sigmoid()
    folder = make_folder(tmp_path / "model", "densenet121", state, classes=14)
    toml = (folder / "model.toml").read_text()
    toml = toml.replace("softmax", "sigmoid").replace("crop = 64", "crop = 224")
    (folder / "model.toml").write_text(f'{toml}crops = "ten"\n')
    ten = answer(load_model(load_spec(folder)), encoded(image, "PNG"))
    assert torch.allclose(ten, each.mean(dim=0), rtol=0, atol=TOLERANCE)
    (folder / "model.toml").write_text(toml)
    one = answer(load_model(load_spec(folder)), encoded(image, "PNG"))
    assert torch.allclose(one, each[4], rtol=0, atol=TOLERANCE)  # TenCrop's fifth is the centre
    assert (ten - one).abs().max() > 1e-3


def _file(image: Image.Image) -> Any:
    import io

    return io.BytesIO(encoded(image, "PNG"))


# --- safetensors ------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load_model(load_spec(folder))
    return str(caught.value).replace(f"{folder}/", "")


def owned(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """safetensors store no views."""
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def test_safetensors_are_mapped_and_answer_alike(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    module = torchvision.models.resnet18(num_classes=CLASSES)
    state = owned(random_state(module.state_dict()))
    folder = make_folder(tmp_path / "model", "resnet18", state, weights="weights.safetensors")
    loaded = load_model(load_spec(folder))
    check_outputs(loaded, plain_outputs(module, state, 64), 64)
    mapped = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(folder / "weights.safetensors"))
    ]
    for name, tensor in loaded.module.state_dict().items():
        assert any(low <= tensor.data_ptr() < high for low, high in mapped), f"{name} was copied"


def test_safetensors_that_are_damaged_or_to_be_taken_in_order(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    state = owned(random_state(torchvision.models.resnet18(num_classes=CLASSES).state_dict()))
    folder = make_folder(
        tmp_path / "model",
        "resnet18",
        state,
        weights="weights.safetensors",
        more='match = "order"',
    )
    assert refusal(folder) == (
        "model.toml: match: expected name: a safetensors file does not keep the order that the "
        'tensors had, found "order"'
    )
    file = folder / "weights.safetensors"
    for data in (file.read_bytes()[:1000], b"", b"\xff" * 100):
        file.write_bytes(data)
        found = refusal(folder)
        assert "weights.safetensors: expected a file of safetensors, found what cannot be" in found


@pytest.mark.parametrize(
    ("architecture", "weights", "text"),
    [
        (
            "resnet18",
            "weights.safetensors",
            "weights.safetensors: expected the library safetensors to be installed "
            "(pip install 'swipr[safetensors]'), found no module of that name",
        ),
        (
            "timm:resnet18",
            "weights.pth",
            "model.toml: architecture: expected timm to be installed (pip install 'swipr[timm]'), "
            "found no module named timm",
        ),
    ],
)
def test_a_library_that_is_not_installed(
    tmp_path: Path, architecture: str, weights: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "model", architecture, {"a": torch.zeros(1)})
    (folder / "weights.pth").rename(folder / weights)
    toml = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(toml.replace("weights.pth", weights))
    for name in ("safetensors", "timm"):
        monkeypatch.setitem(sys.modules, name, None)  # what the import system takes for "not there"
    assert refusal(folder) == text


# --- timm -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 96),
        ("convnext_atto", 96),
        ("efficientnet_b0.ra_in1k", 96),
        ("vit_tiny_patch16_224", 64),
        ("swin_tiny_patch4_window7_224", 224),
        ("beit_base_patch16_224", 224),
        ("levit_128s", 224),
        ("eva02_tiny_patch14_224", 224),
    ],
)
def test_timm_s_architectures_answer_as_timm_does(tmp_path: Path, name: str, size: int) -> None:
    timm = pytest.importorskip("timm")
    options = {"img_size": size} if name.startswith("vit") else {}
    module = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)
    state = random_state(module.state_dict())
    folder = make_folder(tmp_path / "model", f"timm:{name}", state, size=size)
    loaded = load_model(load_spec(folder))
    check_outputs(loaded, plain_outputs(module, state, size), size)
    assert loaded.versions["timm"] == timm.__version__


def test_timm_s_own_transform_and_ours(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    from timm.data import create_transform, resolve_data_config

    timm: Any = importlib.import_module("timm")
    module = timm.create_model("convnext_atto", pretrained=False, num_classes=CLASSES)
    state = random_state(module.state_dict())
    config = resolve_data_config({}, model=module)
    size = config["input_size"][-1]
    resize = math.floor(size / config["crop_pct"])
    folder = make_folder(tmp_path / "model", "timm:convnext_atto", state, size=size)
    with (folder / "model.toml").open("a") as toml:
        toml.write(
            f'resize = {resize}\ninterpolation = "{config["interpolation"]}"\n'
            f"mean = {list(config['mean'])}\nstd = {list(config['std'])}\n"
        )
    image = picture(400, 300)
    module.load_state_dict(state)
    with torch.inference_mode():
        batch = create_transform(**config)(image.convert("RGB")).unsqueeze(0)
        expected = module.eval()(batch).softmax(dim=1)[0]
    row = answer(load_model(load_spec(folder)), encoded(image, "PNG"))
    assert torch.allclose(row, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["convnext_atto.d2_in1k", "coat_lite_medium_384.in1k"])
def test_what_pack_writes_for_timm_is_timm_s_own_transform(name: str) -> None:
    """The second one squashes pictures to a square, as over a hundred of timm's do."""
    pytest.importorskip("timm")
    timm: Any = import_timm()
    data: Any = importlib.import_module("timm.data")
    config = data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    image = picture(400, 300).convert("RGB")
    expected = data.create_transform(**config)(image)
    found = preprocess(image, for_timm(f"timm:{name}").preprocess)[0]
    assert np.allclose(found, expected.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("timm:convnext_tinny", "timm:convnext_tiny"), ("timm:qqq", "timm:convnext_tiny")],
)
def test_a_name_that_timm_does_not_know(tmp_path: Path, name: str, expected: str) -> None:
    pytest.importorskip("timm")
    folder = make_folder(tmp_path / "model", name, {"a": torch.zeros(1)})
    assert refusal(folder) == f'model.toml: architecture: expected {expected}, found "{name}"'


def test_timm_s_sizes_and_heads(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    state = {"a": torch.zeros(1)}
    folder = make_folder(tmp_path / "model", "timm:swin_tiny_patch4_window7_224", state, size=65)
    with pytest.raises(SpecError):
        load_model(load_spec(folder))
    folder = make_folder(tmp_path / "model", "timm:resnet18", state, more='head = "fastai"')
    assert refusal(folder) == (
        'model.toml: head: expected default with timm:resnet18, found "fastai"'
    )


TIMM = """
import os, sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from swiprd.inference.architectures import import_timm
from swiprd.folder.spec import load_spec
from swiprd.inference.preprocess import preprocess
from swiprd.inference.model import load_model
before = len(os.listdir("/proc/self/task"))
loaded = load_model(load_spec(Path(sys.argv[1])))
assert len(os.listdir("/proc/self/task")) == before, "a thread was started"
if pid := os.fork():
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
else:
    torch.set_num_threads(2)
    row = loaded.probabilities(np.zeros((8, 1, 3, 96, 96), np.float32))
    os._exit(0 if row.shape == (8, 3) else 3)
print("well")
"""


def test_loading_from_timm_leaves_a_process_that_can_fork(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    module = timm.create_model("convnext_atto", num_classes=CLASSES)
    folder = make_folder(tmp_path / "model", "timm:convnext_atto", module.state_dict(), size=96)
    done = subprocess.run(
        [sys.executable, "-c", TIMM, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
