"""Damaged images: any number of them, always the same ones, of every format."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

from eagleray.imaging import FORMATS, probe
from tests.support.images import (
    bombs,
    cmyk_jpeg,
    encode,
    gray16,
    half_transparent,
    heic_of_tiles,
    oriented,
    photo,
    tiff_file,
)

Mutation = Callable[[bytes, random.Random], bytes]


@functools.cache
def sources() -> tuple[bytes, ...]:
    """Return small files of every format and of every unusual kind."""
    pixels = photo(40, 30)
    return (
        *[encode(pixels, file_format) for file_format in FORMATS],
        *[oriented(file_format, 6) for file_format in ("jpeg", "png", "webp", "tiff")],
        encode(pixels, "jpeg", progressive=True),
        encode(pixels[:, :, 0], "jpeg"),
        cmyk_jpeg(pixels),
        encode(half_transparent("P"), "png"),
        encode(half_transparent("LA"), "png"),
        encode(half_transparent("RGBA"), "webp", lossless=True),
        encode(half_transparent("P"), "gif"),
        encode(gray16(), "png"),
        encode(gray16(), "tiff"),
        encode(pixels, "tiff", compression="tiff_lzw"),
        encode(pixels, "tiff", compression="tiff_adobe_deflate"),
        encode(pixels, "tiff", compression="jpeg"),
        encode(pixels[:, :, 0], "bmp"),
        tiff_file({256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 279: 64}, bytes(range(64))),
        heic_of_tiles(photo(100, 70)),
        encode(half_transparent("RGBA", side=40), "heic"),
        encode(half_transparent("RGBA", side=40), "avif"),
        encode(half_transparent("RGBA", side=40), "jpeg2000", tile_size=(32, 32)),
        encode(gray16(), "jpeg2000", no_jp2=True),
        *[bomb.data for bomb in bombs()],
    )


@functools.cache
def sources_of(file_format: str) -> tuple[bytes, ...]:
    """Return the files of one format."""
    return tuple(data for data in sources() if probe(data).format == file_format)


# --- mutations: bytes in, bytes out, all chance from the generator ---


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def flip_bytes(data: bytes, chance: random.Random) -> bytes:
    """Change up to eight bytes, half of the time near the start, where headers are."""
    changed = bytearray(data)
    reach = min(len(data), 64) if chance.random() < 0.5 else len(data)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(reach)] ^= chance.randint(1, 255)
    return bytes(changed)


def swap_header(data: bytes, chance: random.Random) -> bytes:
    """Put the start of another file in place of this one's."""
    other, length = chance.choice(sources()), chance.randint(2, 40)
    return other[:length] + data[length:]


def insert_bytes(data: bytes, chance: random.Random) -> bytes:
    position = chance.randrange(len(data) + 1)
    return data[:position] + chance.randbytes(chance.randint(1, 20)) + data[position:]


def splice(data: bytes, chance: random.Random) -> bytes:
    """Put a piece of another file, or of this one, into it."""
    other = chance.choice((data, *sources()))
    start = chance.randrange(len(other))
    piece = other[start : start + chance.randint(8, 200)]
    position = chance.randrange(len(data) + 1)
    return data[:position] + piece + data[position:]


def zero_range(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    length = min(chance.randint(1, 40), len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


MUTATIONS: list[Mutation] = [cut, flip_bytes, swap_header, insert_bytes, splice, zero_range]


def mutant(number: int, file_format: str | None = None) -> bytes:
    """Return the mutant of a number, of one format or any: always the same one.

    It is damaged once or twice.
    """
    chance = random.Random(number)
    originals = sources() if file_format is None else sources_of(file_format)
    data = originals[number % len(originals)]
    for _ in range(chance.randint(1, 2)):
        data = chance.choice(MUTATIONS)(data, chance) or data
    return data
