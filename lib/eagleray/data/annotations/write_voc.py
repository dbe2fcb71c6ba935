"""Writes Pascal VOC: an XML file for each image in `annotations/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from eagleray.data.annotations.output import Losses, NamedImage, classes_of, require_plain_names
from eagleray.tasks.annotation import TrueObject

__all__ = ["write_voc"]


def write_voc(images: Sequence[NamedImage], losses: Losses) -> Iterator[tuple[str, bytes]]:
    """Yield the XML of each image.

    Raises:
        InputError: If XML cannot hold the name of a class.
    """
    require_plain_names([*classes_of(images), *(image.name for image in images)], "XML")
    for image in images:
        yield f"annotations/{image.stem}.xml", _content(image, losses)


def _content(image: NamedImage, losses: Losses) -> bytes:
    root = Element("annotation")
    _add(root, filename=image.name.rsplit("/", 1)[-1])
    size = SubElement(root, "size")
    _add(size, width=image.annotation.width, height=image.annotation.height, depth=3)
    for one in image.without(losses, crowds="crowds", masks="masks"):
        _add_object(root, one)
    indent(root)
    content: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return content


def _add_object(root: Element, one: TrueObject) -> None:
    element = SubElement(root, "object")
    _add(element, name=one.label, truncated=0, difficult=0)
    box = SubElement(element, "bndbox")
    _add(
        box,
        xmin=_number(one.x),
        ymin=_number(one.y),
        xmax=_number(one.x + one.width),
        ymax=_number(one.y + one.height),
    )


def _number(value: float) -> str:
    """Return a coordinate without a fraction if it has none: some readers take whole ones only."""
    return str(int(value)) if value.is_integer() else repr(value)


def _add(parent: Element, **texts: object) -> None:
    for name, text in texts.items():
        SubElement(parent, name).text = str(text)
