"""From receipts to the output that others read: every input packed or among the failures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from eagleray.batch.plan import new_id
from eagleray.core.errors import InputError, JobFailedError
from eagleray.io import storage
from eagleray.io.arrow_files import decode_table, encode_table
from eagleray.packing.parts import PartFormat
from eagleray.packing.plan import PackPlan
from eagleray.packing.receipt import PackedPart, PackedShard, read_receipt
from eagleray.sharded.claims import read_committed
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ManifestReader

__all__ = [
    "FAILURES",
    "PackCommit",
    "commit",
    "failure_reasons",
    "read_commit",
    "read_finished",
    "tidy_up",
]

FAILURES = "_failures.parquet"
"""Name of the table of inputs that are in no part; there is none when there are none."""

_READ_AHEAD = 8
_REASON = pa.schema([("reason", pa.string())])


class PackCommit(BaseModel):
    """What `_manifest.json` holds: the parts that are the result, and nothing else is.

    Attributes:
        job_id: Of the plan.
        run: Which of the job's runs made the commit.
        committed: ISO time, UTC.
        format: Of the parts.
        num_inputs: Packed and failed ones.
        num_rows: In the parts.
        num_failed: Inputs that are in no part.
        skipped: Files that were no inputs, by kind.
        image_bytes: Of the images in the parts.
        parts: In the order of rows.
        failures: Name of the table of failed inputs; None without any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    run: str
    committed: str
    format: PartFormat
    num_inputs: int
    num_rows: int
    num_failed: int
    skipped: dict[str, int] = {}
    image_bytes: int
    parts: tuple[PackedPart, ...]
    failures: str | None


def read_commit(layout: OutputLayout) -> PackCommit | None:
    """Return what is committed; None before that."""
    return read_committed(layout, PackCommit)


def read_finished(layout: OutputLayout) -> list[PackedShard]:
    """Return the shards that are done."""
    try:
        return [packed for packed, _ in _read_receipts(layout, sorted(layout.finished_shards()))]
    except FileNotFoundError:  # another run has committed meanwhile, and tidies up
        if storage.exists(layout.commit):
            return []
        raise


def _read_receipts(
    layout: OutputLayout, shards: Iterable[int]
) -> Iterator[tuple[PackedShard, pa.Table]]:
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        yield from pool.map(lambda shard: read_receipt(layout, shard), shards)


def commit(layout: OutputLayout, plan: PackPlan) -> tuple[PackCommit, bool]:
    """Commit a job whose shards are all done, after checking that they account for every input.

    Returns:
        What is committed, and whether this run did it: otherwise another was first.

    Raises:
        JobFailedError: Inputs are lost or doubled, or a part is not there.
    """
    try:
        receipts = list(_read_receipts(layout, range(plan.num_shards)))
    except FileNotFoundError as error:
        other = read_commit(layout)
        if other is not None:
            return other, False
        raise JobFailedError(
            f"A shard has no receipt ({error}); run the same command again to make it."
        ) from error
    shards = [packed for packed, _ in receipts]
    _require_all_rows(layout, plan, shards)
    _require_parts(layout, shards)
    num_failed = sum(packed.num_failed for packed in shards)
    if num_failed:
        failures = pa.concat_tables(rows for _, rows in receipts)
        content = encode_table(failures, "parquet")
        storage.put_atomic(storage.join(layout.location, FAILURES), content)
    ours = PackCommit(
        job_id=plan.job_id,
        run=new_id(),
        committed=datetime.now(UTC).isoformat(timespec="seconds"),
        format=plan.pack.format,
        num_inputs=plan.num_rows,
        num_rows=sum(packed.num_packed for packed in shards),
        num_failed=num_failed,
        skipped=plan.skipped,
        image_bytes=sum(packed.image_bytes for packed in shards),
        parts=tuple(part for packed in shards for part in packed.parts),
        failures=FAILURES if num_failed else None,
    )
    if storage.put_if_absent(layout.commit, ours.model_dump_json(indent=2).encode()):
        return ours, True
    other = read_commit(layout)
    assert other is not None
    return other, False


def _require_all_rows(layout: OutputLayout, plan: PackPlan, shards: Sequence[PackedShard]) -> None:
    sizes = ManifestReader(layout.manifest(plan.manifest), plan.num_shards).shard_sizes()
    for number, (packed, size) in enumerate(zip(shards, sizes, strict=True)):
        if (packed.shard, packed.num_rows) != (number, size):
            raise JobFailedError(
                f"Shard {number} has {size} inputs and its receipt accounts for "
                f"{packed.num_rows}; nothing was committed. Remove {layout.shard(number)} and run "
                "the same command again."
            )


def _require_parts(layout: OutputLayout, shards: Iterable[PackedShard]) -> None:
    found = {
        storage.name_of(file.uri): file.size
        for file in storage.list_files(layout.location)
        if not file.uri.startswith(f"{layout.private}/")
    }
    for packed in shards:
        for part in packed.parts:
            if found.get(part.name) != part.num_bytes:
                raise JobFailedError(
                    f"{part.name} in {layout.location} was removed or changed after it was made; "
                    f"nothing was committed. Remove it and {layout.shard(packed.shard)}, and run "
                    "the same command again."
                )


def failure_reasons(layout: OutputLayout, committed: PackCommit) -> list[str]:
    """Return the reason of each failed input of a committed job."""
    if committed.failures is None:
        return []
    content = storage.read_bytes(storage.join(layout.location, committed.failures))
    reasons: list[str] = decode_table(content, "parquet", _REASON).column("reason").to_pylist()
    return reasons


def tidy_up(layout: OutputLayout, plan: PackPlan) -> None:
    """Do what follows a commit: mark the output for other readers, remove what was on the way."""
    if not storage.exists(layout.success):
        storage.put_atomic(layout.success, b"")
    layout.remove_folder(layout.shards)
    try:
        for name in layout.manifest_names() - {plan.manifest}:
            layout.remove_folder(layout.manifest(name))  # of runs that were not the first
        for location in layout.leftovers():
            storage.delete(location)
    except InputError:  # what was listed has gone meanwhile: another run tidies up as well
        return
