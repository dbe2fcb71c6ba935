"""Metrics of a running job for Prometheus, through the metrics agent of the Ray cluster it runs on.

All are gauges, because the agent of a node keeps the counters of every job until the node ends, and
forgets the gauges of a job within a minute of its end. Ray puts `ray_` before their names. An
embedded Ray has no agent: there nothing is published.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Final

__all__ = ["METRICS", "JobMetrics"]

METRICS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "images": ("Images of the job.", ()),
    "images_done": ("Images that are done, in all runs of the job.", ()),
    "images_failed": ("Images that failed in this run, by reason code.", ("reason",)),
    "shards_repeated": ("Shards of this run that had lost a worker before they were done.", ()),
    "epochs": ("Epochs of the training run.", ()),
    "epochs_done": ("Epochs that are finished.", ()),
    "loss": ("Loss of the last step for training, of the last epoch for validation.", ("split",)),
    "restarts": ("Restarts of the training workers in this run.", ()),
    "workers": ("Training workers.", ()),
}
"""Each metric's name after `eagleray_job_`, its description, and its labels beside the job's."""

_LABELS = ("command", "job_id")


class JobMetrics:
    """The metrics of one job.

    Args:
        command: Command of the job, such as `predict`.
        job_id: Identifier of the job; Prometheus itself has a label `job`.
    """

    def __init__(self, command: str, job_id: str) -> None:
        self._labels = {"command": command, "job_id": job_id}

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a metric; without a Ray that this process is connected to, do nothing.

        Args:
            name: Name of the metric in `METRICS`.
            value: Value.
            labels: Values of the metric's own labels.
        """
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            _gauge(name).set(value, {**self._labels, **labels})


@functools.cache
def _gauge(name: str) -> Any:
    from ray.util.metrics import Gauge

    description, labels = METRICS[name]
    return Gauge(f"eagleray_job_{name}", description, (*_LABELS, *labels))
