"""Metrics for Prometheus, of one replica and of all replicas together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from eagleray.core.display import escape_text
from eagleray.scheduling.job_metrics import JobCounts
from eagleray.serving.prediction.requests import PredictResult
from eagleray.serving.prediction.workers import TimedOutcome
from eagleray.serving.versions.model_pool import VersionEvent

__all__ = [
    "CONTENT_TYPE",
    "Families",
    "Groups",
    "Telemetry",
    "by_replica",
    "job_families",
    "text_of",
]

CONTENT_TYPE = CONTENT_TYPE_LATEST

Families = Sequence[list[Any]]
"""Metric families as JSON: [name, documentation, type, [[sample's name, labels, value], …]]."""

Groups = Sequence[tuple[Mapping[str, str], Families]]
"""Metric families, each with labels to add to its samples."""

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Telemetry:
    """The metrics of a replica."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        target = ["model", "version", "application"]
        self.requests = self._counter("requests", "Requests by status.", [*target, "status"])
        self.images = self._counter("images", "Images by result.", [*target, "result"])
        self.rejections = self._counter("rejections", "Requests that were refused.", ["kind"])
        self.rejections.labels("full")  # from 0 on, or no rate shows the first refusals
        self.watch_faults = self._counter(
            "watch_faults", "Failed readings of registry or database.", ["source", "kind"]
        )
        self.predictions = self._counter(
            "predictions", "Predictions by label.", ["model", "version", "label"]
        )
        self.shadows = self._counter(
            "shadow_predictions",
            "Predictions of shadows, compared with those returned.",
            ["model", "agreement"],
        )
        self.webhooks = self._counter(
            "webhook_messages",
            "Messages to webhooks: delivered, failed, dropped.",
            ["application", "result"],
        )
        self.versions = self._counter(
            "version_events", "Versions loaded, failed, switched, unloaded.", ["model", "event"]
        )
        self.stages = Histogram(
            "eagleray_stage_seconds",
            "Seconds of an image by stage.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.latency = Histogram(
            "eagleray_request_seconds",
            "Seconds from the last byte of a request to its response.",
            ["model", "version"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.engine_images = self._counter(
            "engine_images", "Predicted images by engine and precision.", ["model", "engine"]
        )
        self.batches = Histogram(
            "eagleray_batch_images", "Images per batch.", buckets=_SIZES, registry=self._registry
        )

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"eagleray_{name}", text, labels, registry=self._registry)

    def add_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed when it is collected."""
        gauge = Gauge(f"eagleray_{name}", text, registry=self._registry)
        gauge.set_function(value)

    def record_prediction(self, model: str, version: int, timed: TimedOutcome) -> None:
        """Count an image that a worker predicted."""
        self.stages.labels(model, "queue").observe(timed.queued)
        self.stages.labels(model, "decode").observe(timed.decoding)
        self.stages.labels(model, "forward").observe(timed.forward)
        prediction = timed.outcome.prediction
        if prediction is not None and prediction.label is not None:
            self.predictions.labels(model, version, prediction.label).inc()

    def record_event(self, event: VersionEvent) -> None:
        """Count an event of a version."""
        self.versions.labels(event.model, event.kind).inc()
        self.versions.labels(event.model, "failed")  # from 0 on, or no rate shows the first failure

    def record_result(self, application: str, result: PredictResult) -> None:
        """Count the images of a request that was predicted, and its seconds.

        Args:
            application: Name of the application; empty for a caller without a key.
            result: The result of the request.
        """
        model, version = result.loaded.model, result.loaded.version
        self.latency.labels(model, version).observe(result.seconds)
        self.engine_images.labels(model, result.loaded.predictor.engine_name).inc(
            len(result.outcomes)
        )
        for item in result.outcomes:
            failure = item.outcome.failure
            kind = "ok" if failure is None else failure.reason.value
            self.images.labels(model, version, application or "anonymous", kind).inc()

    def families(self) -> Families:
        """Return all metrics as JSON, to be joined with those of other replicas."""
        return [
            [
                family.name,
                family.documentation,
                family.type,
                [[sample.name, sample.labels, sample.value] for sample in family.samples],
            ]
            for family in self._registry.collect()
        ]


def job_families(counts: JobCounts) -> Families:
    """Return the metrics of the organisation's jobs."""
    jobs = [
        ["eagleray_jobs", {"command": command, "state": state}, count]
        for (command, state), count in sorted(counts.jobs.items())
    ]
    text = "Submitted jobs by state: those that have not ended, and those of the last day."
    waiting = "eagleray_jobs_oldest_waiting_seconds"
    return [
        ["eagleray_jobs", text, "gauge", jobs],
        [
            waiting,
            "Seconds since the oldest job that waits to start was submitted.",
            "gauge",
            [[waiting, {}, counts.waiting_seconds]],
        ],
    ]


def by_replica(replicas: Mapping[str, Families]) -> Groups:
    """Return the families of several replicas, to be labelled by `replica`."""
    return [({"replica": name}, families) for name, families in sorted(replicas.items())]


def text_of(groups: Groups) -> bytes:
    """Return families in Prometheus' text format, each with the labels that are added to it."""
    registry = CollectorRegistry()
    registry.register(_Joined(groups))
    return generate_latest(registry)


class _Joined(Collector):
    """The families of several replicas, where those of one name are one family.

    Args:
        groups: Families with the labels to add to their samples.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    def collect(self) -> Iterator[Metric]:
        """Return the families."""
        joined: dict[str, Metric] = {}
        for own, families in self._groups:
            for name, documentation, kind, samples in families:
                family = joined.setdefault(name, Metric(name, documentation, kind))
                for sample, labels, value in samples:
                    family.add_sample(sample, _shown({**labels, **own}), value)
        return iter(joined.values())


def _shown(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a sample as safe text; values may come from callers or models."""
    return {name: escape_text(value) for name, value in labels.items()}
