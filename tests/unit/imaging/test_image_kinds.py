"""Each kind of file that cameras, telephones, scanners and programs write: its pixels, or its name.

Most show four squares: red, green, blue and yellow. Read wrongly, they change places or colours.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from eagleray.core.errors import BadImageError, Reason
from eagleray.imaging import FORMATS, Exact, ImageContract, decode, named_contract, probe
from tests.support.images import (
    Pixels,
    encode,
    gray16,
    half_transparent,
    heic_of_tiles,
    oriented,
    photo,
    png_chunk,
    png_file,
    with_heif_size,
)

Tags = dict[int, tuple[int, ...]]

COLORS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 220, 40))
WIDTH, HEIGHT = 64, 48


def squares() -> Pixels:
    """Return the four squares, uint8 (48, 64, 3)."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for index, color in enumerate(COLORS):
        top, left = HEIGHT // 2 * (index // 2), WIDTH // 2 * (index % 2)
        pixels[top : top + HEIGHT // 2, left : left + WIDTH // 2] = color
    return pixels


def pixels_of(data: bytes, **changes: Any) -> Pixels:
    """Decode without scaling."""
    if changes.get("color") == "gray":
        changes |= {"mean": (0.5,), "std": (0.5,)}
    under = ImageContract(
        resize=Exact(height=HEIGHT, width=WIDTH), **{"formats": FORMATS, **changes}
    )
    return decode(data, under).pixels


def refusal(data: bytes, **changes: Any) -> tuple[str, str]:
    """Return the reason and the message that a file is refused with."""
    with pytest.raises(BadImageError) as caught:
        pixels_of(data, **changes)
    return caught.value.reason.value, caught.value.message


def shows_the_squares(data: bytes, **changes: Any) -> bool:
    pixels = pixels_of(data, **changes)
    centers = [pixels[y, x] for y, x in ((12, 16), (12, 48), (36, 16), (36, 48))]
    return bool(np.abs(np.array(centers).astype(int) - COLORS).max() < 14)


# --- JPEG ---


def exif_segment(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def turned() -> Pixels:
    """Return the squares as a camera on its side stores them: orientation 6 puts them upright."""
    return np.ascontiguousarray(np.rot90(squares()))


def test_of_two_exif_blocks_the_first_one_counts() -> None:
    stored = encode(turned(), "jpeg", quality=95)
    assert shows_the_squares(stored[:2] + exif_segment(6) + exif_segment(1) + stored[2:])
    upright = encode(squares(), "jpeg", quality=95)
    assert shows_the_squares(upright[:2] + exif_segment(1) + exif_segment(6) + upright[2:])


@pytest.mark.parametrize("progressive", [False, True])
def test_what_follows_the_end_of_a_jpeg_is_no_scan_of_it(progressive: bool) -> None:
    still = encode(squares(), "jpeg", quality=95, progressive=progressive)
    assert probe(still).scans == (10 if progressive else 1)
    for film in (b"\xff\xda" * 100_000, still * 200, b"\0\0\0\x18ftypmp42" + bytes(10**6)):
        assert probe(still + film).scans == probe(still).scans
        assert shows_the_squares(still + film)


def test_the_picture_is_not_the_thumbnail_inside_its_exif() -> None:
    thumbnail = encode(squares()[::-1], "jpeg")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    whole = encode(squares(), "jpeg", quality=95)
    assert shows_the_squares(whole[:2] + segment + whole[2:])


def test_the_first_of_a_telephones_several_pictures_is_the_image() -> None:
    other = Image.fromarray(squares()[::-1])
    data = encode(squares(), "mpo", save_all=True, append_images=[other], quality=95)
    assert shows_the_squares(data)


@pytest.mark.parametrize(
    ("marker", "bits", "name"),
    [(0xC3, 8, "a JPEG of 8 bits (SOF3)"), (0xC1, 12, "a JPEG of 12 bits"), (0xF7, 8, "JPEG-LS")],
)
def test_a_jpeg_of_another_process_is_named(marker: int, bits: int, name: str) -> None:
    data = bytearray(encode(squares(), "jpeg"))
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = marker, bits
    reason, message = refusal(bytes(data))
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert message.startswith(name)


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [("jpeg", "RGB"), ("jpeg", "CMYK"), ("png", "RGB"), ("webp", "RGB"), ("avif", "RGB")],
)
def test_an_orientation_in_xmp_alone_is_as_good_as_none(file_format: str, mode: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    options: dict[str, Any] = {} if file_format == "png" else {"quality": 95}
    image = Image.fromarray(squares()).convert(mode)
    assert shows_the_squares(encode(image, file_format, xmp=xmp, **options))


def test_an_end_inside_a_comment_hides_no_scan() -> None:
    whole = encode(photo(), "jpeg", progressive=True)
    last = whole.rindex(b"\xff\xda")
    comment = b"\xff\xfe\0\4\xff\xd9"
    assert probe(whole[:last] + comment + whole[last:-2] * 50 + b"\xff\xd9").scans == 59


# --- PNG ---


def rows(pixels: npt.NDArray[Any]) -> bytes:
    return png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels)))


def png(*chunks: bytes, pixels: Pixels | None = None) -> bytes:
    body = rows(squares() if pixels is None else pixels)
    return png_file(WIDTH, HEIGHT, *chunks, body, colour_type=2)


EXIF_TEXT = b"Raw profile type exif\0"


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"tEXt", b"k\0" + b"a" * 3_000_000),
        png_chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"zTXt", EXIF_TEXT + b"\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"tEXt", EXIF_TEXT + b"0" * 3_000_000),
        png_chunk(b"zTXt", EXIF_TEXT + b"\0no zlib"),
    ],
    ids=["zTXt", "tEXt", "iTXt", "iCCP", "exif-zTXt", "exif-tEXt", "exif-damaged"],
)
def test_texts_and_profiles_of_a_png_may_be_large(chunk: bytes) -> None:
    assert shows_the_squares(png(chunk))


@pytest.mark.parametrize("compressed", [False, True])
def test_the_orientation_of_a_png_may_stand_in_a_text(compressed: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    block = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    text = b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"
    chunk = png_chunk(b"tEXt", EXIF_TEXT + text)
    if compressed:
        chunk = png_chunk(b"zTXt", EXIF_TEXT + b"\0" + zlib.compress(text))
    assert shows_the_squares(png(chunk, pixels=np.ascontiguousarray(squares()[::-1, ::-1])))


@pytest.mark.parametrize("default_image", [False, True])
def test_the_still_picture_of_an_animated_png_is_the_image(default_image: bool) -> None:
    other = Image.fromarray(squares()[::-1])
    options: dict[str, Any] = {"save_all": True, "default_image": default_image}
    assert shows_the_squares(encode(squares(), "png", append_images=[other], **options))


def test_a_transparent_colour_of_16_bits_is_laid_over_white() -> None:
    values = squares().astype(">u2") * np.array(257, ">u2")
    values = values.astype(">u2")
    values[:24, :32] = (1000, 2000, 3000)
    chunk = png_chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000))
    data = png_file(WIDTH, HEIGHT, chunk, rows(values), bits=16, colour_type=2)
    pixels = pixels_of(data, alpha="white")
    assert pixels[12, 16].tolist() == [255, 255, 255]
    assert pixels[12, 48].tolist() == list(COLORS[1])


def test_apples_own_png_is_named() -> None:
    data = encode(squares())
    reason, message = refusal(data[:8] + png_chunk(b"CgBI", b"\x50\0\x20\x02") + data[8:])
    assert (reason, "CgBI" in message) == (Reason.UNSUPPORTED_FORMAT, True)


# --- TIFF ---


def tiff(tags: Tags, blocks: list[bytes], *, order: str = "<", tail: bytes = b"") -> bytes:
    """Return a TIFF of one strip for each block; `tags` are SHORTs, or LONGs where they must be."""
    tags = {256: (WIDTH,), 257: (HEIGHT,), 259: (1,), 278: (HEIGHT,), **tags}
    size = 8 + 2 + 12 * (len(tags) + 2) + 4
    lengths = tuple(map(len, blocks))
    extra = sum(4 * len(values) for values in tags.values()) + 8 * len(blocks)
    starts = tuple(size + extra + sum(lengths[:index]) for index in range(len(blocks)))
    entries, beyond = b"", b""
    for tag, values in sorted({**tags, 273: starts, 279: lengths}.items()):
        content = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            place = struct.pack(f"{order}I", size + len(beyond))
            beyond += content
            content = place
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + content
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    directory = struct.pack(f"{order}H", len(tags) + 2) + entries + bytes(4)
    return head + directory + beyond.ljust(extra, b"\0") + b"".join(blocks) + tail


def planes(dtype: str, channels: int = 3) -> list[bytes]:
    scale = 257 if dtype.endswith("u2") else 1
    values = squares().astype(int) * scale
    opaque = np.full((HEIGHT, WIDTH, 1), 255 * scale)
    values = np.concatenate([values, opaque], axis=2)[:, :, :channels]
    return [values[:, :, index].astype(dtype).tobytes() for index in range(channels)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("bits", "channels"), [(8, 3), (8, 4), (16, 3), (16, 4)])
def test_a_tiff_whose_channels_lie_apart_has_its_colours(
    order: str, bits: int, channels: int
) -> None:
    tags: Tags = {258: (bits,) * channels, 262: (2,), 277: (channels,), 284: (2,)}
    if channels == 4:
        tags[338] = (1,)
    data = tiff(tags, planes(f"{order}u{bits // 8}", channels), order=order)
    assert shows_the_squares(data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("bits", "dtype"), [(8, "u1"), (16, "u2")])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_black_and_white_of_a_tiff_are_never_exchanged(
    order: str, bits: int, dtype: str, white_is_zero: bool
) -> None:
    most = 2**bits - 1
    values = np.linspace(0, most, WIDTH)[None].repeat(HEIGHT, 0).round().astype(np.int64)
    stored = (most - values if white_is_zero else values).astype(f"{order}{dtype}")
    tags: Tags = {258: (bits,), 262: (int(not white_is_zero),), 277: (1,)}
    pixels = pixels_of(tiff(tags, [stored.tobytes()], order=order), color="gray")[:, :, 0]
    assert np.abs(pixels.astype(int) - (values >> (bits - 8))).max() <= 1
    assert (pixels[0, 0], pixels[0, -1]) == (0, 255)


def test_white_is_zero_in_1_bit_too() -> None:
    bits = np.zeros((HEIGHT, WIDTH), bool)
    bits[:, : WIDTH // 2] = True
    data = tiff({258: (1,), 262: (0,), 277: (1,)}, [np.packbits(bits, axis=1).tobytes()])
    pixels = pixels_of(data, color="gray")[:, :, 0]
    assert np.array_equal(pixels, np.where(bits, 0, 255))


def test_12_bit_gray_is_as_light_as_its_8_bit_twin() -> None:
    values = np.linspace(0, 4095, WIDTH)[None].repeat(HEIGHT, 0).round().astype(np.uint16)
    first, second = values[:, ::2], values[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2)
    data = tiff({258: (12,), 262: (1,), 277: (1,)}, [packed.astype(np.uint8).tobytes()])
    pixels = pixels_of(data, color="gray")[:, :, 0]
    assert np.array_equal(pixels, values >> 4)


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("apart", [1, 2])
@pytest.mark.parametrize(
    ("tags", "described"),
    [
        ({258: (8,) * 6, 262: (1,), 277: (6,)}, "6 channels of 8-bit unsigned samples (gray"),
        (
            {258: (8,) * 6, 262: (1,), 277: (6,), 338: (0,) * 5},
            "6 channels of 8-bit unsigned samples (gray",
        ),
        ({258: (8,) * 3, 262: (8,), 277: (3,)}, "3 channels of 8-bit unsigned samples (CIE Lab"),
        ({258: (8,), 262: (1,), 277: (1,), 339: (2,)}, "1 channel of 8-bit signed samples (gray"),
        (
            {258: (32,) * 3, 262: (2,), 277: (3,), 339: (3,) * 3},
            "3 channels of 32-bit floating-point samples (RGB",
        ),
    ],
    ids=["six", "six-as-gdal-writes", "lab", "signed-bytes", "float-rgb"],
)
def test_a_tiff_of_other_channels_is_refused_for_what_it_is(
    tags: Tags, described: str, apart: int, color: str
) -> None:
    num_bytes = WIDTH * HEIGHT * tags[258][0] // 8
    data = tiff({**tags, 284: (apart,)}, [bytes(num_bytes)] * tags[277][0])
    reason, message = refusal(data, color=color)
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert described in message
    assert " at 0x" not in message


def test_a_compression_that_is_not_read_is_named() -> None:
    data = tiff({258: (8,), 262: (1,), 277: (1,), 259: (34887,)}, [bytes(100)])
    assert refusal(data) == (
        "unsupported_format",
        "a TIFF compressed by LERC (number 34887) is not read",
    )


def with_pages(first: Image.Image, *others: Image.Image, **options: Any) -> bytes:
    return encode(first, "tiff", save_all=True, append_images=others, **options)


def test_the_first_page_of_a_tiff_is_the_image_but_a_preview_is_not() -> None:
    photograph, small = Image.fromarray(squares()), Image.fromarray(squares()).resize((8, 6))
    other = Image.fromarray(squares()[::-1])
    assert shows_the_squares(with_pages(photograph, other))
    assert shows_the_squares(encode(photograph, "tiff", tiffinfo={254: 1}))  # there is no other
    reason, message = refusal(with_pages(small, photograph, tiffinfo={254: 1}))
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert "reduced copy of another one" in message


@pytest.mark.parametrize("kind", ["dng", "cr2", "filters"])
def test_a_cameras_raw_file_is_not_read_as_its_preview(kind: str) -> None:
    if kind == "dng":
        data = encode(squares(), "tiff", tiffinfo={50706: b"\1\4\0\0"})
    elif kind == "cr2":
        whole = encode(squares(), "tiff")
        assert whole[:8] == b"II*\0\x08\0\0\0"
        moved = whole + whole[8:]
        data = whole[:4] + struct.pack("<I", len(whole)) + b"CR\2\0" + moved[12:]
    else:
        tags: Tags = {258: (8,), 262: (1,), 277: (1,)}
        place = len(tiff({**tags, 330: (0,)}, [bytes(WIDTH * HEIGHT)]))
        inner = struct.pack("<HHHII", 1, 262, 4, 1, 32803) + bytes(4)
        data = tiff({**tags, 330: (place,)}, [bytes(WIDTH * HEIGHT)], tail=inner)
    reason, message = refusal(data)
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert message.startswith("a camera raw file")


# --- a range of values ---


@pytest.mark.parametrize("file_format", ["png", "tiff"])
def test_a_contract_may_ask_for_a_range_of_16_bit_values(file_format: str) -> None:
    values = np.linspace(0, 4095, WIDTH)[None].repeat(HEIGHT, 0).round().astype(np.uint16)
    data = encode(values, file_format)
    assert pixels_of(data, color="gray").max() == 15
    pixels = pixels_of(data, color="gray", value_range=(0.0, 4095.0))[:, :, 0]
    assert np.array_equal(pixels, np.rint(values * (255 / 4095)))
    clipped = pixels_of(data, color="gray", value_range=(1000.0, 2000.0))[0, :, 0]
    assert (clipped[0], clipped[-1]) == (0, 255)
    assert np.array_equal(pixels_of(data, value_range=(0.0, 4095.0))[:, :, 1], pixels)


@pytest.mark.parametrize(("dtype", "low", "high"), [("f4", -1.0, 1.0), ("i4", -1e5, 1e5)])
def test_a_range_gives_a_meaning_to_floats_and_long_integers(
    dtype: str, low: float, high: float
) -> None:
    values = np.linspace(low, high, WIDTH)[None].repeat(HEIGHT, 0).astype(f"<{dtype}")
    data = encode(values, "tiff")
    reason, message = refusal(data)
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert "value_range" in message
    pixels = pixels_of(data, color="gray", value_range=(low, high))[0, :, 0]
    assert np.array_equal(pixels, np.rint((values[0] - low) * (255 / (high - low))))


def test_a_range_leaves_images_of_8_bits_as_they_are() -> None:
    assert shows_the_squares(encode(squares()), value_range=(0.0, 4095.0))


def test_values_that_are_no_numbers_are_the_lowest() -> None:
    values = np.full((HEIGHT, WIDTH), np.nan, np.float32)
    assert pixels_of(encode(values, "tiff"), value_range=(0.0, 1.0)).max() == 0


# --- HEIC, AVIF, JPEG 2000 ---


@pytest.mark.parametrize("file_format", ["heic", "avif", "jpeg2000"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_heavy_formats_have_the_pixels_that_they_were_made_of(file_format: str, mode: str) -> None:
    image = Image.fromarray(photo(WIDTH, HEIGHT, noise=0)).convert(mode)
    pixels = pixels_of(encode(image, file_format))
    assert np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"))).mean() < 6


@pytest.mark.parametrize("name", ["torchvision-reference", "fast"])
@pytest.mark.parametrize("file_format", ["heic", "avif"])
def test_a_photograph_is_prepared_as_its_jpeg_twin_is(file_format: str, name: str) -> None:
    picture = photo(640, 427, noise=2)
    under = named_contract(name, formats=FORMATS)
    twin = decode(encode(picture, "jpeg", quality=92), under)
    found = decode(encode(picture, file_format, quality=85), under)
    difference = found.pixels.astype(int) - twin.pixels
    assert (found.width, found.height) == (twin.width, twin.height) == (640, 427)
    assert np.abs(difference).mean() < 4
    assert np.abs(difference.mean(axis=(0, 1))).max() < 2  # no colour drifts


@pytest.mark.parametrize("file_format", ["heic", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_heavy_formats_are_turned_upright_once(file_format: str, orientation: int) -> None:
    """Both state the orientation twice: in EXIF, and as something that a decoder does."""
    data = oriented(file_format, orientation, width=64, height=32)
    twin = oriented("png", orientation, width=64, height=32)
    size = (32, 64) if orientation < 5 else (64, 32)
    under = ImageContract(formats=FORMATS, resize=Exact(height=size[0], width=size[1]))
    found, expected = decode(data, under), decode(twin, under)
    assert (found.width, found.height) == (expected.width, expected.height) == size[::-1]
    assert np.abs(found.pixels.astype(int) - expected.pixels).mean() < 8


@pytest.mark.parametrize("file_format", ["heic", "avif", "jpeg2000"])
@pytest.mark.parametrize(("alpha", "behind"), [("white", 255), ("black", 0)])
def test_transparency_of_heavy_formats_is_laid_over_a_colour(
    file_format: str, alpha: str, behind: int
) -> None:
    data = encode(half_transparent("RGBA", side=64), file_format)
    pixels = pixels_of(data, alpha=alpha).astype(int)
    assert np.abs(pixels[:, :24] - behind).max() < 12
    assert np.abs(pixels[:, 40:] - (200, 0, 0)).max() < 12


def test_a_heic_of_tiles_is_one_picture() -> None:
    picture = photo(300, 200)
    data = heic_of_tiles(picture)
    assert b"grid" in data
    header = probe(data)
    assert (header.format, header.width, header.height) == ("heic", 300, 200)
    under = ImageContract(formats=FORMATS, resize=Exact(height=200, width=300))
    assert np.abs(decode(data, under).pixels.astype(int) - picture).mean() < 8


def test_the_picture_that_a_file_calls_its_first_is_the_image() -> None:
    other = Image.fromarray(squares()[::-1])
    options = {"save_all": True, "append_images": [Image.fromarray(squares())]}
    assert shows_the_squares(encode(other, "heic", primary_index=1, **options))
    still = encode(squares(), "avif", save_all=True, append_images=[other])
    assert still[8:12] == b"avis"
    assert shows_the_squares(still)


def test_brands_that_say_little_do_not_hide_the_format() -> None:
    for file_format in ("heic", "avif"):
        data = encode(squares(), file_format)
        general = data[:8] + b"mif1" + data[12:]
        assert probe(general).format == file_format
        assert shows_the_squares(general)


@pytest.mark.parametrize("file_format", ["heic", "jpeg2000"])
def test_16_bits_in_heavy_formats_keep_their_gradient(file_format: str) -> None:
    data = encode(gray16(WIDTH, HEIGHT), file_format)
    pixels = pixels_of(data, color="gray")[0, :, 0].astype(int)
    assert np.abs(pixels - (gray16(WIDTH, 1)[0] >> 8)).max() <= 4


LARGE_BUT_FLAT = np.full((1024, 2048, 3), 90, np.uint8)


@pytest.mark.parametrize("file_format", ["heic", "avif"])
def test_a_picture_that_is_larger_inside_than_outside_is_refused(file_format: str) -> None:
    data = with_heif_size(encode(LARGE_BUT_FLAT, file_format), 16, 16)
    assert len(data) < 2_000
    assert refusal(data) == (
        "too_many_pixels",
        "coded pictures of 2,048 x 1,024 pixels are far larger than the image of 16 x 16",
    )


def tiles_of(data: bytes) -> tuple[int, int]:
    """Return where a HEIC lists its tiles, and how many it has."""
    place = data.index(b"dimg") + 6
    return place + 2, struct.unpack_from(">H", data, place)[0]


def test_a_heic_that_is_made_of_itself_is_refused() -> None:
    data = heic_of_tiles(photo(300, 200))
    place, count = tiles_of(data)
    looped = data[:place] + struct.pack(">H", 1) * count + data[place + 2 * count :]
    assert refusal(looped) == ("unreadable", "the heic derives its picture too many times")


def test_a_heic_with_fewer_tiles_than_its_grid_has_is_refused() -> None:
    data = heic_of_tiles(photo(300, 200))
    place = data.index(b"idat") + 6
    assert refusal(data[:place] + b"\xff\xff" + data[place + 2 :]) == (
        "unreadable",
        "the heic has 20 tiles instead of 256 x 256",
    )


def test_a_heif_of_another_coding_is_named() -> None:
    data = encode(squares(), "heic").replace(b"hvc1", b"vvc1")
    assert refusal(data) == (
        "unsupported_format",
        "HEIC is not read where the picture is coded as 'vvc1'",
    )


def test_a_jpeg_2000_of_many_channels_or_tiles_is_refused() -> None:
    data = encode(squares(), "jpeg2000", no_jp2=True)
    channels = data[:40] + struct.pack(">H", 6) + data[42:]
    assert refusal(channels) == ("unsupported_format", "a JPEG 2000 of 6 channels is not read")
    tiles = data[:8] + struct.pack(">6I", 9_000, 9_000, 0, 0, 1, 1) + data[32:]
    assert refusal(tiles) == ("unreadable", "the JPEG 2000 has 81,000,000 tiles")


def test_a_decoders_error_never_shows_a_python_object() -> None:
    data = io.BytesIO()
    Image.fromarray(squares()).save(data, "bmp")
    broken = bytearray(data.getvalue())
    broken[28:30] = struct.pack("<H", 5)  # bits of a pixel
    reason, message = refusal(bytes(broken))
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert message == "a bmp is not read (Unsupported BMP pixel depth (5))"
