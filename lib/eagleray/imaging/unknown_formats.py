"""Names files in unsupported formats: images of other formats, and files that are not images."""

from __future__ import annotations

import re
from collections.abc import Callable

from eagleray.core.errors import BadImageError, Reason

__all__ = ["unknown_format_error"]

_Test = Callable[[bytes], bool]

_SHOWN_BYTES = 8
_SNIFFED_BYTES = 1024  # of text before the part that identifies it
_MIN_BASE64 = 64


def unknown_format_error(data: bytes, formats: tuple[str, ...]) -> BadImageError:
    """Return the error of a file in none of the supported formats.

    Args:
        data: The whole file, or its first bytes.
        formats: Accepted formats, for the message.
    """
    for is_format, name in _OTHER_IMAGES:
        if is_format(data):
            return BadImageError(
                Reason.UNSUPPORTED_FORMAT,
                f"{name} is not among the formats that are read: {', '.join(formats)}",
            )
    for is_kind, name in _NOT_IMAGES:
        if is_kind(data):
            return BadImageError(Reason.NOT_AN_IMAGE, f"the file is {name}, not an image")
    shown = data[:_SHOWN_BYTES].hex(" ")
    return BadImageError(Reason.NOT_AN_IMAGE, f"no image format starts with the bytes {shown}")


def _starts(*prefixes: bytes) -> _Test:
    return lambda data: data.startswith(prefixes)


def _at(position: int, *values: bytes) -> _Test:
    return lambda data: data[position : position + max(map(len, values))].startswith(values)


def _media_brand(*brands: bytes) -> _Test:
    """Match the brand of an ISO base media file (ISO 14496-12)."""
    return lambda data: len(data) >= 12 and data[4:8] == b"ftyp" and data[8:12].startswith(brands)


def _riff(*kinds: bytes) -> _Test:
    return lambda data: data[:4] in (b"RIFF", b"RIFX") and data[8:12] in kinds


def _text(pattern: bytes) -> _Test:
    """Match the start of a text, after a byte order mark and spaces."""
    whole = re.compile(rb"(?:\xef\xbb\xbf)?\s*" + pattern, re.IGNORECASE | re.DOTALL)
    return lambda data: whole.match(data[:_SNIFFED_BYTES]) is not None


def _is_netpbm(data: bytes) -> bool:
    return re.match(rb"P[1-6][\s#]|P7\s+(?:#|WIDTH)|P[Ff]\s", data[:16]) is not None


def _is_pcx(data: bytes) -> bool:
    return len(data) >= 128 and data[0] == 0x0A and data[1] <= 5 and data[2:4] <= b"\x01\x08"


def _is_tga(data: bytes) -> bool:
    """Recognise TGA by the footer of version 2, or by a header that fits nothing else."""
    if data[-18:] == b"TRUEVISION-XFILE.\0":
        return True
    if len(data) < 18 or data[2] not in (1, 2, 3, 9, 10, 11) or data[1] > 1:
        return False
    has_map = data[1] == 1
    if has_map != (data[2] in (1, 9)) or (not has_map and data[3:8] != bytes(5)):
        return False
    depths = (8, 16) if data[2] in (1, 3, 9, 11) else (15, 16, 24, 32)
    return data[16] in depths and not data[17] & 0xC0 and data[12:14] != b"\0\0" != data[14:16]


def _is_mpeg_stream(data: bytes) -> bool:
    return len(data) > 376 and data[0] == data[188] == data[376] == 0x47


def _is_base64(data: bytes) -> bool:
    """Whether a text starts like a base64-encoded JPEG, PNG, GIF or WebP."""
    start = data[:_MIN_BASE64].lstrip(b"\"' \r\n")
    return start.startswith((b"/9j/", b"iVBORw0KGgo", b"R0lGOD", b"UklGR"))


def _is_plain_text(data: bytes) -> bool:
    start = data[:_SNIFFED_BYTES]
    return len(start) >= _SHOWN_BYTES and all(
        byte in b"\t\n\r" or 32 <= byte < 127 for byte in start
    )


_OTHER_IMAGES: list[tuple[_Test, str]] = [
    (_media_brand(b"crx "), "CR3 (a camera raw file)"),
    (_media_brand(b"mif", b"msf", b"miaf", b"jpeg", b"avci", b"j2ki", b"vvic"), "HEIF"),
    (_media_brand(b"qt  "), "QuickTime video"),
    (_media_brand(b"M4A", b"M4B", b"F4A"), "MPEG-4 audio"),
    (_media_brand(b"3g"), "3GPP video"),
    (_media_brand(b""), "MPEG-4 video"),
    (_at(4, b"moov", b"mdat", b"wide", b"skip", b"pnot"), "QuickTime video"),
    (_starts(b"\xff\x0a", b"\0\0\0\x0cJXL "), "JPEG XL"),
    (_starts(b"II\xbc\x01"), "JPEG XR"),
    (_starts(b"FUJIFILMCCD-RAW"), "RAF (a camera raw file)"),
    (_starts(b"IIRO", b"IIRS", b"MMOR"), "ORF (a camera raw file)"),
    (_starts(b"IIU\0"), "RW2 (a camera raw file)"),
    (_starts(b"II\x1a\0\0\0HEAPCCDR"), "CRW (a camera raw file)"),
    (_starts(b"FOVb"), "X3F (a camera raw file)"),
    (_starts(b"\0MRM"), "MRW (a camera raw file)"),
    (_starts(b"%PDF"), "PDF"),
    (_starts(b"%!PS", b"\xc5\xd0\xd3\xc6"), "PostScript"),
    (_starts(b"8BPS"), "Photoshop"),
    (_starts(b"gimp xcf"), "GIMP (XCF)"),
    (_starts(b"\0\0\1\0"), "ICO"),
    (lambda data: data[:4] == b"\0\0\2\0" and any(data[4:6]), "Windows cursor (CUR)"),
    (_starts(b"icns"), "Apple icon (ICNS)"),
    (_starts(b"II+\0", b"MM\0+"), "BigTIFF"),
    (_starts(b"DICM"), "DICOM"),
    (_at(128, b"DICM"), "DICOM"),
    (_is_netpbm, "Netpbm (PPM, PGM, PBM, PAM or PFM)"),
    (_starts(b"DDS "), "DDS"),
    (_starts(b"qoif"), "QOI"),
    (_starts(b"farbfeld"), "farbfeld"),
    (_starts(b"v/1\x01"), "OpenEXR"),
    (_starts(b"#?RADIANCE", b"#?RGBE"), "Radiance HDR"),
    (_starts(b"SIMPLE  ="), "FITS"),
    (_starts(b"FLIF"), "FLIF"),
    (_starts(b"BPG\xfb"), "BPG"),
    (_starts(b"\x8aMNG", b"\x8bJNG"), "MNG"),
    (_starts(b"\x01\xda\x00", b"\x01\xda\x01"), "SGI"),
    (_starts(b"\x59\xa6\x6a\x95"), "Sun raster"),
    (_starts(b"SDPX", b"XPDS"), "DPX"),
    (_starts(b"\x80\x2a\x5f\xd7"), "Cineon"),
    (_starts(b"\xabKTX "), "KTX"),
    (_starts(b"BLP1", b"BLP2"), "BLP"),
    (_starts(b"AT&TFORM"), "DjVu"),
    (_starts(b"/* XPM */"), "XPM"),
    (_text(rb"#define\s+\w+_width\s"), "XBM"),
    (_starts(b"\xd7\xcd\xc6\x9a"), "Windows metafile (WMF)"),
    (_at(40, b" EMF"), "Windows metafile (EMF)"),
    (lambda data: b"<svg" in data[:_SNIFFED_BYTES], "SVG"),
    (_riff(b"AVI "), "AVI video"),
    (_starts(b"\x1a\x45\xdf\xa3"), "Matroska or WebM video"),
    (_starts(b"FLV\x01"), "Flash video"),
    (_starts(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), "Windows Media"),
    (_starts(b"\0\0\1\xba", b"\0\0\1\xb3"), "MPEG video"),
    (_is_mpeg_stream, "MPEG video"),
    (_is_pcx, "PCX"),
    (_is_tga, "TGA"),
]
"""Images and videos, in order: the first match names the file."""

_NOT_IMAGES: list[tuple[_Test, str]] = [
    (_text(rb"<!doctype html|<html|<head|<body"), "an HTML page (perhaps an error page)"),
    (_text(rb"<\?xml|<Error>"), "XML (perhaps an error message)"),
    (_text(rb"version https://git-lfs"), "a Git LFS pointer (fetch the file with `git lfs pull`)"),
    (_text(rb'\{\s*"|\{\s*\}|\[\s*[\[{"\d\]]'), "JSON (perhaps an error message)"),
    (_text(rb"data:image/"), "a data: URL in text"),
    (_is_base64, "the base64 text of an image (decode it first)"),
    (_starts(b"PK\x03\x04", b"PK\x05\x06"), "a ZIP archive"),
    (_starts(b"\x1f\x8b"), "compressed (gzip)"),
    (_starts(b"BZh"), "compressed (bzip2)"),
    (_starts(b"\xfd7zXZ\0"), "compressed (xz)"),
    (_starts(b"\x28\xb5\x2f\xfd"), "compressed (Zstandard)"),
    (_starts(b"7z\xbc\xaf\x27\x1c"), "a 7-Zip archive"),
    (_starts(b"Rar!"), "a RAR archive"),
    (_at(257, b"ustar"), "a tar archive"),
    (_starts(b"PAR1"), "a Parquet table"),
    (_starts(b"ARROW1"), "an Arrow table"),
    (_starts(b"\x93NUMPY"), "a NumPy array"),
    (_starts(b"\x89HDF"), "an HDF5 file"),
    (_starts(b"SQLite format 3"), "an SQLite database"),
    (_starts(b"\0\x05\x16\x07", b"\0\x05\x16\0"), "a macOS resource fork (a file `._name`)"),
    (_starts(b"\0\0\0\1Bud1"), "a macOS folder's settings (.DS_Store)"),
    (_starts(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), "an OLE document (such as Thumbs.db)"),
    (_starts(b"L\0\0\0\x01\x14\x02\0"), "a Windows shortcut"),
    (_starts(b"\x7fELF", b"MZ"), "a program"),
    (_starts(b"ID3", b"fLaC", b"OggS"), "sound"),
    (_riff(b"WAVE"), "sound (WAV)"),
    (lambda data: not any(data[:_SNIFFED_BYTES]) and not any(data), "nothing but zero bytes"),
    (_is_plain_text, "plain text"),
]
