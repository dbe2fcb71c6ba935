"""What an encoded image claims about itself, and the errors of those who read it."""

from __future__ import annotations

from dataclasses import dataclass, field

from eagleray.core.errors import BadImageError, Reason

__all__ = [
    "MAX_BLOCKS",
    "MAX_TILE_PIXELS",
    "Header",
    "damaged",
    "require_length",
    "truncated",
    "unsupported",
]

MAX_BLOCKS = 2**16
"""Segments, sub-blocks, chunks, boxes, strips and tiles, each of which costs time."""
MAX_TILE_PIXELS = 2**20
"""A tile may exceed a small image, but not by much."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an encoded image claims about itself.

    Attributes:
        format: One of `FORMATS`.
        width: Stored pixels in a row, before orientation.
        height: Stored rows, before orientation.
        components: Colour components of a JPEG; 0 for other formats, where Pillow knows.
        orientation: EXIF orientation 1 to 8 of a JPEG; 1 for other formats, where Pillow knows.
        scans: How often a decoder goes over the pixels; 1 for all but JPEG.
    """

    format: str
    width: int
    height: int
    components: int = 0
    orientation: int = 1
    scans: int = field(default=1, compare=False)


def damaged(message: str) -> BadImageError:
    """Return the error of a file that breaks its format's rules."""
    return BadImageError(Reason.UNREADABLE, message)


def truncated(message: str = "the file ends inside its header") -> BadImageError:
    """Return the error of a file that ends too early."""
    return BadImageError(Reason.TRUNCATED, message)


def unsupported(message: str) -> BadImageError:
    """Return the error of a sound file of a kind that is not read."""
    return BadImageError(Reason.UNSUPPORTED_FORMAT, message)


def require_length(data: bytes, length: int) -> None:
    """Refuse a file that is too short for its header.

    Raises:
        BadImageError: `truncated`.
    """
    if len(data) < length:
        raise truncated()
