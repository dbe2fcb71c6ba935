"""Reads the size of an image as viewers show it, with its orientation and without its pixels."""

from __future__ import annotations

from PIL import ExifTags

from eagleray.core.errors import BadImageError, Reason
from eagleray.imaging.contract import ImageContract
from eagleray.imaging.decode import check_header
from eagleray.imaging.header import Header
from eagleray.imaging.pillow import open_image
from eagleray.imaging.tiff import exif_orientation

__all__ = ["upright_size"]

_WITHOUT_ORIENTATION = frozenset({"gif", "bmp", "jpeg2000"})
_PNG_EXIF = (b"eXIf", b"Raw profile type exif")


def upright_size(data: bytes, contract: ImageContract) -> tuple[int, int]:
    """Return the width and the height of the upright image in pixels.

    Args:
        data: The encoded image; of a JPEG its header is enough.
        contract: Which formats and sizes are accepted.

    Raises:
        BadImageError: If the header cannot be read or the contract does not allow the image.
    """
    header = check_header(data, contract)
    width, height = header.width, header.height
    if header.format in ("jpeg", "tiff"):
        is_jpeg = header.format == "jpeg"
        orientation = header.orientation if is_jpeg else exif_orientation(data)
        return (height, width) if orientation >= 5 else (width, height)
    if header.format in _WITHOUT_ORIENTATION or _is_plain_png(header, data):
        return width, height
    return _by_pillow(data, header)


def _is_plain_png(header: Header, data: bytes) -> bool:
    return header.format == "png" and not any(mark in data for mark in _PNG_EXIF)


def _by_pillow(data: bytes, header: Header) -> tuple[int, int]:
    try:
        with open_image(data, header.format) as image:
            width, height = image.size
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:
        raise BadImageError(
            Reason.UNREADABLE, f"the {header.format} has a damaged header ({error})"
        ) from error
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)
