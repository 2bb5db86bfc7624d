"""`swiprd pack FOLDER`: folders of transformers and optimum answer as transformers does."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from hubfolders import (
    CONFIG,
    PHOTOS,
    PROCESSOR,
    import_transformers,
    optimum_folder,
    pipeline_rows,
    saved_folder,
    write,
)
from onnx import helper
from onnxfiles import EDGE, make_model, rows
from PIL import Image

from swiprd.__main__ import main
from swiprd.folder.spec import load_spec
from swiprd.inference.decode import decode
from swiprd.inference.onnx_model import load_onnx_file
from swiprd.inference.proof import others
from swiprd.pack import from_hugging_face
from swiprd.pack.errors import NotProven, NotWeights
from swiprd.pack.hf_processor import read_processor
from swiprd.pack.hf_request import Answers

pytestmark = pytest.mark.timeout(240)

Run = Callable[..., str]


@pytest.fixture
def pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Packs tmp_path/in to tmp_path/out; returns what it says, or complains of."""

    def run(*options: str, status: int = 0) -> str:
        made = tmp_path / "out"
        found = main(["pack", str(tmp_path / "in"), "-o", str(made), *options])
        out, err = capsys.readouterr()
        assert found == status, err
        assert made.exists() == (status == 0)
        assert list(tmp_path.glob(".out-*")) == []
        return err.removeprefix("swiprd pack: ").rstrip("\n") if status else out

    return run


def answers(folder: Path) -> list[list[float]]:
    """What a packed folder answers to the photos."""
    model = load_onnx_file(load_spec(folder))
    found = [
        model.probabilities(decode(one.read_bytes(), model.spec.preprocess)[None])[0].tolist()
        for one in PHOTOS
    ]
    model.close()
    return found


WATCH = """
import sys
def seen(event, found):
    if event in ("socket.connect", "socket.getaddrinfo", "pickle.find_class"):
        print(event, found, file=open({file!r}, "a"))
sys.addaudithook(seen)
"""


@pytest.mark.long
def test_nothing_is_fetched_unpickled_or_left_behind(
    tmp_path: Path, pack: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the environment would have it, and with a home to write to."""
    needs_transformers()
    saved_folder(tmp_path / "in", "vit")
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(
        WATCH.format(file=str(tmp_path / "seen")) + f"open({str(tmp_path / 'began')!r}, 'a')"
    )
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "watch"), *sys.path]))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    pack()
    assert (tmp_path / "began").exists()
    assert not (tmp_path / "seen").exists(), (tmp_path / "seen").read_text()
    assert not list((tmp_path / "home").rglob("*"))


def toml(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "model.toml").read_text())


def needs_transformers() -> Any:
    pytest.importorskip("transformers.utils")
    return import_transformers()


@pytest.mark.long
@pytest.mark.parametrize(
    "family",
    [
        *("vit", "resnet", "convnext", "swin", "multi-label", "deit", "mobilevit"),
    ],
)
def test_what_transformers_writes(tmp_path: Path, pack: Run, family: str) -> None:
    needs_transformers()
    saved_folder(tmp_path / "in", family)
    said = pack()
    expected = np.array(pipeline_rows(tmp_path / "in"))
    found = np.array(answers(tmp_path / "out"))
    assert np.ptp(expected, axis=0).max() > 0.1  # or else nothing is seen
    assert np.abs(found - expected).max() < 1e-4
    assert ", within " in said
    described = toml(tmp_path / "out")
    assert described["architecture"] == "onnx"
    assert described["activation"] == ("sigmoid" if family == "multi-label" else "softmax")
    assert (tmp_path / "out" / "labels.txt").read_text().split() == ["wren", "crow", "owl", "swift"]
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [
        *("labels.txt", "model.onnx", "model.toml")
    ]


@pytest.mark.long
def test_what_transformers_4_wrote_is_resized_by_pillow(tmp_path: Path, pack: Run) -> None:
    """Weights in several files, too."""
    needs_transformers()
    folder = saved_folder(tmp_path / "in", "swin", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "4.44.2"}))
    pack()
    assert toml(tmp_path / "out")["preprocess"]["interpolation"] == "bicubic"
    found = np.array(answers(tmp_path / "out"))
    assert np.abs(found - pipeline_rows(folder, backend="pil")).max() < 1e-5
    (folder / next(folder.glob("*-00001-*")).name).unlink()
    shutil.rmtree(tmp_path / "out")
    assert "is not there, and" in pack(status=66)


PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("ViT", {}),
    ("ViT", {"size": {"height": 160, "width": 160}, "resample": 3}),
    ("ViT", {"do_rescale": False}),
    ("ViT", {"do_normalize": False}),
    ("ViT", {"rescale_factor": 1 / 127.5}),
    ("ViT", {"resample": 1}),
    ("ViT", {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 91, "width": 91}}),
    ("Beit", {}),
    ("Beit", {"size": {"height": 256, "width": 256}, "do_center_crop": True}),
    ("Bit", {"size": {"shortest_edge": 257}}),
    ("CLIP", {}),
    ("ConvNext", {}),
    ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.95}),
    ("DeiT", {}),
    ("EfficientNet", {}),
    ("EfficientNet", {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ("EfficientNet", {"include_top": False, "do_center_crop": True}),
    ("Levit", {}),
    ("Levit", {"size": {"height": 230, "width": 230}}),
    ("MobileNetV1", {}),
    ("MobileNetV2", {}),
    ("MobileViT", {"size": {"shortest_edge": 288}}),
    ("MobileViT", {"size": {"shortest_edge": 288}, "do_flip_channel_order": False}),
    ("PoolFormer", {}),
    ("PoolFormer", {"size": {"height": 240, "width": 240}, "crop_pct": 0.95}),
    ("Pvt", {}),
    ("Segformer", {}),
    ("Siglip", {}),
]


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
@pytest.mark.parametrize(
    ("name", "changed"), PROCESSORS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(PROCESSORS)]
)
def test_an_image_processor_is_translated(
    tmp_path: Path, name: str, changed: dict[str, Any], backend: str
) -> None:
    """To what it makes of pictures of all shapes, to the last level: none is 1/256 off."""
    transformers = needs_transformers()
    getattr(transformers, f"{name}ImageProcessor")(**changed).save_pretrained(tmp_path)
    found = read_processor(tmp_path, "", 5 if backend == "torchvision" else 4)
    assert found.backend == backend
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    recipe = found.recipe.preprocess
    for picture in [*list(others())[:3], PHOTOS[0].read_bytes()]:
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        expected = np.asarray(theirs(images=image, return_tensors="np")["pixel_values"])[0]
        (crop,) = decode(picture, recipe)
        levels = np.abs((crop[::-1] if found.flipped else crop) - expected)
        assert (levels * 255 * np.array(recipe.std).reshape(3, 1, 1)).max() < 1e-3


@pytest.mark.parametrize(
    ("told", "backend"),
    [("ViTImageProcessor", "pil"), ("ViTImageProcessorFast", "torchvision"),
     ("ViTImageProcessorPil", "pil"), ("ViTFeatureExtractor", "pil"), (None, "pil")],
)  # fmt: skip
def test_names_of_image_processors(tmp_path: Path, told: str | None, backend: str) -> None:
    old = {"image_processor_type": None, "feature_extractor_type": told}
    new = {"image_processor_type": told}
    write(tmp_path, processor=old if told is None or told.endswith("Extractor") else new)
    assert read_processor(tmp_path, "vit", 4).backend == backend
    assert read_processor(tmp_path, "swin", 4).recipe.preprocess.resize == EDGE


@pytest.mark.parametrize("resample", [0, 4, 5])
def test_filters_that_only_pillow_has(tmp_path: Path, resample: int) -> None:
    write(tmp_path, processor={"resample": resample})
    found = read_processor(tmp_path, "vit", 5)
    assert found.backend == "pil"
    assert found.recipe.preprocess.interpolation in ("nearest", "box", "hamming")


WITHOUT = """
import sys
sys.modules |= dict.fromkeys(("torch", "torchvision", "transformers"))
from swiprd.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_what_optimum_writes_needs_neither_torch_nor_transformers(
    tmp_path: Path, place: str
) -> None:
    folder = optimum_folder(tmp_path / "in", place)
    done = without_torch("pack", str(folder), "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    recipe = load_spec(tmp_path / "out").preprocess
    crops = np.concatenate([decode(one.read_bytes(), recipe) for one in PHOTOS])
    expected = rows(crops)
    assert np.abs(np.array(answers(tmp_path / "out")) - expected).max() < 1e-5
    assert (recipe.resize, recipe.edge, recipe.crop) == (EDGE, "both", EDGE)
    assert (recipe.interpolation, recipe.exif, recipe.mean) == ("bicubic", "apply", (0.5,) * 3)


def test_a_network_that_ends_in_its_activation(tmp_path: Path, pack: Run) -> None:
    folder = optimum_folder(tmp_path / "in")
    (folder / "model.onnx").write_bytes(make_model(last="Softmax").SerializeToString())
    assert "activation   none (the file ends in Softmax" in pack()
    crops = [decode(one.read_bytes(), load_spec(tmp_path / "out").preprocess) for one in PHOTOS]
    assert np.abs(np.array(answers(tmp_path / "out")) - rows(np.concatenate(crops))).max() < 1e-5


def test_no_activation_is_applied_to_probabilities(tmp_path: Path, pack: Run) -> None:
    folder = optimum_folder(tmp_path / "in")
    network = make_model(last="Softmax")
    (folder / "model.onnx").write_bytes(network.SerializeToString())
    assert pack("--multi-label", status=64).startswith("--multi-label: the file ends in Softmax")
    network.graph.node[-1].op_type = "LogSoftmax"
    network.graph.node[-1].output[0] = "logarithms"
    network.graph.node.append(helper.make_node("Exp", ["logarithms"], ["scores"]))
    (folder / "model.onnx").write_bytes(network.SerializeToString())
    assert "activation   none (what comes out are probabilities already" in pack()
    crops = [decode(one.read_bytes(), load_spec(tmp_path / "out").preprocess) for one in PHOTOS]
    assert np.abs(np.array(answers(tmp_path / "out")) - rows(np.concatenate(crops))).max() < 1e-5
    shutil.rmtree(tmp_path / "out")
    network.graph.node[-2].op_type = "Sigmoid"
    network.graph.node[-1].op_type = "Clip"
    network.graph.node[-1].input.extend(["", ""])
    (folder / "model.onnx").write_bytes(network.SerializeToString())
    assert pack(status=64).startswith("--activation: are these probabilities already?")


def test_the_command_line_wins(tmp_path: Path, pack: Run) -> None:
    optimum_folder(tmp_path / "in")
    more = ("--labels", "a,b,c,d", "--multi-label", "--interpolation", "box")
    assert "Pillow's form; interpolation as told)" in pack(*more)
    described = toml(tmp_path / "out")
    assert described["activation"] == "sigmoid"
    assert described["preprocess"]["interpolation"] == "box"
    assert (tmp_path / "out" / "labels.txt").read_text() == "a\nb\nc\nd\n"


def test_labels_that_nobody_gave_and_labels_that_are_there_twice(tmp_path: Path, pack: Run) -> None:
    write(optimum_folder(tmp_path / "in"), {"id2label": None, "num_labels": 4})
    assert "calls the outputs LABEL_0, …: --labels gives them names" in pack()
    shutil.rmtree(tmp_path / "out")
    names = {"0": "crane", "1": "a  b", "2": "crane", "3": "d"}
    write(tmp_path / "in", {"id2label": names})
    assert "crane (2)" in pack()
    assert (tmp_path / "out" / "labels.txt").read_text() == "crane\na b\ncrane (2)\nd\n"


CONFIGS: list[tuple[dict[str, Any], str]] = [
    (
        {"architectures": ["BertForSequenceClassification"]},
        "architectures: expected the class of an image classifier, such as"
        ' ViTForImageClassification, found "BertForSequenceClassification"',
    ),
    (
        {"architectures": ["DetrForObjectDetection"]},
        "architectures: expected the class of an image classifier, such as"
        ' ViTForImageClassification, found "DetrForObjectDetection"',
    ),
    (
        {"architectures": ["ViTModel"]},
        "architectures: expected the class of an image classifier, such as"
        " ViTForImageClassification; an encoder has no outputs to name, and needs to be trained"
        ' with a head, found "ViTModel"',
    ),
    ({"architectures": None}, "architectures: expected a list of the class of"),
    ({"architectures": [["x"]]}, "architectures: expected a list of the class of"),
    ({"architectures": ["os;ForImageClassification"]}, "architectures: expected the class of"),
    (
        {"architectures": ["TimmWrapperForImageClassification"]},
        "architectures: expected a network of transformers' own; of timm's, pack",
    ),
    ({"architecture": "resnet18"}, "of timm, not of transformers: pack its weights instead:"),
    ({"quantization_config": {"bits": 4}}, "quantization_config: expected none: save the float32"),
    ({"problem_type": "regression"}, "problem_type: expected single_label_classification or"),
    ({"id2label": {"0": "a", "2": "b"}}, "id2label.1: expected the outputs' numbers"),
    ({"id2label": {"0": "a", "1": 5}}, "id2label.1: expected the outputs' numbers"),
    ({"id2label": ["a"]}, "id2label: expected the outputs' numbers"),
    ({"id2label": {"0": "a", "1": " "}}, "id2label.1: expected a name that can be printed"),
    ({"num_labels": True, "id2label": None}, "num_labels: expected a whole number from 1 to"),
]


@pytest.mark.parametrize(("changed", "said"), CONFIGS)
def test_what_a_config_may_not_say(
    tmp_path: Path, pack: Run, changed: dict[str, Any], said: str
) -> None:
    write(optimum_folder(tmp_path / "in"), config=changed)
    assert pack(status=65).startswith(f"{tmp_path}/in/config.json: {said}")


PREPARATIONS: list[tuple[dict[str, Any], str]] = [
    ({"image_processor_type": "DonutImageProcessor"}, "image_processor_type: expected an image"),
    ({"size": {"height": 32, "width": 48}}, "size: expected height and width alike"),
    ({"size": {"shortest_edge": 32}}, "size: expected height and width, or do_center_crop"),
    ({"size": {"longest_edge": 32}}, "size: expected shortest_edge, or height and width"),
    ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "size: expected shortest_edge, or"),
    ({"size": "32"}, "size: expected shortest_edge, or height and width"),
    ({"size": 0}, "size: expected shortest_edge, or height and width, in pixels, from 1 to 4096"),
    ({"do_resize": False}, "do_resize: expected true: without a crop pictures differ in size"),
    ({"do_resize": "no"}, "do_resize: expected true or false"),
    ({"do_center_crop": True, "crop_size": 40}, "crop_size: expected no more than the 32 pixels"),
    ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "crop_size: expected height and"),
    ({"do_pad": True}, "do_pad: expected false, a step that swipr does not take, found true"),
    ({"crop_pct": 0.9}, "crop_pct: expected none, which ViTImageProcessor has not, found 0.9"),
    ({"resample": 9}, "resample: expected a whole number from 0 to 5, found 9"),
    ({"rescale_factor": 0}, "rescale_factor: expected a number near 1/255"),
    ({"image_mean": [0.5, 0.5]}, "image_mean: expected 3 finite numbers"),
    ({"image_std": [0.5, 0, 0.5]}, "image_std: expected 3 numbers above 0"),
    (
        {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.01},
        "size: expected shortest_edge",
    ),
    (
        {"image_processor_type": "PoolFormerImageProcessor", "crop_pct": 3},
        "crop_pct: expected a number from 0.1 to 1, found 3",
    ),
]


@pytest.mark.parametrize(("changed", "said"), PREPARATIONS)
def test_what_a_preparation_may_not_say(
    tmp_path: Path, pack: Run, changed: dict[str, Any], said: str
) -> None:
    write(optimum_folder(tmp_path / "in"), processor=changed)
    assert pack(status=65).startswith(f"{tmp_path}/in/preprocessor_config.json: {said}")


def test_numbers_that_stand_for_more(tmp_path: Path) -> None:
    """As older versions wrote them."""
    write(tmp_path, processor={"size": 20, "image_mean": 0.25, "image_std": 1, "resample": None})
    recipe = read_processor(tmp_path, "", 0).recipe.preprocess
    assert (recipe.resize, recipe.edge, recipe.crop) == (20, "both", 20)
    assert (recipe.mean, recipe.std) == ((0.25,) * 3, (1.0,) * 3)
    assert recipe.interpolation == "bilinear"


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def _no_network(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def _pickle(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "pytorch_model.bin")


def _adapter(folder: Path) -> None:
    _no_network(folder)
    (folder / "adapter_config.json").write_text("{}")


def _no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{'a': 1}")


def _deep(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 200_000)


def _list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def _pipe(folder: Path) -> None:
    _no_processor(folder)
    os.mkfifo(folder / "preprocessor_config.json")


def _huge(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(33 << 20)


def _shards(folder: Path) -> None:
    _no_network(folder)
    text = json.dumps({"weight_map": {"a": "../model.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(text)


def _fewer_labels(folder: Path) -> None:
    write(folder, {"id2label": {"0": "a", "1": "b"}})


def _flipped(folder: Path) -> None:
    named = {"image_processor_type": "MobileViTImageProcessor", "do_center_crop": False}
    write(folder, processor=named)


FOLDERS: list[tuple[Callable[[Path], None], int, str]] = [
    (_no_config, 66, "config.json: is not there: every folder of transformers has one"),
    (_no_processor, 66, "preprocessor_config.json: is not there: how are pictures prepared?"),
    (_no_network, 65, "has no network: none of model.onnx, onnx/model.onnx, model.safetensors"),
    (_pickle, 65, "pytorch_model.bin: is not read: save it as safetensors"),
    (_adapter, 65, "adapter_config.json: an adapter, to be put on a network that lies elsewhere"),
    (_no_json, 65, "config.json: no JSON: "),
    (_deep, 65, "config.json: no JSON: "),
    (_list, 65, "config.json: holds no JSON object, but a list"),
    (_pipe, 66, "preprocessor_config.json: cannot be read: no regular file"),
    (_huge, 66, "config.json: cannot be read: more than 33554432 bytes"),
    (_shards, 65, 'model.safetensors.index.json: names "../model.safetensors", no safetensors'),
    (_fewer_labels, 65, "model.onnx: gives 4 outputs, and config.json names 2"),
    (_flipped, 65, "preprocessor_config.json: do_flip_channel_order: the network takes blue"),
]


@pytest.mark.parametrize(("change", "status", "said"), FOLDERS)
def test_what_a_folder_lacks(
    tmp_path: Path, pack: Run, change: Callable[[Path], None], status: int, said: str
) -> None:
    change(optimum_folder(tmp_path / "in"))
    assert said in pack(status=status)


def test_pictures_of_another_size_than_the_network_takes(tmp_path: Path, pack: Run) -> None:
    write(optimum_folder(tmp_path / "in"), processor={"size": 40})
    found = pack(status=65)
    assert f"model.onnx: takes pictures of {EDGE} pixels only" in found
    assert "preprocessor_config.json makes 40" in found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--architecture", "resnet18"), "--architecture resnet18: config.json says it"),
        (("--engine", "torch"), "--engine torch: what is made is an ONNX file"),
        (("--key", "x"), "--key x: a Hugging Face folder has one network"),
        (("--labels", "imagenet"), "--labels imagenet: config.json names the outputs"),
        (("--labels", "a,b"), "--labels: 2 labels (--labels), where config.json has 4"),
    ],
)
def test_options_that_do_not_go_with_it(
    tmp_path: Path, pack: Run, options: tuple[str, ...], said: str
) -> None:
    optimum_folder(tmp_path / "in")
    assert pack(*options, status=64).startswith(said)


def test_weights_need_transformers(tmp_path: Path) -> None:
    folder = optimum_folder(tmp_path / "in")
    (folder / "model.onnx").rename(folder / "model.safetensors")
    done = without_torch("pack", str(folder), "-o", str(tmp_path / "out"))
    assert done.returncode == 65
    assert "pip install 'swipr[transformers]'" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_weights_without_a_head_and_code_of_the_folders_own(tmp_path: Path, pack: Run) -> None:
    transformers = needs_transformers()
    folder = saved_folder(tmp_path / "in", "vit")
    config = json.loads((folder / "config.json").read_text())
    encoder = transformers.ViTForImageClassification.from_pretrained(folder).vit
    encoder.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    assert "the weights lack classifier.bias, one of 2" in pack(status=65)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    own = {"AutoModelForImageClassification": "own.Own", "AutoConfig": "own.Own"}
    named = {"architectures": ["OwnForImageClassification"], "auto_map": own, "model_type": "own"}
    (folder / "config.json").write_text(json.dumps(config | named))
    assert "has no image classifier OwnForImageClassification, and code of" in pack(status=65)
    assert not (tmp_path / "ran").exists()
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own}))
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    assert "transformers does not load it" in pack(status=65)
    assert not (tmp_path / "ran").exists()


def test_an_export_that_answers_otherwise(tmp_path: Path, pack: Run) -> None:
    optimum_folder(tmp_path / "in")
    pack()
    spec = load_spec(tmp_path / "out")
    model = load_onnx_file(spec)
    found = [model.probabilities(decode(one, spec.preprocess)[None])[0] for one in others()]
    model.close()
    told = Answers(rows=np.array(found, np.float64), versions={})
    folder = Path("there")
    assert from_hugging_face.difference(tmp_path / "out", folder, told) < 1e-6
    told.rows[7, 2] += 2e-5
    with pytest.raises(NotProven, match=r"^there: the export differs from transformers by 2"):
        from_hugging_face.difference(tmp_path / "out", folder, told)
    told.rows[7, 2] = np.nan
    with pytest.raises(NotProven, match="differs from transformers by nan"):
        from_hugging_face.difference(tmp_path / "out", folder, told)


def stand_in(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the export, which is a process of its own, import this as transformers."""
    (folder / "first").mkdir()
    (folder / "first" / "transformers.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "first"), *sys.path]))
    network = optimum_folder(folder / "in") / "model.onnx"
    network.rename(network.with_name("model.safetensors"))


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_an_export_without_end_is_given_up(
    tmp_path: Path, pack: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, "import threading; threading.Event().wait()", monkeypatch)
    monkeypatch.setattr(from_hugging_face, "_PATIENCE", 4.0)
    said = "exporting it takes more than 4 s: is the network that config.json describes the one of"
    assert pack(status=65).startswith(f"{tmp_path}/in: {said}")


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("bytearray(1 << 60)", "exporting it takes more memory than there is"),
        (
            "import os, resource\n"
            "limit = resource.getrlimit(resource.RLIMIT_DATA)[1]\n"
            "there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')\n"
            "score = int(open('/proc/self/oom_score_adj').read())\n"
            "raise ImportError(f'{0 < limit < 2 * there} {score > 0}')",
            "transformers cannot be imported: True True",
        ),
    ],
)
def test_an_export_is_bounded_in_memory(
    tmp_path: Path, pack: Run, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    stand_in(tmp_path, code, monkeypatch)
    assert pack(status=65) == f"{tmp_path}/in: {said}"


@pytest.mark.long
def test_a_preparation_that_is_another_in_transformers(tmp_path: Path) -> None:
    """Whatever the translation says: the folder's own image processor is asked, too."""
    needs_transformers()
    from swiprd.pack.hf_export import CannotExport, export
    from swiprd.pack.hf_request import Request

    folder = saved_folder(tmp_path / "in", "vit")
    found = read_processor(folder, "vit", 5)
    request = Request(
        architecture=CONFIG["architectures"][0],
        labels=4,
        activation="softmax",
        preprocess=found.recipe.preprocess,
        flipped=False,
        backend="pil",
    )
    assert Request.from_json(request.to_json()) == request
    with pytest.raises(CannotExport, match=r"differs by [12](\.00)? of 256 levels"):
        export(folder, tmp_path, request)


def test_a_packed_folder_is_no_hugging_face_folder(tmp_path: Path, pack: Run) -> None:
    write(optimum_folder(tmp_path / "in"), processor=PROCESSOR)
    pack()
    (tmp_path / "in" / "model.toml").write_text("")
    shutil.rmtree(tmp_path / "out")
    assert "a folder that is packed already" in pack(status=66)
    with pytest.raises(NotWeights):
        read_processor_of_nothing(tmp_path)


def read_processor_of_nothing(folder: Path) -> None:
    write(folder, processor={"image_processor_type": None})
    read_processor(folder, "nothing", 5)
