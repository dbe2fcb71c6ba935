"""Decoding: torchvision's pixels, upright, whatever the format; and limits that come first."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.models import ResNet18_Weights
from torchvision.transforms import functional

from eagleray.core.errors import BadImageError, Reason
from eagleray.imaging import (
    FORMATS,
    NAMED_CONTRACTS,
    Exact,
    ImageContract,
    Letterbox,
    ShortestSide,
    check_header,
    decode,
    named_contract,
    probe,
)
from eagleray.imaging.contract import Color
from eagleray.imaging.decode import _decode_upright
from tests.support.images import (
    LOSSLESS,
    Bomb,
    Pixels,
    bombs,
    cmyk_jpeg,
    encode,
    gray16,
    half_transparent,
    open_image,
    oriented,
    photo,
    png_chunk,
    png_file,
    tiff_of_huge_tile,
)

pytestmark = pytest.mark.numerical

MIB = 2**20
REFERENCE = named_contract("torchvision-reference", formats=FORMATS)
FAST = named_contract("fast", formats=FORMATS)


def contract(height: int = 32, width: int = 32, **changes: Any) -> ImageContract:
    """Return a contract that scales to one size and crops nothing."""
    gray = changes.get("color") == "gray"
    statistics: dict[str, Any] = {"mean": (0.5,), "std": (0.5,)} if gray else {}
    options = {"formats": FORMATS, **statistics, **changes}
    return ImageContract(resize=Exact(height=height, width=width), **options)


def untouched(data: bytes, **changes: Any) -> Pixels:
    """Decode without scaling: the contract has the upright size of the image itself."""
    size = ImageOps.exif_transpose(open_image(data)).size
    return decode(data, contract(size[1], size[0], **changes)).pixels


def refusal(data: bytes, under: ImageContract) -> BadImageError:
    with pytest.raises(BadImageError) as caught:
        decode(data, under)
    return caught.value


# --- the reference is torchvision ---

ENCODINGS: list[tuple[str, dict[str, Any]]] = [
    ("jpeg", {"quality": 90}),
    ("jpeg", {"quality": 75, "subsampling": "4:4:4"}),
    ("jpeg", {"quality": 60, "subsampling": "4:2:2", "progressive": True}),
    ("png", {}),
    ("webp", {"quality": 80}),
]
SIZES = {
    "landscape": (640, 427),
    "portrait": (301, 533),
    "square": (256, 256),
    "tiny": (31, 45),
    "one-pixel": (1, 1),
    "odd": (257, 1023),
    "smaller-crop-side": (225, 223),
}


def torchvision_tensor(data: bytes) -> torch.Tensor:
    transform: Callable[[Image.Image], torch.Tensor] = ResNet18_Weights.DEFAULT.transforms()
    return transform(open_image(data).convert("RGB"))


def normalized(pixels: Pixels, under: ImageContract) -> torch.Tensor:
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor(under.mean), torch.tensor(under.std)
    return (image - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


@pytest.mark.parametrize(("width", "height"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("file_format", "options"), ENCODINGS)
def test_the_reference_contract_is_torchvisions_transform(
    file_format: str, options: dict[str, Any], width: int, height: int
) -> None:
    data = encode(photo(width, height), file_format, **options)
    ours = normalized(decode(data, REFERENCE).pixels, REFERENCE)
    theirs = torchvision_tensor(data)
    assert ours.shape == theirs.shape == (3, 224, 224)
    assert float((ours - theirs).abs().max()) == 0


def test_the_reference_of_a_gray_jpeg_is_torchvisions() -> None:
    data = encode(photo(301, 200)[:, :, 1], "jpeg")
    ours = normalized(decode(data, REFERENCE).pixels, REFERENCE)
    assert torch.equal(ours, torchvision_tensor(data))


@pytest.mark.parametrize(
    ("file_format", "allowed"),
    [("jpeg", 2.0), ("png", 4.0), ("webp", 4.0)],
    ids=["jpeg", "png", "webp"],
)
@pytest.mark.parametrize(("width", "height"), [(640, 480), (777, 1001), (1500, 1000)])
def test_fast_stays_near_the_reference(
    file_format: str, allowed: float, width: int, height: int
) -> None:
    data = encode(photo(width, height), file_format)
    reference = decode(data, REFERENCE).pixels.astype(int)
    fast = decode(data, FAST).pixels.astype(int)
    assert np.abs(fast - reference).mean() < allowed
    assert np.abs((fast - reference).mean(axis=(0, 1))).max() < 1.0  # no colour drifts


# --- a scaled JPEG is never enlarged afterwards ---

small_sides = st.integers(1, 300)


@settings(max_examples=60)
@given(
    width=small_sides,
    height=small_sides,
    orientation=st.integers(1, 8),
    resize=st.builds(ShortestSide, size=st.integers(1, 120))
    | st.builds(Exact, height=st.integers(1, 120), width=st.integers(1, 120))
    | st.builds(Letterbox, height=st.integers(1, 120), width=st.integers(1, 120)),
)
def test_a_scaled_decode_has_every_pixel_that_the_resize_needs(
    width: int, height: int, orientation: int, resize: ShortestSide | Exact | Letterbox
) -> None:
    data = oriented("jpeg", orientation, width=width, height=height)
    crop = None if isinstance(resize, Letterbox) else (8, 8)
    under = ImageContract(resize=resize, crop=crop, jpeg="scaled", resampler="opencv_linear")
    upright, full_width, full_height = _decode_upright(data, probe(data), under)
    rows, columns = np.asarray(upright).shape[:2]
    if isinstance(resize, Exact):
        wanted_rows, wanted_columns = resize.height, resize.width
    elif isinstance(resize, Letterbox):
        scale = min(resize.height / full_height, resize.width / full_width)
        wanted_rows, wanted_columns = int(full_height * scale), int(full_width * scale)
    else:
        scale = resize.size / min(full_height, full_width)
        wanted_rows, wanted_columns = int(full_height * scale), int(full_width * scale)
    assert rows >= min(wanted_rows, full_height)
    assert columns >= min(wanted_columns, full_width)


def test_a_scaled_decode_does_shrink() -> None:
    data = encode(photo(1600, 1200), "jpeg")
    upright, width, height = _decode_upright(data, probe(data), FAST)
    assert np.asarray(upright).shape == (300, 400, 3)
    assert (width, height) == (1600, 1200)


# --- orientation ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["jpeg", "png", "webp", "tiff"])
def test_exif_orientation_is_applied_as_pillow_applies_it(
    file_format: str, orientation: int
) -> None:
    data = oriented(file_format, orientation, width=23, height=14)
    expected = ImageOps.exif_transpose(open_image(data)).convert("RGB")
    decoded = decode(data, contract(expected.height, expected.width))
    assert (decoded.width, decoded.height) == expected.size
    assert expected.size == ((14, 23) if orientation >= 5 else (23, 14))
    assert np.array_equal(decoded.pixels, np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_compressed_tiffs_are_turned_upright_once(compression: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = encode(photo(23, 14), "png", exif=exif)
    data = encode(photo(23, 14), "tiff", exif=exif, compression=compression)
    assert np.array_equal(untouched(data), untouched(plain))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_scaled_jpeg_is_upright_too(orientation: int) -> None:
    data = oriented("jpeg", orientation, width=320, height=240)
    exact, fast = decode(data, REFERENCE), decode(data, FAST)
    assert (fast.width, fast.height) == (exact.width, exact.height)
    assert np.abs(fast.pixels.astype(int) - exact.pixels).mean() < 3


# --- kinds of pixels ---


@pytest.mark.parametrize("file_format", ["png", "tiff"])
@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bit_gray_keeps_its_gradient(file_format: str, byte_order: str) -> None:
    values = gray16(64, 16)
    data = encode(values.astype(byte_order) if file_format == "tiff" else values, file_format)
    high_bytes = (values >> 8).astype(np.uint8)
    assert high_bytes[0, 0] == 0
    assert high_bytes[0, -1] == 255
    assert np.array_equal(untouched(data, color="gray")[:, :, 0], high_bytes)
    assert np.array_equal(untouched(data), np.stack([high_bytes] * 3, axis=2))


def test_16_bit_colour_keeps_its_high_bytes() -> None:
    values = gray16(32, 1)
    samples = np.stack([values, values[:, ::-1], values // 2], axis=2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    data = png_file(32, 1, png_chunk(b"IDAT", zlib.compress(rows)), bits=16, colour_type=2)
    assert np.array_equal(untouched(data), (samples >> 8).astype(np.uint8))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_without_a_range_are_refused(kind: type[np.generic]) -> None:
    error = refusal(encode(gray16().astype(kind), "tiff"), contract())
    assert error.reason == Reason.UNSUPPORTED_FORMAT
    assert "pixels have no defined range; save as 8 or 16 bits, or give" in error.message


def test_a_cmyk_jpeg_has_the_colours_that_it_was_made_of() -> None:
    colours = np.zeros((16, 32, 3), np.uint8)
    colours[:, :16], colours[:, 16:] = (220, 40, 30), (20, 60, 200)
    data = cmyk_jpeg(colours)
    pixels = untouched(data)
    assert np.array_equal(pixels, np.asarray(open_image(data).convert("RGB")))
    assert np.abs(pixels.astype(int) - colours).max() < 12


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_gray_of_a_colour_image_is_its_luma(file_format: str) -> None:
    data = encode(photo(), file_format, **LOSSLESS.get(file_format, {}))
    gray = untouched(data, color="gray")
    luma = np.asarray(open_image(data).convert("RGB"), np.float64) @ (0.299, 0.587, 0.114)
    assert gray.shape == (61, 97, 1)
    assert np.abs(gray[:, :, 0] - luma).mean() < 1
    assert gray.std() > 20


def test_a_gray_image_gives_three_equal_channels() -> None:
    gray = photo()[:, :, 1]
    for file_format in ("png", "jpeg"):
        pixels = untouched(encode(gray, file_format))
        assert np.array_equal(pixels[:, :, 0], pixels[:, :, 1])
        assert np.array_equal(pixels[:, :, 0], pixels[:, :, 2])
    assert np.array_equal(untouched(encode(gray, "png"))[:, :, 0], gray)


@pytest.mark.parametrize("file_format", ["png", "tiff", "bmp"])
def test_1_bit_is_black_and_white(file_format: str) -> None:
    bits = np.eye(9, dtype=bool)
    pixels = untouched(encode(Image.fromarray(bits), file_format))
    assert np.array_equal(pixels, np.stack([bits * np.uint8(255)] * 3, axis=2))


@pytest.mark.parametrize(
    ("alpha", "behind"), [("drop", None), ("white", 255), ("black", 0)], ids=str
)
@pytest.mark.parametrize(
    ("mode", "file_format", "colour"),
    [
        ("RGBA", "png", (200, 0, 0)),
        ("RGBA", "webp", (200, 0, 0)),
        ("RGBA", "tiff", (200, 0, 0)),
        ("LA", "png", (200, 200, 200)),
        ("P", "png", (200, 0, 0)),
        ("P", "gif", (200, 0, 0)),
    ],
)
def test_transparency_is_laid_over_what_the_contract_says(
    mode: str, file_format: str, colour: tuple[int, ...], alpha: str, behind: int | None
) -> None:
    options = {"lossless": True, "exact": True} if file_format == "webp" else {}
    pixels = untouched(encode(half_transparent(mode), file_format, **options), alpha=alpha)
    hidden = colour if behind is None else (behind,) * 3
    assert np.array_equal(np.unique(pixels[:, :4].reshape(-1, 3), axis=0), [hidden])
    assert np.array_equal(np.unique(pixels[:, 4:].reshape(-1, 3), axis=0), [colour])


def test_half_an_alpha_is_half_of_each() -> None:
    pixels = np.full((4, 4, 4), (200, 100, 0, 128), np.uint8)
    white = untouched(encode(pixels), alpha="white")[0, 0]
    assert np.abs(white.astype(int) - (227, 177, 127)).max() <= 1


def one_transparent_colour(bits: int, key: int, other: int) -> bytes:
    """Return a gray PNG, its upper half of a colour that a tRNS chunk makes transparent."""
    values = np.full((8, 8), other, f">u{bits // 8}")
    values[:4] = key
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    transparent = png_chunk(b"tRNS", struct.pack(">H", key))
    return png_file(8, 8, transparent, png_chunk(b"IDAT", zlib.compress(rows)), bits=bits)


@pytest.mark.parametrize(
    ("bits", "key", "other"),
    [
        (8, 7, 156),
        (16, 1_000, 40_000),
    ],
)
def test_a_transparent_colour_is_laid_over_white(bits: int, key: int, other: int) -> None:
    pixels = untouched(one_transparent_colour(bits, key, other), alpha="white")
    assert pixels[:4].min() == 255
    assert np.array_equal(np.unique(pixels[4:]), [156])


def test_the_first_frame_of_an_animation_is_the_image() -> None:
    frames = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (10, 200)]
    for file_format in ("gif", "webp"):
        data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], duration=100)
        assert open_image(data).n_frames == 2  # type: ignore[attr-defined]
        assert np.abs(untouched(data).astype(int) - 10).max() <= 2


# --- JPEGs that Pillow reads, warned or not ---


def with_stray_bytes(data: bytes, before: bytes) -> bytes:
    position = data.rindex(before)
    return data[:position] + b"\x11\x22" + data[position:]


def without_spectral_end(data: bytes) -> bytes:
    """Return a baseline JPEG whose scan header claims to end at coefficient 0, as some do."""
    scan = data.index(b"\xff\xda")
    end = scan + 5 + 2 * data[scan + 4] + 1
    assert data[end] == 63
    return data[:end] + b"\0" + data[end + 1 :]


def with_adobe_transform(data: bytes, transform: int) -> bytes:
    """Return a JPEG with an Adobe segment instead of its JFIF one."""
    (length,) = struct.unpack_from(">H", data, 4)
    segment = b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform)
    return b"\xff\xd8\xff\xee" + struct.pack(">H", 14) + segment + data[4 + length :]


JPEG = encode(photo(), "jpeg")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(with_stray_bytes(JPEG, b"\xff\xd9"), id="stray-bytes-before-the-end"),
        pytest.param(with_stray_bytes(JPEG, b"\xff\xdb"), id="stray-bytes-in-the-header"),
        pytest.param(with_adobe_transform(JPEG, 1), id="adobe-transform"),
        pytest.param(with_adobe_transform(JPEG, 9), id="unknown-adobe-transform"),
        pytest.param(without_spectral_end(JPEG), id="bogus-scan-header"),
        pytest.param(JPEG.replace(b"JFIF\0\x01", b"JFIF\0\x03"), id="unknown-jfif-revision"),
        pytest.param(JPEG + bytes(1_000), id="zeros-after-the-end"),
    ],
)
def test_a_harmless_oddity_of_a_jpeg_costs_nothing(data: bytes) -> None:
    assert np.array_equal(untouched(data), np.asarray(open_image(data)))


# --- sizes ---


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(NAMED_CONTRACTS)),
    file_format=st.sampled_from(FORMATS),
    color=st.sampled_from(["rgb", "gray"]),
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.integers(1, 40),
)
def test_every_result_has_the_contracts_shape(
    name: str, file_format: str, color: Color, width: int, height: int, size: int
) -> None:
    under = named_contract(name, size=size, color=color, formats=FORMATS)
    decoded = decode(encode(photo(width, height), file_format), under)
    assert decoded.pixels.shape == under.shape
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags["C_CONTIGUOUS"]
    assert (decoded.width, decoded.height) == (width, height)


@settings(max_examples=150)
@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_the_crop_rounds_and_pads_as_torchvisions(
    width: int, height: int, crop: tuple[int, int]
) -> None:
    pixels = photo(width, height)
    expected = functional.center_crop(Image.fromarray(pixels), list(crop))
    ours = decode(encode(pixels), contract(height, width, crop=crop)).pixels
    assert np.array_equal(ours, np.asarray(expected))


def test_a_small_image_is_padded_with_black() -> None:
    white = np.full((3, 4, 3), 255, np.uint8)
    pixels = decode(encode(white), contract(3, 4, crop=(6, 9))).pixels[:, :, 0]
    expected = np.zeros((6, 9), np.uint8)
    expected[1:4, 2:6] = 255
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize(("width", "height"), [(100, 37), (37, 100), (60, 61), (1, 3), (999, 10)])
def test_the_longer_side_is_cut_off_as_torchvision_cuts_it(width: int, height: int) -> None:
    pixels = photo(width, height)
    resized = functional.resize(Image.fromarray(pixels), 20)
    expected = functional.center_crop(resized, [20, 20])
    under = named_contract("torchvision-reference", size=20, resize=20)
    assert np.array_equal(decode(encode(pixels), under).pixels, np.asarray(expected))


@pytest.mark.parametrize(
    ("resampler", "pillow_filter"),
    [
        ("pillow_nearest", Image.Resampling.NEAREST),
        ("pillow_bilinear", Image.Resampling.BILINEAR),
        ("pillow_bicubic", Image.Resampling.BICUBIC),
        ("pillow_lanczos", Image.Resampling.LANCZOS),
    ],
)
def test_pillows_filters_are_pillows(resampler: str, pillow_filter: Image.Resampling) -> None:
    pixels = photo(120, 90)
    expected = np.asarray(Image.fromarray(pixels).resize((50, 40), pillow_filter))
    ours = decode(encode(pixels), contract(40, 50, resampler=resampler)).pixels
    assert np.array_equal(ours, expected)


def test_opencvs_area_is_the_mean_of_what_a_pixel_covers() -> None:
    pixels = photo(80, 60)
    blocks = pixels.reshape(15, 4, 20, 4, 3).mean(axis=(1, 3))
    ours = decode(encode(pixels), contract(15, 20, resampler="opencv_area")).pixels
    assert np.abs(ours - blocks).max() <= 0.51


# --- limits ---


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when anything opens an image."""

    def opened(*_arguments: object, **_options: object) -> None:
        pytest.fail("a decoder was opened")

    monkeypatch.setattr(Image, "open", opened)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", opened)
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", opened)


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize("under", [REFERENCE, FAST, contract()], ids=["reference", "fast", "whole"])
@pytest.mark.parametrize("bomb", bombs(), ids=lambda bomb: bomb.name)
def test_a_bomb_is_refused_before_a_decoder_sees_it(bomb: Bomb, under: ImageContract) -> None:
    error = refusal(bomb.data, under)
    assert error.reason == Reason.TOO_MANY_PIXELS
    assert error.message == (
        f"the header claims {bomb.width:,} x {bomb.height:,} pixels, the limit is 134,217,728 "
        "in all"
    )


@pytest.mark.usefixtures("no_decoder")
def test_judging_bombs_takes_no_memory() -> None:
    files = [bomb.data for bomb in bombs()]
    tracemalloc.start()
    try:
        for data in files:
            with pytest.raises(BadImageError, match="too_many_pixels"):
                check_header(data, REFERENCE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MIB


def test_a_tile_that_dwarfs_its_image_is_refused() -> None:
    data = tiff_of_huge_tile()
    assert len(data) < 200
    with pytest.raises(BadImageError):  # libtiff takes 2 GB for it otherwise
        check_header(data, REFERENCE)


@pytest.mark.parametrize("file_format", FORMATS)
def test_an_image_at_the_limit_is_read_and_one_above_it_is_not(file_format: str) -> None:
    data = encode(photo(40, 30), file_format)
    at_limit = contract(max_pixels=1_200, max_bytes=len(data))
    assert decode(data, at_limit).pixels.shape == (32, 32, 3)
    error = refusal(data, contract(max_pixels=1_199))
    assert error.reason == Reason.TOO_MANY_PIXELS
    assert error.message == "the header claims 40 x 30 pixels, the limit is 1,199 in all"
    error = refusal(data, contract(max_bytes=len(data) - 1))
    assert error.reason == Reason.TOO_MANY_BYTES
    assert error.message == (f"the file has {len(data):,} bytes, the limit is {len(data) - 1:,}")


def test_bytes_are_counted_before_they_are_looked_at() -> None:
    assert refusal(b"no image", contract(max_bytes=7)).reason == Reason.TOO_MANY_BYTES


def strip_contract(**changes: Any) -> ImageContract:
    """Return a contract whose limit a strip of 60,000 pixels meets, and exceeds when scaled."""
    return ImageContract(
        resize=ShortestSide(size=16), crop=(16, 16), max_pixels=1_000_000, **changes
    )


@pytest.mark.parametrize(
    "under",
    [strip_contract(), strip_contract(resampler="opencv_linear", jpeg="scaled")],
    ids=["pillow", "opencv"],
)
@pytest.mark.parametrize("file_format", ["png", "jpeg"])
@pytest.mark.parametrize(("width", "height"), [(1, 60_000), (60_000, 1)])
def test_a_strip_is_not_blown_up_by_the_resize(
    width: int, height: int, file_format: str, under: ImageContract
) -> None:
    data = encode(np.zeros((height, width, 3), np.uint8), file_format)
    tracemalloc.start()
    try:
        error = refusal(data, under)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.reason == Reason.TOO_MANY_PIXELS
    assert peak < 4 * MIB
    assert decode(data, contract()).pixels.shape == (32, 32, 3)


def test_a_strip_is_refused_with_the_size_that_it_has() -> None:
    error = refusal(encode(np.zeros((1, 60_000, 3), np.uint8)), strip_contract())
    assert "header claims 960,000 x 16" not in error.message
    assert "60,000 x 1" in error.message


# --- damage ---


@pytest.mark.parametrize("kept", [0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize(
    ("file_format", "reason", "message"),
    [
        ("jpeg", "truncated", "the jpeg data end early"),
        ("png", "truncated", "the png data end early"),
        ("webp", "truncated", "the webp data end early"),
        ("gif", "truncated", "the gif data end early"),
        ("tiff", "truncated", "the tiff data end early"),
        ("bmp", "truncated", "the bmp data end early"),
    ],
)
def test_a_cut_file_says_so(file_format: str, reason: str, message: str, kept: float) -> None:
    data = encode(photo(), file_format)
    error = refusal(data[: int(len(data) * kept)], contract())
    assert error.reason == reason
    assert error.message.startswith(message)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("file_format", FORMATS)
def test_no_cut_of_a_file_gives_another_picture(file_format: str) -> None:
    data = encode(photo(19, 13), file_format)
    whole = untouched(data)
    reasons: set[Reason] = set()
    for length in range(len(data)):
        try:
            pixels = decode(data[:length], contract(13, 19)).pixels
        except BadImageError as error:
            reasons.add(error.reason)
        else:
            assert np.array_equal(pixels, whole), length
    assert reasons <= {Reason.TRUNCATED, Reason.UNREADABLE, Reason.NOT_AN_IMAGE}


def test_flipped_bytes_in_compressed_data_are_unreadable() -> None:
    data = bytearray(encode(photo(), "png"))
    start = data.index(b"IDAT") + 4
    data[start : start + 12] = bytes(255 - byte for byte in data[start : start + 12])
    error = refusal(bytes(data), contract())
    assert error.reason == Reason.UNREADABLE
    assert error.message.startswith("the png data are damaged")


def test_lack_of_memory_is_a_reason_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_arguments: object, **_options: object) -> npt.NDArray[np.uint8]:
        raise MemoryError

    monkeypatch.setattr(simplejpeg, "decode_jpeg", no_memory)
    error = refusal(encode(photo(), "jpeg"), contract())
    assert error.reason == Reason.OUT_OF_MEMORY
    assert error.message == "no memory for 97 x 61 pixels"
