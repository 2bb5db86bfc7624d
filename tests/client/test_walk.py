"""The images below folders: which are found, in which order, by what, and what else is said."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import fuseserver
import pytest
from imagefiles import encoded, picture
from peer import Connection, Peer
from PIL import Image

from swiprctl import listing, walk
from swiprctl.client import Client
from swiprctl.errors import SwiprError
from swiprctl.inputs import Found
from swiprctl.names import Names
from swiprctl.signatures import HEAD, begins_an_image
from swiprctl.walk import Walk

pytestmark = pytest.mark.timeout(60)

JPEG = b"\xff\xd8\xff\xe0" + bytes(40)
TEXT = b"no image at all, though it is called one\n"

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a folder of photos and other things."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a/2", "a/1.png", "a/b/3", "z/4", ".hidden/5", "a/.6", "c.txt.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(TEXT if "txt" in name else JPEG)
    (tmp_path / "photos/a/notes").write_bytes(TEXT)
    (tmp_path / "photos/empty.jpg").touch()
    return tmp_path


def found(*roots: str | int, **options: bool) -> list[str]:
    """What a walk gives: paths, and behind those that failed, why."""
    told = []
    for source in Walk(roots, **options):
        if isinstance(source, Found):
            try:
                descriptor = source.take()
            except SwiprError as error:
                told.append(f"{source}: {error}")
                continue
            assert descriptor is not None
            assert os.readlink(f"/proc/self/fd/{descriptor}") == os.path.realpath(source)
            os.close(descriptor)
        if source is not None:
            told.append(str(source))
    return told


@pytest.mark.usefixtures("folder")
def test_images_in_the_order_of_their_names() -> None:
    photos = Walk(["photos"])
    assert [str(source) for source in photos] == [
        *("photos/a/1.png", "photos/a/2", "photos/a/b/3", "photos/b.jpg", "photos/z/4"),
    ]
    assert photos.skipped == 3
    assert found("photos/") == found("photos")
    assert found("photos/z", ".")[:2] == ["photos/z/4", "./photos/a/1.png"]


@pytest.mark.usefixtures("folder")
def test_what_is_named_is_given_whatever_it_is() -> None:
    roots = ("photos/c.txt.jpg", 0, "missing", "photos/z", "photos/.hidden", "\0")
    assert found(*roots) == [
        *("photos/c.txt.jpg", "0", "missing", "photos/z/4", "photos/.hidden/5", "\0"),
    ]


@pytest.mark.usefixtures("folder")
def test_hidden_ones_by_option() -> None:
    assert [path for path in found("photos", hidden=True) if path not in found("photos")] == [
        *("photos/.hidden/5", "photos/a/.6"),
    ]


def test_links_by_option(folder: Path) -> None:
    photos = folder / "photos"
    (photos / "a/b/up").symlink_to("../..")
    (photos / "file").symlink_to("b.jpg")
    (photos / "dir").symlink_to("z")
    (photos / "nowhere").symlink_to("nothing")
    (folder / "link").symlink_to("photos")
    plain = found("photos")
    assert not [path for path in plain if Path(path).is_symlink()]
    assert [path.replace("link", "photos", 1) for path in found("link")] == plain, "a root's is"
    assert [path for path in found("photos", follow=True) if path not in plain] == [
        "photos/a/b/up: a loop of links: it leads back to photos",
        *("photos/dir/4", "photos/file", "photos/nowhere"),
    ]


@pytest.mark.skipif(not fuseserver.possible(), reason="takes root and mounts")
def test_other_file_systems_by_option(folder: Path) -> None:
    mount = folder / "photos/mount"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(mount)], check=True)
    try:
        (mount / "5").write_bytes(JPEG)
        assert "photos/mount/5" in found("photos")
        assert "photos/mount/5" not in found("photos", one_file_system=True)
        assert found("photos/mount", one_file_system=True) == ["photos/mount/5"]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_begins_as_expected(format: str) -> None:
    assert begins_an_image(encoded(picture(20, 10), format)[:HEAD])


def test_what_only_looks_like_one() -> None:
    others = [
        b"",
        b"BM",
        b"BMW and other cars by price",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"GIF90a",
    ]
    others += [b"\x89PNG", b"II", b"\xff\xd8", b"%PDF-1.7", b"PK\3\4", b"<svg xmlns="]
    assert [head for head in others if begins_an_image(head[:HEAD])] == []


def test_pillow_takes_nothing_for_an_image_that_a_walk_leaves_out() -> None:
    """By the first bytes that its six readers ask for, as far as these can be told."""
    Image.init()
    for format in FORMATS:
        accepts = Image.OPEN[format][1]
        assert accepts is not None
        for head in itertools.product(b"BMI*+\0GIF89a\xff\xd8\x89RW", repeat=4):
            data = bytes(head) + bytes(10) + (40).to_bytes(4, "little") + bytes(14)
            if format not in ("GIF", "PNG", "WEBP") and accepts(data):
                assert begins_an_image(data), (format, data)


@pytest.mark.usefixtures("folder")
def test_a_large_folder_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number:04}" for number in range(1000)]
    Path("many").mkdir()
    for name in names:
        Path("many", name).write_bytes(JPEG if int(name) % 3 else TEXT)
    for name in ("0500d", "0999d"):
        Path("many", name).mkdir()
        Path("many", name, "x").write_bytes(JPEG)
    expected = sorted(
        [f"many/{name}" for name in names if int(name) % 3] + ["many/0500d/x", "many/0999d/x"]
    )
    assert found("many") == expected
    monkeypatch.setattr(listing, "PIECE", 64)
    most = 0
    images = Walk(["many"])
    taken = []
    for source in images:
        most = max(most, *(len(one.names) for one in images._stack))
        taken.append(str(source)) if source is not None else None
    assert taken == expected
    assert images.skipped == 334
    assert 0 < most <= 80


@pytest.mark.usefixtures("folder")
def test_the_total_is_known_where_no_folder_is_to_come() -> None:
    photos = Walk(["photos"])
    totals = [(str(source), photos.total) for source in photos]
    assert [total for _, total in totals[:4]] == [None] * 4
    assert totals[4] == ("photos/z/4", 5)
    assert photos.total == 5
    assert Walk(["photos", "photos"]).total is None


@pytest.mark.skipif(not os.geteuid(), reason="root may read everything")
def test_a_folder_that_cannot_be_read_as_a_user(folder: Path) -> None:
    (folder / "photos/a").chmod(0)
    try:
        assert "photos/a: Permission denied" in found("photos")
    finally:
        (folder / "photos/a").chmod(0o755)


def size(connection: Connection) -> None:
    """Answer each image with its size in bytes."""
    while True:
        asked = connection.asked()
        assert asked.image is not None
        connection.answer(asked, float(len(asked.image)))


@pytest.mark.usefixtures("folder")
def test_each_is_opened_once_and_closed(tmp_path: Path) -> None:
    with Peer(tmp_path / "s", size), Client(f"{tmp_path}/s") as client:
        answers = list(client.predict_many(Walk(["photos", "photos/c.txt.jpg", "missing"])))
    assert [str(source) for source, _ in answers] == [
        *found("photos"),
        *("photos/c.txt.jpg", "missing"),
    ]
    assert [getattr(one, "probabilities", str(one)) for _, one in answers] == [
        *[(len(JPEG),)] * 5,
        (len(TEXT),),
        "No such file or directory",
    ]


@pytest.mark.usefixtures("folder")
def test_asking_begins_while_it_walks(tmp_path: Path) -> None:
    """The second folder is made when the first answer is there, from what is in the first."""
    Path("first").mkdir()
    for number in range(100):
        Path("first", str(number)).write_bytes(JPEG)
    answered = 0
    with Peer(tmp_path / "s", size), Client(f"{tmp_path}/s") as client:
        for _ in client.predict_many(Walk(["first", "second"])):
            if not answered:
                Path("second").mkdir()
                Path("second", "late").write_bytes(JPEG)
            answered += 1
    assert answered == 101


@pytest.mark.usefixtures("folder")
def test_answers_are_taken_in_while_much_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_SLICE", 2)
    pauses = 0
    for source in (texts := Walk(["photos"])):
        if source is None:
            pauses += 1
            assert texts.fileno() == -1, "nothing to wait for"
    assert pauses == 1


@pytest.mark.usefixtures("folder")
def test_folders_on_a_list_are_walked_as_they_come() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"photos/z\0photos/")
    with open(reading, "rb"):
        images = Walk(Names(f"/proc/self/fd/{reading}", b"\0"))
        sources = iter(images)
        assert str(next(sources)) == "photos/z/4"
        assert next(sources) is None
        assert images.fileno() >= 0
        os.write(writing, b"c.txt.jpg\0")
        os.close(writing)
        assert list(sources) == ["photos/c.txt.jpg"]
