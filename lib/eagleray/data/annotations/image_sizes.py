"""Reads the sizes of images, upright, from the storage that they are in."""

from __future__ import annotations

from eagleray.core.errors import BadImageError, InputError, Reason
from eagleray.imaging import FORMATS, ImageContract, named_contract
from eagleray.imaging.upright import upright_size
from eagleray.io import storage
from eagleray.io.storage import FileInfo

__all__ = ["ANY_IMAGE", "size_of_image"]

ANY_IMAGE: ImageContract = named_contract("fast", formats=FORMATS)
"""Accepts images of all formats, within the usual limits."""

_HEADER_BYTES = 2**17  # of nearly all JPEGs; the others are read again as a whole


def size_of_image(image: FileInfo) -> tuple[int, int]:
    """Return the width and the height of an image as viewers show it, in pixels.

    Raises:
        BadImageError: If the image cannot be read.
        InputError: If the storage does not respond.
    """
    if image.uri.lower().endswith((".jpg", ".jpeg")):
        try:
            return upright_size(_read(image, _HEADER_BYTES), ANY_IMAGE)
        except BadImageError:  # a header that is longer, or another format
            pass
    return upright_size(_read(image, ANY_IMAGE.max_bytes + 1), ANY_IMAGE)


def _read(image: FileInfo, limit: int) -> bytes:
    try:
        return storage.read_bytes(image.uri, limit=limit)
    except storage.StorageUnavailableError as error:
        raise InputError(f"{image.uri} cannot be read now ({error}); try again.") from error
    except OSError as error:
        text = error.strerror or str(error)
        raise BadImageError(Reason.UNREADABLE, f"storage error: {text}") from error
