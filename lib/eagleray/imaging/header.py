"""Defines the header of an encoded image, and the errors that header readers raise."""

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
"""Maximum number of segments, blocks, chunks, boxes, strips and tiles, which each cost time."""
MAX_TILE_PIXELS = 2**20
"""Maximum number of pixels of a tile or coded picture that exceeds a small image."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an encoded image claims about itself.

    Attributes:
        format: Format, one of `FORMATS`.
        width: Width in pixels as stored, before orientation is applied.
        height: Height in pixels as stored, before orientation is applied.
        components: Number of colour components of a JPEG; 0 for other formats, read by Pillow.
        orientation: EXIF orientation (1 to 8) of a JPEG; 1 for other formats, read by Pillow.
        scans: Number of scans over the pixels; 1 for all formats but JPEG.
    """

    format: str
    width: int
    height: int
    components: int = 0
    orientation: int = 1
    scans: int = field(default=1, compare=False)


def damaged(message: str) -> BadImageError:
    """Return the error of a file that violates its format."""
    return BadImageError(Reason.UNREADABLE, message)


def truncated(message: str = "the file ends inside its header") -> BadImageError:
    """Return the error of a file that ends too early."""
    return BadImageError(Reason.TRUNCATED, message)


def unsupported(message: str) -> BadImageError:
    """Return the error of a valid file of an unsupported kind."""
    return BadImageError(Reason.UNSUPPORTED_FORMAT, message)


def require_length(data: bytes, length: int) -> None:
    """Check that a file is long enough for its header.

    Raises:
        BadImageError: If it is too short (`truncated`).
    """
    if len(data) < length:
        raise truncated()
