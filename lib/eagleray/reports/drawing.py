"""Draws boxes over images, for pages and for callers who want a picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from eagleray.core.errors import BadImageError
from eagleray.imaging import FORMATS, ImageContract, Letterbox, decode
from eagleray.imaging.geometry import frame_of
from eagleray.io.fetch import fetch_image
from eagleray.io.read_ahead import read_ahead
from eagleray.tasks.page import Box

__all__ = ["draw_boxes", "pictures_with_boxes"]

_SIDE = 320
_TRUE_COLOR = "#1a9850"
_COLORS = ("#d73027", "#4575b4", "#f46d43", "#762a83", "#01665e", "#c51b7d")
_FONT_SIZE = 12


def draw_boxes(data: bytes, boxes: Sequence[Box], *, side: int) -> Image.Image:
    """Draw boxes over an image that is made smaller, but never larger.

    Labels are drawn in green, predictions in a colour for each label.

    Args:
        data: The encoded image.
        boxes: The boxes, in pixels of the upright original.
        side: Longest side of the picture in pixels.

    Raises:
        BadImageError: If the image cannot be decoded.
    """
    contract = ImageContract(
        formats=FORMATS,
        resize=Letterbox(height=side, width=side),
        jpeg="scaled",
        alpha="white",
    )
    decoded = decode(data, contract)
    frame = frame_of(contract, decoded.width, decoded.height)
    left, top = -frame.left, -frame.top
    width, height = round(decoded.width / frame.scale_x), round(decoded.height / frame.scale_y)
    picture = Image.fromarray(decoded.pixels[top : top + height, left : left + width])
    if max(decoded.width, decoded.height) < side:
        picture = picture.resize((decoded.width, decoded.height))
    scale_x, scale_y = picture.width / decoded.width, picture.height / decoded.height
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_FONT_SIZE)
    colors = dict(zip(_kinds(boxes), _COLORS * len(boxes), strict=False))
    for box in sorted(boxes, key=lambda one: not one.is_true):
        edges = (
            box.x * scale_x,
            box.y * scale_y,
            (box.x + box.width) * scale_x,
            (box.y + box.height) * scale_y,
        )
        color = _TRUE_COLOR if box.is_true else colors[_kind(box)]
        draw.rectangle(edges, outline=color, width=2)
        if not box.is_true and box.text:
            draw.text((edges[0] + 3, edges[1] + 1), box.text, fill=color, font=font)
    return picture


def _kind(box: Box) -> str:
    """Return the label of a predicted box, whose text ends in its score."""
    return box.text.rpartition(" ")[0]


def _kinds(boxes: Sequence[Box]) -> list[str]:
    return sorted({_kind(box) for box in boxes if not box.is_true})


def pictures_with_boxes(uris: Sequence[str], boxes: Sequence[Sequence[Box]]) -> list[str | None]:
    """Return pictures of images with boxes as `data:` URIs; None for one that cannot be decoded."""
    return list(read_ahead(_picture, list(zip(uris, boxes, strict=True))))


def _picture(item: tuple[str, Sequence[Box]]) -> str | None:
    uri, boxes = item
    try:
        data = fetch_image(uri, ImageContract(formats=FORMATS, resize=Letterbox(height=1, width=1)))
        picture = draw_boxes(data, boxes, side=_SIDE)
    except BadImageError:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
