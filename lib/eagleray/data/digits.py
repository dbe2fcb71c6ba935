"""Writes the handwritten digits of scikit-learn as image files, with broken files beside them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from PIL import Image

__all__ = ["BROKEN_FILES", "write_digits"]

BROKEN_FILES = {
    "broken-01-empty.png": "truncated",
    "broken-02-half.png": "truncated",
    "broken-03-header-only.png": "truncated",
    "broken-04-half.jpg": "truncated",
    "broken-05-text.png": "not_an_image",
    "broken-06-page.png": "not_an_image",
    "broken-07-zeros.png": "not_an_image",
    "broken-08-huge-header.png": "too_many_pixels",
    "broken-09-huge-frame.gif": "too_many_pixels",
    "broken-10-document.png": "unsupported_format",
    "broken-11-flipped-bytes.png": "unreadable",
    "broken-12-missing.png": "missing",
}
"""Reason code that each broken file must get."""


def write_digits(folder: Path) -> Path:
    """Write the digits and the broken files, and return the table of the digits' labels.

    Args:
        folder: Gets `images/` with every file, and `labels.csv` with `path` and `label`.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = folder / "images"
    images.mkdir(parents=True)
    names = []
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        name = f"digit-{number:04d}-is-{label}.png"
        gray = np.round(pixels * (255 / 16)).astype(np.uint8)  # the data count from 0 to 16
        Image.fromarray(gray).save(images / name)
        names.append(f"images/{name}")
    table = pa.table({"path": names, "label": [str(label) for label in digits.target]})
    pyarrow.csv.write_csv(table, folder / "labels.csv")
    _write_broken(images)
    return folder / "labels.csv"


def _write_broken(images: Path) -> None:
    """Write a dozen files that go wrong, each in the way that its name says."""
    whole = (images / "digit-0000-is-0.png").read_bytes()
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(whole)).resize((64, 64)).save(jpeg, format="JPEG")
    flipped = bytearray(whole)
    data_starts = whole.index(b"IDAT") + 4
    flipped[data_starts : data_starts + 12] = bytes(
        255 - byte for byte in whole[data_starts : data_starts + 12]
    )
    contents = {
        "broken-01-empty.png": b"",
        "broken-02-half.png": whole[: len(whole) // 2],
        "broken-03-header-only.png": whole[:20],
        "broken-04-half.jpg": jpeg.getvalue()[: jpeg.tell() // 2],
        "broken-05-text.png": b"These are not the pixels that you are looking for.\n",
        "broken-06-page.png": b"<!doctype html><title>404</title>",
        "broken-07-zeros.png": bytes(512),
        "broken-08-huge-header.png": _png_that_claims(60_000, 60_000),
        "broken-09-huge-frame.gif": _gif_that_claims(65_000, 65_000),
        "broken-10-document.png": b"%PDF-1.7\n",
        "broken-11-flipped-bytes.png": bytes(flipped),
    }
    for name, content in contents.items():
        (images / name).write_bytes(content)
    (images / "broken-12-missing.png").symlink_to("a-file-that-was-deleted.png")


def _png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG with a valid header and next to no data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(64))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def _gif_that_claims(width: int, height: int) -> bytes:
    """Return a GIF whose screen is a pixel and whose first frame is huge."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return screen + frame + b"\x02\x01\x44\x00;"
