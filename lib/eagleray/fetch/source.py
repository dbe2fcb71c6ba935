"""Where an image's bytes are, and the URIs of images that are inside of other files.

    tar://cats/1.jpg::s3://bucket/shard-7.tar     a member of an archive, in fsspec's spelling
    zip://1.jpg::/data/pictures.zip
    parquet://image/41::/data/rows.parquet        row 41 of column `image`, counted from 0

Names stand in them letter by letter, so one with `::` in it can be read in two ways. What says
where the bytes are is therefore the source's own fields; the URI is for people and for lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = [
    "ImageSource",
    "Packing",
    "cell_column",
    "packed_uri",
    "packing_of",
    "readings_of",
]

Packing = Literal["tar", "zip", "parquet"]

_SEPARATOR = "::"
_ABSOLUTE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*://")


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


def readings_of(uri: str) -> Iterator[tuple[str, str]]:
    """Yield the ways to read a packed URI, as (name, container), the likeliest first.

    That is the last `::` before an absolute location, and then the others.
    """
    rest = uri.partition("://")[2]
    places = [at for at in range(len(rest)) if rest.startswith(_SEPARATOR, at)]
    readings = [(rest[:at], rest[at + len(_SEPARATOR) :]) for at in reversed(places)]
    yield from sorted(readings, key=lambda reading: _ABSOLUTE.match(reading[1]) is None)


def cell_column(source: ImageSource) -> str:
    """Return the column of a source that is packed in Parquet."""
    assert source.container is not None
    name = source.uri.removeprefix("parquet://").removesuffix(_SEPARATOR + source.container)
    return name.rpartition("/")[0]
