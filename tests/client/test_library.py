"""The client as data people use it: pixels, labels, errors, names and types."""

from __future__ import annotations

import errno
import io
import os
import pickle
import pydoc
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import StartDaemon
from daemonprocess import DaemonProcess
from imagefiles import encoded, picture
from modelfolders import make_folder
from peer import Connection, Peer
from PIL import Image

import swiprctl
from swiprctl import BadImage, CannotOpen, Client, DeadlineExceeded, Prediction, SwiprError
from swiprctl.errors import Forbidden, NoDaemon, UsageError

pytestmark = pytest.mark.timeout(120)


# --- pixels -----------------------------------------------------------------------------------


def row(client: Client, source: Any) -> tuple[float, ...]:
    return client.predict(source).probabilities


ARRAYS = {
    "rgb": lambda: np.asarray(picture(61, 47)),
    "rgba": lambda: np.asarray(picture(61, 47, "RGBA")),
    "grey": lambda: np.asarray(picture(61, 47, "L")),
    "one channel": lambda: np.asarray(picture(61, 47, "L"))[..., None],
    "one pixel": lambda: np.asarray(picture(61, 47))[:1, :1],
    "upside down": lambda: np.asarray(picture(61, 47))[::-1],
    "of OpenCV": lambda: np.asarray(picture(61, 47))[..., ::-1],
    "a part": lambda: np.asarray(picture(61, 47))[3:40:2, 5:50],
    "in Fortran's order": lambda: np.asfortranarray(np.asarray(picture(61, 47))),
    "read-only": lambda: np.frombuffer(bytes(range(240)), np.uint8).reshape(8, 10, 3),
    "large": lambda: np.asarray(picture(2000, 1500)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_answered_as_its_png_is(daemon: DaemonProcess, name: str) -> None:
    array = ARRAYS[name]()
    image = Image.fromarray(array[..., 0] if name == "one channel" else np.ascontiguousarray(array))
    with Client(daemon.path) as client:
        assert row(client, array) == row(client, encoded(image, "PNG"))


@pytest.mark.parametrize(
    "mode",
    [
        *("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "RGBa"),
        *("I;16", "I;16B", "I"),
    ],
)
def test_a_pillow_image_is_answered_as_its_file_is(daemon: DaemonProcess, mode: str) -> None:
    if mode == "I":
        image = Image.fromarray(np.arange(61 * 47, dtype=np.int32).reshape(47, 61) * 22)
    elif mode.startswith("I"):
        # Two different bytes each, whose order matters.
        levels = np.arange(61 * 47, dtype="<u2" if mode == "I;16" else ">u2") * 22
        image = Image.frombytes(mode, (61, 47), levels.tobytes())
    else:
        image = picture(61, 47, mode)
    saved = mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    file = encoded(image, "PNG" if saved else "TIFF") if saved or mode.startswith("I") else None
    with Client(daemon.path) as client:
        found = row(client, image)
        assert found == row(client, file or encoded(image.convert("RGB"), "PNG"))


@pytest.mark.filterwarnings("ignore:Palette images:UserWarning")  # Pillow's, to the user
def test_a_palette_with_transparency(daemon: DaemonProcess) -> None:
    image = picture(61, 47, "P")
    data = encoded(image, "PNG", transparency=bytes(range(256)))
    with Client(daemon.path) as client, Image.open(io.BytesIO(data)) as opened:
        assert row(client, opened) == row(client, data)


def test_levels_without_a_scale_are_refused_as_in_a_file(daemon: DaemonProcess) -> None:
    image = Image.fromarray(np.zeros((8, 8), np.float32))
    with (
        Client(daemon.path) as client,
        pytest.raises(BadImage, match="floating-point pixels have no agreed scale"),
    ):
        client.predict(image)


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_an_opened_image_is_answered_as_its_path_is(
    start_daemon: StartDaemon, tmp_path: Path, exif: str
) -> None:
    """Also where the model heeds the orientation: it goes along with the pixels."""
    folder = make_folder(tmp_path / "model")
    with open(folder / "model.toml", "a") as file:
        file.write(f'\n[preprocess]\nexif = "{exif}"\n')
    daemon = start_daemon(model=folder).wait_ready()
    rows = []
    with Client(daemon.path) as client:
        for orientation in (1, 6):
            told = Image.Exif()
            told[0x0112] = orientation
            path = tmp_path / f"{orientation}.png"
            path.write_bytes(encoded(picture(61, 47), "PNG", exif=told))
            rows.append(row(client, path))
            with Image.open(path) as image:
                assert row(client, image) == rows[-1]
                bare = row(client, np.asarray(image))
                assert bare == rows[0], "an array has no orientation"
    assert (rows[0] == rows[1]) == (exif == "ignore")


def test_a_picture_that_is_too_large_to_go_as_it_is_becomes_a_png(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", (400, 300), "green")
    monkeypatch.setattr("swiprctl.inputs.MAX_STREAM", 100_000)
    with Client(daemon.path) as client:
        assert row(client, image) == row(client, encoded(image, "PNG"))
        with pytest.raises(swiprctl.TooLarge, match="more than 100000 bytes"):
            client.predict(np.asarray(image))


@pytest.mark.parametrize("shape", [(70_000, 70_000), (40_000, 40_000, 3), (1 << 40, 1)], ids=str)
def test_an_array_beyond_all_limits(daemon: DaemonProcess, shape: tuple[int, ...]) -> None:
    """One byte, shown as many: nothing of it is copied."""
    with Client(daemon.path) as client, pytest.raises(swiprctl.TooLarge, match="more than 6710886"):
        client.predict(np.broadcast_to(np.uint8(0), shape))


@pytest.mark.parametrize(
    ("array", "kind", "text"),
    [
        (np.zeros((4, 4, 3)), TypeError, "an array of float64: expected uint8, from 0 to 255"),
        (np.zeros((4, 4, 3), bool), TypeError, "an array of bool: expected uint8"),
        (np.zeros((4, 4, 3), np.int8), TypeError, "an array of int8: expected uint8"),
        (np.array(["a.jpg"]), TypeError, "an array of <U5: expected uint8"),
        (np.zeros((3, 5, 6), np.uint8), ValueError, r"shape \(3, 5, 6\).*transpose\(1, 2, 0\)"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"\(4, 4, 2\): expected \[h, w, 3\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), ValueError, r"predict_many\(\) takes several"),
        (np.zeros(48, np.uint8), ValueError, r"shape \(48,\): expected \[h, w, 3\]"),
        (np.uint8(7), ValueError, r"shape \(\): expected \[h, w, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"shape \(0, 4, 3\) has no pixels"),
        (Image.new("RGB", (0, 4)), ValueError, "an image of 0x4 has no pixels"),
        (Image.new("La", (4, 4)), ValueError, "of mode La: .*; convert it to RGB or L"),
    ],
)
def test_what_is_no_picture(
    daemon: DaemonProcess, array: Any, kind: type[Exception], text: str
) -> None:
    with Client(daemon.path) as client:
        with pytest.raises(kind, match=text):
            client.predict(array)
        with pytest.raises(kind, match=text):
            list(client.predict_many([array]))


@pytest.mark.parametrize("read", [True, False])
def test_a_pillow_image_that_is_closed(daemon: DaemonProcess, read: bool) -> None:
    """As a `with` leaves it."""
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        Image.new("RGB", (4, 4)).save(file.name)
        with Image.open(file.name) as image:
            if read:
                image.load()
    if read:
        image.close()
    with (
        Client(daemon.path) as client,
        pytest.raises(CannotOpen, match=r"cannot read the image: .* closed.*; open it again"),
    ):
        client.predict(image)


def test_a_pillow_image_of_a_file_that_is_cut_short(daemon: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "cut.png"
    file.write_bytes(encoded(picture(61, 47), "PNG")[:500])
    with (
        Client(daemon.path) as client,
        Image.open(file) as image,
        pytest.raises(CannotOpen, match=r"cut\.png: cannot read the image: ") as caught,
    ):
        client.predict(image)
    assert caught.value.path == str(file)


def test_pixels_need_neither_library(tmp_path: Path) -> None:
    """What only looks like an array is one; the client imports nothing for it."""

    def answer(connection: Connection) -> None:
        asked = connection.asked()
        assert asked.image is not None
        connection.answer(asked, float(len(asked.image)))

    program = """
import sys
class Array(bytearray):
    __array_interface__ = {"shape": (2, 4), "typestr": "|u1", "version": 3}
from swiprctl import Client
print(Client(sys.argv[1]).predict(Array(8)).probabilities)
assert not {"numpy", "PIL"} & set(sys.modules)
"""
    with Peer(tmp_path / "s", answer):
        told = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "s"],
            capture_output=True,
            text=True,
            check=True,
        )
    assert told.stdout.startswith("(")


# --- many -------------------------------------------------------------------------------------


def test_many_of_every_kind(daemon: DaemonProcess, tmp_path: Path) -> None:
    image = picture(61, 47)
    data = encoded(image, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    inputs: list[Any] = [path, str(path), data, io.BytesIO(data), image, np.asarray(image)]
    with Client(daemon.path) as client:
        found = list(client.predict_many(inputs))
        batch = np.stack([np.asarray(image)] * 3)
        found += client.predict_many(batch)
    assert all(one is given for (one, _), given in zip(found, inputs, strict=False))
    rows = {answer.probabilities for _, answer in found if isinstance(answer, Prediction)}
    assert (len(found), len(rows)) == (9, 1)


@pytest.mark.parametrize(
    "lone",
    [
        *("a.jpg", b"data", bytearray(b"data"), memoryview(b"data"), Path("a.jpg")),
        *(io.BytesIO(b"data"), io.StringIO("a.jpg\n"), Image.new("RGB", (4, 4))),
        np.zeros((4, 4, 3), np.uint8),
    ],
    ids=lambda one: type(one).__name__,
)
def test_one_input_is_not_many(tmp_path: Path, lone: Any) -> None:
    """It says so when it is called, not when the first answer is asked for."""
    with pytest.raises(TypeError, match=r"takes several inputs, and this is one: \w+; give \[it\]"):
        Client(tmp_path / "s").predict_many(lone)


def test_many_are_not_one(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"list; predict_many\(\) takes several"):
        Client(tmp_path / "s").predict(["a.jpg"])  # type: ignore[arg-type]


# --- answers ----------------------------------------------------------------------------------


def test_a_prediction_has_its_labels(daemon: DaemonProcess) -> None:
    with Client(daemon.path) as client:
        prediction = client.predict(picture(61, 47))
    assert prediction.labels == tuple(f"class{number}" for number in range(10))
    told = prediction.as_dict()
    assert tuple(told) == prediction.labels
    assert tuple(told.values()) == prediction.probabilities
    assert prediction.top(10) == sorted(told.items(), key=lambda pair: -pair[1])
    assert prediction.top() == prediction.top(10)[:1]
    assert (prediction.top(0), len(prediction.top(99))) == ([], 10)
    best, probability = prediction.top()[0]
    assert repr(prediction).startswith(f"Prediction(({best}: {probability:.6g}, ")
    with pytest.raises(ValueError, match="count: at least 0, found -1"):
        prediction.top(-1)


def test_labels_that_occur_twice_are_told_apart() -> None:
    prediction = Prediction((0.5, 0.3, 0.2), "m@1")
    prediction.labels = ("crane", "cat", "crane")
    assert prediction.as_dict() == {"crane (0)": 0.5, "cat": 0.3, "crane (2)": 0.2}
    assert prediction.top(2) == [("crane (0)", 0.5), ("cat", 0.3)]


def test_without_labels(daemon: DaemonProcess) -> None:
    with Client(daemon.path, labels=False) as client:
        prediction = client.predict(picture(61, 47))
    assert prediction.labels is None
    for ask in (prediction.top, prediction.as_dict):
        with pytest.raises(ValueError, match=r"no labels: a Client\(labels=True\) sees to it"):
            ask()


def test_labels_cross_the_wire_once_a_model(tmp_path: Path) -> None:
    known = []

    def answer(connection: Connection) -> None:
        while True:
            asked = connection.asked()
            known.append(asked.fields.get("labels"))
            told = {"labels": ["cat", "dog"]} if known[-1] == "" else {}
            connection.reply(asked.id, probabilities=[0.75, 0.25], model="cats@1", **told)

    with Peer(tmp_path / "s", answer), Client(tmp_path / "s") as client:
        found = [client.predict(b"x").labels for _ in range(3)]
    assert known == ["", "cats@1", "cats@1"]
    assert found == [("cat", "dog")] * 3


def test_a_daemon_that_tells_no_labels_is_not_asked_for_them(tmp_path: Path) -> None:
    def answer(connection: Connection) -> None:
        while True:
            asked = connection.asked()
            assert asked.op == "predict"
            connection.answer(asked, 0.75, 0.25)

    with Peer(tmp_path / "s", answer), Client(tmp_path / "s") as client:
        assert [client.predict(b"x").labels for _ in range(2)] == [None, None]


# --- errors -----------------------------------------------------------------------------------


def test_an_error_carries_the_files_name(daemon: DaemonProcess, tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("no picture")
    missing = tmp_path / "missing.jpg"
    with Client(daemon.path) as client:
        for source in (str(path), path, open(path, "rb")):  # noqa: SIM115 - closed below
            with pytest.raises(BadImage, match=rf"^{path}: not a ") as caught:
                client.predict(source)
            assert caught.value.path == str(path)
            if isinstance(source, io.BufferedReader):
                source.close()
        with pytest.raises(BadImage, match=r"^not a ") as caught:
            client.predict(b"no picture")
        assert caught.value.path is None
        found = dict(client.predict_many([path, missing, b"no picture"]))
    assert [getattr(one, "path", "-") for one in found.values()] == [str(path), str(missing), None]
    assert str(found[missing]) == f"{missing}: No such file or directory"
    with Client(daemon.path, named_errors=False) as client:
        ((_, error),) = client.predict_many([missing])
    assert (str(error), getattr(error, "path", "-")) == ("No such file or directory", None)


def test_errors_are_those_that_python_has(
    daemon: DaemonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "missing.jpg"
    with Client(daemon.path) as client:
        with pytest.raises(FileNotFoundError) as caught:
            client.predict(missing)
        error = caught.value
        assert isinstance(error, CannotOpen)
        assert (error.errno, error.filename) == (errno.ENOENT, str(missing))
        assert error.strerror == "No such file or directory"
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
        assert (again.errno, again.filename) == (errno.ENOENT, str(missing))
        with pytest.raises(IsADirectoryError):
            client.predict(tmp_path)
        # As on a network's file system, which is read by another process.
        monkeypatch.setattr("swiprctl.inputs.may_hang", lambda _: True)
        with pytest.raises(FileNotFoundError, match=rf"^{missing}: No such file or directory$"):
            client.predict(missing)
        with pytest.raises(IsADirectoryError):
            client.predict(tmp_path)
    assert issubclass(DeadlineExceeded, TimeoutError)
    assert issubclass(Forbidden, PermissionError)
    assert issubclass(NoDaemon, ConnectionError)


def test_an_error_of_nobodys_is_not_named(tmp_path: Path) -> None:
    """That no daemon answers says nothing of the image."""
    path = tmp_path / "img.jpg"
    path.write_bytes(b"x")
    with Client(tmp_path / "s", autostart=False) as client:
        for ask in (client.predict, lambda one: list(client.predict_many([one]))):
            with pytest.raises(ConnectionError, match=r"^no daemon answers on") as caught:
                ask(path)
            assert isinstance(caught.value, NoDaemon)
            assert caught.value.path is None


def test_one_end_of_several_inputs_names_each(tmp_path: Path) -> None:
    def refuse(connection: Connection) -> None:
        for _ in range(2):
            connection.asked()
        connection.send(b"\0\0\0\1\xc1")  # not msgpack: an error for all that is under way

    names = [tmp_path / "a", tmp_path / "b"]
    for name in names:
        name.write_bytes(b"x")
    with Peer(tmp_path / "s", refuse), Client(tmp_path / "s") as client:
        found = [answer for _, answer in client.predict_many(names)]
    assert [getattr(one, "path", "-") for one in found] == [str(name) for name in names]
    assert all(str(one).count(str(tmp_path)) == 1 for one in found)


def test_a_timeout_of_one_request(tmp_path: Path) -> None:
    told = []

    def answer(connection: Connection) -> None:
        while True:
            asked = connection.asked()
            told.append(asked.fields.get("timeout"))
            if len(told) != 2:
                connection.answer(asked, 1.0)

    with Peer(tmp_path / "s", answer), Client(tmp_path / "s", timeout=50) as client:
        client.predict(b"x")
        with pytest.raises(TimeoutError):
            client.predict(b"x", timeout=0.05)
        client.predict(b"x", timeout=30)
        with pytest.raises(UsageError, match="timeout: above 0, at most 3600 seconds"):
            client.predict(b"x", timeout=0)
    bounds = [(30, 50), (0, 0.05), (5, 30)]
    assert all(low < one <= high for one, (low, high) in zip(told, bounds, strict=True))


# --- names ------------------------------------------------------------------------------------


def test_a_model_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Path is a folder, also where a text of the same letters would be a system's model."""
    make_folder(tmp_path / "focus")
    monkeypatch.chdir(tmp_path)
    found = {
        Client(model=one).socket_path for one in (Path("focus"), tmp_path / "focus", "./focus")
    }
    assert len(found) == 1
    with pytest.raises(FileNotFoundError) as caught:
        Client(model=Path("nosuch"))
    assert str(tmp_path / "nosuch") in str(caught.value)


def in_a_process(program: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_help_and_completion_show_the_classes() -> None:
    """In a process that has used none of them."""
    lines = in_a_process("import swiprctl; print(*dir(swiprctl), sep='\\n')")
    assert set(swiprctl.__all__) <= set(lines)
    text = pydoc.plain("\n".join(in_a_process("import swiprctl; help(swiprctl)")))
    for name in swiprctl.__all__:
        if not name.startswith("_"):
            assert f"class {name}(" in text or f"class {name}\n" in text, name
    assert "predict_many(self, sources" in text


def test_importing_the_package_imports_nothing_of_it() -> None:
    program = "import sys, swiprctl; print(*(m for m in sys.modules if 'swiprctl' in m))"
    assert in_a_process(program) == ["swiprctl"]


def test_every_error_is_exported() -> None:
    def tree(kind: type[SwiprError]) -> set[str]:
        return {kind.__name__}.union(*map(tree, kind.__subclasses__()))

    of_files = {"NoSuchFile", "NoPermission", "IsDirectory", "NoDescriptor"}
    of_the_command = {"BadRecords", "CannotWrite", "ConditionError", "WriteFailed"}
    assert tree(SwiprError) - of_files - of_the_command <= set(swiprctl.__all__)
    for name in swiprctl.__all__:
        assert getattr(swiprctl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        swiprctl.Klient  # noqa: B018


# --- types ------------------------------------------------------------------------------------

USERS = """
from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from swiprctl import CannotOpen, Client, DeadlineExceeded, Prediction, SwiprError

with Client(model=Path("models/cats"), timeout=3) as client:
    first = client.predict("a.jpg", timeout=0.5)
    reveal_type(first)
    reveal_type(first.labels)
    reveal_type(first.top(3))
    reveal_type(first.as_dict())
    client.predict(Path("a.jpg"))
    client.predict(b"")
    client.predict(io.BytesIO(b""))
    client.predict(np.zeros((4, 4, 3), np.uint8))
    client.predict(Image.new("RGB", (4, 4)))
    with open("a.jpg", "rb") as file:
        client.predict(file)
    for path, answer in client.predict_many(Path(".").glob("*.jpg")):
        reveal_type(path)
        if isinstance(answer, SwiprError):
            reveal_type(answer.path)
        else:
            reveal_type(answer)
    for name, _ in client.predict_many(["a.jpg"]):
        reveal_type(name)
    for array, _ in client.predict_many([np.zeros((4, 4, 3), np.uint8)]):
        array.shape
    try:
        client.predict("a.jpg")
    except CannotOpen as error:
        reveal_type(error.errno)
    except DeadlineExceeded as late:
        timeout: TimeoutError = late
    client.predict(1.5)  # wrong
    client.predict_many([1.5])  # wrong
    client.predict("a.jpg").best()  # wrong
"""


@pytest.mark.long
def test_a_users_program_is_type_checked(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "users.py"
    program.write_text(USERS)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull),
            *("--cache-dir", tmp_path / "cache", program),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(swiprctl.__file__).parent.parent)},
    )
    lines = [line.partition(":")[2] for line in done.stdout.splitlines() if "users.py" in line]
    wrong = [int(line.split(":")[0]) for line in lines if " error: " in line]
    expected = [n for n, line in enumerate(USERS.splitlines(), 1) if line.endswith("# wrong")]
    assert wrong == expected, done.stdout + done.stderr
    revealed = [line.split('"')[1] for line in lines if "Revealed type" in line]
    assert revealed == [
        "swiprctl.rows.Prediction",
        "tuple[str, ...] | None",
        "list[tuple[str, float]]",
        "dict[str, float]",
        "pathlib.Path",
        "str | None",
        "swiprctl.rows.Prediction",
        "str",
        "int | None",
    ]
