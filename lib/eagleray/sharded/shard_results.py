"""The results of shards: Parquet files with a summary in their metadata, read a few ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.core.errors import JobFailedError
from eagleray.io import storage
from eagleray.io.arrow_files import encode_table
from eagleray.io.read_ahead import read_ahead
from eagleray.sharded.layout import OutputLayout

__all__ = [
    "FinishedShard",
    "decode_result",
    "encode_result",
    "read_result",
    "read_results_of_shards",
]

S = TypeVar("S")

_SUMMARY_KEY = b"eagleray"


class FinishedShard(Protocol):
    """What the driver learns of a finished shard, whatever was done with it."""

    @property
    def shard(self) -> int:
        """Number of the shard."""

    @property
    def num_rows(self) -> int:
        """Number of its inputs."""

    @property
    def num_failed(self) -> int:
        """Number of its inputs that failed."""

    @property
    def reasons(self) -> Mapping[str, int]:
        """Number of its failed inputs for each reason code."""

    @property
    def repeated(self) -> bool | None:
        """Whether it was begun before, by a worker that was lost; None if that is unknown."""


def encode_result(rows: pa.Table, summary: bytes) -> bytes:
    """Encode a shard's result: its rows, with the summary as JSON in the metadata."""
    return encode_table(rows.replace_schema_metadata({_SUMMARY_KEY: summary}), "parquet")


def decode_result(content: bytes, parse: Callable[[bytes], S]) -> tuple[pa.Table, S]:
    """Return a shard's rows and its summary.

    Args:
        content: The file.
        parse: Reads the summary from its JSON.

    Raises:
        ValueError: If the content is damaged.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        summary = parse(file.schema_arrow.metadata[_SUMMARY_KEY])
        return file.read().replace_schema_metadata(), summary
    except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(str(error)) from error


def read_result(
    layout: OutputLayout, shard: int, parse: Callable[[bytes], S]
) -> tuple[pa.Table, S]:
    """Read the result of a shard.

    Raises:
        FileNotFoundError: If the shard has no result.
        JobFailedError: If the result is damaged; it is removed, so that it is made anew.
    """
    location = layout.shard(shard)
    content = storage.read_bytes(location)
    try:
        return decode_result(content, parse)
    except ValueError as error:
        storage.delete(location)
        raise JobFailedError(
            f"The result of shard {shard} was damaged in storage and is removed; run the same "
            "command again to make it anew."
        ) from error


def read_results_of_shards(
    layout: OutputLayout, shards: Iterable[int], parse: Callable[[bytes], S]
) -> Iterator[tuple[pa.Table, S]]:
    """Yield the results of shards in order, read a few ahead, with the errors of `read_result`."""
    return read_ahead(lambda shard: read_result(layout, shard, parse), shards)
