"""Readers of image sources, and the reasons of their failures."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from eagleray.core.errors import BadImageError, Reason
from eagleray.io.fetch import ImageReader, ImageSource

MAX_BYTES = 2**20


def noise(num_bytes: int, seed: int = 0) -> bytes:
    """Bytes that nothing compresses."""
    return random.Random(seed).randbytes(num_bytes)


def reader() -> ImageReader:
    return ImageReader(MAX_BYTES)


def failure(source: ImageSource, with_reader: ImageReader | None = None) -> tuple[Reason, str]:
    with pytest.raises(BadImageError) as caught:
        (with_reader or reader()).read(source)
    return caught.value.reason, caught.value.message


def change(location: str, at: int, values: bytes) -> None:
    """Overwrite bytes of a file."""
    content = bytearray(Path(location).read_bytes())
    content[at : at + len(values)] = values
    Path(location).write_bytes(content)


CONTENTS = {
    "a.jpg": noise(70_000),
    "deep/b.png": b"\0" * 50_000,
    "empty.gif": b"",
    "x" * 900 + ".jpg": b"long name",
    "grün 猫%20::.png": b"odd name",
}
