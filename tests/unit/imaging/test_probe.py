"""The probe: format, size and orientation from the first bytes, before any decoder sees them."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from PIL import Image

from eagleray.core.errors import BadImageError, Reason
from eagleray.imaging import FORMATS, probe
from eagleray.imaging.contract import ORIGINAL_FORMATS
from tests.support.images import (
    Bomb,
    bombs,
    cmyk_jpeg,
    encode,
    gray16,
    half_transparent,
    open_image,
    oriented,
    photo,
    png_file,
    tiff_file,
)

ODD_SIZES = [(1, 1), (1, 7), (3, 5), (17, 31), (255, 257), (641, 3)]

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("jpeg", {}),
    ("jpeg", {"progressive": True}),
    ("jpeg", {"comment": b"\xff\xc0 is no frame header here" * 40}),
    ("jpeg", {"icc_profile": b"\xff" * 200_000}),
    ("png", {}),
    ("webp", {}),
    ("webp", {"lossless": True}),
    ("webp", {"icc_profile": b"profile"}),
    ("gif", {}),
    ("gif", {"comment": b"made by hand"}),
    ("tiff", {}),
    ("tiff", {"compression": "tiff_lzw"}),
    ("bmp", {}),
    ("heic", {}),
    ("avif", {}),
    ("jpeg2000", {}),
    ("jpeg2000", {"no_jp2": True, "tile_size": (64, 64)}),
]


def animated(file_format: str) -> bytes:
    frames = [Image.fromarray(photo(33, 21, seed=seed)) for seed in range(3)]
    return encode(frames[0], file_format, save_all=True, append_images=frames[1:], loop=2)


def reason_of(data: bytes) -> Reason | None:
    """Return why the probe refuses bytes, None where it reads them."""
    try:
        probe(data)
    except BadImageError as error:
        return error.reason
    return None


# --- what it reads ---


@pytest.mark.parametrize(("width", "height"), ODD_SIZES)
@pytest.mark.parametrize(("file_format", "options"), VARIANTS)
def test_probe_reads_what_pillow_reads(
    file_format: str, options: dict[str, Any], width: int, height: int
) -> None:
    data = encode(photo(width, height), file_format, **options)
    header = probe(data)
    assert (header.format, header.width, header.height) == (file_format, width, height)
    assert (header.width, header.height) == open_image(data).size


def test_every_format_is_tried() -> None:
    assert {file_format for file_format, _options in VARIANTS} == set(FORMATS)


@pytest.mark.parametrize(
    "data",
    [
        *[
            pytest.param(animated(file_format), id=f"animated-{file_format}")
            for file_format in ("gif", "webp")
        ],
        pytest.param(encode(half_transparent("RGBA"), "webp"), id="webp-with-alpha"),
        pytest.param(encode(half_transparent("P"), "gif"), id="gif-with-transparency"),
        pytest.param(encode(half_transparent("RGBA"), "bmp"), id="bmp-with-alpha"),
        pytest.param(encode(gray16().astype(">u2"), "tiff"), id="tiff-of-the-other-byte-order"),
        pytest.param(encode(photo()[:, :, 0], "bmp"), id="bmp-with-palette"),
    ],
)
def test_probe_reads_unusual_files(data: bytes) -> None:
    image = open_image(data)
    header = probe(data)
    assert (header.format.upper(), header.width, header.height) == (image.format, *image.size)


def test_a_top_down_bmp_has_a_positive_height() -> None:
    data = bytearray(encode(photo(7, 5), "bmp"))
    data[22:26] = struct.pack("<i", -5)
    header = probe(bytes(data))
    assert (header.width, header.height) == (7, 5)


def test_a_gif_frame_larger_than_its_screen_counts() -> None:
    data = bytearray(encode(photo(40, 30), "gif"))
    data[6:10] = struct.pack("<HH", 8, 8)
    header = probe(bytes(data))
    assert (header.width, header.height) == (40, 30)


def test_a_stray_byte_does_not_hide_a_gif_frame() -> None:
    data = encode(photo(40, 30), "gif")
    frame = data.index(b"," + struct.pack("<HHHH", 0, 0, 40, 30))
    hidden = data[:6] + struct.pack("<HH", 1, 1) + data[10:frame] + b"\x01" + data[frame:]
    assert open_image(hidden).size == (40, 30)
    header = probe(hidden)
    assert (header.width, header.height) == (40, 30)


@pytest.mark.parametrize(
    ("data", "components"),
    [
        (encode(photo(), "jpeg"), 3),
        (encode(photo()[:, :, 1], "jpeg"), 1),
        (cmyk_jpeg(), 4),
        (encode(photo(), "png"), 0),
    ],
    ids=["colour", "gray", "cmyk", "png"],
)
def test_probe_counts_the_components_of_a_jpeg(data: bytes, components: int) -> None:
    assert probe(data).components == components


@pytest.mark.parametrize("orientation", range(1, 9))
def test_probe_reads_the_orientation_of_a_jpeg(orientation: int) -> None:
    header = probe(oriented("jpeg", orientation, width=23, height=14))
    assert header.orientation == orientation
    assert (header.width, header.height) == (23, 14)


@pytest.mark.parametrize("order", ["<", ">"])
def test_probe_reads_either_byte_order_of_exif(order: str) -> None:
    tag, kind, count = 0x0112, 3, 1
    start = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHIHH", tag, kind, count, 6, 0)
    exif = start + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)
    assert probe(encode(photo(), "jpeg", exif=b"Exif\0\0" + exif)).orientation == 6


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0",
    ],
    ids=["empty", "cut", "offset-outside", "entries-outside", "nine", "zero"],
)
def test_a_damaged_exif_block_means_upright(exif: bytes) -> None:
    assert probe(encode(photo(), "jpeg", exif=exif)).orientation == 1


@pytest.mark.parametrize("bomb", bombs(), ids=lambda bomb: bomb.name)
def test_probe_reads_the_size_that_a_bomb_claims(bomb: Bomb) -> None:
    header = probe(bomb.data)
    assert (header.format, header.width, header.height) == (bomb.format, bomb.width, bomb.height)
    assert len(bomb.data) < 2_000


# --- what it refuses ---


TGA = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 4, 3, 24, 32) + bytes(36)
PCX = b"\x0a\5\1\x08" + bytes(124)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1miaf", "HEIF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "CR3 (a camera raw file)"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isommp41", "MPEG-4 video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "QuickTime video"),
        (b"\x1a\x45\xdf\xa3\x01\0\0\0", "Matroska or WebM video"),
        (b"RIFF\x24\0\0\0AVI LIST", "AVI video"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "PDF"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"\0\0\x01\0\x01\0\x10\x10", "ICO"),
        (b"II+\0\x08\0\0\0", "BigTIFF"),
        (b"MM\0+\0\x08\0\0", "BigTIFF"),
        (b"DICM", "DICOM"),
        (bytes(128) + b"DICM\x02\0", "DICOM"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"P6\n4 3\n255\n" + bytes(36), "Netpbm (PPM, PGM, PBM, PAM or PFM)"),
        (b"P5 4 3 255 " + bytes(12), "Netpbm (PPM, PGM, PBM, PAM or PFM)"),
        (TGA, "TGA"),
        (bytes(60) + b"TRUEVISION-XFILE.\0", "TGA"),
        (PCX, "PCX"),
        (encode(photo(8, 8), "pcx"), "PCX"),
        (encode(photo(8, 8), "tga"), "TGA"),
        (encode(photo(8, 8), "dds"), "DDS"),
        (encode(photo(8, 8), "ppm"), "Netpbm (PPM, PGM, PBM, PAM or PFM)"),
        (encode(photo(8, 8), "sgi"), "SGI"),
        (encode(photo(8, 8), "qoi"), "QOI"),
        (b"FUJIFILMCCD-RAW 0201", "RAF (a camera raw file)"),
        (b"IIRO\x08\0\0\0", "ORF (a camera raw file)"),
        (b"IIU\0\x18\0\0\0", "RW2 (a camera raw file)"),
        (b"II\xbc\x01\x20\0\0\0", "JPEG XR"),
    ],
)
def test_a_format_that_is_known_but_not_read_is_named(data: bytes, name: str) -> None:
    with pytest.raises(BadImageError) as caught:
        probe(data)
    assert caught.value.reason == Reason.UNSUPPORTED_FORMAT
    assert caught.value.message == (
        f"{name} is not among the formats that are read: jpeg, png, webp, gif, tiff, bmp, heic, "
        "avif, jpeg2000"
    )


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encode(photo(8, 8), "heic"), "heic"),
        (encode(photo(8, 8), "avif"), "avif"),
        (encode(photo(8, 8), "avif").replace(b"ftypavif", b"ftypmif1"), "avif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "heic"),
        (b"\xff\x4f\xff\x51\0\x2f", "jpeg2000"),
    ],
    ids=["heic", "avif", "avif-mif1", "heic-mif1-cut", "jpeg2000-cut"],
)
def test_a_format_that_the_contract_does_not_list_is_named(data: bytes, name: str) -> None:
    with pytest.raises(BadImageError) as caught:
        probe(data, ORIGINAL_FORMATS)
    assert caught.value.reason == Reason.UNSUPPORTED_FORMAT
    assert caught.value.message == (
        f"{name} is not among the formats that this model's contract reads: jpeg, png, webp, gif, "
        "tiff, bmp"
    )


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (b"", "truncated", "the file is empty (0 bytes)"),
        (b"\x9c\x02\xfe\x01", "not_an_image", "no image format starts with the bytes 9c 02 fe 01"),
        (b"hello, world", "not_an_image", "the file is plain text, not an image"),
        (bytes(512), "not_an_image", "the file is nothing but zero bytes, not an image"),
        (b"\n<!doctype html><title>404</title>", "not_an_image", "the file is an HTML page"),
        (b'<?xml version="1.0"?><Error/>', "not_an_image", "the file is XML"),
        (b'{"error": "gone"}', "not_an_image", "the file is JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not_an_image", "a Git LFS pointer"),
        (
            b"/9j/4AAQSkZJRgABAQ",
            "not_an_image",
            "the file is the base64 text of an image (decode it first)",
        ),
        (b"data:image/png;base64,iVBORw0", "not_an_image", "the file is a data: URL in text"),
        (b"PK\x03\x04", "not_an_image", "the file is a ZIP archive"),
        (b"\x1f\x8b\x08\0", "not_an_image", "the file is compressed (gzip)"),
        (b"\0\x05\x16\x07\0\2", "not_an_image", "the file is a macOS resource fork"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not_an_image", "the file is sound (WAV)"),
        (b"\xff\xd8\xff", "truncated", "the file ends inside its header"),
        (b"\xff\xd8\xff\xd9", "unreadable", "the JPEG has no frame header before its data"),
        (b"\xff\xd8\xff\xda\0\x08", "unreadable", "the JPEG has no frame header before its data"),
        (png_file(0, 10), "unreadable", "the header claims 0 x 10 pixels"),
        (
            png_file(1, 1).replace(b"IHDR", b"tEXt"),
            "unreadable",
            "the PNG does not start with its header chunk",
        ),
        (tiff_file({256: 5}), "unreadable", "the header claims 5 x 0 pixels"),
        (
            b"RIFF\x24\0\0\0WEBPALPH" + bytes(32),
            "unreadable",
            "the WebP has no image chunk at its start",
        ),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(
    data: bytes, reason: str, message: str
) -> None:
    with pytest.raises(BadImageError) as caught:
        probe(data)
    assert caught.value.reason == reason
    assert message in caught.value.message


@pytest.mark.parametrize(("file_format", "options"), VARIANTS)
def test_every_prefix_gives_the_header_or_a_bad_image(
    file_format: str, options: dict[str, Any]
) -> None:
    data = encode(photo(9, 6), file_format, **options)
    whole = probe(data)
    for length in range(min(len(data), 1_000)):
        reason = reason_of(data[:length])
        assert reason in (None, "truncated", "not_an_image", "unreadable"), length
        if reason is None:
            assert probe(data[:length]) == whole, length


@pytest.mark.parametrize(
    ("file_format", "signature"), [("jpeg", 3), ("gif", 6), ("tiff", 4), ("bmp", 2)]
)
def test_a_file_that_ends_inside_its_header_is_truncated(file_format: str, signature: int) -> None:
    data = encode(photo(9, 6), file_format)
    reasons = [reason_of(data[:length]) for length in range(signature, len(data))]
    assert set(reasons) == {Reason.TRUNCATED, None}
    assert reasons == sorted(reasons, key=lambda reason: reason is None)


@pytest.mark.parametrize(("file_format", "signature"), [("png", 8), ("webp", 12)])
def test_a_file_that_ends_before_its_first_chunk_is_truncated(
    file_format: str, signature: int
) -> None:
    data = encode(photo(9, 6), file_format)
    reasons = {reason_of(data[:length]) for length in range(signature, 30)}
    assert reasons <= {Reason.TRUNCATED, None}


def test_prefixes_of_a_bomb_never_pass_for_a_small_image() -> None:
    for bomb in bombs():
        for length in range(len(bomb.data)):
            try:
                header = probe(bomb.data[:length])
            except BadImageError:
                continue
            assert header.width * header.height >= bomb.width * bomb.height, (bomb.name, length)
