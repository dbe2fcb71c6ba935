"""From shard results to the output that others read: all of it, or nothing.

Every step may be interrupted and repeated, here or by another run at the same time. Names and row
ranges of the parts follow from the plan alone, and a part is never overwritten; the commit is one
file put where none was, so of two runs exactly one wins; what comes after it can be done again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from eagleray.batch.plan import Plan, new_id
from eagleray.batch.results import read_columns
from eagleray.batch.sinks import sink_named
from eagleray.batch.worker import ShardSummary, decode_shard
from eagleray.core.errors import InputError, JobFailedError
from eagleray.io import storage
from eagleray.sharded.claims import read_committed
from eagleray.sharded.layout import FileName, OutputLayout

__all__ = ["Commit", "Draft", "Part", "merge", "publish", "read_commit", "tidy_up"]

_READ_AHEAD = 8


class Part(BaseModel):
    """A result file.

    Attributes:
        name: Inside the output.
        first_row: Number of its first input.
        num_rows: How many follow one another from there.
        num_failed: Of these.
        reasons: How many failed for each reason, the most frequent first.
        num_bytes: Of the file.
        sha256: Of the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FileName
    first_row: int
    num_rows: int
    num_failed: int
    reasons: dict[str, int]
    num_bytes: int
    sha256: str


class Commit(BaseModel):
    """What `_manifest.json` holds: the parts that are the result, and nothing else is.

    Attributes:
        job_id: Of the plan.
        run: Which of the job's runs made the commit.
        committed: ISO time, UTC.
        format: Of the parts.
        num_rows: Inputs.
        num_failed: Of these.
        skipped: Files that were no inputs, by kind.
        parts: In the order of rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    run: str
    committed: str
    format: str
    num_rows: int
    num_failed: int
    skipped: dict[str, int] = {}
    parts: tuple[Part, ...]

    @property
    def reasons(self) -> Counter[str]:
        """How many failed for each reason."""
        return sum((Counter(part.reasons) for part in self.parts), Counter())


@dataclass(frozen=True, slots=True)
class Draft:
    """Parts that are written and checked, and wait for the commit.

    Attributes:
        parts: In the order of rows.
        timeline: Every shard with its times.
    """

    parts: tuple[Part, ...]
    timeline: tuple[ShardSummary, ...]


def read_commit(layout: OutputLayout) -> Commit | None:
    """Return what is committed; None before that."""
    return read_committed(layout, Commit)


def merge(
    layout: OutputLayout,
    plan: Plan,
    *,
    on_shard: Callable[[pa.Table], None] = lambda _: None,
) -> Draft | None:
    """Merge shard results into parts, and check that every row is there once.

    Args:
        layout: Of the output.
        plan: Of the job; all its shards must have results.
        on_shard: Is shown every shard's rows on the way.

    Returns:
        The parts; None when another run has committed meanwhile and removed the shards.

    Raises:
        JobFailedError: Rows are lost or doubled.
    """
    timeline: list[ShardSummary] = []
    try:
        parts = tuple(_write_parts(layout, plan, timeline, on_shard))
    except FileNotFoundError as error:
        if storage.exists(layout.commit):
            return None
        raise JobFailedError(
            f"A shard has no result ({error}); run the same command again to make it."
        ) from error
    num_rows = sum(part.num_rows for part in parts)
    if num_rows != plan.num_rows:
        raise JobFailedError(
            f"{plan.num_rows} images went in and {num_rows} results came out; nothing was "
            f"committed, and the shards are kept in {layout.shards}."
        )
    return Draft(parts, tuple(timeline))


def publish(layout: OutputLayout, plan: Plan, draft: Draft) -> tuple[Commit, bool]:
    """Commit a draft.

    Returns:
        What is committed, and whether this run did it: otherwise another was first.
    """
    ours = Commit(
        job_id=plan.job_id,
        run=new_id(),
        committed=datetime.now(UTC).isoformat(timespec="seconds"),
        format=plan.work.format,
        num_rows=sum(part.num_rows for part in draft.parts),
        num_failed=sum(part.num_failed for part in draft.parts),
        skipped=plan.skipped,
        parts=draft.parts,
    )
    if storage.put_if_absent(layout.commit, ours.model_dump_json(indent=2).encode()):
        return ours, True
    other = read_commit(layout)
    assert other is not None
    return other, False


def tidy_up(layout: OutputLayout, plan: Plan) -> None:
    """Do what follows a commit: mark the output for other readers, remove what was on the way."""
    if not storage.exists(layout.success):
        storage.put_atomic(layout.success, b"")
    layout.remove_folder(layout.shards)
    try:
        for folder in layout.stray_folders(plan.manifest):
            layout.remove_folder(folder)
        for location in layout.leftovers():  # a run that still writes one finds our commit
            storage.delete(location)
    except InputError:  # what was listed has gone meanwhile: another run tidies up as well
        return


def _write_parts(
    layout: OutputLayout,
    plan: Plan,
    timeline: list[ShardSummary],
    on_shard: Callable[[pa.Table], None],
) -> Iterator[Part]:
    first_row, number = 0, 0
    waiting: list[pa.Table] = []
    for shard, (rows, summary) in enumerate(_read_shards(layout, plan)):
        timeline.append(summary)
        on_shard(rows)
        waiting.append(rows)
        num_waiting = sum(table.num_rows for table in waiting)
        if num_waiting >= plan.rows_per_part or shard == plan.num_shards - 1:
            part = _put_part(layout, plan, number, first_row, pa.concat_tables(waiting))
            yield part
            first_row, number, waiting = first_row + num_waiting, number + 1, []


def _read_shards(layout: OutputLayout, plan: Plan) -> Iterator[tuple[pa.Table, ShardSummary]]:
    """Yield the shards' results in order, read a few ahead."""
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        numbers = iter(range(plan.num_shards))
        ahead = [
            pool.submit(_read_shard, layout, next(numbers))
            for _ in range(min(_READ_AHEAD, plan.num_shards))
        ]
        while ahead:
            result = ahead.pop(0).result()
            following = next(numbers, None)
            if following is not None:
                ahead.append(pool.submit(_read_shard, layout, following))
            yield result


def _read_shard(layout: OutputLayout, number: int) -> tuple[pa.Table, ShardSummary]:
    location = layout.shard(number)
    content = storage.read_bytes(location)
    try:
        return decode_shard(content)
    except ValueError as error:
        storage.delete(location)
        raise JobFailedError(
            f"The result of shard {number} was damaged in storage and is removed; run the same "
            "command again to make it anew."
        ) from error


def _put_part(
    layout: OutputLayout, plan: Plan, number: int, first_row: int, rows: pa.Table
) -> Part:
    """Put a part, unless a run before or beside this one has put it already."""
    _require_run_of_rows(rows, first_row, "The shards")
    location = layout.part(number, plan.work.format)
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
    return Part(
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
