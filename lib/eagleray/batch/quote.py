"""Estimates the time, size and price of a job by predicting a sample of its images."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from eagleray.batch.job import Job
from eagleray.batch.pipeline import WorkerPool, run_shards
from eagleray.batch.shard_summary import ShardSummary, decode_shard
from eagleray.core.ray_session import Cluster
from eagleray.io import storage
from eagleray.sharded.columns import user_columns
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ManifestReader, write_manifest
from eagleray.sharded.plan import new_id

__all__ = ["Quote", "quote_job"]

SAMPLE_IMAGES = 320
_WARM_UP_SHARDS = 2  # of each worker: its caches are cold


@dataclass(frozen=True, slots=True)
class Quote:
    """Estimate of what a job takes.

    Attributes:
        num_rows: Number of inputs of the job.
        num_sampled: Number of inputs in the sample.
        reasons: Number of failures in the sample for each reason code.
        num_workers: Number of workers.
        images_per_second: Throughput of all workers together.
        seconds: Duration of the whole job, once its workers have started.
        output_bytes: Size of the results in bytes.
        price: Price of the job; None without a price per hour.
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

    The sample is drawn from all inputs and is the same each time. Its results are removed.

    Args:
        job: Opened job that has not been run.
        cluster: The cluster.
        price_per_hour: Price of the machine or cluster for an hour, in any currency.
    """
    trial = OutputLayout(storage.join(job.layout.private, f"quote-{new_id()}"))
    try:
        sample = write_manifest(
            [_sample(job.manifest, job.plan.num_rows)],
            user_columns(job.manifest.schema),
            trial.manifest("manifest"),
        )
        worker_pool = WorkerPool.choose(
            cluster,
            sample.num_shards,
            wanted=job.request.worker_range,
            split=job.request.decodes_apart,
            device=job.request.device,
        )
        context = dataclasses.replace(
            job.context(worker_pool),
            output=trial.location,
            manifest_folder=sample.folder,
            num_shards=sample.num_shards,
        )
        summaries = list(run_shards(range(sample.num_shards), context, worker_pool))
        reasons, num_bytes = _read_sample(trial)
    finally:
        if storage.is_folder(trial.location):
            storage.remove_tree(trial.location)
    rate = _steady_rate(summaries, worker_pool.num_workers)
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


def _steady_rate(summaries: list[ShardSummary], num_workers: int) -> float:
    """Return images per second of all workers, without the shards that warmed them up."""
    in_order = sorted(summaries, key=lambda summary: summary.started)
    measured = in_order[_WARM_UP_SHARDS * num_workers :] or in_order
    busy = sum(summary.finished - summary.started for summary in measured)
    return sum(summary.num_rows for summary in measured) / max(busy, 1e-3) * num_workers


def _sample(manifest: ManifestReader, num_rows: int) -> pa.Table:
    """Return rows drawn from the whole manifest, without their numbers."""
    count = min(SAMPLE_IMAGES, num_rows)
    chosen = np.sort(np.random.default_rng(0).choice(num_rows, count, replace=False))
    tables, before = [], 0
    for rows in manifest.tables():
        inside = chosen[(chosen >= before) & (chosen < before + rows.num_rows)] - before
        tables.append(rows.take(pa.array(inside)))
        before += rows.num_rows
    return pa.concat_tables(tables).drop_columns(["row"])


def _read_sample(trial: OutputLayout) -> tuple[dict[str, int], int]:
    """Return the failures by reason, and the bytes, of the sample's results."""
    reasons: Counter[str] = Counter()
    num_bytes = 0
    for shard in sorted(trial.finished_shards()):
        content = storage.read_bytes(trial.shard(shard))
        num_bytes += len(content)
        found = decode_shard(content)[0].column("reason").to_pylist()
        reasons.update(reason for reason in found if reason is not None)
    return dict(reasons), num_bytes
