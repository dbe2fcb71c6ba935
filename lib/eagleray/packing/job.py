"""A packing job from its request to its committed output; `jobs/pack.py` gives it a command line.

    request -> open_pack    checks everything, lists the inputs, claims the plan (or finds it)
            -> run_pack     packs the shards that are not done, checks, commits
            -> PackSummary  what became of it

Both may be interrupted at any point and called again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from eagleray.batch.plan import new_id
from eagleray.core.errors import InputError, JobFailedError
from eagleray.io import storage
from eagleray.packing.commit import (
    PackCommit,
    commit,
    failure_reasons,
    read_commit,
    read_finished,
    tidy_up,
)
from eagleray.packing.plan import PackPlan, claim_plan, read_plan, require_same_work
from eagleray.packing.receipt import PackedShard
from eagleray.packing.sizes import ExpectedSizes
from eagleray.packing.spec import PackSpec
from eagleray.packing.worker import PackContext
from eagleray.sharded.claims import require_free
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import Manifest, ShardLimits, write_manifest
from eagleray.sources import InputSpec, Listing, open_inputs

if TYPE_CHECKING:
    from eagleray.core.callbacks import ProgressReporter

__all__ = ["PackJob", "PackShards", "PackSummary", "finish_pack", "open_pack", "run_pack"]

_MAX_ROWS_PER_PART = 50_000

PackShards = Callable[[Sequence[int], PackContext], Iterator[PackedShard]]
"""Packs shards and yields each as it is done, in any order."""


@dataclass(frozen=True)
class PackJob:
    """A request with all that it needs: the inputs are listed.

    Attributes:
        request: What was asked for.
        layout: Of the output.
        plan: Of the job, made now or by an earlier run.
        committed: What an earlier run has finished.
    """

    request: PackSpec
    layout: OutputLayout
    plan: PackPlan
    committed: PackCommit | None

    @property
    def context(self) -> PackContext:
        """What the workers need to know."""
        return PackContext(
            output=self.layout.location,
            manifest_folder=self.layout.manifest(self.plan.manifest),
            num_shards=self.plan.num_shards,
            part_format=self.plan.pack.format,
            part_bytes=self.plan.pack.part_bytes,
            max_bytes=self.plan.pack.max_bytes,
            urls=self.request.urls,
            s3=self.request.s3,
        )


@dataclass(frozen=True)
class PackSummary:
    """What became of a job.

    Attributes:
        committed: The job as a whole.
        output: Location.
        reasons: Failures by reason.
        seconds: That this run's workers were at work.
        packed_here: Images that this run has packed.
        bytes_here: Of these.
        committed_here: Whether this run committed, and no run before or beside it.
    """

    committed: PackCommit
    output: str
    reasons: dict[str, int]
    seconds: float = 0.0
    packed_here: int = 0
    bytes_here: int = 0
    committed_here: bool = False

    @property
    def images_per_second(self) -> float:
        """Of this run."""
        return self.packed_here / self.seconds if self.seconds else 0.0

    @property
    def megabytes_per_second(self) -> float:
        """Of this run; 10**6 bytes of images."""
        return self.bytes_here / 1e6 / self.seconds if self.seconds else 0.0

    @property
    def failures(self) -> str | None:
        """Location of the table of failed inputs; None without any."""
        name = self.committed.failures
        return None if name is None else storage.join(self.output, name)

    def as_json(self) -> dict[str, Any]:
        """Return the summary for scripts."""
        committed = self.committed
        return {
            "job": committed.job_id,
            "images": committed.num_inputs,
            "packed": committed.num_rows,
            "failed": committed.num_failed,
            "reasons": self.reasons,
            "skipped": committed.skipped,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 2),
            "megabytes": round(committed.image_bytes / 1e6, 3),
            "megabytes_per_second": round(self.megabytes_per_second, 2),
            "output": self.output,
            "files": [storage.join(self.output, part.name) for part in committed.parts],
            "failures": self.failures,
            "committed_here": self.committed_here,
        }


# --- open ------------------------------------------------------------------------------------


def open_pack(request: PackSpec, reporter: ProgressReporter) -> PackJob:
    """Check everything that can be wrong before expensive work starts, and list the inputs.

    An output that holds this very job is opened again: its inputs are those listed then.

    Raises:
        UserError: With what to mend.
    """
    storage.use_s3(request.s3)
    layout = OutputLayout(request.output)
    plan = read_plan(layout)
    if plan is None:
        require_free(layout)
        listing = open_inputs(InputSpec(request.inputs, request.column))
        plan = _new_plan(layout, request, listing, reporter)
    else:
        require_same_work(layout, plan, request.work())
    return PackJob(request, layout, plan, read_commit(layout))


def _new_plan(
    layout: OutputLayout, request: PackSpec, listing: Listing, reporter: ProgressReporter
) -> PackPlan:
    name = f"manifest-{new_id()}"
    try:
        manifest = _write_manifest(layout.manifest(name), request.file_bytes, listing, reporter)
    except OSError as error:
        raise InputError(
            f"Output {layout.location} cannot be written ({error.strerror or error}); name another "
            "folder."
        ) from error
    plan = PackPlan(
        job_id=new_id(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        pack=request.work(),
        manifest=name,
        manifest_digest=manifest.digest,
        num_rows=manifest.num_rows,
        num_shards=manifest.num_shards,
        remarks=listing.all_notes(),
        skipped=dict(listing.skipped.counts),
    )
    claimed = claim_plan(layout, plan)
    if claimed.manifest != name:
        layout.remove_folder(layout.manifest(name))
        reporter.note(f"Another run of this job was first; joining it as {claimed.job_id}.")
    return claimed


def _write_manifest(
    folder: str, part_bytes: int, listing: Listing, reporter: ProgressReporter
) -> Manifest:
    probe = storage.join(folder, "probe")  # listing may take long before the first file
    storage.put_atomic(probe, b"")
    storage.delete(probe)
    limits = ShardLimits(
        max_rows=_MAX_ROWS_PER_PART,
        max_bytes=part_bytes,
        next_rows=lambda _: _MAX_ROWS_PER_PART,
        bytes_of=ExpectedSizes(),
    )
    return write_manifest(
        listing.tables, listing.user_schema, folder, limits=limits, on_rows=_Notes(reporter).hear
    )


class _Notes:
    """Says every few seconds how many inputs are listed."""

    def __init__(self, reporter: ProgressReporter) -> None:
        self._listener, self._last = reporter, time.monotonic()

    def hear(self, num_rows: int) -> None:
        if time.monotonic() - self._last > 2:
            self._last = time.monotonic()
            self._listener.note(f"{num_rows:,} images listed so far")


# --- run -------------------------------------------------------------------------------------


def run_pack(job: PackJob, pack_shards: PackShards, reporter: ProgressReporter) -> PackSummary:
    """Pack every shard that is not done, and commit.

    Args:
        job: Opened.
        pack_shards: Does the work; not called when every shard is done.
        reporter: Receives the progress.

    Raises:
        JobFailedError: Too many inputs failed, or the workers stopped; what is done is kept.
    """
    if read_commit(job.layout) is not None:  # by another run, since this one opened the job
        return finish_pack(job)
    seconds, done = _pack(job, pack_shards, reporter)
    committed, committed_here = commit(job.layout, job.plan)
    tidy_up(job.layout, job.plan)
    return PackSummary(
        committed=committed,
        output=job.layout.location,
        reasons=_reasons(job, committed),
        seconds=seconds,
        packed_here=sum(packed.num_packed for packed in done),
        bytes_here=sum(packed.image_bytes for packed in done),
        committed_here=committed_here,
    )


def finish_pack(job: PackJob) -> PackSummary:
    """Repeat what follows the commit of a job that an earlier run has committed."""
    committed = read_commit(job.layout)
    assert committed is not None
    tidy_up(job.layout, job.plan)
    return PackSummary(committed, job.layout.location, _reasons(job, committed))


def _reasons(job: PackJob, committed: PackCommit) -> dict[str, int]:
    return dict(Counter(failure_reasons(job.layout, committed)).most_common())


def _pack(
    job: PackJob, pack_shards: PackShards, reporter: ProgressReporter
) -> tuple[float, list[PackedShard]]:
    """Return the shards that this run has packed, and how long it was at work on them."""
    finished = read_finished(job.layout)
    if not finished and storage.exists(job.layout.commit):  # by another run, a moment ago
        return 0.0, []
    num_done = sum(packed.num_rows for packed in finished)
    num_failed = sum(packed.num_failed for packed in finished)
    _require_few_failures(job, num_failed, num_done)
    pending = sorted(set(range(job.plan.num_shards)) - {packed.shard for packed in finished})
    if finished:
        reporter.note(
            f"Job {job.plan.job_id} goes on: {num_done:,} of {job.plan.num_rows:,} images are done "
            "already."
        )
    if not pending:
        return 0.0, []
    at_work = pack_shards(pending, job.context)
    started, done = time.monotonic(), []
    with reporter.progress("Packing", job.plan.num_rows) as bar:
        bar.advance(num_done, failed=num_failed)
        for packed in at_work:
            done.append(packed)
            num_done, num_failed = num_done + packed.num_rows, num_failed + packed.num_failed
            bar.advance(packed.num_rows, failed=packed.num_failed)
            _require_few_failures(job, num_failed, num_done)
    return time.monotonic() - started, done


def _require_few_failures(job: PackJob, num_failed: int, num_done: int) -> None:
    limit = job.request.failure_limit
    if not limit.allows(num_failed, job.plan.num_rows):
        raise JobFailedError(
            f"{num_failed:,} of {num_done:,} images failed so far, more than --max-failures "
            "allows; what is done is kept. Run the same command with a higher limit to go on."
        )
