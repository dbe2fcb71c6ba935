"""The manifest: the list of a job's inputs, written before any work starts.

A row number is an input's identity: the same URI twice is two inputs with two results. The list is
stored as Parquet files in which one row group is one shard, so a worker reads only the rows of its
shard, and no process holds the whole list. One more file holds the sizes of all shards, so that a
job that resumes knows how far it is without reading the list.
"""

from __future__ import annotations

import hashlib
import io
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.io.arrow_files import encode_table
from eagleray.sharded.columns import USER_PREFIX
from eagleray.sources import LISTING_SCHEMA

__all__ = [
    "DEFAULT_LIMITS",
    "Manifest",
    "ManifestReader",
    "ShardLimits",
    "shard_rows",
    "write_manifest",
]

_SHARDS_PER_FILE = 64
_MAX_ROWS = 512
_MAX_BYTES = 64 * 2**20
_ROUND_TO = 16  # a forward pass of the CPU; a shard of whole passes pads nothing
_SHARE = 32
_ROWS = "rows"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A written manifest.

    Attributes:
        folder: Folder of its files.
        num_rows: Number of inputs.
        num_shards: Number of shards.
        num_bytes: Number of bytes of the inputs whose size is known.
        digest: SHA-256 digest of its files, one after the other.
    """

    folder: str
    num_rows: int
    num_shards: int
    num_bytes: int
    digest: str


def shard_rows(rows_before: int) -> int:
    """Return the maximum number of rows of the next shard.

    Shards grow with the job: small ones first, so that results appear at once, and none larger
    than a share of what came before it, so that workers finish together. The cut depends only on
    the inputs, so a job that is resumed on another machine has the same shards.
    """
    wanted = rows_before // _SHARE
    return min(_MAX_ROWS, max(1, -(-wanted // _ROUND_TO)) * _ROUND_TO)


def listed_bytes(rows: pa.Table) -> npt.NDArray[np.int64]:
    """Return the listed bytes of each row's image, int64 (N,); 0 where they are unknown."""
    sizes: npt.NDArray[np.int64] = rows.column("size").fill_null(0).to_numpy()
    return sizes


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """Limits by which a manifest is cut into shards; they may depend only on the inputs.

    Attributes:
        max_rows: Maximum number of rows of any shard.
        max_bytes: Maximum number of bytes of a shard's images, unless it has only one.
        next_rows: Returns the maximum number of rows of the next shard, given the rows before it.
        bytes_of: Returns the bytes of each row's image, for `max_bytes`.
    """

    max_rows: int = _MAX_ROWS
    max_bytes: int = _MAX_BYTES
    next_rows: Callable[[int], int] = shard_rows
    bytes_of: Callable[[pa.Table], npt.NDArray[np.int64]] = listed_bytes


DEFAULT_LIMITS = ShardLimits()


def write_manifest(
    tables: Iterable[pa.Table],
    user_schema: pa.Schema,
    folder: str,
    *,
    limits: ShardLimits = DEFAULT_LIMITS,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Write the list of inputs.

    Args:
        tables: Columns of `LISTING_SCHEMA`, then the user's own, in order.
        user_schema: Schema of the user's own columns.
        folder: New folder for the manifest.
        limits: Limits of the shards.
        on_rows: Called with the number of rows so far.

    Raises:
        InputError: If there are no rows, or one that cannot be stored.
    """
    writer = _Writer(folder, user_schema, limits)
    for table in tables:
        writer.add(table)
        on_rows(writer.num_rows)
    manifest = writer.close()
    if manifest.num_rows == 0:
        raise InputError("The inputs hold no images; name others.")
    return manifest


class _Writer:
    """Cuts tables into shards and writes a file for every few of them."""

    def __init__(self, folder: str, user_schema: pa.Schema, limits: ShardLimits) -> None:
        self._folder, self._limits = folder, limits
        self._schema = pa.schema(
            [
                pa.field("row", pa.int64(), nullable=False),
                *LISTING_SCHEMA,
                *(field.with_name(USER_PREFIX + field.name) for field in user_schema),
            ]
        )
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._shards: list[pa.Table] = []
        self._num_shards = self._num_bytes = 0
        self._shard_sizes = array("i")
        self._digest = hashlib.sha256()
        self.num_rows = 0  # in shards or waiting for one
        self._rows_cut = 0

    def add(self, table: pa.Table) -> None:
        # By position: the user's own columns may have names of ours.
        self._waiting.append(pa.table(table.columns, names=self._schema.names[1:]))
        self._num_waiting += table.num_rows
        self.num_rows += table.num_rows
        if self._num_waiting >= self._limits.max_rows:
            self._cut(last=False)

    def close(self) -> Manifest:
        self._cut(last=True)
        self._write_file()
        if self._num_shards:
            sizes = pa.table({_ROWS: np.asarray(self._shard_sizes)})
            storage.put_atomic(_sizes_file(self._folder), encode_table(sizes, "parquet"))
        return Manifest(
            folder=self._folder,
            num_rows=self.num_rows,
            num_shards=self._num_shards,
            num_bytes=self._num_bytes,
            digest=self._digest.hexdigest(),
        )

    def _cut(self, *, last: bool) -> None:
        if not self._waiting:
            return
        rows = pa.concat_tables(self._waiting).combine_chunks()
        limits = self._limits
        ends = np.cumsum(limits.bytes_of(rows))
        start = 0
        while rows.num_rows - start >= (1 if last else limits.max_rows):
            allowed = min(limits.next_rows(self._rows_cut), rows.num_rows - start)
            before = int(ends[start - 1]) if start else 0
            fitting = int(np.searchsorted(ends, before + limits.max_bytes, side="right")) - start
            count = max(1, min(allowed, fitting))
            self._add_shard(rows.slice(start, count))
            start += count
        self._num_bytes += int(listed_bytes(rows.slice(0, start)).sum())
        self._waiting = [rows.slice(start)] if start < rows.num_rows else []
        self._num_waiting = rows.num_rows - start

    def _add_shard(self, rows: pa.Table) -> None:
        numbers = pa.array(np.arange(self._rows_cut, self._rows_cut + rows.num_rows))
        columns = [numbers, *rows.columns]
        self._shards.append(pa.table(columns, names=self._schema.names).cast(self._schema))
        self._rows_cut += rows.num_rows
        self._shard_sizes.append(rows.num_rows)
        self._num_shards += 1
        if len(self._shards) == _SHARDS_PER_FILE:
            self._write_file()

    def _write_file(self) -> None:
        if not self._shards:
            return
        content = self._encode()
        self._digest.update(content)
        number = (self._num_shards - 1) // _SHARDS_PER_FILE
        storage.put_atomic(_file(self._folder, number), content)
        self._shards = []

    def _encode(self) -> bytes:
        buffer = io.BytesIO()
        try:
            with pq.ParquetWriter(buffer, self._schema, compression="zstd") as file:
                for shard in self._shards:
                    file.write_table(shard, row_group_size=shard.num_rows)
        except pa.ArrowException as error:
            raise InputError(
                f"A column of the inputs cannot be stored ({error}); leave it out, or cast it to "
                "another type."
            ) from error
        return buffer.getvalue()


def _file(folder: str, number: int) -> str:
    return storage.join(folder, f"part-{number:05d}.parquet")


def _sizes_file(folder: str) -> str:
    return storage.join(folder, "sizes.parquet")


class ManifestReader:
    """Reads a manifest, shard by shard, in any thread; keeps one of its files in memory.

    Args:
        folder: Folder of the manifest.
        num_shards: Number of its shards.
    """

    def __init__(self, folder: str, num_shards: int) -> None:
        self._folder, self._num_shards = folder, num_shards
        self._open: tuple[int, pq.ParquetFile] | None = None
        self._lock = threading.RLock()

    def shard(self, number: int) -> pa.Table:
        """Return the rows of one shard.

        Raises:
            OSError: If the manifest cannot be read.
        """
        file, group = divmod(number, _SHARDS_PER_FILE)
        with self._lock:
            return self._parquet(file).read_row_group(group)

    def shard_sizes(self) -> npt.NDArray[np.int32]:
        """Return the number of rows of each shard, int32 (number of shards,)."""
        try:
            content = storage.read_bytes(_sizes_file(self._folder))
        except FileNotFoundError:  # a manifest of the version before
            return np.fromiter(self._sizes_in_files(), np.int32, self._num_shards)
        sizes: npt.NDArray[np.int32] = pq.read_table(pa.BufferReader(content))[_ROWS].to_numpy()
        return sizes

    def _sizes_in_files(self) -> Iterator[int]:
        for number in range(self._num_shards):
            file, group = divmod(number, _SHARDS_PER_FILE)
            yield self._parquet(file).metadata.row_group(group).num_rows

    def tables(self) -> Iterator[pa.Table]:
        """Yield all rows, in order, a file at a time."""
        for number in range(-(-self._num_shards // _SHARDS_PER_FILE)):
            yield self._parquet(number).read()

    @property
    def schema(self) -> pa.Schema:
        """Schema of the manifest."""
        return self._parquet(0).schema_arrow

    def _parquet(self, number: int) -> pq.ParquetFile:
        if self._open is None or self._open[0] != number:
            content = storage.read_bytes(_file(self._folder, number))
            self._open = (number, pq.ParquetFile(pa.BufferReader(content)))
        return self._open[1]
