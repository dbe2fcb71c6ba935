"""Where an image's bytes are, and the URIs of images that are inside of other files.

    tar://cats/1.jpg::s3://bucket/shard-7.tar     a member of an archive, in fsspec's spelling
    zip://1.jpg::/data/pictures.zip
    parquet://image/41::/data/rows.parquet        row 41 of column `image`, counted from 0

Names stand in them letter by letter, so one with `::` in it can be read in two ways. What says
where the bytes are is therefore the source's own fields; the URI is for people and for lists.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = [
    "ImageSource",
    "Packing",
    "cell_column",
    "describe_inline_image",
    "packed_uri",
    "packing_of",
    "parse_candidates",
]

Packing = Literal["tar", "zip", "parquet"]

_SEPARATOR = "::"
_MAX_READINGS = 16
_ABSOLUTE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*://")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{40,}={0,2}\s*")
_IMAGE_STARTS = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0"),
    *(b"\xff\x0a", b"P5", b"P6"),
)


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where one image's bytes are.

    Attributes:
        uri: The image's own location; of a packed one, its name, inside which container.
        size: Bytes of the image, unpacked; None where nobody knows.
        packing: How it is packed; None for bytes that are at `uri`.
        container: Location of the archive or table.
        offset: Byte of a tar member's data or of a zip member's local header; row of a Parquet
            file. None for a member that the archive names without holding its data.
    """

    uri: str
    size: int | None = None
    packing: Packing | None = None
    container: str | None = None
    offset: int | None = None


def packed_uri(packing: Packing, name: str, container: str) -> str:
    """Return the URI of an image inside a container."""
    return f"{packing}://{name}{_SEPARATOR}{container}"


def packing_of(uri: str) -> Packing | None:
    """Return how the image of a URI is packed; None if it is not."""
    for packing in get_args(Packing):
        if uri.startswith(f"{packing}://") and _SEPARATOR in uri:
            known: Packing = packing
            return known
    return None


def parse_candidates(uri: str) -> Iterator[tuple[str, str]]:
    """Yield the ways to read a packed URI, as (name, container), the likeliest first.

    That is the last `::` before an absolute location, and then the others; of very many, the last.
    """
    rest = uri.partition("://")[2]
    readings: list[tuple[str, str]] = []
    at = rest.rfind(_SEPARATOR)
    while at >= 0 and len(readings) < _MAX_READINGS:
        readings.append((rest[:at], rest[at + len(_SEPARATOR) :]))
        at = rest.rfind(_SEPARATOR, 0, at + len(_SEPARATOR) - 1)
    yield from sorted(readings, key=lambda reading: _ABSOLUTE.match(reading[1]) is None)


def cell_column(source: ImageSource) -> str:
    """Return the column of a source that is packed in Parquet."""
    assert source.container is not None
    name = source.uri.removeprefix("parquet://").removesuffix(_SEPARATOR + source.container)
    return name.rpartition("/")[0]


def describe_inline_image(text: str) -> str | None:
    """Say what a text is that holds an image instead of naming its location; None for others."""
    if text[:5].lower() == "data:":
        return "a data: URL"
    if _BASE64.fullmatch(text[:400].rstrip("=")) is None:
        return None
    letters = "".join(text[:64].split()).translate({ord("-"): "+", ord("_"): "/"})
    try:
        start = base64.b64decode(letters[: len(letters) // 4 * 4], validate=True)
    except binascii.Error:
        return None
    return "base64 text" if start.startswith(_IMAGE_STARTS) else None
