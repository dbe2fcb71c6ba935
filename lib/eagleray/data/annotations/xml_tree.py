"""Parses XML from sources that are not trusted: no document types, no entities, bounded depth."""

from __future__ import annotations

from typing import Any, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

__all__ = ["parse_xml"]

_MAX_DEPTH = 32


def parse_xml(content: bytes) -> Element:
    """Return the root of an XML document.

    A document type could define entities that expand to gigabytes or name other files, so a
    document with one is refused.

    Raises:
        ValueError: If it is not XML or is refused; the message completes a sentence about the file.
    """
    builder = TreeBuilder()
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"its elements are nested more than {_MAX_DEPTH} deep")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_document_type
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"it is not valid XML ({error})") from None
    except LookupError:
        raise ValueError("it is XML in an unknown encoding") from None
    return builder.close()


def _refuse_document_type(*_: Any) -> NoReturn:
    raise ValueError("it has a document type (DOCTYPE), which label files do not need")
