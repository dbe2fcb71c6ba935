"""Publishes the progress of a run of shards as metrics for Prometheus."""

from __future__ import annotations

from collections import Counter
from typing import Any

from eagleray.core.job_metrics import JobMetrics
from eagleray.sharded.plan import Plan
from eagleray.sharded.shard_results import FinishedShard

__all__ = ["ShardMetrics"]


class ShardMetrics:
    """The metrics of one run of a job.

    Args:
        plan: Plan of the job.
    """

    def __init__(self, plan: Plan[Any]) -> None:
        self._metrics = JobMetrics(plan.kind, plan.job_id)
        self._num_rows = plan.num_rows
        self._failed: Counter[str] = Counter()
        self._num_repeated = 0

    def start(self, num_done: int) -> None:
        """Publish where the run starts.

        Args:
            num_done: Number of inputs with a result from earlier runs.
        """
        self._metrics.set("images", self._num_rows)
        self._metrics.set("images_done", num_done)

    def add(self, shard: FinishedShard, num_done: int) -> None:
        """Publish a finished shard.

        Args:
            shard: The shard.
            num_done: Number of inputs with a result so far, in all runs.
        """
        self._failed.update(shard.reasons)
        self._metrics.set("images_done", num_done)
        if shard.repeated is not None:
            self._num_repeated += shard.repeated
            self._metrics.set("shards_repeated", self._num_repeated)
        for reason in shard.reasons:
            self._metrics.set("images_failed", self._failed[reason], reason=reason)
