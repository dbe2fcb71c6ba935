"""Makes thumbnails of images as `data:` URIs for pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from eagleray.core.errors import BadImageError
from eagleray.imaging import FORMATS, ImageContract, ShortestSide, decode
from eagleray.io.fetch import fetch_image
from eagleray.io.read_ahead import read_ahead

__all__ = ["decode_square", "thumbnail", "thumbnails"]

_SIDE = 96


def decode_square(uri: str, side: int) -> npt.NDArray[np.uint8] | None:
    """Decode the middle square of an image at a small size, of any format that is read.

    Returns:
        uint8 array (side, side, 3); None if the image cannot be decoded.
    """
    contract = ImageContract(
        formats=FORMATS,
        resize=ShortestSide(size=side),
        crop=(side, side),
        resampler="opencv_linear",
        jpeg="scaled",
        alpha="white",
    )
    try:
        return decode(fetch_image(uri, contract), contract).pixels
    except BadImageError:
        return None


def thumbnail(uri: str) -> str | None:
    """Return a square thumbnail of an image as a `data:` URI; None if it cannot be decoded."""
    pixels = decode_square(uri, _SIDE)
    if pixels is None:
        return None
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnails(uris: Sequence[str]) -> list[str | None]:
    """Return the thumbnails of several images, in order."""
    return list(read_ahead(thumbnail, uris))
