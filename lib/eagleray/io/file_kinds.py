"""Recognises the kind of a file by its name or its first bytes."""

from __future__ import annotations

import codecs

__all__ = [
    "IMAGE_EXTENSIONS",
    "NUM_SNIFFED_BYTES",
    "describe_file_kind",
    "is_image_name",
    "is_text",
]

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".tif", ".tiff"),
    *(".webp", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".ico", ".tga", ".pcx", ".dds", ".qoi", ".psd", ".exr", ".hdr", ".svg", ".dcm"),
    # Camera raw files.
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"),
)
"""Lower-case extensions of image files, supported or not."""

NUM_SNIFFED_BYTES = 512
"""Number of bytes that `describe_file_kind` needs."""

_TAR_MAGIC = slice(257, 262)
_MAGICS = (
    (b"\x1f\x8b", "compressed with gzip"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word document"),
    (b"PAR1", "a Parquet file"),
    (b"PARE", "an encrypted Parquet file"),
    (b"ARROW1", "an Arrow or Feather file"),
    (b"FEA1", "a Feather file"),
    (b"Obj\x01", "an Avro file"),
    (b"ORC", "an ORC file"),
    (b"SQLite format 3\0", "a SQLite database"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF-", "a PDF"),
)


def is_image_name(name: str) -> bool:
    """Whether a name has the extension of an image."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def is_text(start: bytes) -> bool:
    """Whether the first bytes of a file are text in UTF-8 or UTF-16."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return bool(text) and all(letter.isprintable() or letter.isspace() for letter in text)


def describe_file_kind(start: bytes) -> str | None:
    """Describe a file that is an archive, a database or a binary table.

    Args:
        start: The first `NUM_SNIFFED_BYTES` bytes or more, if there are as many.

    Returns:
        A phrase that follows "is"; None for images, texts and unknown kinds.
    """
    if start[_TAR_MAGIC] == b"ustar":
        return "a tar archive"
    return next((phrase for magic, phrase in _MAGICS if start.startswith(magic)), None)
