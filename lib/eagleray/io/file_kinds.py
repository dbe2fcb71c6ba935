"""What kind of file a name or the first bytes say it is."""

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
    # Raw files of cameras.
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"),
)
"""Extensions of images, lower-case, whether they are read or not."""

NUM_SNIFFED_BYTES = 512
"""Bytes that `describe_file_kind` looks at."""

_TAR_MAGIC = slice(257, 262)
_KINDS = (
    (b"\x1f\x8b", "compressed with gzip"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of an old Excel or Word"),
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
    """Whether a name ends as those of images do."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def is_text(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a text in UTF-8 or UTF-16."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return bool(text) and all(letter.isprintable() or letter.isspace() for letter in text)


def describe_file_kind(start: bytes) -> str | None:
    """Say what a file is whose first bytes are that of an archive, a database or a binary table.

    Args:
        start: The first bytes, `NUM_SNIFFED_BYTES` or more where there are as many.

    Returns:
        Words that follow "is"; None for images, texts and whatever is not known.
    """
    if start[_TAR_MAGIC] == b"ustar":
        return "a tar archive"
    return next((words for magic, words in _KINDS if start.startswith(magic)), None)
