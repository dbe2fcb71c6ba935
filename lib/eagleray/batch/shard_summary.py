"""The summary of a predicted shard, which its result file and the driver get."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import pyarrow as pa

from eagleray.sharded.shard_results import decode_result, encode_result

__all__ = ["ShardSummary", "decode_shard", "encode_shard"]


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What the driver learns of a finished shard; the results themselves are in its file.

    Attributes:
        shard: Number of the shard.
        num_ok: Number of rows with a prediction.
        num_failed: Number of rows with a reason code.
        started: Start, in seconds since the epoch.
        finished: Time when its result was put, in seconds since the epoch.
        engine: Description of what ran the network, and why.
        failures: Number of failed rows for each reason code, as JSON; empty for none.
        repeated: Whether the shard was begun before, by a worker that was lost.
    """

    shard: int
    num_ok: int
    num_failed: int
    started: float
    finished: float
    engine: str = ""
    failures: str = ""
    repeated: bool = False

    @property
    def num_rows(self) -> int:
        """Number of rows of the shard."""
        return self.num_ok + self.num_failed

    @property
    def reasons(self) -> dict[str, int]:
        """Number of failed rows for each reason code."""
        found: dict[str, int] = json.loads(self.failures) if self.failures else {}
        return found

    def as_block(self) -> pa.Table:
        """Return the summary as a block of Ray Data."""
        return pa.table({name: [getattr(self, name)] for name in self.__slots__})

    @classmethod
    def from_json(cls, content: bytes) -> ShardSummary:
        """Read the summary that `encode_shard` wrote."""
        fields = json.loads(content)
        fields["engine"] = sys.intern(fields.get("engine", ""))  # the same in most shards
        return cls(**fields)


def encode_shard(rows: pa.Table, summary: ShardSummary) -> bytes:
    """Encode a shard's result: its rows, with the summary in the metadata."""
    values = {name: getattr(summary, name) for name in ShardSummary.__slots__}
    return encode_result(rows, json.dumps(values).encode())


def decode_shard(content: bytes) -> tuple[pa.Table, ShardSummary]:
    """Return a shard's rows and its summary.

    Raises:
        ValueError: If the content is damaged.
    """
    return decode_result(content, ShardSummary.from_json)
