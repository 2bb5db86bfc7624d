"""decoders.py: AVIF and HEIC decode as Pillow's users see them, and whatever may not be read is
refused in words that help."""

from __future__ import annotations

import contextlib
import io
import os
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bombs import heic_metadata
from hypothesis import given, settings
from hypothesis import strategies as st
from imagefiles import claiming, encoded, heic, picture
from PIL import Image, ImageOps

from swiprctl.errors import BadImage, TooLarge
from swiprd.folder.spec import Preprocess
from swiprd.inference import decode
from swiprd.inference.decoders import readable
from swiprd.system.image_formats import FORMATS, is_cut_short, recognised

pytestmark = pytest.mark.timeout(60)

PLAIN = Preprocess()
UPRIGHT = Preprocess(exif="apply")
needs = {
    name: pytest.mark.skipif(name not in readable(), reason=f"no decoder of {name}")
    for name in ("avif", "heic")
}


def by_pillow(data: bytes) -> Image.Image:
    """What a user's own program would make of an AVIF."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


def by_pillow_heif(data: bytes) -> Image.Image:
    import pillow_heif

    return pillow_heif.open_heif(io.BytesIO(data)).to_pillow()


def same(found: Image.Image, expected: Image.Image) -> bool:
    return found.size == expected.size and found.tobytes() == expected.convert("RGB").tobytes()


# --- pixels -----------------------------------------------------------------------------------


@needs["avif"]
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_an_avif_is_what_pillow_makes_of_it(mode: str) -> None:
    data = encoded(picture(301, 200, mode), "AVIF")
    assert same(decode.load_image(data, PLAIN), by_pillow(data))


@needs["heic"]
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("options", [{}, {"quality": -1, "chroma": 444}, {"tile_size": 64}])
def test_a_heic_is_what_pillow_heif_makes_of_it(mode: str, options: dict[str, int]) -> None:
    data = heic(picture(300, 200, mode), **options)
    assert same(decode.load_image(data, PLAIN), by_pillow_heif(data))


@needs["avif"]
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_as_the_recipe_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(40, 24), "AVIF", exif=exif)
    plain = by_pillow(data)
    assert plain.size == (40, 24)
    assert same(decode.load_image(data, PLAIN), plain)
    turned = ImageOps.exif_transpose(plain)
    assert turned.size == ((24, 40) if orientation >= 5 else (40, 24))
    assert same(decode.load_image(data, UPRIGHT), turned)


@needs["heic"]
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_is_upright_in_any_case(orientation: int) -> None:
    image = picture(40, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = heic(image, exif=exif.tobytes(), quality=-1, chroma=444)
    assert (b"irot" in data or b"imir" in data) == (orientation > 1)
    turned = ImageOps.exif_transpose(by_pillow(encoded(image, "PNG", exif=exif)))
    found = [decode.load_image(data, recipe) for recipe in (PLAIN, UPRIGHT)]
    assert found[0].tobytes() == found[1].tobytes()
    assert found[0].size == turned.size
    # Not quite equal: HEVC has the colours as YCbCr.
    assert np.abs(np.asarray(found[0]).astype(int) - np.asarray(turned.convert("RGB"))).max() <= 4


@needs["avif"]
def test_only_the_first_picture_of_an_avif_counts() -> None:
    first, other = picture(64, 48, seed=1), picture(64, 48, seed=2)
    data = encoded(first, "AVIF", save_all=True, append_images=[other] * 2)
    assert by_pillow(data).n_frames == 3  # type: ignore[attr-defined]
    assert same(decode.load_image(data, PLAIN), by_pillow(data))
    found = np.asarray(decode.load_image(data, PLAIN)).astype(int)
    near, far = (np.abs(found - np.asarray(one)).mean() for one in (first, other))
    assert near < 8 < far


@needs["heic"]
def test_only_the_primary_picture_of_a_heic_counts() -> None:
    first, other = picture(64, 48, seed=1), picture(64, 48, seed=2)
    assert same(decode.load_image(heic(first, other), PLAIN), by_pillow_heif(heic(first)))


# --- which is which ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format"),
    [
        *((name, name.upper()) for name in FORMATS if name not in ("avif", "heic")),
        ("jpeg", "MPO"),
        pytest.param("avif", "AVIF", marks=needs["avif"]),
    ],
)
def test_files_are_recognised(name: str, format: str) -> None:
    assert recognised(encoded(picture(9, 9), format)) == name


@pytest.mark.parametrize(
    ("brands", "name"),
    [
        (["heic", "mif1", "heic"], "heic"),
        (["heix"], "heic"),
        (["mif1", "mif1", "MiHB", "heic"], "heic"),
        (["msf1", "hevc"], "heic"),
        (["avif", "mif1"], "avif"),
        (["mif1", "miaf", "avif"], "avif"),
        (["avis", "msf1"], "avif"),
        (["mif1", "miaf", "jpeg"], ""),  # the same boxes around other pictures
        (["crx ", "isom"], ""),  # a camera's raw file
        (["qt  "], ""),
        (["isom", "mp42"] + ["xxxx"] * 1000 + ["heic"], ""),
    ],
)
def test_brands(brands: list[str], name: str) -> None:
    body = (brands[0] + "\0\0\0\0" + "".join(brands[1:])).encode()
    data = (8 + len(body)).to_bytes(4) + b"ftyp" + body
    assert recognised(data) == name
    # What follows the box is not of it.
    assert recognised(data + b"heicavif") == name


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0\x18ftyp", b"\0\0\0\x00ftypqt  \0\0\0\0heic"])
def test_what_is_too_short_is_not_recognised(data: bytes) -> None:
    assert recognised(data) == ""


@given(st.binary(max_size=64).flatmap(lambda tail: st.sampled_from([tail, b"\0\0\0 ftyp" + tail])))
def test_nonsense_is_recognised_as_something_or_nothing(data: bytes) -> None:
    assert recognised(data) in {"", *FORMATS}
    is_cut_short(data)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_only_the_formats_that_are_allowed(format: str) -> None:
    data = encoded(picture(9, 9), format)
    name = format.lower()
    assert decode.load_image(data, PLAIN, formats=[name]).size == (9, 9)
    with pytest.raises(BadImage) as caught:
        decode.load_image(data, PLAIN, formats=[one for one in ("jpeg", "png") if one != name])
    title = "WebP" if format == "WEBP" else format
    read = {"JPEG": "PNG", "PNG": "JPEG"}.get(format, "JPEG or PNG")
    assert str(caught.value) == (
        f"a {title} image, where swiprd is set to read {read} only (formats, in swiprd.toml)"
    )


@pytest.mark.parametrize("name", ["avif", "heic"])
def test_a_phones_photo_that_is_not_allowed(name: str) -> None:
    data = b"\0\0\0\x10ftyp" + {"avif": b"avif", "heic": b"heic"}[name] + bytes(4)
    with pytest.raises(BadImage, match=f"an? {name.upper()} image, where .* read JPEG only"):
        decode.load_image(data, PLAIN, formats=["jpeg"])


@pytest.mark.parametrize(
    ("formats", "text"),
    [
        (["png"], "not a PNG image"),
        (["jpeg", "png"], "not a JPEG or PNG image"),
        (["heic"], "not a HEIC image"),
        (["avif"], "not an AVIF image"),
    ],
)
def test_the_words_follow_what_is_allowed(formats: list[str], text: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode.load_image(b"no image", PLAIN, formats=formats)
    assert str(caught.value) == text


REFUSED = """
import sys
from swiprctl.errors import BadImage
from swiprd.folder.spec import Preprocess
from swiprd.inference import decode
for brand in (b"heic", b"avif", b"none"):
    try:
        decode.load_image(b"\\0\\0\\0\\x10ftyp" + brand + bytes(4), Preprocess())
    except BadImage as error:
        print(error)
"""


def test_a_file_whose_decoder_is_missing_says_what_to_install(tmp_path: Path) -> None:
    """In a process where neither can be imported, as with Debian's Pillow 11.1."""
    (tmp_path / "pillow_heif.py").write_text("raise ImportError")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys; sys.modules['PIL.AvifImagePlugin'] = None\n"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", REFUSED],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.splitlines() == [
        "a HEIC photograph; swiprd reads those where pillow-heif is installed:"
        " pip install pillow-heif, then swiprctl reload",
        "an AVIF image; swiprd reads those with Pillow 11.3 or later:"
        " pip install 'pillow>=11.3', then swiprctl reload",
        "not a JPEG, PNG, WebP, GIF, BMP or TIFF image",
    ]


# --- damage and malice ------------------------------------------------------------------------

SEEDS = {
    "avif": lambda: encoded(picture(64, 48), "AVIF"),
    "avif with alpha": lambda: encoded(picture(64, 48, "RGBA"), "AVIF"),
    "avif of three": lambda: encoded(
        picture(64, 48), "AVIF", save_all=True, append_images=[picture(64, 48, seed=1)]
    ),
    "heic": lambda: heic(picture(64, 48)),
    "heic with alpha": lambda: heic(picture(64, 48, "RGBA")),
    "heic of two": lambda: heic(picture(64, 48), picture(64, 48, seed=1)),
    "heic of tiles": lambda: heic(picture(256, 192), tile_size=64),
}
EACH = [pytest.param(name, marks=needs[name[:4]]) for name in SEEDS]


BOUNDED = """
import sys
from swiprd.folder.spec import Preprocess
from swiprd.inference import decode
from swiprd.system.proc import bound_own_memory
bound_own_memory(100 << 20)
print(decode.decode(sys.stdin.buffer.read(), Preprocess()).shape)
"""


@needs["heic"]
def test_metadata_are_not_copied_for_each_image_of_a_heic() -> None:
    data = heic_metadata(heic(picture(64, 64)), images=60, size=4 << 20)
    command = [sys.executable, "-P", "-c", BOUNDED]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"(1, 3, 224, 224)\n", b"")


@pytest.mark.parametrize("name", EACH)
def test_a_file_that_is_cut_short_is_a_bad_image(name: str) -> None:
    data = SEEDS[name]()
    decode.load_image(data, PLAIN)
    step = max(1, len(data) // 64)
    for length in (*range(1, len(data), step), len(data) - 1):
        with pytest.raises(BadImage):
            decode.load_image(data[:length], PLAIN)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("behind", [b"\n", b"\r\n", b"\0" * 7])
def test_a_few_bytes_behind_the_last_box_do_not_count(name: str, behind: bytes) -> None:
    data = SEEDS[name]()
    assert same(decode.load_image(data + behind, PLAIN), decode.load_image(data, PLAIN))


def test_boxes_without_end_are_not_followed_to_the_end() -> None:
    assert not is_cut_short(b"\0\0\0\x08free" * 20_000 + b"\0\0\0\x09free")
    assert is_cut_short(b"\0\0\0\x08free" * 20 + b"\0\0\0\x09free")


@pytest.mark.parametrize("name", EACH)
def test_a_damaged_file_ends_in_a_picture_or_a_named_error(name: str) -> None:
    whole = SEEDS[name]()

    @settings(max_examples=150, deadline=None)
    @given(
        edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), min_size=1, max_size=6),
        early=st.booleans(),
    )
    def damage(edits: list[tuple[float, bytes]], early: bool) -> None:
        data = bytearray(whole)
        for where, patch in edits:
            # Half of them in the boxes at the beginning, where sizes and offsets are.
            at = int(where * (min(400, len(data)) if early else len(data)))
            data[at : at + len(patch)] = patch
        with contextlib.suppress(BadImage, TooLarge):
            image = decode.load_image(bytes(data), UPRIGHT, 1_000_000)
            assert image.mode == "RGB"
            assert image.width * image.height <= 1_000_000

    damage()


@pytest.mark.parametrize("name", [pytest.param(one, marks=needs[one]) for one in needs])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_header_that_claims_too_much_is_refused_before_decoding(name: str, mode: str) -> None:
    image = picture(64, 64, mode)
    data = encoded(image, "AVIF") if name == "avif" else heic(image)
    with pytest.raises(TooLarge, match=r"30000x7000 = 210000000 pixels, where 178956970"):
        decode.load_image(claiming(data, 30_000, 7_000), PLAIN)


@needs["heic"]
def test_a_header_of_tiles_that_claims_too_much() -> None:
    data = claiming(heic(picture(256, 192), tile_size=64), 30_000, 7_000)
    with pytest.raises(TooLarge, match=r"30000x7000 = 210000000 pixels, where 178956970"):
        decode.load_image(data, PLAIN)


@needs["heic"]
def test_a_picture_that_is_larger_than_its_header_says_is_refused() -> None:
    data = claiming(heic(picture(640, 480)), 64, 48)
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode.load_image(data, PLAIN, 10_000)


@pytest.mark.parametrize("name", [pytest.param(one, marks=needs[one]) for one in needs])
def test_a_decoder_computes_in_one_thread(name: str) -> None:
    """Looked at from outside, all the time: the decoders' threads end when they are done.

    libde265 has a thread of its own, for which the worker's own waits.
    """
    image = picture(1600, 1200)
    data = encoded(image, "AVIF", speed=10) if name == "avif" else heic(image, tile_size=256)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for _ in range(3):
                decode.load_image(data, PLAIN)
            status = 0
        finally:
            os._exit(status)
    ended = os.pidfd_open(pid)
    most = 0
    while not select.select([ended], [], [], 0.001)[0]:
        most = max(most, len(os.listdir(f"/proc/{pid}/task")))
    os.close(ended)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert most <= (1 if name == "avif" else 2)
