"""What a job would take, from a sample of its images run for real."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.batch.job import Job
from eagleray.batch.pipeline import WorkerPool, run_shards
from eagleray.batch.plan import new_id
from eagleray.core.ray_session import Cluster
from eagleray.io import storage
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ManifestReader, user_columns, write_manifest

__all__ = ["Quote", "quote_job"]

SAMPLE_IMAGES = 320
_WARM_UP_SHARDS = 2  # for each worker: caches are cold, and files are read for the first time


@dataclass(frozen=True, slots=True)
class Quote:
    """What a job would take.

    Attributes:
        num_rows: Inputs of the job.
        num_sampled: Of these that were run.
        reasons: Failures in the sample.
        num_workers: At work.
        images_per_second: Of all workers together.
        seconds: Of the whole job, its workers started.
        output_bytes: Of the results.
        price: Of the job, at a price per hour of the whole machine or cluster; None without one.
    """

    num_rows: int
    num_sampled: int
    reasons: dict[str, int]
    num_workers: int
    images_per_second: float
    seconds: float
    output_bytes: int
    price: float | None

    def facts(self) -> dict[str, object]:
        """Return names and values for a person."""
        failed = sum(self.reasons.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        facts: dict[str, object] = {
            "images": f"{self.num_rows:,}",
            "sampled": f"{self.num_sampled:,}",
            "failed in the sample": f"{failed} ({reasons})" if failed else "none",
            "images per second": f"{self.images_per_second:,.1f} with {self.num_workers} workers",
            "expected time": _duration(self.seconds),
            "expected results": f"{self.output_bytes / 1e6:,.1f} MB",
        }
        if self.price is not None:
            facts["expected price"] = f"{self.price:,.2f}"
        return facts


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def quote_job(job: Job, cluster: Cluster, *, price_per_hour: float | None = None) -> Quote:
    """Run a sample of a job's images on the workers that the job would have.

    The sample is drawn from all over the inputs and is the same each time. Its results are thrown
    away.

    Args:
        job: Opened, not yet run.
        cluster: Where it would run.
        price_per_hour: In any currency.
    """
    trial = OutputLayout(storage.join(job.layout.private, f"quote-{new_id()}"))
    try:
        sample = write_manifest(
            [_draw(job.manifest, job.plan.num_rows)],
            user_columns(job.manifest.schema),
            trial.manifest("manifest"),
        )
        worker_pool = WorkerPool.choose(
            cluster,
            sample.num_shards,
            wanted=job.request.worker_range,
            split=job.request.separate_decoding,
        )
        context = dataclasses.replace(
            job.context(worker_pool),
            output=trial.location,
            manifest_folder=sample.folder,
            num_shards=sample.num_shards,
        )
        summaries = list(run_shards(range(sample.num_shards), context, worker_pool))
        reasons, num_bytes = _look_at_results(trial)
    finally:
        if storage.is_folder(trial.location):
            storage.remove_tree(trial.location)
    summaries.sort(key=lambda summary: summary.started)
    # Without the shards that warmed the workers up, if enough of them are left.
    measured = summaries[_WARM_UP_SHARDS * worker_pool.num_workers :] or summaries
    busy = sum(summary.finished - summary.started for summary in measured)
    rate = sum(summary.num_rows for summary in measured) / max(busy, 1e-3) * worker_pool.num_workers
    seconds = job.plan.num_rows / rate
    return Quote(
        num_rows=job.plan.num_rows,
        num_sampled=sample.num_rows,
        reasons=reasons,
        num_workers=worker_pool.num_workers,
        images_per_second=rate,
        seconds=seconds,
        output_bytes=round(num_bytes / sample.num_rows * job.plan.num_rows),
        price=None if price_per_hour is None else price_per_hour * seconds / 3600,
    )


def _draw(manifest: ManifestReader, num_rows: int) -> pa.Table:
    """Return rows drawn from the whole manifest, without their numbers."""
    count = min(SAMPLE_IMAGES, num_rows)
    chosen = np.sort(np.random.default_rng(0).choice(num_rows, count, replace=False))
    tables, before = [], 0
    for rows in manifest.tables():
        inside = chosen[(chosen >= before) & (chosen < before + rows.num_rows)] - before
        tables.append(rows.take(pa.array(inside)))
        before += rows.num_rows
    return pa.concat_tables(tables).drop_columns(["row"])


def _look_at_results(trial: OutputLayout) -> tuple[dict[str, int], int]:
    reasons: dict[str, int] = {}
    num_bytes = 0
    for number in sorted(trial.finished_shards()):
        content = storage.read_bytes(trial.shard(number))
        num_bytes += len(content)
        for reason in pq.read_table(pa.BufferReader(content)).column("reason").to_pylist():
            if reason is not None:
                reasons[reason] = reasons.get(reason, 0) + 1
    return reasons, num_bytes
