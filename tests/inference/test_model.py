"""model.py: the plain torchvision recipe's answers, from weights that stay mapped."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imagefiles import encoded, picture
from PIL import Image

from swiprd.folder.spec import ModelSpec, Preprocess, load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.inference import architectures, decode, model, preprocess
from swiprd.inference.model import LoadedModel, load_model
from swiprd.inference.torchvision_import import import_torchvision

pytestmark = pytest.mark.timeout(60)

torchvision = import_torchvision()
torch.set_num_threads(1)  # two on a busy host wait for each other
LABELS = ("sharp", "blurred", "neither")
JPEG = encoded(picture(320, 240), "JPEG", quality=92)
TOLERANCE = 1e-4  # what swipr promises on a probability


@pytest.fixture(autouse=True)
def _no_weights_left_behind(tmp_path: Path) -> Iterator[None]:
    """pytest keeps three runs' folders, and these would be gigabytes."""
    yield
    (tmp_path / "model" / "weights.pth").unlink(missing_ok=True)


def make_folder(
    folder: Path,
    architecture: str = "resnet18",
    activation: str = "softmax",
    state: Any = None,
    preprocess: str = "",
    **options: Any,
) -> torch.nn.Module:
    """Write a model folder with seeded random weights; return the module they were taken from."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(7)
    module: torch.nn.Module = torchvision.models.get_model(
        architecture, weights=None, num_classes=len(LABELS), **options
    )
    with torch.no_grad():
        for name, tensor in module.named_buffers():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    torch.save(module.state_dict() if state is None else state, folder / "weights.pth")
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    (folder / "model.toml").write_text(
        f"""
name = "test"
architecture = "{architecture}"
weights = "weights.pth"
labels = "labels.txt"
activation = "{activation}"
[preprocess]
{preprocess}
"""
    )
    return module.eval()


def by_hand(module: torch.nn.Module, crops: str = "center", size: int = 224) -> torch.Tensor:
    """Return the module's outputs by the recipe that everybody writes: [crops, labels]."""
    from torchvision import transforms

    cut = {
        "center": transforms.CenterCrop,
        "five": transforms.FiveCrop,
        "ten": transforms.TenCrop,
    }[crops](size)
    normal = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with Image.open(io.BytesIO(JPEG)) as image:
        cropped = cut(transforms.Resize(256)(image.convert("RGB")))
    every = cropped if isinstance(cropped, tuple) else [cropped]
    with torch.no_grad():
        batch = torch.stack([normal(transforms.ToTensor()(one)) for one in every])
        outputs: torch.Tensor = module(batch)
    return outputs


def answer(loaded: LoadedModel) -> torch.Tensor:
    """Answer the test's picture through decode.py and model.py: [labels]."""
    crops = decode.decode(JPEG, loaded.spec.preprocess)
    return torch.from_numpy(loaded.probabilities(crops[None]))[0]


@pytest.mark.parametrize(
    "architecture", ["resnet18", "resnext50_32x4d", "mobilenet_v3_small", "densenet121", "vgg16"]
)
def test_probabilities_equal_those_of_the_plain_recipe(tmp_path: Path, architecture: str) -> None:
    module = make_folder(tmp_path / "model", architecture)
    # Random weights may answer nearly the same for every label: spread the answers first.
    head = [one for one in module.modules() if isinstance(one, torch.nn.Linear)][-1]
    head.weight.data /= by_hand(module).std()
    torch.save(module.state_dict(), tmp_path / "model" / "weights.pth")
    loaded = load_model(load_spec(tmp_path / "model"))
    row = answer(loaded)
    assert (row.shape, row.dtype) == ((3,), torch.float32)
    assert torch.allclose(row, by_hand(module)[0].softmax(dim=0), rtol=0, atol=TOLERANCE)
    assert row.std() > 0.01  # else any weights would have done


@pytest.mark.parametrize(
    ("architecture", "options", "size"),
    [
        ("inception_v3", {"aux_logits": True, "init_weights": False}, 299),
        ("googlenet", {"aux_logits": False, "init_weights": False}, 224),
        ("vit_b_32", {"image_size": 128}, 128),
        ("swin_v2_t", {}, 224),
        ("regnet_x_400mf", {}, 224),
        ("convnext_tiny", {}, 224),
    ],
)
def test_architectures_with_a_constructor_of_their_own(
    tmp_path: Path, architecture: str, options: dict[str, Any], size: int
) -> None:
    module = make_folder(
        tmp_path / "model", architecture, "none", preprocess=f"crop = {size}", **options
    )
    row = answer(load_model(load_spec(tmp_path / "model")))
    assert torch.allclose(row, by_hand(module, size=size)[0], rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("resnet") / "model"
    module = make_folder(folder)
    return load_model(load_spec(folder)), module


def changed(loaded: LoadedModel, activation: Any = None, **preprocess: Any) -> LoadedModel:
    spec = replace(
        loaded.spec,
        activation=activation or loaded.spec.activation,
        preprocess=replace(loaded.spec.preprocess, **preprocess),
    )
    return replace(loaded, spec=spec)


@pytest.mark.parametrize("crops", ["center", "five", "ten"])
@pytest.mark.parametrize(
    ("activation", "apply"),
    [
        ("softmax", lambda outputs: outputs.softmax(dim=-1)),
        ("sigmoid", torch.sigmoid),
        ("none", lambda outputs: outputs),
    ],
)
def test_activation_and_pooling(
    resnet: tuple[LoadedModel, torch.nn.Module],
    crops: str,
    activation: str,
    apply: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    loaded, module = resnet
    outputs = by_hand(module, crops)
    mean = answer(changed(loaded, activation, crops=crops))
    logits = answer(changed(loaded, activation, crops=crops, pool="logits"))
    joined = answer(changed(loaded, activation, crops=crops, pool="logsumexp"))
    assert torch.allclose(mean, apply(outputs).mean(dim=0), rtol=0, atol=TOLERANCE)
    assert torch.allclose(logits, apply(outputs.mean(dim=0)), rtol=0, atol=TOLERANCE)
    by_weight = outputs.exp().mean(dim=0).log()
    assert torch.allclose(joined, apply(by_weight), rtol=0, atol=TOLERANCE)


def test_log_softmax_undoes_the_logarithm(resnet: tuple[LoadedModel, torch.nn.Module]) -> None:
    loaded, module = resnet
    ending = torch.nn.Sequential(loaded.module, torch.nn.LogSoftmax(dim=1))
    expected = torch.nn.Sequential(module, torch.nn.LogSoftmax(dim=1))
    row = answer(changed(replace(loaded, module=ending), "log_softmax"))
    assert torch.allclose(row, by_hand(expected)[0].exp(), rtol=0, atol=TOLERANCE)
    without = answer(changed(loaded, "log_softmax"))
    assert torch.allclose(without, by_hand(module)[0].softmax(dim=0), rtol=0, atol=TOLERANCE)


def test_a_batch_answers_as_its_pictures_do_alone(
    resnet: tuple[LoadedModel, torch.nn.Module],
) -> None:
    loaded = changed(resnet[0], crops="grid", grid=(2, 3), crop=96, edge="long", pool="logits")
    crops = np.stack(
        [
            preprocess.preprocess(picture(90 * n, 200, seed=n), loaded.spec.preprocess)
            for n in (1, 2, 3)
        ]
    )
    assert crops.shape == (3, 6, 3, 96, 96)
    together = loaded.probabilities(crops)
    alone = np.concatenate([loaded.probabilities(one[None]) for one in crops])
    assert (together.shape, together.dtype) == ((3, 3), np.float32)
    assert np.allclose(together, alone, rtol=0, atol=TOLERANCE)


def test_what_a_loaded_model_says_of_itself(resnet: tuple[LoadedModel, torch.nn.Module]) -> None:
    loaded, _ = resnet
    assert loaded.labels == LABELS
    assert loaded.model_id.startswith("test@")
    assert set(loaded.versions) == {"torch", "torchvision", "pillow", "numpy", "python"}
    assert loaded.versions["torch"] == torch.__version__
    assert not loaded.module.training
    assert not any(one.requires_grad for one in loaded.module.parameters())
    assert loaded.to_device("cpu") is loaded
    assert (loaded.name, loaded.device) == ("torch", "cpu")


def test_threads_are_torch_s(resnet: tuple[LoadedModel, torch.nn.Module]) -> None:
    resnet[0].set_threads(2)
    try:
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_doubles_that_a_module_answers_become_floats(
    resnet: tuple[LoadedModel, torch.nn.Module],
) -> None:
    class Double(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return batch.double().mean(dim=(2, 3))

    loaded = replace(resnet[0], module=Double())
    rows = loaded.probabilities(np.ones((1, 1, 3, 64, 64), np.float32))
    assert (rows.shape, rows.dtype) == ((1, 3), np.float32)


def test_imagenet_labels_come_from_torchvision(tmp_path: Path) -> None:
    state = torchvision.models.squeezenet1_1(num_classes=1000).state_dict()
    make_folder(tmp_path / "model", "squeezenet1_1", state=state)
    loaded = load_model(replace(load_spec(tmp_path / "model"), labels="imagenet"))
    assert len(loaded.labels) == 1000
    assert loaded.labels[:2] == ("tench", "goldfish")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has CUDA")
def test_devices_without_cuda() -> None:
    assert model.pick_device("auto") == model.pick_device("cpu") == "cpu"
    with pytest.raises(RuntimeError, match="torch finds no device"):
        model.pick_device("cuda")


# --- refusals ---------------------------------------------------------------------------------


def refusal(folder: Path, spec: ModelSpec | None = None) -> str:
    """Return the error's text without the folder in front."""
    with pytest.raises(SpecError) as caught:
        load_model(spec or load_spec(folder))
    return str(caught.value).replace(str(folder), "").removeprefix("/")


def resaved(folder: Path, change: Callable[[dict[str, Any]], Any], **options: Any) -> str:
    """Change the state of a fresh folder; return how it is refused."""
    module = make_folder(folder)
    state = dict(module.state_dict())
    other = change(state)
    torch.save(state if other is None else other, folder / "weights.pth", **options)
    return refusal(folder)


STATE_DICT = "a state_dict written by torch.save(module.state_dict(), file)"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda state: state.update({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}),
            "layer1.0.conv1.weight: expected float32 of shape [64, 64, 3, 3] "
            "(resnet18 with 3 labels), found float32 of shape [64, 64, 1, 1]",
        ),
        (
            lambda state: state.update({"fc.weight": torch.zeros(1000, 512)}),
            "fc.weight: expected float32 of shape [3, 512] (resnet18 with 3 labels), "
            "found float32 of shape [1000, 512]",
        ),
        (
            lambda state: state.update({"bn1.weight": torch.zeros(64, dtype=torch.float16)}),
            "bn1.weight: expected float32 of shape [64] (resnet18 with 3 labels), "
            "found float16 of shape [64]",
        ),
        (
            lambda state: state.update({"bn1.weight": torch.zeros(64).to_sparse()}),
            f"expected {STATE_DICT}, tensors only, found a pickle that asks for sparse tensors",
        ),
        (
            lambda state: state.__delitem__("fc.bias"),
            "fc.bias: expected float32 of shape [3] (resnet18 with 3 labels), found nothing",
        ),
        (
            lambda state: {f"module.{name}": value for name, value in state.items()},
            "conv1.weight: expected float32 of shape [64, 3, 7, 7] (resnet18 with 3 labels), "
            "found nothing, but module.conv1.weight",
        ),
        (
            lambda state: state.update({"fc.extra": torch.zeros(1)}),
            "fc.extra: expected only the tensors of resnet18 with 3 labels, found one more",
        ),
        (
            lambda state: {"epoch": 3, "state_dict": state},
            "epoch: expected a tensor, found int (is this a checkpoint around the state_dict?)",
        ),
        (lambda _: torch.zeros(3), f"expected {STATE_DICT}, found Tensor"),
    ],
)
def test_weights_of_another_shape(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], text: str
) -> None:
    found = resaved(tmp_path / "model", change)
    assert found.removeprefix("weights.pth: ") == text


def test_a_tensor_without_values_is_refused(tmp_path: Path) -> None:
    empty = torch.empty(3, device="meta")
    text = resaved(tmp_path / "model", lambda state: state.update({"fc.bias": empty}))
    asked = "a pickle that asks for tensors without values, of the meta device"
    assert text == f"weights.pth: expected {STATE_DICT}, tensors only, found {asked}"


def test_checkpoints_without_step_counts_are_taken(tmp_path: Path) -> None:
    module = make_folder(tmp_path / "model")
    state = {k: v for k, v in module.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "model" / "weights.pth")
    row = answer(load_model(load_spec(tmp_path / "model")))
    assert torch.allclose(row, by_hand(module)[0].softmax(dim=0), rtol=0, atol=TOLERANCE)


class _Writes:
    """What a malicious checkpoint holds: unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._file}",)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    written = tmp_path / "written"
    text = resaved(tmp_path / "model", lambda state: state.update({"fc.bias": _Writes(written)}))
    assert text == (
        f"weights.pth: expected {STATE_DICT}, tensors only, "
        "found a pickle that asks for posix.system"
    )
    assert not written.exists()
    (tmp_path / "model" / "weights.pth").write_bytes(pickle.dumps(_Writes(written)))
    assert "found the legacy format" in refusal(tmp_path / "model")
    assert not written.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    module = make_folder(tmp_path / "model")
    torch.save(module, tmp_path / "model" / "weights.pth")
    assert "found a pickle that asks for torchvision.models.resnet.ResNet" in refusal(
        tmp_path / "model"
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "model")
    scripted: Any = torch.jit
    scripted.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "model/weights.pth")
    assert "TorchScript" in refusal(tmp_path / "model")


def test_the_legacy_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    text = resaved(tmp_path / "model", lambda _: None, _use_new_zipfile_serialization=False)
    assert text == (
        "weights.pth: expected the zip format, which can be mapped, found the legacy format; "
        "re-save it: torch.save(torch.load(file, weights_only=True), file)"
    )
    file = tmp_path / "model" / "weights.pth"
    torch.save(torch.load(file, weights_only=True), file)
    load_model(load_spec(tmp_path / "model"))


def test_damaged_files(tmp_path: Path) -> None:
    make_folder(tmp_path / "model")
    file = tmp_path / "model" / "weights.pth"
    data = file.read_bytes()
    for part in (data[: len(data) // 2], data[:100], data[:-1]):
        file.write_bytes(part)
        assert refusal(tmp_path / "model") == (
            "weights.pth: expected a whole file, found a truncated or damaged one"
        )
    for other in (b"", b"PK", b"hello, world", b"\x00" * 100):
        file.write_bytes(other)
        assert refusal(tmp_path / "model").endswith("found another kind of file")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/readme", "not weights")
    assert f"expected {STATE_DICT}, found what cannot be read: " in refusal(tmp_path / "model")


@pytest.mark.parametrize("part", ["", "data.pkl", "version"])
def test_a_compressed_archive_is_refused(tmp_path: Path, part: str) -> None:
    """Tensors are mapped as they lie there; the rest could unfold to a thousand times its size."""
    make_folder(tmp_path / "model")
    file = tmp_path / "model" / "weights.pth"
    with zipfile.ZipFile(file) as archive:
        records = {one: archive.read(one) for one in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, record in records.items():
            how = zipfile.ZIP_DEFLATED if part in name else zipfile.ZIP_STORED
            archive.writestr(name, record, how)
    found = refusal(tmp_path / "model")
    assert "weights.pth: expected an archive with nothing compressed in it" in found
    assert found.endswith(
        "compressed; re-save it: torch.save(torch.load(file, weights_only=True), file)"
    )


def test_nothing_is_said_of_the_pickles_protocol(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    module = make_folder(tmp_path / "model")
    torch.save(module.state_dict(), tmp_path / "model" / "weights.pth", pickle_protocol=3)
    load_model(load_spec(tmp_path / "model"))
    assert not [one for one in recwarn if "protocol" in str(one.message)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet81", "resnet18"),
        ("DenseNet121", "densenet121"),
        ("fcn_resnet50x", "resnet50"),
        ("quantized_resnet18", "resnet18"),
        ("qqq", "a torchvision classifier, such as resnet50"),
    ],
)
def test_an_unknown_architecture(tmp_path: Path, name: str, expected: str) -> None:
    make_folder(tmp_path / "model")
    spec = replace(load_spec(tmp_path / "model"), architecture=name)
    found = refusal(tmp_path / "model", spec)
    if expected == "resnet50":  # the nearest may change with torchvision's list
        assert found.startswith("model.toml: architecture: expected ")
    else:
        assert found == f'model.toml: architecture: expected {expected}, found "{name}"'


def test_detection_models_are_not_classifiers(tmp_path: Path) -> None:
    make_folder(tmp_path / "model")
    spec = replace(load_spec(tmp_path / "model"), architecture="fasterrcnn_resnet50_fpn")
    assert refusal(tmp_path / "model", spec).startswith("model.toml: architecture: expected")


def test_a_crop_that_the_architecture_cannot_take(tmp_path: Path) -> None:
    make_folder(tmp_path / "model", "vit_b_32")
    spec = replace(load_spec(tmp_path / "model"), preprocess=Preprocess(crop=100))
    assert refusal(tmp_path / "model", spec).startswith(
        "model.toml: preprocess.crop: expected a size that vit_b_32 takes, found 100 ("
    )


# --- what a forkserver needs ------------------------------------------------------------------

LOAD = """
import os, sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from swiprd.inference import decode
from swiprd.folder.spec import load_spec
from swiprd.inference.model import load_model
folder = Path(sys.argv[1])
before = len(os.listdir("/proc/self/task"))
loaded = load_model(load_spec(folder))
assert len(os.listdir("/proc/self/task")) == before, "a thread was started"
lines = Path("/proc/self/maps").read_text().splitlines()
mapped = [line for line in lines if line.endswith(str(folder / "weights.pth"))]
assert mapped, "the weights are not mapped"
spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in mapped]
for name, tensor in loaded.module.state_dict().items():
    inside = any(low <= tensor.data_ptr() < high for low, high in spans)
    assert inside, f"{name} was copied"
if pid := os.fork():
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    modules = set(sys.modules)
    assert "torch._dynamo" not in modules, "the compiler was imported"
else:
    torch.set_num_threads(2)
    modules = set(sys.modules)
    size = loaded.spec.preprocess.crop
    row = loaded.probabilities(np.zeros((2, 1, 3, size, size), np.float32))
    new = set(sys.modules) - modules
    os._exit(0 if row.shape == (2, 3) and not new else print(new, file=sys.stderr) or 3)
print("well")
"""


@pytest.mark.parametrize(
    "architecture", ["resnet18", "shufflenet_v2_x0_5", "swin_v2_t", "regnet_x_400mf"]
)
def test_loading_maps_the_weights_and_leaves_a_process_that_can_fork(
    tmp_path: Path, architecture: str
) -> None:
    make_folder(tmp_path / "model", architecture)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "model")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr


def test_every_classifier_can_be_built_without_memory() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    assert len(names) >= 80
    for name in names:
        module = architectures.build(name, classes=3, state={})
        real = [one for one in module.state_dict().values() if not one.is_meta]
        assert sum(one.numel() * one.element_size() for one in real) < 8 << 20, name


def test_torchvision_is_imported_without_the_compiler_and_still_works() -> None:
    script = """
import sys
from swiprd.inference.torchvision_import import import_torchvision
torchvision = import_torchvision()
assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
assert torchvision is import_torchvision()
import torchvision.ops, torchvision.transforms.v2, torch
boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0, 4.0]])
from torchvision.ops import roi_align
assert callable(roi_align)
sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
import torch._dynamo
assert torch._dynamo.__file__
print("well")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
