"""Makes thumbnails of images as `data:` URIs for pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from eagleray.core.errors import BadImageError
from eagleray.imaging import FORMATS, ImageContract, ShortestSide, decode
from eagleray.io.fetch import fetch_image
from eagleray.io.read_ahead import read_ahead

__all__ = ["thumbnail", "thumbnails"]

_SIDE = 96
_CONTRACT = ImageContract(
    formats=FORMATS,
    resize=ShortestSide(size=_SIDE),
    crop=(_SIDE, _SIDE),
    resampler="opencv_linear",
    jpeg="scaled",
    alpha="white",
)


def thumbnail(uri: str) -> str | None:
    """Return a square thumbnail of an image as a `data:` URI; None if it cannot be decoded."""
    try:
        pixels = decode(fetch_image(uri, _CONTRACT), _CONTRACT).pixels
    except BadImageError:
        return None
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnails(uris: Sequence[str]) -> list[str | None]:
    """Return the thumbnails of several images, in order."""
    return list(read_ahead(thumbnail, uris))
