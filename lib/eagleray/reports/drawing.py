"""Draws boxes and masks over images, for pages and for callers who want a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from eagleray.core.errors import BadImageError
from eagleray.imaging import FORMATS, DecodedImage, Exact, ImageContract, decode
from eagleray.imaging.upright import upright_size
from eagleray.io.fetch import fetch_image
from eagleray.io.read_ahead import read_ahead
from eagleray.reports.captions import Edges, place_caption
from eagleray.reports.overlays import data_uri, picture_contract
from eagleray.tasks.page import Box, Drawing

__all__ = ["draw", "drawn_pictures"]

_ANY = ImageContract(formats=FORMATS, resize=Exact(height=1, width=1), alpha="white")
_SIDE = 320
_TRUE_COLOR = "#1a9850"
_COLORS = ("#d73027", "#4575b4", "#f46d43", "#762a83", "#01665e", "#c51b7d")
_FONT_SIZE = 12
_OPACITY = 0.5  # of the colour of a class


def draw(picture: DecodedImage, drawing: Drawing, *, kinds: Sequence[str] = ()) -> Image.Image:
    """Draw boxes and a mask over the picture of an image.

    Labels are drawn in green, predictions and the classes of a mask in colours of their own.

    Args:
        picture: The whole image, decoded under `overlays.picture_contract`.
        drawing: What is drawn, in pixels of the upright original.
        kinds: Labels of boxes in the order of their colours; those of the boxes in alphabetical
            order if there are none.
    """
    drawn = Image.fromarray(picture.pixels.squeeze()).convert("RGB")
    if drawing.mask:
        drawn = _blend(drawn, drawing.mask)
    scales = drawn.width / picture.width, drawn.height / picture.height
    _draw_boxes(drawn, drawing.boxes, kinds, *scales)
    return drawn


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
    taken: list[Edges] = []
    for box in sorted(boxes, key=lambda one: not one.is_true):
        edges = Edges(
            box.x * scale_x,
            box.y * scale_y,
            (box.x + box.width) * scale_x,
            (box.y + box.height) * scale_y,
        )
        color = _TRUE_COLOR if box.is_true else colors[box.label]
        draw.rectangle(edges, outline=color, width=2)
        if not box.is_true:
            left, top, right, bottom = font.getbbox(box.text)
            place = place_caption(right - left, bottom - top, edges, taken, picture.size)
            draw.text((place.left - left, place.top - top), box.text, fill=color, font=font)
            taken.append(place)


def _kinds(boxes: Sequence[Box]) -> list[str]:
    return sorted({box.label for box in boxes if not box.is_true})


def drawn_pictures(uris: Sequence[str], drawings: Sequence[Drawing]) -> list[str | None]:
    """Return pictures of images with what is drawn over them as `data:` URIs.

    Args:
        uris: Locations of the images.
        drawings: What is drawn over each; labels have the same colour on all of them.

    Returns:
        None for an image that cannot be decoded.
    """
    kinds = _kinds([box for drawing in drawings for box in drawing.boxes])

    def picture(item: tuple[str, Drawing]) -> str | None:
        return _picture(*item, kinds)

    return list(read_ahead(picture, list(zip(uris, drawings, strict=True))))


def _picture(uri: str, drawing: Drawing, kinds: Sequence[str]) -> str | None:
    try:
        data = fetch_image(uri, _ANY)
        contract = picture_contract(_ANY, *upright_size(data, _ANY), max_side=_SIDE)
        decoded = decode(data, contract)
    except BadImageError:
        return None
    return data_uri(np.asarray(draw(decoded, drawing, kinds=kinds)))
