"""Collects the receipts of all shards, and checks that every input is packed or has failed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from eagleray.core.errors import JobFailedError
from eagleray.io import storage
from eagleray.io.arrow_files import encode_table
from eagleray.packing.plan import PackPlan
from eagleray.packing.receipt import PackedShard
from eagleray.sharded.commit import Commit, OutputFile, unless_committed
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ManifestReader
from eagleray.sharded.shard_results import read_results_of_shards

__all__ = ["FAILURES", "collect"]

FAILURES = "_failures.parquet"
"""Name of the table of inputs that are in no file; it exists only if there are any."""


def collect(layout: OutputLayout, plan: PackPlan) -> Commit | None:
    """Return the commit of a job whose shards are all packed, and put the table of failures.

    Returns:
        The commit, not yet published; None if another run has committed meanwhile.

    Raises:
        JobFailedError: If inputs are missing or doubled, or a file is missing.
    """
    return unless_committed(layout, lambda: _collect(layout, plan))


def _collect(layout: OutputLayout, plan: PackPlan) -> Commit:
    receipts = list(
        read_results_of_shards(layout, range(plan.num_shards), PackedShard.model_validate_json)
    )
    shards = [packed for _, packed in receipts]
    _require_all_rows(layout, plan, shards)
    _require_files(layout, shards)
    num_failed = sum(packed.num_failed for packed in shards)
    return Commit(
        job_id=plan.job_id,
        format=plan.work.format,
        num_rows=plan.num_rows,
        num_failed=num_failed,
        skipped=plan.skipped,
        image_bytes=sum(packed.image_bytes for packed in shards),
        files=tuple(file for packed in shards for file in packed.files),
        failures=_put_failures(layout, [rows for rows, _ in receipts]) if num_failed else None,
    )


def _require_all_rows(layout: OutputLayout, plan: PackPlan, shards: Sequence[PackedShard]) -> None:
    sizes = ManifestReader(layout.manifest(plan.manifest), plan.num_shards).shard_sizes()
    for number, (packed, size) in enumerate(zip(shards, sizes, strict=True)):
        if (packed.shard, packed.num_rows) != (number, size):
            raise JobFailedError(
                f"Shard {number} has {size} inputs and its receipt accounts for "
                f"{packed.num_rows}; nothing was committed. Remove {layout.shard(number)} and run "
                "the same command again."
            )


def _require_files(layout: OutputLayout, shards: Sequence[PackedShard]) -> None:
    found = {
        storage.name_of(file.uri): file.size
        for file in storage.list_files(layout.location)
        if not file.uri.startswith(f"{layout.private}/")
    }
    for packed in shards:
        for file in packed.files:
            if found.get(file.name) != file.num_bytes:
                raise JobFailedError(
                    f"{file.name} in {layout.location} was removed or changed after it was made; "
                    f"nothing was committed. Remove it and {layout.shard(packed.shard)}, and run "
                    "the same command again."
                )


def _put_failures(layout: OutputLayout, tables: Sequence[pa.Table]) -> OutputFile:
    rows = pa.concat_tables(tables)
    content = encode_table(rows, "parquet")
    storage.put_atomic(storage.join(layout.location, FAILURES), content)
    reasons = Counter(rows.column("reason").to_pylist())
    return OutputFile(
        name=FAILURES,
        first_row=0,  # of the table itself: these inputs do not follow one another
        num_rows=rows.num_rows,
        num_failed=rows.num_rows,
        reasons=dict(reasons.most_common()),
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
