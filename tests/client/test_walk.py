"""The images below folders: which are found, in which order, by what, and what else is said."""

from __future__ import annotations

import itertools
import os
import resource
import select
import subprocess
import sys
from pathlib import Path

import fuseserver
import pytest
from daemonprocess import as_uid
from imagefiles import encoded, picture
from peer import Connection, Peer
from PIL import Image

from swiprctl import distant, folder_names, walk
from swiprctl.client import Client
from swiprctl.distant import DistantWalk
from swiprctl.errors import SwiprError
from swiprctl.inputs import Found
from swiprctl.names import Names
from swiprctl.signatures import HEAD, begins_an_image
from swiprctl.walk import Walk

pytestmark = pytest.mark.timeout(60)

JPEG = b"\xff\xd8\xff\xe0" + bytes(40)
TEXT = b"no image at all, though it is called one\n"

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]


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


def name_of(source: str | int | None) -> str:
    """Give what it is called, and close what was opened for it."""
    if isinstance(source, Found):
        source.close()
    return str(source)


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
    given = list(photos)
    assert [str(source) for source in given] == [
        *("photos/a/1.png", "photos/a/2", "photos/a/b/3", "photos/b.jpg", "photos/z/4"),
    ]
    for source in given:
        assert isinstance(source, Found)
        source.close()
        assert source.take() is None
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


def test_a_telephone_s_photograph_is_known_by_its_brands() -> None:
    def box(*brands: bytes) -> bytes:
        content = brands[0] + bytes(4) + b"".join(brands[1:])
        return (8 + len(content)).to_bytes(4, "big") + b"ftyp" + content

    assert begins_an_image(box(b"heic", b"mif1"))
    assert begins_an_image(box(b"mif1", b"miaf", b"heic"))
    assert begins_an_image(box(b"avif"))
    assert not begins_an_image(box(b"isom", b"mp42"))
    # What stands behind the box is no brand of it.
    assert not begins_an_image(box(b"isom", b"mp42") + b"heicheicheic")


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
    monkeypatch.setattr(folder_names, "PIECE", 64)
    most = 0
    images = Walk(["many"])
    taken = []
    for source in images:
        most = max(most, *(len(one.names) for one in images._stack))
        taken.append(name_of(source)) if source is not None else None
    assert taken == expected
    assert images.skipped == 334
    assert 0 < most <= 80


@pytest.mark.usefixtures("folder")
def test_the_total_is_known_where_no_folder_is_to_come() -> None:
    photos = Walk(["photos"])
    totals = [(name_of(source), photos.total) for source in photos]
    assert [total for _, total in totals[:4]] == [None] * 4
    assert totals[4] == ("photos/z/4", 5)
    assert photos.total == 5
    assert Walk(["photos", "photos"]).total is None


@pytest.mark.usefixtures("folder")
def test_what_cannot_be_read_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for name in ("photos/a", "photos/b.jpg"):
        Path(name).chmod(0)

    def look() -> str:
        return "\n".join(found("photos"))

    # Root may read everything, so another looks.
    told = look() if os.geteuid() else as_uid(65534, look)
    for name in ("photos/a", "photos/b.jpg"):
        Path(name).chmod(0o755)
    # A file is left to be opened again, which tells why it cannot be.
    assert told.split("\n") == ["photos/a: Permission denied", "photos/b.jpg", "photos/z/4"]


def size(connection: Connection) -> None:
    """Answer each image with its size in bytes."""
    while True:
        asked = connection.asked()
        if asked.op == "model":
            connection.reply(asked.id, model="peer@1", labels=["size"])
        else:
            assert asked.image is not None
            connection.answer(asked, float(len(asked.image)))


@pytest.mark.usefixtures("folder")
def test_each_is_opened_once_and_closed(tmp_path: Path) -> None:
    with Peer(tmp_path / "s", size), Client(f"{tmp_path}/s") as client:
        answers = list(client.predict_many(Walk(["photos", "photos/c.txt.jpg", "missing"])))
        held = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    assert not [path for path in held if path.startswith(f"{tmp_path}/photos")]
    assert [str(source) for source, _ in answers] == [
        *found("photos"),
        *("photos/c.txt.jpg", "missing"),
    ]
    assert [getattr(one, "probabilities", str(one)) for _, one in answers] == [
        *[(len(JPEG),)] * 5,
        (len(TEXT),),
        "missing: No such file or directory",
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
        name_of(source)
    assert pauses == 1


@pytest.mark.parametrize("root", ["photos", "photos/", "photos/b.jpg", "missing", "."])
@pytest.mark.parametrize("options", [{}, {"follow": True, "one_file_system": True}], ids=str)
def test_another_process_finds_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, root: str, options: dict[str, bool]
) -> None:
    """However often it is followed by one that goes on in its place."""
    (folder / "photos/a/b/up").symlink_to("../..")
    monkeypatch.setattr(distant, "_MOST_OPEN", 1)
    walk_here = Walk([root], **options)
    expected = []
    for source in walk_here:
        expected.append(name_of(source))
    there = DistantWalk(lambda: Walk([root], **options), root, 20.0)
    given = []
    for source in there:
        if source is None:
            select.select([there.fileno()], [], [])
        else:
            given.append(name_of(source))
    assert given == expected
    assert there.skipped == walk_here.skipped


@pytest.mark.usefixtures("folder")
def test_folders_on_a_list_are_walked_as_they_come() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"photos/z\0photos/")
    with open(reading, "rb"):
        images = Walk(Names(f"/proc/self/fd/{reading}", b"\0"))
        sources = iter(images)
        assert name_of(next(sources)) == "photos/z/4"
        assert next(sources) is None
        assert images.fileno() >= 0
        os.write(writing, b"c.txt.jpg\0")
        os.close(writing)
        assert [name_of(source) for source in sources] == ["photos/c.txt.jpg"]


# -- the command


def swiprctl(
    folder: Path, *words: str, descriptors: int | None = None
) -> tuple[list[str], list[str], int]:
    """Run it in a folder; gives the lines that it wrote, without its name, and its exit status."""

    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    done = subprocess.run(
        [sys.executable, "-m", "swiprctl", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "SWIPR_SOCKET": f"{folder}/s"},
        preexec_fn=limit,
    )
    err = [line.removeprefix("swiprctl: ") for line in done.stderr.splitlines()]
    return done.stdout.splitlines(), err, done.returncode


def test_the_command_walks(folder: Path) -> None:
    rows = [f"{path},{len(JPEG)}" for path in found("photos")]
    with Peer(folder / "s", size):
        assert swiprctl(folder, "predict", "-r", "photos") == (rows, [], 0)
        assert swiprctl(folder / "photos/..", "predict", "-r") == (
            [f"./{row}" for row in rows],
            [],
            0,
        )
        assert swiprctl(folder, "predict", "-r", "photos", "missing", "photos/c.txt.jpg") == (
            [*rows, f"photos/c.txt.jpg,{len(TEXT)}"],
            ["missing: No such file or directory"],
            1,
        )
        hidden, _, _ = swiprctl(folder, "predict", "-r", "--hidden", "photos")
        assert [row.rpartition(",")[0] for row in hidden] == found("photos", hidden=True)
        assert swiprctl(folder, "predict", "-r", "photos/z", "-h")[0] == [str(len(JPEG))]


def test_a_folder_without_the_option_says_what_to_add(folder: Path) -> None:
    with Peer(folder / "s", size):
        for words in (["photos"], ["photos", "photos/b.jpg"]):
            _, err, status = swiprctl(folder, "predict", *words)
            assert err == [
                "photos: it is a directory; with -r, the images in it are asked about",
            ]
            assert status == (66 if len(words) == 1 else 1)


def test_a_list_of_folders(folder: Path) -> None:
    (folder / "list").write_text("photos/z\nphotos/b.jpg\n")
    with Peer(folder / "s", size):
        for words in (["--files-from=list"], ["--files-from", "list", "-q"]):
            assert swiprctl(folder, "predict", "-r", *words) == (
                [f"photos/z/4,{len(JPEG)}", f"photos/b.jpg,{len(JPEG)}"],
                [],
                0,
            )


def test_a_walk_that_is_gone_on_with(folder: Path) -> None:
    """What has its row is looked at, and closed again: here there is no room for more."""
    (folder / "many").mkdir()
    for number in range(100):
        (folder / f"many/{number:03}").write_bytes(JPEG)
    words = ("predict", "-r", "many", "--output=rows.csv")
    with Peer(folder / "s", size):
        assert swiprctl(folder, *words) == ([], [], 0)
        (folder / "many/050b").write_bytes(JPEG)
        (folder / "many/007").write_bytes(JPEG + b"more")
        assert swiprctl(folder, *words, "--resume", descriptors=40) == ([], [], 0)
    rows = (folder / "rows.csv").read_text().splitlines()
    expected = [f"many/{number:03},{len(JPEG)}" for number in range(100)]
    expected[7] = f"many/007,{len(JPEG) + 4}"
    assert sorted(rows) == sorted([*expected, f"many/050b,{len(JPEG)}"])


def test_few_descriptors_are_enough(folder: Path) -> None:
    (folder / "many").mkdir()
    for number in range(300):
        (folder / f"many/{number:03}").write_bytes(JPEG if number % 2 else TEXT)
    with Peer(folder / "s", size):
        rows, err, status = swiprctl(folder, "predict", "-r", "many", descriptors=10)
    assert rows == [f"many/{number:03},{len(JPEG)}" for number in range(1, 300, 2)]
    assert (err, status) == ([], 0)


@pytest.mark.parametrize("option", ["--hidden", "-L", "--follow", "--one-file-system"])
def test_options_of_a_walk_want_one(folder: Path, option: str) -> None:
    option_name = "--follow" if option == "-L" else option
    _, err, status = swiprctl(folder, "predict", option, "photos")
    assert err[0] == f"{option_name} is about folders: add -r to have them walked"
    assert status == 64
