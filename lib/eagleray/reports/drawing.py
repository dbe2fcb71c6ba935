"""Draws boxes and masks over images, for pages and for callers who want a picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from eagleray.core.errors import BadImageError
from eagleray.imaging import FORMATS, ImageContract, Letterbox, decode
from eagleray.imaging.geometry import frame_of
from eagleray.io.fetch import fetch_image
from eagleray.io.read_ahead import read_ahead
from eagleray.tasks.page import Box, Drawing

__all__ = ["draw", "pictures_with_boxes"]

_SIDE = 320
_TRUE_COLOR = "#1a9850"
_COLORS = ("#d73027", "#4575b4", "#f46d43", "#762a83", "#01665e", "#c51b7d")
_FONT_SIZE = 12
_OPACITY = 0.5  # of the colour of a class


def draw(data: bytes, drawing: Drawing, *, side: int, kinds: Sequence[str] = ()) -> Image.Image:
    """Draw boxes and a mask over an image that is made smaller, but never larger.

    Labels are drawn in green, predictions and the classes of a mask in colours of their own.

    Args:
        data: The encoded image.
        drawing: What is drawn, in pixels of the upright original.
        side: Longest side of the picture in pixels.
        kinds: Labels of boxes in the order of their colours; those of the boxes in alphabetical
            order if there are none.

    Raises:
        BadImageError: If the image cannot be decoded.
    """
    picture, width, height = _picture_of(data, side)
    if drawing.mask:
        picture = _blend(picture, drawing.mask)
    _draw_boxes(picture, drawing.boxes, kinds, picture.width / width, picture.height / height)
    return picture


def _picture_of(data: bytes, side: int) -> tuple[Image.Image, int, int]:
    """Return a picture of an image, and the image's width and height."""
    contract = ImageContract(
        formats=FORMATS, resize=Letterbox(height=side, width=side), jpeg="scaled", alpha="white"
    )
    decoded = decode(data, contract)
    frame = frame_of(contract, decoded.width, decoded.height)
    left, top = -frame.left, -frame.top
    width, height = round(decoded.width / frame.scale_x), round(decoded.height / frame.scale_y)
    picture = Image.fromarray(decoded.pixels[top : top + height, left : left + width])
    if max(decoded.width, decoded.height) < side:
        picture = picture.resize((decoded.width, decoded.height))
    return picture, decoded.width, decoded.height


def _blend(picture: Image.Image, mask: bytes) -> Image.Image:
    """Colour the pixels of each class but the first."""
    with Image.open(io.BytesIO(mask)) as whole:
        classes = np.asarray(whole.resize(picture.size, Image.Resampling.NEAREST))
    palette = np.array([ImageColor.getrgb(color) for color in _COLORS], np.uint8)
    colors = palette[(classes.astype(int) - 1) % len(palette)]
    pixels = np.asarray(picture)
    mixed = (pixels * (1 - _OPACITY) + colors * _OPACITY).round().astype(np.uint8)
    return Image.fromarray(np.where((classes > 0)[..., None], mixed, pixels))


def _draw_boxes(
    picture: Image.Image,
    boxes: Sequence[Box],
    kinds: Sequence[str],
    scale_x: float,
    scale_y: float,
) -> None:
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_FONT_SIZE)
    colors = {
        kind: _COLORS[place % len(_COLORS)] for place, kind in enumerate(kinds or _kinds(boxes))
    }
    for box in sorted(boxes, key=lambda one: not one.is_true):
        edges = (
            box.x * scale_x,
            box.y * scale_y,
            (box.x + box.width) * scale_x,
            (box.y + box.height) * scale_y,
        )
        color = _TRUE_COLOR if box.is_true else colors[box.label]
        draw.rectangle(edges, outline=color, width=2)
        if not box.is_true:
            draw.text((edges[0] + 3, edges[1] + 1), box.text, fill=color, font=font)


def _kinds(boxes: Sequence[Box]) -> list[str]:
    return sorted({box.label for box in boxes if not box.is_true})


def pictures_with_boxes(uris: Sequence[str], boxes: Sequence[Sequence[Box]]) -> list[str | None]:
    """Return pictures of images with boxes as `data:` URIs; None for one that cannot be decoded."""
    kinds = _kinds([box for some in boxes for box in some])

    def picture(item: tuple[str, Sequence[Box]]) -> str | None:
        return _picture(*item, kinds)

    return list(read_ahead(picture, list(zip(uris, boxes, strict=True))))


def _picture(uri: str, boxes: Sequence[Box], kinds: Sequence[str]) -> str | None:
    try:
        data = fetch_image(uri, ImageContract(formats=FORMATS, resize=Letterbox(height=1, width=1)))
        picture = draw(data, Drawing(boxes), side=_SIDE, kinds=kinds)
    except BadImageError:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
