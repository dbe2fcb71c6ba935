"""Merges shard results into result files, and checks that every row is there once.

Names and row ranges of the files follow from the plan alone, and a file is never overwritten, so
merging can be interrupted and repeated, here or by another run at the same time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from eagleray.batch.plan import PredictPlan
from eagleray.batch.results import read_columns
from eagleray.batch.shard_summary import ShardSummary
from eagleray.batch.sinks import sink_named
from eagleray.core.errors import JobFailedError
from eagleray.io import storage
from eagleray.sharded.commit import Commit, OutputFile, unless_committed
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.shard_results import read_results_of_shards

__all__ = ["Draft", "merge"]


@dataclass(frozen=True, slots=True)
class Draft:
    """Result files that are written and checked, but not committed yet.

    Attributes:
        files: Files in the order of rows.
        timeline: Summary of every shard.
    """

    files: tuple[OutputFile, ...]
    timeline: tuple[ShardSummary, ...]

    def commit(self, plan: PredictPlan) -> Commit:
        """Return the commit that makes these files the result."""
        return Commit(
            job_id=plan.job_id,
            format=plan.work.format,
            num_rows=sum(file.num_rows for file in self.files),
            num_failed=sum(file.num_failed for file in self.files),
            skipped=plan.skipped,
            files=self.files,
        )


def merge(
    layout: OutputLayout,
    plan: PredictPlan,
    *,
    on_shard: Callable[[pa.Table], None] = lambda _: None,
) -> Draft | None:
    """Merge shard results into result files, and check that every row is there once.

    Args:
        layout: The output.
        plan: PredictPlan of the job; all its shards must have results.
        on_shard: Called with the rows of every shard.

    Returns:
        The files; None if another run has committed meanwhile and removed the shards.

    Raises:
        JobFailedError: If rows are missing or doubled.
    """
    return unless_committed(layout, lambda: _merge(layout, plan, on_shard))


def _merge(layout: OutputLayout, plan: PredictPlan, on_shard: Callable[[pa.Table], None]) -> Draft:
    timeline: list[ShardSummary] = []
    files = tuple(_write_files(layout, plan, timeline, on_shard))
    num_rows = sum(file.num_rows for file in files)
    if num_rows != plan.num_rows:
        raise JobFailedError(
            f"{plan.num_rows} images went in and {num_rows} results came out; nothing was "
            f"committed, and the shards are kept in {layout.shards}."
        )
    return Draft(files, tuple(timeline))


def _write_files(
    layout: OutputLayout,
    plan: PredictPlan,
    timeline: list[ShardSummary],
    on_shard: Callable[[pa.Table], None],
) -> Iterator[OutputFile]:
    first_row, number = 0, 0
    waiting: list[pa.Table] = []
    results = read_results_of_shards(layout, range(plan.num_shards), ShardSummary.from_json)
    for shard, (rows, summary) in enumerate(results):
        timeline.append(summary)
        on_shard(rows)
        waiting.append(rows)
        num_waiting = sum(table.num_rows for table in waiting)
        if num_waiting >= plan.rows_per_file or shard == plan.num_shards - 1:
            yield _put_file(layout, plan, number, first_row, pa.concat_tables(waiting))
            first_row, number, waiting = first_row + num_waiting, number + 1, []


def _put_file(
    layout: OutputLayout, plan: PredictPlan, number: int, first_row: int, rows: pa.Table
) -> OutputFile:
    """Put a result file, unless a run before or beside this one has put it already."""
    _require_run_of_rows(rows, first_row, "The shards")
    location = layout.file(number, plan.work.format)
    content = sink_named(plan.work.format).encode(rows)
    reasons = rows.column("reason")
    if not storage.put_if_absent(location, content):
        content = storage.read_bytes(location)
        try:
            found = read_columns(content, plan.work.format, ["row", "reason"])
        except (pa.ArrowException, KeyError, OSError, ValueError) as error:
            raise JobFailedError(
                f"{location} is damaged, or not of this job; nothing was committed. Remove it and "
                "run the same command again."
            ) from error
        if found.num_rows != rows.num_rows:
            raise JobFailedError(
                f"{location} holds {found.num_rows} rows where {rows.num_rows} belong; nothing "
                "was committed. Remove it and run the same command again."
            )
        _require_run_of_rows(found, first_row, location)
        reasons = found.column("reason")
    counts = Counter(reason for reason in reasons.to_pylist() if reason is not None)
    return OutputFile(
        name=storage.name_of(location),
        first_row=first_row,
        num_rows=rows.num_rows,
        num_failed=counts.total(),
        reasons=dict(counts.most_common()),
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _require_run_of_rows(rows: pa.Table, first_row: int, where: str) -> None:
    numbers = rows.column("row").to_numpy()
    if not np.array_equal(numbers, np.arange(first_row, first_row + rows.num_rows)):
        raise JobFailedError(
            f"{where} should hold rows {first_row} to {first_row + rows.num_rows - 1} and hold "
            "others; nothing was committed."
        )
