"""Mistakes that people make on the command line: each is told with what was meant."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer import Connection, Peer
from surroundings import Surroundings

from swiprctl import Client
from swiprctl.arguments import COMMANDS, parse
from swiprctl.errors import BadImage, CannotOpen, UsageError
from swiprctl.hints import SHIPPED
from swiprd.config import DEFAULT_MODEL

pytestmark = pytest.mark.timeout(30)

NO_IMAGE = "not a JPEG, PNG, WebP, GIF, BMP or TIFF image"


def daemon(connection: Connection) -> None:
    """Take what begins as a JPEG does for an image, and nothing else."""
    while True:
        asked = connection.asked()
        if not asked.image:
            connection.refuse(asked.id, BadImage("empty file"))
        elif asked.image.startswith(b"\xff\xd8"):
            connection.answer(asked, 0.5)
        else:
            connection.refuse(asked.id, BadImage(NO_IMAGE))


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Surroundings]:
    """Two pictures, and a daemon that `SWIPR_SOCKET` names."""
    around = Surroundings(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8 " + name.encode())
    with Peer(tmp_path / "s", daemon) as peer:
        around.environment["SWIPR_SOCKET"] = peer.path
        yield around


def predict(
    around: Surroundings, *words: str, stdin: bytes | int
) -> subprocess.CompletedProcess[bytes]:
    """Run it among the pictures, with this on standard input."""
    given = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    return subprocess.run(
        around.command("predict", *words),
        capture_output=True,
        cwd=around.runtime.parent,
        env=around.environment,
        check=False,
        **given,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize(
    ("names", "option"),
    [
        (b"a.jpg\nb.jpg\n", "--files-from"),
        (b"a.jpg\r\nb.jpg\r\n", "--files-from"),
        (b"a.jpg\0b.jpg\0", "--files0-from"),
    ],
)
def test_names_in_the_place_of_an_image(around: Surroundings, names: bytes, option: str) -> None:
    told = (
        f"swiprctl: -: {NO_IMAGE}, but names of files:"
        f" 'swiprctl predict {option}=-' reads names from standard input\n"
    )
    done = predict(around, "-", stdin=names)
    assert (done.stderr.decode(), done.returncode) == (told, 65)
    listed = around.runtime.parent / "list"
    listed.write_bytes(names)
    with open(listed, "rb") as file:
        assert predict(around, "-", stdin=file.fileno()).stderr.decode() == told
    for other in (b"no.jpg\nsuch.jpg\n", b"a.jpg", b"\0", b"\n"):
        assert predict(around, "-", stdin=other).stderr.decode() == f"swiprctl: -: {NO_IMAGE}\n"


def test_nothing_in_the_place_of_an_image(around: Surroundings) -> None:
    done = predict(around, "-", stdin=subprocess.DEVNULL)
    assert (done.stderr, done.returncode) == (
        b"swiprctl: -: /dev/null is there, and no image: 'swiprctl predict - <FILE' gives it one\n",
        66,
    )
    done = predict(around, "-", stdin=b"")
    assert done.stderr == b"swiprctl: -: empty file: nothing was written to it\n"
    with open(around.runtime.parent / "a.jpg", "rb") as file:
        os.lseek(file.fileno(), 0, os.SEEK_END)
        done = predict(around, "-", stdin=file.fileno())
    assert done.stderr == (
        b"swiprctl: -: it has been read to its end already: nothing is left of it\n"
    )
    (around.runtime.parent / "empty").touch()
    with open(around.runtime.parent / "empty", "rb") as file:
        assert predict(around, "-", stdin=file.fileno()).stderr == b"swiprctl: -: empty file\n"


def test_under_xargs_each_row_has_its_path_with_an_option(around: Surroundings) -> None:
    rows = "a.jpg,0.5\nb.jpg,0.5\n./a.jpg,0.5\n"
    for words, told in (
        (("predict", "-H"), rows),
        (("predict",), rows.replace("./a.jpg,", "")),  # the last call's one path
    ):
        done = subprocess.run(
            ["xargs", "-n", "2", *around.command(*words)],
            input="a.jpg b.jpg ./a.jpg",
            cwd=around.runtime.parent,
            env=around.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == told


def test_a_file_object_at_its_end(around: Surroundings) -> None:
    with (
        Client(around.environment["SWIPR_SOCKET"]) as client,
        open(around.runtime.parent / "a.jpg", "rb") as file,
    ):
        file.read()
        for source in (file, io.BytesIO(b"")):
            if source is file:
                with pytest.raises(CannotOpen, match=r"to its end already: seek\(0\)"):
                    client.predict(source)
                file.seek(0)
                assert client.predict(source).probabilities == (0.5,)
            else:
                with pytest.raises(BadImage, match="empty file"):
                    client.predict(source)


@pytest.mark.parametrize(
    ("option", "names", "told"),
    [
        ("--files-from", b"a.jpg\0b.jpg\0", "NULs end its names: --files0-from reads such a list"),
        ("--files0-from", b"a.jpg\nb.jpg\n", "no NUL: --files-from reads such a list"),
        ("--files0-from", b"a.jpg\n" * 30_000, "no NUL: --files-from reads such a list"),
        ("--files-from", b"a.jpg\r\nb.jpg\r\n", "tr -d '\\r' <LIST | swiprctl predict"),
    ],
)
def test_a_list_of_another_kind(around: Surroundings, option: str, names: bytes, told: str) -> None:
    done = predict(around, f"{option}=-", stdin=names)
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("swiprctl: the list of names: ")
    assert told in line
    assert (done.stdout, done.returncode) == (b"", 1)


def test_an_image_in_the_place_of_a_list(around: Surroundings) -> None:
    photo = around.runtime.parent / "photo.jpg"
    photo.write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(100))
    for option in ("--files-from", "--files0-from"):
        done = predict(around, f"{option}=photo.jpg", stdin=b"")
        assert done.stderr.decode() == (
            "swiprctl: the list of names photo.jpg: it is an image, and no list: give it as"
            " swiprctl predict photo.jpg\n"
        )
        assert done.returncode == 1
        done = predict(around, f"{option}=-", stdin=photo.read_bytes())
        assert done.stderr.decode() == (
            "swiprctl: the list of names: it is an image, and no list: give it as"
            " swiprctl predict -\n"
        )
    (around.runtime.parent / "list").write_bytes(b"a.jpg\0b.jpg\0")
    told = predict(around, "--files-from=list", stdin=b"").stderr.decode()
    assert told.startswith("swiprctl: the list of names list: NULs end its names")


def test_an_empty_path_is_shown(around: Surroundings) -> None:
    done = predict(around, "", stdin=b"")
    assert done.stderr.decode() == "swiprctl: '': No such file or directory\n"


def test_what_came_before_such_a_line_is_answered(around: Surroundings) -> None:
    for names in (b"a.jpg\nb.jpg\r\n", b"a.jpg\nb.jpg\0", b"a.jpg\n\0\n"):
        done = predict(around, "--files-from=-", stdin=names)
        assert done.stdout == b"a.jpg,0.5\n"
        assert done.stderr.count(b"\n") == 1


def test_names_that_only_look_so(around: Surroundings) -> None:
    folder = around.runtime.parent
    for name in ("c", "c\r", "d\ne", "d\n"):
        (folder / name).write_bytes(b"\xff\xd8")
    done = predict(around, "-h", "--files-from=-", stdin=b"c\r\na.jpg\n")
    assert (done.stdout, done.stderr) == (b"0.5\n0.5\n", b"")
    for names in (b"d\ne", b"d\n\0", b"d\n"):
        done = predict(around, "-h", "--files0-from=-", stdin=names)
        assert (done.stdout, done.stderr) == (b"0.5\n", b""), names


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a.jpg"], "'swiprctl predict a.jpg' asks about a picture"),
        (["it's/a b.jpg"], """'swiprctl predict 'it'"'"'s/a b.jpg'' asks about a picture"""),
        (["predcit", "a.jpg"], "did you mean 'swiprctl predict'?"),
        (["stat"], "did you mean 'swiprctl status'?"),
        (["versoin"], "did you mean 'swiprctl version'?"),
        (["frobnicate"], f"there are {', '.join(COMMANDS)}, help, version"),
        (["predict", "--lables"], "did you mean --labels?"),
        (["--label"], "did you mean --labels?"),
        (["--file0-from=-"], "did you mean --files0-from?"),
        (["predict", "--labels=a,b"], "prints those of the model; 'swiprd pack' takes"),
        (["predict"], "--files-from=- for a list of paths there"),
    ],
)
def test_a_slip(words: list[str], told: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(words)
    assert str(error.value).endswith(told) or told in str(error.value)


@pytest.mark.parametrize("words", [["predict", "--xyz"], ["-l"], ["--no"], ["predict", "-q"]])
def test_no_hint_is_better_than_a_wrong_one(words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        parse(words)
    assert "mean" not in str(error.value)


def test_a_model_that_is_none(around: Surroundings) -> None:
    del around.environment["SWIPR_SOCKET"]
    folder = around.runtime.parent
    (folder / "best.pth").touch()
    for name, told in (
        (SHIPPED, f"leave --model out: {SHIPPED} is the default"),
        (str(folder / "best.pth"), f"'swiprd pack {folder}/best.pth -o FOLDER' makes"),
        (f"{folder}/", "'swiprd pack' makes a model's folder"),
    ):
        done = around.swiprctl("--model", name, "predict", "a.jpg")
        assert told in done.stderr, name
    assert DEFAULT_MODEL.name == SHIPPED


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["help"], "help"),
        (["help", "predict"], "help"),
        (["-h"], "help"),
        (["version"], "version"),
        (["-V"], "version"),
        (["predict", "-V"], "version"),
    ],
)
def test_help_and_version_by_any_name(words: list[str], command: str) -> None:
    assert parse(words).command == command


def test_a_picture_may_have_the_name_of_a_command() -> None:
    assert parse(["predict", "help"]).paths == ["help"]
