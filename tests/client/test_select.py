"""`swiprctl select` and `predict --where`, as their users meet them."""

from __future__ import annotations

import csv
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemonprocess import DaemonProcess
from peer import Connection, Peer

from swiprctl.errors import BadImage

pytestmark = pytest.mark.timeout(60)

ODD = [b"a,b.jpg", b'"quoted".jpg', b"new\nline.jpg", b"-dash.jpg", b"\xff\xfe.jpg", b"\x1b[2J.jpg"]


def cats(connection: Connection) -> None:
    """A daemon whose model sees a cat as surely as the file has bytes, in hundredths."""
    while True:
        asked = connection.asked()
        assert asked.op == "predict"
        if asked.image == b"bad":
            connection.refuse(asked.id, BadImage("not an image"))
            continue
        share = len(asked.image or b"") / 100
        fields: dict[str, object] = {"probabilities": [share, 1 - share], "model": "cats@1"}
        if asked.fields.get("labels") == "":
            fields["labels"] = ["cat", "no cat"]
        connection.reply(asked.id, **fields)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for number in (10, 20, 70, 90):
        Path(f"{number}.jpg").write_bytes(bytes(number))
    Path("bad.jpg").write_bytes(b"bad")
    monkeypatch.setenv("SWIPR_SOCKET", str(tmp_path / "s"))
    with Peer(tmp_path / "s", cats):
        yield tmp_path


def swiprctl(*words: str | bytes, stdin: bytes = b"") -> tuple[bytes, str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "swiprctl", *words],
        input=stdin,
        capture_output=True,
        timeout=30,
        check=False,
    )
    return done.stdout, done.stderr.decode(errors="surrogateescape"), done.returncode


ALL = ("10.jpg", "20.jpg", "70.jpg", "90.jpg")


@pytest.mark.usefixtures("folder")
def test_paths_of_what_fulfils_it() -> None:
    assert swiprctl("select", "cat > 0.5", *ALL) == (b"70.jpg\n90.jpg\n", "", 0)
    assert swiprctl("select", "cat > 0.5", "./90.jpg") == (b"./90.jpg\n", "", 0)
    assert swiprctl("select", 'top == "no cat" and not cat < 0.2', *ALL)[0] == b"20.jpg\n"
    assert swiprctl("select", "cat == 0.7", *ALL)[0] == b"70.jpg\n"
    assert swiprctl("select", "cat > 0.95", *ALL) == (b"", "", 1)


@pytest.mark.usefixtures("folder")
def test_inverted_as_grep_does() -> None:
    for option in ("-v", "--invert-match"):
        assert swiprctl("select", option, "cat > 0.5", *ALL) == (b"10.jpg\n20.jpg\n", "", 0)
        assert swiprctl(option, "select", "cat > 0.05", *ALL) == (b"", "", 1)
    out, err, status = swiprctl("select", "--verbose", "cat > 0.5", *ALL)
    assert (out, status) == (b"70.jpg\n90.jpg\n", 0)
    assert "10.jpg: queued" in err


@pytest.mark.usefixtures("folder")
def test_what_fails_is_told_and_is_never_selected() -> None:
    for words in (("cat > 0.5",), ("-v", "cat < 0.5")):
        out, err, status = swiprctl("select", *words, "90.jpg", "bad.jpg", "gone.jpg", "10.jpg")
        assert (out, status) == (b"90.jpg\n", 2)
        assert err.splitlines() == [
            "swiprctl: bad.jpg: not an image",
            "swiprctl: gone.jpg: No such file or directory",
        ]
    assert swiprctl("select", "cat > 0.5", "bad.jpg")[2] == 2


def test_paths_keep_their_bytes(folder: Path) -> None:
    for name in ODD:
        Path(os.fsdecode(name)).write_bytes(bytes(90))
    listed = b"\0".join([*ODD, b"10.jpg"]) + b"\0"
    wanted = b"".join(name + b"\0" for name in ODD)
    for zero in ("-0", "--null"):
        found = swiprctl("select", zero, "cat > 0.5", "--files0-from=-", stdin=listed)
        assert found == (wanted, "", 0)
    assert swiprctl("select", "-0", "cat > 0.5", "--", *ODD, "10.jpg") == (wanted, "", 0)
    assert swiprctl("select", "cat > 0.5", "--", *ODD)[0] == wanted.replace(b"\0", b"\n")
    moved = folder / "moved"
    moved.mkdir()
    pipe = "find . -name '*.jpg' -print0 | {} -m swiprctl select -0 'cat > 0.5' --files0-from=- |"
    pipe += " xargs -0 mv -t moved"
    subprocess.run(pipe.format(sys.executable), shell=True, check=False)
    assert {os.fsencode(name) for name in os.listdir(moved)} == {*ODD, b"70.jpg", b"90.jpg"}


@pytest.mark.usefixtures("folder")
def test_standard_input_and_lists() -> None:
    assert swiprctl("select", "cat > 0.5", "-", stdin=bytes(90)) == (b"-\n", "", 0)
    out, err, status = swiprctl("select", "cat > 0.5", "--files-from=-", stdin=b"90.jpg\n10.jpg\n")
    assert (out, err, status) == (b"90.jpg\n", "", 0)
    assert swiprctl("select", "cat > 0.5", "--files-from=nowhere")[2] == 2


def test_folders(daemon: DaemonProcess, tmp_path: Path, photos: list[bytes]) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("a/b/1.jpg", "a/2, 3\n.jpg"):
        (tmp_path / name).write_bytes(photos[0])
    (tmp_path / "a/notes").write_bytes(b"no image")
    words = ("--socket", str(daemon.path), str(tmp_path / "a"))
    out, err, status = swiprctl("select", "-r0", "class0 >= 0", *words)
    assert sorted(out.split(b"\0")) == sorted(
        [b"", *(os.fsencode(tmp_path / name) for name in ("a/b/1.jpg", "a/2, 3\n.jpg"))]
    )
    assert (err, status) == ("", 0)
    assert swiprctl("select", "-rv", "class0 >= 0", *words) == (b"", "", 1)
    out, err, status = swiprctl("select", "class0 >= 0", *words)
    assert (out, status) == (b"", 2)
    assert "with -r" in err


@pytest.mark.usefixtures("folder")
def test_a_name_does_nothing_to_a_terminal() -> None:
    Path("\x1b[2J.jpg").write_bytes(bytes(90))
    ours, theirs = pty.openpty()
    try:
        command = [sys.executable, "-m", "swiprctl", "select", "cat > 0.5", "\x1b[2J.jpg"]
        subprocess.run(command, stdout=theirs, timeout=30, check=True)
        assert os.read(ours, 100) == b"\\x1b[2J.jpg\r\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_condition_that_is_not_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIPR_SOCKET", "/nowhere")  # nobody is asked
    told = [
        "swiprctl: expected a label or a number behind >, not 'and'",
        "swiprctl:   cat > and",
        "swiprctl:         ^^^",
        "swiprctl: try 'swiprctl --help'",
    ]
    out, err, status = swiprctl("select", "cat > and", "90.jpg")
    assert (out, err.splitlines(), status) == (b"", told, 2)
    out, err, status = swiprctl("predict", "--where=cat > and", "90.jpg")
    assert (out, err.splitlines(), status) == (b"", told, 64)


@pytest.mark.usefixtures("folder")
def test_a_label_that_the_model_has_not() -> None:
    told = [
        "swiprctl: cats@1 has no label 'dog'; it has cat, no cat",
        "swiprctl:   cat > 0 or dog > 0",
        "swiprctl:              ^^^",
        "swiprctl: try 'swiprctl --help'",
    ]
    out, err, status = swiprctl("select", "cat > 0 or dog > 0", *ALL)
    assert (out, err.splitlines(), status) == (b"", told, 2)
    out, err, status = swiprctl("predict", "--where", "cat > 0 or dog > 0", *ALL)
    assert (out, err.splitlines(), status) == (b"", told, 64)


@pytest.mark.usefixtures("folder")
def test_a_label_in_other_letters() -> None:
    told = "swiprctl: cats@1 has no label 'Cat'; did you mean 'cat'?"
    assert swiprctl("select", "Cat > 0", *ALL)[1].splitlines()[0] == told
    told = "swiprctl: cats@1 has no label 'No Cat'; did you mean 'no cat'?"
    assert swiprctl("select", '"No Cat" > 0', *ALL)[1].splitlines()[0] == told


@pytest.mark.usefixtures("folder")
def test_a_path_in_the_conditions_place() -> None:
    Path("a b.jpg").write_bytes(b"x")
    for name in ("10.jpg", "a b.jpg"):
        out, err, status = swiprctl("select", name, *ALL)
        assert (out, status) == (b"", 2)
        assert err.startswith(f"swiprctl: {name} is a file, and the first operand is the condition")


def test_a_condition_in_a_paths_place(folder: Path) -> None:
    (folder / "photos").mkdir()
    for words in (
        ("-r", "photos", "cat > 0.5"),
        ("photos", "cat > 0.5", "10.jpg"),
        ("cat > 0.1", "10.jpg", 'top == "cat"'),
    ):
        found = next(word for word in words[1:] if " " in word)
        out, err, status = swiprctl("select", *words)
        assert (out, status) == (b"", 2)
        assert err.startswith(
            f"swiprctl: {found!r} is a condition and no file, and the condition comes first:"
            " swiprctl select 'blurred > 0.8' PATH..."
        )
    # A file may have any name.
    Path("cat > 0.5").write_bytes(bytes(90))
    assert swiprctl("select", "cat > 0.5", "cat > 0.5") == (b"cat > 0.5\n", "", 0)
    out, err, status = swiprctl("select", "photos/", "10.jpg")
    assert err.startswith("swiprctl: photos/ is a folder, and the first operand is the condition")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["select"], "no condition given: swiprctl select 'blurred > 0.8' PATH..."),
        (["select", "cat > 1"], "nothing to select: give a PATH, - for an image on standard input"),
        (["select", "cat > 1", "a", "--files-from=b"], "paths on the command line and in a list"),
        (["select", "--json", "cat > 1", "a"], "--json does not go with select"),
        (["select", "--where", "a", "cat > 1", "a"], "--where does not go with select"),
        (["predict", "-0", "a"], "-0 does not go with predict"),
    ],
)
def test_usage(words: list[str], told: str) -> None:
    out, err, status = swiprctl(*words)
    assert (out, status) == (b"", 64 if words[0] == "predict" else 2)
    assert err.startswith(f"swiprctl: {told}")


def test_no_daemon(tmp_path: Path) -> None:
    assert swiprctl("select", "--socket", str(tmp_path / "s"), "cat > 1", "x")[2] == 2


@pytest.mark.usefixtures("folder")
def test_where_filters_rows() -> None:
    words = ("predict", "--where", "cat > 0.5")
    assert swiprctl(*words, *ALL) == (b"70.jpg,0.7,0.3\n90.jpg,0.9,0.1\n", "", 0)
    assert swiprctl(*words, "--header", "-h", *ALL)[0] == b"cat,no cat\n0.7,0.3\n0.9,0.1\n"
    assert swiprctl(*words, "--top=1", "10.jpg", "90.jpg")[0] == b"90.jpg,cat,0.9\n"
    assert swiprctl(*words, "10.jpg") == (b"", "", 0)
    out, err, status = swiprctl(*words, "--json", "10.jpg", "90.jpg", "bad.jpg")
    assert out.count(b"\n") == out.count(b'{"path": "90.jpg"') == 1
    assert (err, status) == ("swiprctl: bad.jpg: not an image\n", 1)


def changing(*models: str) -> Callable[[Connection], None]:
    """A daemon that answers each image by another model."""
    labels = {"one": ["cat", "dog"], "two": ["dog", "cat"], "three": ["car", "bus"]}

    def script(connection: Connection) -> None:
        for model in models:
            asked = connection.asked()
            connection.reply(
                asked.id, probabilities=[0.75, 0.25], model=model, labels=labels[model]
            )
        connection.asked()

    return script


def test_a_label_is_the_models_that_made_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWIPR_SOCKET", str(tmp_path / "s"))
    names = [f"{number}.jpg" for number in range(5)]
    for name in names:
        Path(name).write_bytes(b"x")
    with Peer(tmp_path / "s", changing("one", "two", "three", "one", "two")):
        out, err, status = swiprctl("select", "cat > 0.5", *names)
    assert (out, status) == (b"0.jpg\n3.jpg\n", 2)
    assert err == (
        "swiprctl: 2.jpg: three has no label 'cat'; it has car, bus; another model answered"
        " before\n"
    )


def test_it_agrees_with_the_rows(
    daemon: DaemonProcess, tmp_path: Path, photos: list[bytes]
) -> None:
    paths = []
    for number, photo in enumerate(photos):
        paths.append(str(tmp_path / f"{number}.jpg"))
        Path(paths[-1]).write_bytes(photo)
    words = ("--socket", str(daemon.path), *paths)
    (_, *labels), *rows = csv.reader(swiprctl("predict", "--header", *words)[0].decode().split())
    middle = sorted(row[1 + labels.index("class3")] for row in rows)[4]
    wanted = [row[0] for row in rows if float(row[1 + labels.index("class3")]) >= float(middle)]
    assert 0 < len(wanted) < len(paths)
    out, err, status = swiprctl("select", f"class3 >= {middle}", *words)
    assert (out.decode().split(), err, status) == (wanted, "", 0)
    tops = [labels[max(range(10), key=lambda i: float(row[1 + i]))] for row in rows]
    out, _, _ = swiprctl("select", f'top == "{tops[0]}"', *words)
    wanted = [path for path, top in zip(paths, tops, strict=True) if top == tops[0]]
    assert out.decode().split() == wanted


def test_one_picture_costs_nothing_of_this(
    daemon: DaemonProcess, tmp_path: Path, photos: list[bytes]
) -> None:
    (tmp_path / "a.jpg").write_bytes(photos[0])
    code = (
        "import sys; from swiprctl.cli import main; main(sys.argv[1:]);"
        "print({m for m in ('condition', 'expression', 'selection', 'records', 'sheet')"
        " if 'swiprctl.' + m in sys.modules}, file=sys.stderr)"
    )
    words = ["predict", "--socket", str(daemon.path), str(tmp_path / "a.jpg")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert done.stderr == "set()\n"
