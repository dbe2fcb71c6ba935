"""Describes where an image's bytes are, with URIs for images inside of other files.

    tar://cats/1.jpg::s3://bucket/shard-7.tar     a member of an archive, in fsspec's notation
    zip://1.jpg::/data/pictures.zip
    parquet://image/41::/data/rows.parquet        row 41 (from 0) of column `image`

Names are not escaped, so a name that contains `::` is ambiguous. The source's own fields therefore
say where the bytes are; the URI is for display and for lists.
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
_MAX_CANDIDATES = 16
_ABSOLUTE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*://")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{40,}={0,2}\s*")
_IMAGE_MAGICS = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0"),
    *(b"\xff\x0a", b"P5", b"P6"),
)


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where one image's bytes are.

    Attributes:
        uri: Location of the image; for a packed one, its name and its container.
        size: Uncompressed size in bytes; None if it is unknown.
        packing: Kind of the container; None for a plain file.
        container: Location of the archive or table.
        offset: Offset of a tar member's data or of a zip member's local header, or row of a Parquet
            file. None for a member that the archive lists without its data.
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
    """Return the kind of the container of a packed URI; None for other URIs."""
    for packing in get_args(Packing):
        if uri.startswith(f"{packing}://") and _SEPARATOR in uri:
            known: Packing = packing
            return known
    return None


def parse_candidates(uri: str) -> Iterator[tuple[str, str]]:
    """Yield the possible splits of a packed URI into (name, container), the likeliest first.

    The likeliest is the last `::` before an absolute location. Of very many, the last ones are
    considered.
    """
    rest = uri.partition("://")[2]
    candidates: list[tuple[str, str]] = []
    at = rest.rfind(_SEPARATOR)
    while at >= 0 and len(candidates) < _MAX_CANDIDATES:
        candidates.append((rest[:at], rest[at + len(_SEPARATOR) :]))
        at = rest.rfind(_SEPARATOR, 0, at + len(_SEPARATOR) - 1)
    yield from sorted(candidates, key=lambda pair: _ABSOLUTE.match(pair[1]) is None)


def cell_column(source: ImageSource) -> str:
    """Return the column of a source in a Parquet file."""
    assert source.container is not None
    name = source.uri.removeprefix("parquet://").removesuffix(_SEPARATOR + source.container)
    return name.rpartition("/")[0]


def describe_inline_image(text: str) -> str | None:
    """Describe a text that contains an image instead of its location; None for other texts."""
    if text[:5].lower() == "data:":
        return "a data: URL"
    if _BASE64.fullmatch(text[:400].rstrip("=")) is None:
        return None
    letters = "".join(text[:64].split()).translate({ord("-"): "+", ord("_"): "/"})
    try:
        start = base64.b64decode(letters[: len(letters) // 4 * 4], validate=True)
    except binascii.Error:
        return None
    return "base64 text" if start.startswith(_IMAGE_MAGICS) else None
