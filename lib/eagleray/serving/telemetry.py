"""Counters and times as Prometheus reads them: of one replica, and of all together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from eagleray.core.display import escape_text
from eagleray.serving.model_pool import Event
from eagleray.serving.workers import Answered

__all__ = ["CONTENT_TYPE", "Families", "Telemetry", "text_of_all"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

Families = list[list[Any]]
"""Families of metrics as JSON: [name, documentation, type, [[sample's name, labels, value], …]]."""

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Telemetry:
    """What a replica counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        asked = ["model", "version", "application"]
        self.requests = self._counter("requests", "Requests by their status.", [*asked, "status"])
        self.images = self._counter("images", "Images by their result.", [*asked, "result"])
        self.rejections = self._counter("rejections", "Requests let in by nobody.", ["kind"])
        self.watch_faults = self._counter(
            "watch_faults", "Readings of registry or database that failed.", ["source", "kind"]
        )
        self.predictions = self._counter(
            "predictions", "Answers by label.", ["model", "version", "label"]
        )
        self.shadows = self._counter(
            "shadow_answers", "Answers of a shadow, against the one given.", ["model", "agreement"]
        )
        self.versions = self._counter(
            "version_events", "Versions loaded, failed, switched, unloaded.", ["model", "what"]
        )
        self.stages = Histogram(
            "eagleray_stage_seconds",
            "Time of an image by stage.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.latency = Histogram(
            "eagleray_request_seconds",
            "Time of a request, from its last byte to its answer.",
            ["model", "version"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batches = Histogram(
            "eagleray_batch_images", "Images in a batch.", buckets=_SIZES, registry=self._registry
        )

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"eagleray_{name}", text, labels, registry=self._registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a value that is asked for whenever somebody looks."""
        gauge = Gauge(f"eagleray_{name}", text, registry=self._registry)
        gauge.set_function(value)

    def saw_answer(self, model: str, version: int, answered: Answered) -> None:
        """Count an image that a lane answered."""
        self.stages.labels(model, "queue").observe(answered.queued)
        self.stages.labels(model, "decode").observe(answered.decoding)
        self.stages.labels(model, "forward").observe(answered.forward)
        prediction = answered.outcome.prediction
        if prediction is not None and prediction.label is not None:
            self.predictions.labels(model, version, prediction.label).inc()

    def saw_event(self, event: Event) -> None:
        """Count what happened to a version."""
        self.versions.labels(event.model, event.what).inc()

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return _text(_Families(self.families()))

    def families(self) -> Families:
        """Return everything as it can be kept, and joined with that of other replicas."""
        return [
            [
                family.name,
                family.documentation,
                family.type,
                [[sample.name, sample.labels, sample.value] for sample in family.samples],
            ]
            for family in self._registry.collect()
        ]


def text_of_all(replicas: Mapping[str, Families]) -> bytes:
    """Return what several replicas counted in Prometheus' text format, labelled by `replica`."""
    return _text(_Joined(replicas))


def _text(collector: Collector) -> bytes:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)


class _Families(Collector):
    """The families of one replica, as a person may read them."""

    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Return the families."""
        for name, documentation, kind, samples in self._families:
            family = Metric(name, documentation, kind)
            for sample, labels, value in samples:
                family.add_sample(sample, _shown(labels), value)
            yield family


class _Joined(Collector):
    """The families of several replicas."""

    def __init__(self, replicas: Mapping[str, Families]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        """Join families of one name."""
        joined: dict[str, Metric] = {}
        for replica, families in sorted(self._replicas.items()):
            for name, documentation, kind, samples in families:
                family = joined.setdefault(name, Metric(name, documentation, kind))
                for sample, labels, value in samples:
                    family.add_sample(sample, _shown({**labels, "replica": replica}), value)
        return iter(joined.values())


def _shown(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels of a sample: values are names that others gave, such as a model's labels."""
    return {name: escape_text(value) for name, value in labels.items()}
