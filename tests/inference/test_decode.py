"""decode.py: equal to torchvision where torchvision has an answer, and a named error elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imagefiles import bmp, encoded, many_scans, picture, png
from PIL import Image, ImageOps

from swiprctl.errors import BadImage, TooLarge
from swiprd.folder.spec import Preprocess
from swiprd.inference import decode, preprocess
from swiprd.inference.decode_limits import has_too_many_scans
from swiprd.inference.decoders import readable
from swiprd.inference.torchvision_import import import_torchvision
from swiprd.system.image_formats import either

pytestmark = pytest.mark.timeout(60)

MIB = 1 << 20
PLAIN = Preprocess()
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "RGBa"]


def by_torchvision(image: Image.Image, recipe: Preprocess) -> np.ndarray:
    """Follow the plain recipe with torchvision's own transforms: [crops, 3, crop, crop]."""
    import_torchvision()
    from torchvision import transforms

    cut = {
        "center": transforms.CenterCrop,
        "five": transforms.FiveCrop,
        "ten": transforms.TenCrop,
    }[recipe.crops](recipe.crop)
    interpolation = transforms.InterpolationMode(recipe.interpolation)
    assert recipe.resize is not None
    size = recipe.resize if recipe.edge == "short" else (recipe.resize, recipe.resize)
    resize = transforms.Resize(size, interpolation, antialias=True)
    if recipe.edge == "square":
        image = image.convert("RGB")
        image = transforms.CenterCrop(fastai_s_side(*image.size, recipe.resize))(image)
    finish = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(recipe.mean, recipe.std)]
    )
    crops = cut(resize(image.convert("RGB")))
    every = crops if isinstance(crops, tuple) else [crops]
    return np.stack([finish(one).numpy() for one in every])


def fastai_s_side(width: int, height: int, size: int) -> int:
    """How large a square fastai 2 cuts: in floating point, it now and then loses a pixel."""
    m = min(width / size, height / size)
    return max(1, int(m * size))


# --- equal to torchvision ---------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    mode=st.sampled_from(["L", "P", "RGB", "RGBA", "CMYK", "YCbCr"]),
    resize=st.integers(1, 80),
    edge=st.sampled_from(["short", "both", "square"]),
    crop=st.integers(1, 100),
    crops=st.sampled_from(["center", "five", "ten"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]),
)
def test_preprocess_equals_torchvision(width: int, height: int, mode: str, **keys: Any) -> None:
    if keys["crops"] != "center":
        keys["crop"] = min(keys["crop"], keys["resize"])  # torchvision refuses larger ones
    recipe = Preprocess(**keys)
    image = picture(width, height, mode)
    data = encoded(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    assert np.array_equal(decode.decode(data, recipe), by_torchvision(image, recipe))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_converted_as_pillow_does(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    image = picture(40, 30, mode)
    monkeypatch.setattr(Image, "open", lambda *_, **__: image)  # some modes no file has
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted = decode.load_image(b"", PLAIN)
    assert converted.mode == "RGB"
    assert converted.tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 90, "progressive": True}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 80}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("MPO", {"quality": 90, "save_all": True, "append_images": [picture(8, 8)]}),
    ],
)
def test_every_format_that_is_allowed(format: str, options: dict[str, Any]) -> None:
    data = encoded(picture(500, 375), format, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = by_torchvision(image, PLAIN)
    crops = decode.decode(data, PLAIN)
    assert np.array_equal(crops, expected)
    assert (crops.shape, crops.dtype) == ((1, 3, 224, 224), np.float32)
    assert crops.flags.c_contiguous


@pytest.mark.parametrize("format", ["PPM", "ICO", "EPS", "PCX", "TGA", "SGI", "JPEG2000", "ICNS"])
def test_every_other_format_is_refused(format: str) -> None:
    data = encoded(picture(64, 64), format)
    with pytest.raises(BadImage, match=f"not a {either(readable())} image"):
        decode.decode(data, PLAIN)


def test_psd_and_text_are_refused_and_no_plugin_is_imported_for_them() -> None:
    known = set(Image.ID)
    for data in (b"8BPS\x00\x01" + bytes(40), b"hello, I am img.jpg\n", b"%PDF-1.7", b"\0" * 64):
        with pytest.raises(BadImage, match="not a JPEG"):
            decode.decode(data, PLAIN)
    assert set(Image.ID) <= known | {"PPM"}


# --- sizes, crops -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "keys", "expected"),
    [
        ((500, 375), {}, (341, 256)),
        ((375, 500), {}, (256, 341)),
        ((100, 50), {}, (512, 256)),
        ((100, 50), {"enlarge": False}, (100, 50)),
        ((1000, 200), {"enlarge": False}, (1000, 200)),
        ((1000, 500), {"enlarge": False}, (512, 256)),
        ((1000, 500), {"resize": None}, (1000, 500)),
        ((500, 375), {"edge": "both"}, (256, 256)),
        ((100, 375), {"edge": "both", "enlarge": False}, (100, 256)),
        ((500, 375), {"edge": "both", "resize": None}, (500, 375)),
        ((500, 375), {"edge": "square"}, (341, 256)),  # before the square is cut
        ((375, 375), {"edge": "square"}, (256, 256)),
        ((4000, 3000), {"edge": "long", "resize": 1024}, (1024, 768)),
        ((3000, 4000), {"edge": "long", "resize": 1024}, (768, 1024)),
        ((3, 4000), {"edge": "long", "resize": 100}, (1, 100)),
        ((700, 500), {"edge": "long", "resize": 1024}, (1024, 731)),
        ((700, 500), {"edge": "long", "resize": 1024, "enlarge": False}, (700, 500)),
    ],
)
def test_resized(size: tuple[int, int], keys: dict[str, Any], expected: tuple[int, int]) -> None:
    assert preprocess.resized(*size, Preprocess(**keys)) == expected


# 61, 115, 230 and 461 are heights of which fastai 2's arithmetic takes one less for 224 pixels.
@pytest.mark.parametrize("height", [61, 115, 223, 224, 225, 230, 237, 300, 427, 461, 480])
@pytest.mark.parametrize("upright", [True, False])
def test_a_square_is_cut_as_fastai_2_does_it(height: int, upright: bool) -> None:
    """Resize.encodes and _do_crop_pad of fastai 2.8's vision/augment.py, written out."""
    image = picture(*((height, height + 101) if upright else (height + 101, height)))
    w, h = image.size
    m = w / 224 if w / 224 < h / 224 else h / 224
    size = int(m * 224), int(m * 224)
    x, y = int(0.5 * (w - size[0])), int(0.5 * (h - size[1]))
    cut = image.crop((x, y, min(x + size[0], w), min(y + size[1], h)))
    expected = np.asarray(cut.resize((224, 224), Image.Resampling.BILINEAR))
    recipe = plainly(resize=224, crop=224, edge="square", middle="down")
    assert np.array_equal(pixels(preprocess.preprocess(image, recipe))[0], expected)


@pytest.mark.parametrize(("middle", "begin"), [("even", 2), ("up", 2), ("down", 1)])
def test_a_square_lies_where_the_middle_crop_would(middle: str, begin: int) -> None:
    image = picture(13, 10)
    recipe = plainly(resize=None, crop=10, edge="square", middle=middle)
    cut = pixels(preprocess.preprocess(image, recipe))[0]
    assert np.array_equal(cut, np.asarray(image)[:, begin : begin + 10])


@pytest.mark.parametrize("interpolation", ["bilinear", "area"])
def test_a_square_that_is_small_enough_is_left_alone(interpolation: str) -> None:
    image = picture(40, 20)
    recipe = plainly(resize=64, crop=20, edge="square", enlarge=False, interpolation=interpolation)
    cut = pixels(preprocess.preprocess(image, recipe))[0]
    assert np.array_equal(cut, np.asarray(image)[:, 10:30])


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (2, 3)])
def test_a_square_of_next_to_nothing(size: tuple[int, int]) -> None:
    # In floating point 1 / 49 * 49 is less than 1.
    recipe = plainly(resize=49, crop=49, edge="square")
    assert preprocess.preprocess(picture(*size), recipe).shape == (1, 3, 49, 49)


def pixels(crops: np.ndarray) -> np.ndarray:
    """Undo the scaling of a recipe whose mean is 0 and std 1: uint8 [crops, h, w, 3]."""
    return (crops * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def plainly(**keys: Any) -> Preprocess:
    return Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), **keys)


def test_grid_crops_touch_the_edges_and_come_row_by_row() -> None:
    image = picture(101, 60)
    recipe = plainly(resize=None, crop=20, crops="grid", grid=(2, 4))
    crops = pixels(preprocess.preprocess(image, recipe))
    array = np.asarray(image)
    assert len(crops) == recipe.crop_count == 8
    corners = [(y, x) for y in (0, 40) for x in (0, 27, 54, 81)]
    for crop, (y, x) in zip(crops, corners, strict=True):
        assert np.array_equal(crop, array[y : y + 20, x : x + 20])


def test_a_grid_of_one_is_the_middle() -> None:
    recipe = plainly(resize=None, crop=20, crops="grid", grid=(1, 1))
    image = picture(61, 40)
    assert np.array_equal(
        pixels(preprocess.preprocess(image, recipe))[0], np.asarray(image)[10:30, 20:40]
    )


@pytest.mark.parametrize("size", [(30, 300), (300, 30), (30, 30), (3, 5), (1, 1)])
def test_a_grid_over_a_smaller_picture_is_mirrored(size: tuple[int, int]) -> None:
    image = picture(*size)
    recipe = plainly(resize=None, crop=64, crops="grid", grid=(3, 3))
    crops = pixels(preprocess.preprocess(image, recipe))
    assert crops.shape == (9, 64, 64, 3)
    if size == (30, 30):
        mirrored = np.pad(np.asarray(image), ((17, 17), (17, 17), (0, 0)), mode="symmetric")
        assert all(np.array_equal(crop, mirrored) for crop in crops)


@pytest.mark.parametrize("crops", ["five", "ten"])
def test_five_and_ten_crops_of_a_smaller_picture_are_padded_as_center_is(crops: str) -> None:
    image = picture(30, 20)
    keys: dict[str, Any] = {"resize": None, "crop": 64}
    padded = pixels(preprocess.preprocess(image, plainly(**keys)))[0]
    every = pixels(preprocess.preprocess(image, plainly(**keys, crops=crops)))
    assert len(every) == (5 if crops == "five" else 10)
    assert all(np.array_equal(one, padded) for one in every[:5])
    assert all(np.array_equal(one, padded[:, ::-1]) for one in every[5:])


def test_numbers_beyond_float32_are_no_warning() -> None:
    recipe = Preprocess(resize=None, crop=4, mean=(0.0,) * 3, std=(1e-39,) * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crops = preprocess.preprocess(Image.new("RGB", (4, 4), "white"), recipe)
    assert np.isinf(crops).all()


# --- what pictures are like -------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_ignored_or_applied_as_the_bundle_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(400, 300), "JPEG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        turned = ImageOps.exif_transpose(image)
        assert np.array_equal(decode.decode(data, PLAIN), by_torchvision(image, PLAIN))
    upright = decode.decode(data, Preprocess(exif="apply"))
    assert np.array_equal(upright, by_torchvision(turned, PLAIN))


@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_leaves_at_least_twice_the_size(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(1600, 800), "JPEG", exif=exif)
    recipe = Preprocess(resize=200, edge="long", draft=True, exif="apply")
    image = decode.load_image(data, recipe)
    assert sorted(image.size) == [200, 400]
    exact = decode.decode(data, Preprocess(resize=200, edge="long", exif="apply"))
    assert np.abs(decode.decode(data, recipe) - exact).mean() < 0.02
    # 401 would not do with half of 801
    near = Preprocess(resize=401, edge="long", draft=True)
    assert decode.load_image(encoded(picture(801, 400), "JPEG"), near).size == (801, 400)


@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_of_a_picture_that_a_square_is_cut_of(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(1600, 800), "JPEG", exif=exif)
    keys: dict[str, Any] = {"resize": 200, "crop": 200, "edge": "square", "exif": "apply"}
    assert sorted(decode.load_image(data, Preprocess(**keys, draft=True)).size) == [400, 800]
    drafted = decode.decode(data, Preprocess(**keys, draft=True))
    exact = decode.decode(data, Preprocess(**keys))
    assert np.abs(drafted - exact).mean() < 0.02
    # 200 of 600 pixels would be left of a side whose square has 1.5 times 201.
    near = Preprocess(**{**keys, "resize": 201}, draft=True)
    assert decode.load_image(encoded(picture(1200, 600), "JPEG"), near).size == (1200, 600)


def test_draft_changes_nothing_but_what_the_decoder_gives() -> None:
    keys: dict[str, Any] = {"resize": 200, "edge": "long", "crop": 200}
    exact = preprocess.preprocess(picture(700, 500), Preprocess(**keys))
    drafted = preprocess.preprocess(picture(700, 500), Preprocess(**keys, draft=True))
    assert np.array_equal(drafted, exact)


def test_draft_of_other_kinds() -> None:
    recipe = Preprocess(resize=100, draft=True)
    for mode in ("CMYK", "L"):
        data = encoded(picture(1600, 1600, mode), "JPEG")
        with Image.open(io.BytesIO(data)) as image:
            exact = by_torchvision(image, Preprocess(resize=100))
        assert decode.load_image(data, recipe).size == (200, 200)
        assert np.abs(decode.decode(data, recipe) - exact).mean() < 0.02
    phone = encoded(picture(1600, 1600), "MPO", save_all=True, append_images=[picture(8, 8)])
    assert decode.load_image(phone, recipe).size == (200, 200)
    assert decode.load_image(encoded(picture(800, 800), "PNG"), recipe).size == (800, 800)
    whole = Preprocess(resize=None, draft=True)
    assert decode.load_image(encoded(picture(800, 800), "JPEG"), whole).size == (800, 800)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_only_the_first_frame_counts(format: str) -> None:
    first, other = picture(64, 64, seed=1), picture(64, 64, seed=2)
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    data = encoded(first, format, save_all=True, append_images=[other] * 3, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames > 1  # type: ignore[attr-defined]
        expected = by_torchvision(image, PLAIN)
    assert np.array_equal(decode.decode(data, PLAIN), expected)


def test_cmyk_jpeg() -> None:
    data = encoded(picture(100, 80, "CMYK"), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
        assert np.array_equal(decode.decode(data, PLAIN), by_torchvision(image, PLAIN))


def test_a_palette_with_transparency_makes_no_noise(recwarn: pytest.WarningsRecorder) -> None:
    data = encoded(picture(64, 64, "P"), "PNG", transparency=bytes(range(256)))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGBA").convert("RGB"))
    recwarn.clear()
    assert np.array_equal(np.asarray(decode.load_image(data, PLAIN)), expected)
    assert not recwarn.list


@pytest.mark.parametrize(("mode", "format"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF")])
def test_sixteen_bits_of_grey_are_scaled(mode: str, format: str) -> None:
    data = encoded(picture(64, 48, mode), format)
    expected = picture(64, 48, "L").convert("RGB")
    assert decode.load_image(data, PLAIN).tobytes() == expected.tobytes()


def test_sixteen_bits_of_grey_are_rounded() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    data = encoded(Image.frombytes("I;16", (256, 256), levels.tobytes()), "PNG")
    grey = np.asarray(decode.load_image(data, PLAIN))[..., 0]
    assert np.array_equal(grey, np.round(levels / 257))
    wide = Image.fromarray(levels.astype(np.int32))
    assert wide.mode == "I"
    data = encoded(wide, "TIFF")
    assert np.array_equal(np.asarray(decode.load_image(data, PLAIN))[..., 0], grey)


def test_levels_without_a_scale_are_refused() -> None:
    data = encoded(Image.fromarray(np.full((8, 8), 70000, np.int32)), "TIFF")
    with pytest.raises(BadImage, match="32-bit grey levels have no agreed scale"):
        decode.decode(data, PLAIN)
    data = encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF")
    with pytest.raises(BadImage, match="floating-point pixels have no agreed scale"):
        decode.decode(data, PLAIN)


def test_the_name_of_a_file_says_nothing() -> None:
    # Only bytes come here: a PNG that is called .jpg is a PNG.
    assert decode.decode(encoded(picture(9, 9), "PNG"), PLAIN).shape == (1, 3, 224, 224)


# --- damage and malice ------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_bad_images(format: str) -> None:
    data = encoded(picture(200, 150), format)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(BadImage) as caught:
            decode.decode(data[: int(len(data) * share)], PLAIN)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 160


@pytest.mark.parametrize("data", [png(60000, 60000), bmp(60000, 60000)])
def test_a_header_that_claims_too_much_is_refused_before_decoding(data: bytes) -> None:
    with pytest.raises(TooLarge) as caught:
        decode.decode(data, PLAIN)
    assert "3600000000" in str(caught.value)
    assert "178956970" in str(caught.value)


def test_pillow_has_its_own_limit_back_afterwards() -> None:
    before = Image.MAX_IMAGE_PIXELS
    for data in (encoded(picture(40, 30), "PNG"), b"nothing"):
        with contextlib.suppress(BadImage, TooLarge):
            decode.decode(data, PLAIN, max_pixels=10_000)
        assert before == Image.MAX_IMAGE_PIXELS


def test_the_limit_of_pixels_is_exact() -> None:
    data = encoded(picture(30, 20), "PNG")
    decode.decode(data, Preprocess(resize=None, crop=8), 600)
    with pytest.raises(TooLarge, match="30x20 = 600 pixels, where 599 is the limit"):
        decode.decode(data, Preprocess(resize=None, crop=8), 599)
    bomb = png(20000, 8000, data=zlib.compress(bytes(1000)))
    with pytest.raises(TooLarge, match=r"160000000.*100000000"):
        decode.decode(bomb, PLAIN, 100_000_000)


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1)])
def test_a_thin_picture_may_not_grow_beyond_the_limit(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size), "PNG")
    with pytest.raises(TooLarge, match=r"resized to .*6553600000 pixels, where 178956970"):
        decode.decode(data, PLAIN)
    assert decode.decode(data, Preprocess(edge="long")).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", png(0, 0)])
def test_beginnings_are_bad_images(data: bytes) -> None:
    with pytest.raises(BadImage):
        decode.decode(data, PLAIN)


def decode_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Decode with a Pillow that raises this."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    decode.load_image(b"", PLAIN)


@pytest.mark.parametrize("error", [MemoryError(), Image.DecompressionBombError("Image size (9)")])
def test_some_errors_mean_too_large(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(TooLarge):
        decode_with(monkeypatch, error)


def test_errors_without_a_text_and_with_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadImage, match="cannot be decoded: KeyError"):
        decode_with(monkeypatch, KeyError())
    with pytest.raises(BadImage) as caught:
        decode_with(monkeypatch, ValueError("\x1b[31m" + "x" * 1000 + "\n"))
    assert str(caught.value) == "cannot be decoded: [31m" + "x" * 116
    with pytest.raises(KeyboardInterrupt):
        decode_with(monkeypatch, KeyboardInterrupt())


def test_a_damaged_tiff_writes_nothing_to_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encoded(picture(40, 30), "TIFF", compression="tiff_lzw"))
    data[8:40] = b"\xff" * 32
    with pytest.raises(BadImage):
        decode.decode(bytes(data), PLAIN)
    levels = bytearray(encoded(picture(40, 30), "TIFF"))
    tag = levels.index(struct.pack("<HHI", 277, 3, 1)) + 8  # samples per pixel
    levels[tag : tag + 2] = b"\xff\x00"
    with pytest.raises(BadImage):
        decode.decode(bytes(levels), PLAIN)
    os.write(2, b"still there")
    assert capfd.readouterr() == ("", "still there")


SEEDS = [
    encoded(picture(40, 30), "JPEG"),
    encoded(picture(40, 30), "JPEG", progressive=True),
    encoded(picture(40, 30), "PNG"),
    encoded(picture(40, 30, "P"), "PNG", transparency=bytes(range(256))),
    encoded(picture(40, 30), "WEBP"),
    encoded(picture(40, 30), "GIF", save_all=True, append_images=[picture(40, 30, seed=1)]),
    encoded(picture(40, 30), "BMP"),
    encoded(picture(40, 30), "TIFF"),
    encoded(picture(40, 30), "TIFF", compression="tiff_lzw"),
    encoded(picture(40, 30, "I;16"), "TIFF"),
    encoded(picture(40, 30), "MPO", save_all=True, append_images=[picture(8, 8)]),
]


@settings(max_examples=400, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), min_size=1, max_size=6),
    keep=st.floats(0.2, 1),
    early=st.booleans(),
)
def test_damaged_files_end_in_crops_or_a_named_error(
    seed: bytes, edits: list[tuple[float, bytes]], keep: float, early: bool
) -> None:
    data = bytearray(seed)
    for where, patch in edits:
        # Half of them near the beginning, where the headers are.
        at = int(where * (64 if early else len(data)))
        data[at : at + len(patch)] = patch
    recipe = Preprocess(resize=32, crop=24, draft=True, exif="apply")
    # Anything but these two fails the test, as does a warning or crops of another shape.
    with contextlib.suppress(BadImage, TooLarge):
        crops = decode.decode(bytes(data[: int(len(data) * keep)]), recipe, 1_000_000)
        assert crops.shape == (1, 3, 24, 24)


class TestScans:
    """A JPEG's decoder goes over the whole picture for each of them."""

    @pytest.mark.parametrize(("more", "refused"), [(0, False), (490, False), (491, True)])
    def test_so_many_and_no_more(self, more: int, refused: bool) -> None:
        data = many_scans(more)  # ten are in it anyway
        assert has_too_many_scans(data) == refused
        if refused:
            with pytest.raises(BadImage, match="more than 500 scans"):
                decode.load_image(data, PLAIN)
        else:
            assert decode.load_image(data, PLAIN).size == (64, 48)

    def test_what_only_looks_like_them_does_not_count(self) -> None:
        data = many_scans(0)
        profile = b"\xff\xe2" + (2 + 60_000).to_bytes(2) + b"\xff\xda" * 30_000
        assert not has_too_many_scans(data[:2] + profile + data[2:])
        assert not has_too_many_scans(data + b"\xff\xda" * 30_000), "a film behind the picture"

    def test_they_count_whatever_lies_between_them(self) -> None:
        data = many_scans(600)
        for between in (b"\xff" * 9, b"\xff\xd0", b"xyz", b"\xff\xfe\0\4ab", b"\xff\0"):
            assert has_too_many_scans(data.replace(b"\xff\xda", between + b"\xff\xda"))

    @given(st.binary(max_size=40).map(lambda tail: b"\xff\xd8" + b"\xff\xda" * 501 + tail))
    def test_nonsense_ends(self, data: bytes) -> None:
        has_too_many_scans(data)
