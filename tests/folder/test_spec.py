"""spec.py: what a model.toml means, and the sentence for every way to get it wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from swiprd.folder.model_id import digest_weights, identify
from swiprd.folder.spec import (
    IMAGENET_MEAN,
    Canary,
    ModelSpec,
    Preprocess,
    Serve,
    load_spec,
)
from swiprd.folder.toml_table import MOST, SpecError

pytestmark = pytest.mark.timeout(60)

PLAIN = """\
name = "chexnet"
architecture = "densenet121"
weights = "weights.pth"
labels = "labels.txt"
activation = "sigmoid"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.toml").write_text(PLAIN)
    (tmp_path / "weights.pth").write_bytes(b"weights")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "canary.jpg").write_bytes(b"canary")
    return tmp_path


def write(folder: Path, text: str) -> None:
    (folder / "model.toml").write_text(text)


def refusal(folder: Path) -> str:
    """Return the error's text, with the folder cut off its beginning."""
    with pytest.raises(SpecError) as caught:
        load_spec(folder)
    text = str(caught.value)
    assert text.startswith(f"{folder}/")
    return text.replace(str(folder), "").removeprefix("/")


def test_a_plain_file_has_torchvisions_recipe(folder: Path) -> None:
    assert load_spec(folder) == ModelSpec(
        folder=folder,
        name="chexnet",
        architecture="densenet121",
        weights=folder / "weights.pth",
        sha256=None,
        labels=("cat", "dog"),
        activation="sigmoid",
        preprocess=Preprocess(),
        serve=Serve(),
        canary=None,
    )
    assert Preprocess() == Preprocess(
        resize=256, crop=224, crops="center", interpolation="bilinear", mean=IMAGENET_MEAN
    )
    assert Preprocess().crop_count == 1


def test_every_key_can_be_set(folder: Path) -> None:
    write(
        folder,
        PLAIN
        + f'sha256 = "{"0f" * 32}"\nhead = "fastai"\nmatch = "order"\nthresholds = [0.25, 1]\n'
        + """
[preprocess]
resize = 1024
edge = "long"
enlarge = false
crop = 160
crops = "grid"
middle = "up"
grid = [3, 4]
pool = "logits"
interpolation = "lanczos"
exif = "apply"
draft = true
mean = [0, 0.5, 1]
std = [1, 0.5, 0.25]

[serve]
workers = 2
threads = 1
batch = 8

[canary]
image = "canary.jpg"
probabilities = [0.25, 1]
""",
    )
    spec = load_spec(folder)
    assert spec.sha256 == "0f" * 32
    assert (spec.head, spec.match, spec.thresholds) == ("fastai", "order", (0.25, 1.0))
    assert spec.preprocess == Preprocess(
        resize=1024,
        edge="long",
        enlarge=False,
        crop=160,
        crops="grid",
        middle="up",
        grid=(3, 4),
        pool="logits",
        interpolation="lanczos",
        exif="apply",
        draft=True,
        mean=(0.0, 0.5, 1.0),
        std=(1.0, 0.5, 0.25),
    )
    assert spec.preprocess.crop_count == 12
    assert spec.serve == Serve(workers=2, threads=1, batch=8)
    assert spec.canary == Canary(image=folder / "canary.jpg", probabilities=(0.25, 1.0))


def test_resize_0_keeps_the_size(folder: Path) -> None:
    write(folder, PLAIN + "[preprocess]\nresize = 0\ncrops = 'ten'\n")
    assert load_spec(folder).preprocess == Preprocess(resize=None, crops="ten")
    assert load_spec(folder).preprocess.crop_count == 10


def test_a_bundle_is_frozen(folder: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_spec(folder).name = "other"  # type: ignore[misc]


def test_imagenet_labels_and_a_canary_without_an_answer(folder: Path) -> None:
    write(folder, PLAIN.replace("labels.txt", "imagenet") + '[canary]\nimage = "canary.jpg"\n')
    spec = load_spec(folder)
    assert spec.labels == "imagenet"
    assert spec.canary == Canary(image=folder / "canary.jpg")


def test_outputs_without_an_activation_may_be_any_number(folder: Path) -> None:
    toml = PLAIN.replace("sigmoid", "none")
    write(folder, toml + '[canary]\nimage = "canary.jpg"\nprobabilities = [-3.5, 12]\n')
    canary = load_spec(folder).canary
    assert canary is not None
    assert canary.probabilities == (-3.5, 12.0)


def test_files_may_be_in_subfolders_and_behind_links(folder: Path, tmp_path: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "link.pth").symlink_to(tmp_path / "weights.pth")
    write(folder, PLAIN.replace("weights.pth", "sub/link.pth"))
    assert load_spec(folder).weights == folder / "sub" / "link.pth"


@pytest.mark.parametrize("text", ["cat\ndog", "cat\r\ndog\r\n", "\ufeffcat\ndog\n", " cat \ndog\n"])
def test_labels_as_editors_write_them(folder: Path, text: str) -> None:
    (folder / "labels.txt").write_bytes(text.encode())
    assert load_spec(folder).labels == ("cat", "dog")


ONNX = PLAIN.replace("densenet121", "onnx")


def test_an_onnx_file_and_the_output_that_counts(folder: Path) -> None:
    write(folder, ONNX + 'output = "logits"\nengine = "onnx"\n')
    spec = load_spec(folder)
    assert (spec.is_onnx, spec.output, spec.carries_code) == (True, "logits", False)
    other = dataclasses.replace(spec, output=None)
    assert identify(spec) != identify(other), "another output gives other answers"
    write(folder, ONNX)
    assert load_spec(folder).output is None


def test_an_onnx_file_has_labels_of_its_own(folder: Path) -> None:
    write(folder, ONNX.replace("labels.txt", "imagenet"))
    expected = "a file of labels: beside an ONNX file there is no torchvision to have them"
    assert refusal(folder) == f'model.toml: labels: expected {expected}, found "imagenet"'


NAME = "up to 64 of A-Z a-z 0-9 . _ -, a letter or digit first"
CROPS = "one of center, five, ten, grid"


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('name = "chexnet"', 'name = "a/b"', f'name: expected {NAME}, found "a/b"'),
        ('name = "chexnet"', 'name = ""', 'name: expected a string, found ""'),
        ('name = "chexnet"', f'name = "{"x" * 65}"', f'name: expected {NAME}, found "{"x" * 65}"'),
        ('name = "chexnet"', "name = 7", "name: expected a string, found 7"),
        ('name = "chexnet"\n', "", "name: expected a string, found nothing"),
        ('name = "chexnet"', "name = {}", "name: expected a string, found a table"),
        ("architecture", "architektur", "architektur: expected architecture, found an unknown key"),
        (
            "name",
            "xyz",
            "xyz: expected one of name, architecture, head, match, weights, sha256, labels, "
            "activation, engine, output, thresholds, preprocess, serve, canary, "
            "found an unknown key",
        ),
        ('"sigmoid"', '"relu"', "activation: expected one of softmax, sigmoid, log_softmax, none, "
         'found "relu"'),
        ('activation = "sigmoid"', "", "activation: expected one of softmax, sigmoid, "
         "log_softmax, none, found nothing"),
        ("activation", 'head = "fast"\nactivation',
         'head: expected one of default, fastai, found "fast"'),
        ("activation", "match = 1\nactivation", "match: expected one of name, order, found 1"),
        ("weights.pth", "/etc/passwd",
         'weights: expected a path inside the model\'s folder, found "/etc/passwd"'),
        ("weights.pth", "sub/../../x",
         'weights: expected a path inside the model\'s folder, found "sub/../../x"'),
        ("weights.pth", "no.pth", 'weights: expected a file in , found "no.pth"'),
        ("weights.pth", ".", 'weights: expected a file in , found "."'),
        ("weights.pth", r"a\u0000b", r'weights: expected a file in , found "a\u0000b"'),
        ("labels.txt", "../labels.txt",
         'labels: expected a path inside the model\'s folder, found "../labels.txt"'),
        ("labels.txt", "none.txt", 'labels: expected a file in , found "none.txt"'),
        ("activation", 'output = "logits"\nactivation',
         'output: expected none unless architecture = "onnx", found "logits"'),
        ("densenet121", 'onnx"\nengine = "torch',
         'engine: expected onnx or auto: torch runs no ONNX file, found "torch"'),
        ("densenet121", 'onnx"\nhead = "fastai',
         'head: expected none with architecture = "onnx", found "fastai"'),
        ("densenet121", 'onnx"\nmatch = "name',
         'match: expected none with architecture = "onnx", found "name"'),
    ],
)  # fmt: skip
def test_refusals_of_the_top_table(folder: Path, old: str, new: str, text: str) -> None:
    write(folder, PLAIN.replace(old, new, 1))
    assert refusal(folder) == f"model.toml: {text}"


@pytest.mark.parametrize(
    ("toml", "text"),
    [
        (
            PLAIN + "thresholds = [0.5]",
            "thresholds: expected 2 numbers from 0 to 1, one a label, found [0.5]",
        ),
        (
            PLAIN + "thresholds = [0.5, 2]",
            "thresholds: expected 2 numbers from 0 to 1, one a label, found [0.5, 2.0]",
        ),
        (
            PLAIN.replace("sigmoid", "softmax") + "thresholds = [0.5, 0.5]",
            'thresholds: expected none unless activation = "sigmoid", found [0.5, 0.5]',
        ),
        (
            PLAIN.replace("densenet121", "torchscript") + 'head = "fastai"',
            'head: expected none with architecture = "torchscript", found "fastai"',
        ),
        (
            PLAIN.replace("densenet121", "export") + 'match = "name"',
            'match: expected none with architecture = "export", found "name"',
        ),
    ],
)
def test_refusals_of_heads_matches_and_thresholds(folder: Path, toml: str, text: str) -> None:
    write(folder, toml)
    assert refusal(folder) == f"model.toml: {text}"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('crop = "big"', 'crop: expected a whole number from 1 to 4096, found "big"'),
        ("crop = 0", "crop: expected a whole number from 1 to 4096, found 0"),
        ("crop = 4097", "crop: expected a whole number from 1 to 4096, found 4097"),
        ("crop = true", "crop: expected a whole number from 1 to 4096, found true"),
        ("crop = 224.0", "crop: expected a whole number from 1 to 4096, found 224.0"),
        ("crop = 2026-01-02", 'crop: expected a whole number from 1 to 4096, found "2026-01-02"'),
        ("resize = -1", "resize: expected a whole number from 0 to 4096, found -1"),
        ('crops = "seven"', f'crops: expected {CROPS}, found "seven"'),
        ("crops = 5", f"crops: expected {CROPS}, found 5"),
        ("crosp = 5", "crosp: expected crop or crops, found an unknown key"),
        ('edge = "left"', 'edge: expected one of short, long, both, square, found "left"'),
        ("enlarge = 1", "enlarge: expected true or false, found 1"),
        ('draft = "yes"', 'draft: expected true or false, found "yes"'),
        ('exif = "maybe"', 'exif: expected one of ignore, apply, found "maybe"'),
        ('pool = "max"', 'pool: expected one of mean, logits, logsumexp, found "max"'),
        (
            'interpolation = "cubic"',
            "interpolation: expected one of nearest, bilinear, bicubic, box, hamming, lanczos, "
            'area, grid_sample, found "cubic"',
        ),
        ("middle = 1", "middle: expected one of even, up, down, found 1"),
        ("grid = [2, 2]", 'grid: expected none unless crops = "grid", found [2, 2]'),
        ('crops = "grid"', "grid: expected 2 whole numbers from 1 to 8, found nothing"),
        (
            'crops = "grid"\ngrid = [2, true]',
            "grid: expected 2 whole numbers from 1 to 8, found [2, true]",
        ),
        (
            'crops = "grid"\ngrid = [9, 1]',
            "grid: expected 2 whole numbers from 1 to 8, found [9, 1]",
        ),
        ('crops = "grid"\ngrid = [1]', "grid: expected 2 whole numbers from 1 to 8, found [1]"),
        ("mean = 0.5", "mean: expected 3 finite numbers, found 0.5"),
        ("mean = [1, 2]", "mean: expected 3 finite numbers, found [1, 2]"),
        ('mean = [1, 2, "3"]', 'mean: expected 3 finite numbers, found [1, 2, "3"]'),
        ("mean = [1, 2, nan]", "mean: expected 3 finite numbers, found [1, 2, NaN]"),
        ("mean = [1, 2, true]", "mean: expected 3 finite numbers, found [1, 2, true]"),
        ("mean = [1, 2, 3, 4, 5]", "mean: expected 3 finite numbers, found 5 values"),
        ("std = [1, 0, 1]", "std: expected 3 numbers above 0, found [1.0, 0.0, 1.0]"),
        ("std = [1, 0]", "std: expected 3 numbers above 0, found [1, 0]"),
        ("std = [1, inf, 1]", "std: expected 3 numbers above 0, found [1, Infinity, 1]"),
        # TOML's integers have no end: these are above every float, and too long for str().
        (f"mean = [1{'0' * 400}, 0, 0]", f"mean: expected 3 finite numbers, found [1{'0' * 77}…"),
        (
            f"crop = 0x{'f' * 5000}",
            "crop: expected a whole number from 1 to 4096, found a number of thousands of digits",
        ),
        (
            f"mean = [0x{'f' * 5000}, 0]",
            "mean: expected 3 finite numbers, found a number of thousands of digits",
        ),
    ],
)
def test_refusals_of_preprocess(folder: Path, line: str, text: str) -> None:
    write(folder, f"{PLAIN}[preprocess]\n{line}\n")
    assert refusal(folder) == f"model.toml: preprocess.{text}"


@pytest.mark.parametrize(
    ("toml", "text"),
    [
        ("serve = 3", "serve: expected a table, found 3"),
        ("[serve]\nworkers = 0", "serve.workers: expected a whole number from 1 to 256, found 0"),
        (
            "[serve]\nthreads = '2'",
            'serve.threads: expected a whole number from 1 to 256, found "2"',
        ),
        ("[serve]\nthread = 2", "serve.thread: expected threads, found an unknown key"),
        ("canary = 'x.jpg'", 'canary: expected a table, found "x.jpg"'),
        ("[canary]", "canary.image: expected a string, found nothing"),
        ("[canary]\nimage = 'x.jpg'", 'canary.image: expected a file in , found "x.jpg"'),
        (
            "[canary]\nimage = 'canary.jpg'\nprobabilities = [1]",
            "canary.probabilities: expected 2 probabilities, one a label, found [1]",
        ),
        (
            "[canary]\nimage = 'canary.jpg'\nprobabilities = [0, 1.5]",
            "canary.probabilities: expected 2 probabilities, one a label, found [0.0, 1.5]",
        ),
        ("sha256 = 'ABC'", 'sha256: expected 64 hexadecimal digits in lower case, found "ABC"'),
        ("sha256 = 1", "sha256: expected a string, found 1"),
    ],
)
def test_refusals_of_the_rest(folder: Path, toml: str, text: str) -> None:
    write(folder, f"{PLAIN}{toml}\n")
    assert refusal(folder) == f"model.toml: {text}"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "labels.txt: line 1: expected a label, found a blank line"),
        (b"cat\n\ndog\n", "labels.txt: line 2: expected a label, found a blank line"),
        (b"cat\ndog\n\n", "labels.txt: line 3: expected a label, found a blank line"),
        (b"cat\ncat\n", 'labels.txt: line 2: expected a label of its own, found "cat" again, '
         "as in line 1"),
        (b"cat\ndo\tg\n", r"labels.txt: line 2: expected printable characters, found 'do\tg'"),
        (b"cat\nd\xffg\n", "labels.txt: expected UTF-8, found byte 5 that is not"),
    ],
)  # fmt: skip
def test_refusals_of_labels(folder: Path, data: bytes, text: str) -> None:
    (folder / "labels.txt").write_bytes(data)
    assert refusal(folder) == text


def test_a_file_that_is_not_there_or_not_toml(folder: Path) -> None:
    write(folder, "name = \n")
    found = refusal(folder)
    assert re.match(
        r"model.toml: expected TOML, found an error in it: Invalid value.*line 1", found
    )
    (folder / "model.toml").write_bytes(b'name = "\xff"')
    assert refusal(folder) == "model.toml: expected UTF-8, found byte 8 that is not"
    (folder / "model.toml").unlink()
    missing = "model.toml: expected a readable file, found No such file or directory"
    assert refusal(folder) == missing
    (folder / "model.toml").mkdir()
    assert refusal(folder) == "model.toml: expected a readable file, found Is a directory"


@pytest.mark.parametrize("name", ["model.toml", "labels.txt"])
def test_what_is_no_regular_file_is_not_waited_for(folder: Path, name: str) -> None:
    """The front reads these: a named pipe would hold it for good."""
    (folder / name).unlink()
    os.mkfifo(folder / name)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    if name == "model.toml":
        assert done.stdout == f"{folder}/{name}: expected a readable file, found no regular file\n"
    else:
        assert done.stdout.endswith(f'labels: expected a file in {folder}, found "{name}"\n')


LOAD = """
import signal, sys
from pathlib import Path
from swiprd.folder.spec import load_spec
from swiprd.folder.toml_table import MOST, SpecError
signal.alarm(10)
try:
    load_spec(Path(sys.argv[1]))
except SpecError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["model.toml", "labels.txt"])
def test_a_file_that_is_too_large_to_be_meant(folder: Path, name: str) -> None:
    with (folder / name).open("a") as file:
        file.truncate(1 << 40)  # sparse: it takes no room, and reading it would take a terabyte
    assert refusal(folder) == (
        f"{name}: expected a readable file, found more than {MOST} bytes, the most that is read"
    )


def test_names_that_cannot_be_looked_up(folder: Path) -> None:
    write(folder, PLAIN.replace("weights.pth", "x" * 300))
    assert refusal(folder) == (
        f'model.toml: weights: expected a file in , found "{"x" * 78}…: File name too long'
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_subfolder_that_is_closed() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        write(folder, PLAIN.replace("weights.pth", "sub/weights.pth"))
        (folder / "labels.txt").write_text("cat\ndog\n")
        (folder / "sub").mkdir(mode=0o700)
        (folder / "sub" / "weights.pth").touch()
        os.seteuid(65534)
        try:
            found = refusal(folder)
        finally:
            os.seteuid(0)
    assert found == (
        'model.toml: weights: expected a file in , found "sub/weights.pth": Permission denied'
    )


def test_the_error_carries_its_parts_through_a_pickle(folder: Path) -> None:
    write(folder, PLAIN + "[preprocess]\ncrop = 'big'\n")
    with pytest.raises(SpecError) as caught:
        load_spec(folder)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.file, error.key) == (folder / "model.toml", "preprocess.crop")
    assert (error.expected, error.found) == ("a whole number from 1 to 4096", '"big"')
    assert str(error) == str(caught.value)


def test_a_long_value_is_cut_short(folder: Path) -> None:
    write(folder, PLAIN.replace("sigmoid", "x" * 500))
    assert refusal(folder).endswith('found "' + "x" * 78 + "…")


def test_the_id_changes_with_everything_that_decides_the_answer(folder: Path) -> None:
    spec = load_spec(folder)
    first = identify(spec)
    assert re.fullmatch(r"chexnet@[0-9a-f]{12}", first)
    assert identify(spec) == first
    seen = {first}
    for file, text in [
        ("weights.pth", "other weights"),
        ("labels.txt", "dog\ncat\n"),
        ("model.toml", PLAIN.replace("densenet121", "densenet161")),
        ("model.toml", PLAIN + 'head = "fastai"\n'),
        ("model.toml", PLAIN + 'match = "order"\n'),
        ("model.toml", PLAIN + "thresholds = [0.5, 0.25]\n"),
        ("model.toml", PLAIN.replace("sigmoid", "none")),
        ("model.toml", PLAIN + "[preprocess]\nresize = 224\n"),
    ]:
        (folder / file).write_text(text)
        seen.add(identify(load_spec(folder)))
    assert len(seen) == 9


def test_the_id_stays_with_what_decides_no_answer(folder: Path) -> None:
    before = identify(load_spec(folder))
    write(
        folder,
        f'# a remark\n{PLAIN}sha256 = "{hashlib.sha256(b"weights").hexdigest()}"\n'
        "[serve]\nthreads = 2\n[canary]\nimage = 'canary.jpg'\n",
    )
    assert identify(load_spec(folder)) == before


def test_a_recorded_digest_is_believed_and_spares_reading_the_weights(folder: Path) -> None:
    recorded = hashlib.sha256(b"weights").hexdigest()
    write(folder, f'{PLAIN}sha256 = "{recorded}"\n')
    spec = load_spec(folder)
    assert digest_weights(spec) == recorded
    before = identify(spec)
    (folder / "weights.pth").write_bytes(b"changed behind our back")
    assert identify(spec) == before
    assert digest_weights(spec) != recorded


def test_weights_that_went_away(folder: Path) -> None:
    spec = load_spec(folder)
    (folder / "weights.pth").unlink()
    with pytest.raises(SpecError, match=r"weights.pth: expected a readable file, found No such"):
        identify(spec)


def test_imports_nothing_heavy() -> None:
    script = "import sys, swiprd.folder.spec; print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "set()"
