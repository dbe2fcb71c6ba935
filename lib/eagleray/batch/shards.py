"""Shards: runs of manifest rows, the unit of work, retry and commit."""

from __future__ import annotations

import pyarrow as pa

__all__ = ["SHARD_COLUMN", "cut_shards", "shard_file"]

SHARD_COLUMN = "shard"

_ROUND_TO = 16  # a forward pass of the CPU; a shard of whole passes pads nothing
_MOST_ROWS = 1024
_SHARDS_PER_WORKER = 8


def cut_shards(manifest: pa.Table, num_workers: int) -> list[pa.Table]:
    """Cut a manifest into shards, in order.

    Enough of them that the workers finish together and progress shows, few enough that each is
    worth a file.

    Args:
        manifest: A table of `MANIFEST_SCHEMA`.
        num_workers: How many will work on it.

    Returns:
        Tables with the manifest's columns and the shard's number, counting from 0.
    """
    wanted = -(-manifest.num_rows // (num_workers * _SHARDS_PER_WORKER))
    rows = min(_MOST_ROWS, max(1, -(-wanted // _ROUND_TO)) * _ROUND_TO)
    shards = []
    for number, start in enumerate(range(0, manifest.num_rows, rows)):
        part = manifest.slice(start, rows)
        numbers = pa.array([number] * part.num_rows, pa.int64())
        shards.append(part.append_column(SHARD_COLUMN, numbers).combine_chunks())
    return shards


def shard_file(number: int) -> str:
    """Return the name of a shard's result, which depends on nothing but the shard."""
    return f"shard-{number:08d}.parquet"
