"""Compares the metrics and facts of two versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eagleray.evaluation.record import EvaluationRecord
from eagleray.models.package import ModelManifest
from eagleray.registry.registry import ModelVersion, Registry

__all__ = ["ComparedVersion", "Comparison", "MetricPair", "compare"]


@dataclass(frozen=True)
class ComparedVersion:
    """One of the two versions, with all that is compared.

    Attributes:
        version: The registered version.
        manifest: The manifest of its package.
        evaluations: Its evaluations, newest first.
    """

    version: ModelVersion
    manifest: ModelManifest
    evaluations: tuple[EvaluationRecord, ...]

    @classmethod
    def read(cls, registry: Registry, version: ModelVersion) -> ComparedVersion:
        """Fetch what is compared, which does not include the weights.

        Raises:
            PackageError: If the package is not the one that was registered.
        """
        evaluations = tuple(registry.evaluations(version))
        return cls(version, registry.manifest(version), evaluations)

    @property
    def facts(self) -> dict[str, str | None]:
        """What the version was made from, by name."""
        manifest, lineage = self.manifest, self.manifest.lineage
        return {
            "task": manifest.task.name,
            "labels": ", ".join(manifest.task.labels) or None,
            "architecture": manifest.architecture.name,
            "contract": manifest.contract_digest,
            "training data": lineage.data_digest,
            "split": lineage.split_digest,
            "test set": lineage.test_digest,
            "parent (initial weights)": lineage.parent,
            "package": self.version.digest,
        }


@dataclass(frozen=True, slots=True)
class MetricPair:
    """One metric of both versions; None if a version does not have it."""

    metric: str
    first: float | None
    second: float | None

    @property
    def difference(self) -> float | None:
        """The second value minus the first."""
        if self.first is None or self.second is None:
            return None
        return self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """Two versions side by side.

    Attributes:
        first: The first version.
        second: The second version.
        same_images: Whether the metrics were measured on the same images; None if not known.
        measured_on: Location of these images, if an evaluation names it.
        metrics: The metrics, by name.
    """

    first: ComparedVersion
    second: ComparedVersion
    same_images: bool | None
    measured_on: str | None
    metrics: tuple[MetricPair, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as JSON for scripts."""
        first, second = self.first.facts, self.second.facts
        return {
            "first": self.first.version.reference,
            "second": self.second.version.reference,
            "same_images": self.same_images,
            "measured_on": self.measured_on,
            "metrics": {
                pair.metric: {
                    "first": pair.first,
                    "second": pair.second,
                    "difference": pair.difference,
                }
                for pair in self.metrics
            },
            "facts": {
                name: {
                    "first": first[name],
                    "second": second[name],
                    "same": first[name] == second[name],
                }
                for name in first
            },
        }


def compare(first: ComparedVersion, second: ComparedVersion) -> Comparison:
    """Compare two versions.

    If both have an evaluation on the same images, its metrics are compared; otherwise the metrics
    that each version was registered with, on its own test set.
    """
    others = {record.data_digest: record for record in second.evaluations}
    for record in first.evaluations:
        other = others.get(record.data_digest)
        if other is not None:
            pairs = _pairs(record.metrics, other.metrics)
            return Comparison(first, second, True, record.data, pairs)
    tests = [side.manifest.lineage.test_digest for side in (first, second)]
    same = None if None in tests else tests[0] == tests[1]
    pairs = _pairs(first.manifest.metrics, second.manifest.metrics)
    return Comparison(first, second, same, None, pairs)


def _pairs(first: Mapping[str, float], second: Mapping[str, float]) -> tuple[MetricPair, ...]:
    names = sorted({*first, *second})
    return tuple(MetricPair(name, first.get(name), second.get(name)) for name in names)
