"""Encodes images into the files of a packing job: Parquet or WebDataset, deterministically.

    Parquet      image, uri, then the user's own columns; a few hundred rows in a row group
    WebDataset   000000017.jpg and 000000017.json, which holds the URI and the user's own columns

Images are copied byte by byte, whatever they are.
"""

from __future__ import annotations

import functools
import io
import posixpath
import tarfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.core.errors import BadImageError
from eagleray.imaging.probe import probe
from eagleray.io.arrow_files import encode_table
from eagleray.io.fetch.archives import Member
from eagleray.io.fetch.source import packing_of, parse_candidates
from eagleray.sharded.columns import USER_PREFIX, names_beside_ours, user_columns
from eagleray.sources.archives import input_members
from eagleray.sources.skipped import SkippedFiles

__all__ = [
    "IMAGE_COLUMN",
    "PackFormat",
    "PackWriter",
    "pack_file_name",
    "pick_rows",
    "with_user_columns",
]

PackFormat = Literal["parquet", "webdataset"]

IMAGE_COLUMN = "image"

_EXTENSIONS: dict[PackFormat, str] = {"parquet": "parquet", "webdataset": "tar"}
_GROUP_ROWS = 256
_GROUP_BYTES = 32 * 2**20
_ROWS_BETWEEN_PAGES = 16  # so that a page of images stays near a mebibyte
_USUAL_SUFFIXES = {"jpeg": ".jpg", "tiff": ".tif", "jpeg2000": ".jp2"}
_UNKNOWN_SUFFIX = ".bin"
_MAX_SUFFIX_LENGTH = 9
_FETCHED = ("http://", "https://")


def pack_file_name(shard: int, piece: int, file_format: PackFormat) -> str:
    """Return the name of a file; in the order of names, rows are in their order.

    Args:
        shard: Number of the shard that it holds.
        piece: 0, and higher for further files of a shard that is larger than its listing said.
        file_format: Format of the file.
    """
    suffix = f"_{piece:05d}" if piece else ""
    return f"part-{shard:05d}{suffix}.{_EXTENSIONS[file_format]}"


def with_user_columns(rows: pa.Table, ours: Collection[str]) -> pa.Table:
    """Return the URIs of manifest rows with the user's own columns, under their own names.

    Args:
        rows: Rows of the manifest.
        ours: Names of our columns; a column of the user with such a name gets another.
    """
    own = user_columns(rows.schema).names
    columns = [rows.column("uri"), *(rows.column(USER_PREFIX + name) for name in own)]
    return pa.table(columns, names=["uri", *names_beside_ours(own, ours.__contains__)])


def pick_rows(table: pa.Table, indices: Sequence[int]) -> pa.Table:
    """Return some rows, in ascending order: by slices, as Arrow cannot `take` every type."""
    slices = []
    start = 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or indices[end] != indices[end - 1] + 1:
            slices.append(table.slice(indices[start], end - start))
            start = end
    return pa.concat_tables(slices) if slices else table.slice(0, 0)


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that are written together.

    Attributes:
        numbers: Row numbers in the manifest.
        images: Encoded image of each row.
        about: URIs and the user's own columns.
    """

    numbers: list[int]
    images: list[bytes]
    about: pa.Table


class _Encoder(Protocol):
    def write(self, group: _Group) -> None:
        """Append rows."""

    def close(self) -> bytes:
        """Return the whole file."""


class PackWriter:
    """Makes one file in memory.

    Attributes:
        num_rows: Number of images so far.
        num_image_bytes: Number of their bytes.

    Args:
        rows: Rows of the manifest that include those of the file.
        file_format: Format of the file.
    """

    def __init__(self, rows: pa.Table, file_format: PackFormat) -> None:
        self._rows, self._about = rows, with_user_columns(rows, {IMAGE_COLUMN, "uri"})
        self._encoder: _Encoder = (
            _ParquetEncoder(self._about.schema) if file_format == "parquet" else _TarEncoder()
        )
        self._indices: list[int] = []
        self._images: list[bytes] = []
        self._waiting_bytes = 0
        self.num_rows = self.num_image_bytes = 0

    def add(self, index: int, image: bytes) -> None:
        """Append the image of a row, by its index in `rows`; indices ascend."""
        if self._images and self._waiting_bytes + len(image) > _GROUP_BYTES:
            self._flush()
        self._indices.append(index)
        self._images.append(image)
        self._waiting_bytes += len(image)
        self.num_rows += 1
        self.num_image_bytes += len(image)
        if len(self._images) == _GROUP_ROWS:
            self._flush()

    def close(self) -> bytes:
        """Return the content of the file."""
        if self._images:
            self._flush()
        return self._encoder.close()

    def _flush(self) -> None:
        numbers = pick_rows(self._rows.select(["row"]), self._indices).column("row").to_pylist()
        self._encoder.write(_Group(numbers, self._images, pick_rows(self._about, self._indices)))
        self._indices, self._images, self._waiting_bytes = [], [], 0


class _ParquetEncoder:
    def __init__(self, about: pa.Schema) -> None:
        self._schema = pa.schema([pa.field(IMAGE_COLUMN, pa.binary(), nullable=False), *about])
        self._buffer = io.BytesIO()
        self._file = pq.ParquetWriter(
            self._buffer,
            self._schema,
            # Images are compressed already, and neither repeat nor have an order.
            compression={IMAGE_COLUMN: "NONE", **dict.fromkeys(about.names, "ZSTD")},
            use_dictionary=about.names,
            write_statistics=about.names,
            write_batch_size=_ROWS_BETWEEN_PAGES,
            write_page_checksum=True,
        )

    def write(self, group: _Group) -> None:
        columns = [pa.array(group.images, pa.binary()), *group.about.columns]
        table = pa.table(columns, schema=self._schema)
        self._file.write_table(table, row_group_size=table.num_rows)

    def close(self) -> bytes:
        self._file.close()
        return self._buffer.getvalue()


class _TarEncoder:
    def __init__(self) -> None:
        self._buffer = io.BytesIO()

    def write(self, group: _Group) -> None:
        notes = encode_table(group.about, "jsonl").split(b"\n")
        uris = group.about.column("uri").to_pylist()
        for number, image, uri, note in zip(
            group.numbers, group.images, uris, notes[: len(uris)], strict=True
        ):
            self._add(f"{number:09d}{_suffix(image, uri)}", image)
            self._add(f"{number:09d}.json", note)

    def _add(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(
            name
        )  # without owner and time, so that equal images make equal files
        entry.size = len(content)
        self._buffer.write(entry.tobuf(tarfile.USTAR_FORMAT))
        self._buffer.write(content)
        self._buffer.write(bytes(-len(content) % tarfile.BLOCKSIZE))

    def close(self) -> bytes:
        self._buffer.write(bytes(2 * tarfile.BLOCKSIZE))
        self._buffer.write(bytes(-self._buffer.tell() % tarfile.RECORDSIZE))
        return self._buffer.getvalue()


def _suffix(image: bytes, uri: str) -> str:
    """Return the suffix of an image's actual format, or else that of the original name.

    A suffix that readers of the file would not take for that of an image becomes `.bin`.
    """
    try:
        found = probe(image).format
    except BadImageError:
        suffix = posixpath.splitext(_name_in(uri))[1].lower()
        plain = suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= _MAX_SUFFIX_LENGTH
        return suffix if plain and _is_read_as_image(suffix) else _UNKNOWN_SUFFIX
    return _USUAL_SUFFIXES.get(found, f".{found}")


def _name_in(uri: str) -> str:
    if packing_of(uri) is not None:
        name, _ = next(parse_candidates(uri))
        return name
    return uri.partition("?")[0] if uri.startswith(_FETCHED) else uri


@functools.lru_cache(maxsize=256)
def _is_read_as_image(suffix: str) -> bool:
    sample = [Member(f"0{suffix}", 0, 0), Member("0.json", 0, 0)]
    return len(input_members(sample, SkippedFiles())) == 1
