"""Draws heat maps of explanations over the upright original images."""

from __future__ import annotations

import base64
import io
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from eagleray.imaging import Exact, ImageContract
from eagleray.imaging.geometry import Frame

__all__ = ["data_uri", "encode_picture", "overlay", "picture_contract"]

Pixels = npt.NDArray[np.uint8]

_OPACITY = 0.65  # of the hottest place
_UNSEEN = 0.5  # brightness of what the crop cuts off


def picture_contract(
    contract: ImageContract, width: int, height: int, *, max_side: int
) -> ImageContract:
    """Return the contract under which an image is decoded to be drawn: whole, and not too large.

    Args:
        contract: The model's contract, whose limits and colours hold.
        width: Width of the upright original in pixels.
        height: Height of the upright original in pixels.
        max_side: Maximum length of the longer side of the picture in pixels.
    """
    factor = min(1.0, max_side / max(width, height))
    size = Exact(height=max(1, round(height * factor)), width=max(1, round(width * factor)))
    return contract.model_copy(
        update={"resize": size, "crop": None, "resampler": "opencv_area", "jpeg": "scaled"}
    )


def overlay(picture: Pixels, heat: npt.NDArray[np.float32], frame: Frame) -> Pixels:
    """Draw a heat map over the picture of an upright original.

    What the model's crop cuts off is darkened.

    Args:
        picture: uint8 array (height, width, 1 or 3), the whole original at any size.
        heat: float32 array (H, W) in [0, 1] over the network's input.
        frame: Maps places in the input to the original.

    Returns:
        uint8 array (height, width, 3).
    """
    height, width = picture.shape[:2]
    to_picture = _affine(frame, width, height)
    spread = cv2.warpAffine(heat, to_picture, (width, height), borderMode=cv2.BORDER_REPLICATE)
    seen = cv2.warpAffine(
        np.ones_like(heat), to_picture, (width, height), flags=cv2.INTER_NEAREST, borderValue=0
    )
    levels = (255 * spread.clip(0, 1)).round().astype(np.uint8)
    colors = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    opacity = (_OPACITY * spread * seen)[..., None]
    below = np.broadcast_to(picture, (height, width, 3)) * np.where(seen, 1.0, _UNSEEN)[..., None]
    mixed: Pixels = (below * (1 - opacity) + colors * opacity).round().astype(np.uint8)
    return mixed


def _affine(frame: Frame, width: int, height: int) -> npt.NDArray[np.float64]:
    """Return the matrix (2, 3) from pixel indices of the input to those of a picture.

    A pixel's centre is half a pixel from its corner in both.
    """
    (x, y), (right, below) = frame.to_original(0.5, 0.5), frame.to_original(1.5, 1.5)
    scale_x, scale_y = width / frame.width, height / frame.height
    return np.array(
        [
            [(right - x) * scale_x, 0, x * scale_x - 0.5],
            [0, (below - y) * scale_y, y * scale_y - 0.5],
        ]
    )


def encode_picture(pixels: Pixels, image_format: Literal["PNG", "JPEG"]) -> bytes:
    """Encode a picture (height, width, 3) as a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=image_format)
    return buffer.getvalue()


def data_uri(pixels: Pixels) -> str:
    """Return a picture (height, width, 3) as the `data:` URI of a JPEG."""
    content = base64.b64encode(encode_picture(pixels, "JPEG")).decode()
    return f"data:image/jpeg;base64,{content}"
