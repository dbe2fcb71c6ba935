"""Compares versions: their metrics on the same images, hyperparameters and origins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eagleray.core.limits import MAX_FILES
from eagleray.evaluation.bootstrap import Difference, Measured, paired_bootstrap
from eagleray.evaluation.predictions import ImagePredictions, take_common
from eagleray.evaluation.record import EvaluationRecord
from eagleray.io import storage
from eagleray.models.cost import ModelCost, manifest_cost
from eagleray.models.package import ModelManifest
from eagleray.registry.lineage import read_specification
from eagleray.registry.registry import ModelVersion, Registry

__all__ = ["ComparedVersion", "Comparison", "MetricRow", "compare"]


@dataclass(frozen=True)
class ComparedVersion:
    """One of the versions, with all that is compared.

    Attributes:
        version: The registered version.
        manifest: The manifest of its package.
        evaluations: Its evaluations, newest first.
        specification: The fields of its training specification; empty if it is not known.
        cost: Cost of its network.
        weights_bytes: Size of its weights, or of its quantized network; None if they cannot be
            found.
    """

    version: ModelVersion
    manifest: ModelManifest
    evaluations: tuple[EvaluationRecord, ...]
    specification: Mapping[str, Any]
    cost: ModelCost
    weights_bytes: int | None

    @classmethod
    def read(cls, registry: Registry, version: ModelVersion) -> ComparedVersion:
        """Fetch what is compared, which does not include the weights.

        Raises:
            PackageError: If the package is not the one that was registered.
        """
        evaluations = tuple(registry.evaluations(version))
        specification = read_specification(registry, version)
        manifest = registry.manifest(version)
        cost = manifest_cost(manifest)
        size = _size_of(registry, version, manifest.network_file)
        return cls(version, manifest, evaluations, specification, cost, size)

    @property
    def facts(self) -> dict[str, str | None]:
        """What the version is and was made from, by name."""
        manifest, lineage = self.manifest, self.manifest.lineage
        quantization = manifest.quantization
        return {
            "task": manifest.task.name,
            "labels": ", ".join(manifest.task.labels) or None,
            "architecture": manifest.architecture.title,
            "precision": "float" if quantization is None else quantization.precision,
            "contract": manifest.contract_digest,
            "training data": lineage.data_digest,
            "split": lineage.split_digest,
            "test set": lineage.test_digest,
            "parent (initial weights)": lineage.parent,
            "teacher": lineage.teacher,
            "package": self.version.digest,
        }


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric of all versions.

    Attributes:
        metric: Name of the metric.
        values: Its value for each version; None if a version does not have it.
        differences: The difference of each version but the first to the first one; None if one of
            the two does not have the metric.
    """

    metric: str
    values: tuple[float | None, ...]
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Versions side by side; the first one is what the others are compared with.

    Attributes:
        versions: The versions.
        same_images: Whether the metrics were measured on the same images; None if not known.
        measured_on: Location of these images, if an evaluation names it.
        metrics: The metrics, by name.
        leakage: Sentences on versions that learned from some of these images.
    """

    versions: tuple[ComparedVersion, ...]
    same_images: bool | None
    measured_on: str | None
    metrics: tuple[MetricRow, ...]
    leakage: tuple[str, ...] = ()

    @property
    def references(self) -> list[str]:
        """The references of the versions."""
        return [side.version.reference for side in self.versions]

    @property
    def costs(self) -> dict[str, tuple[int | None, ...]]:
        """The cost of each version: multiply-adds of an image, parameters, bytes of weights."""
        return {
            "multiply_adds": tuple(side.cost.multiply_adds for side in self.versions),
            "parameters": tuple(side.cost.parameters for side in self.versions),
            "weights_bytes": tuple(side.weights_bytes for side in self.versions),
        }

    @property
    def hyperparameters(self) -> dict[str, tuple[Any, ...]]:
        """The fields of the training specifications that differ, with their values.

        A value is None for a version whose specification is not known, or lacks the field.
        """
        known = [side.specification for side in self.versions if side.specification]
        names = dict.fromkeys(name for specification in known for name in specification)
        return {
            name: tuple(side.specification.get(name) for side in self.versions)
            for name in names
            if any(one.get(name) != known[0].get(name) for one in known)
        }

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as JSON for scripts; every list is in the order of `versions`."""
        facts = [side.facts for side in self.versions]
        return {
            "versions": self.references,
            "same_images": self.same_images,
            "measured_on": self.measured_on,
            "leakage": list(self.leakage),
            "metrics": {
                row.metric: {
                    "values": list(row.values),
                    "differences": [one and asdict(one) for one in row.differences],
                }
                for row in self.metrics
            },
            "cost": {name: list(values) for name, values in self.costs.items()},
            "hyperparameters": {
                name: list(values) for name, values in self.hyperparameters.items()
            },
            "facts": {
                name: {
                    "values": [one[name] for one in facts],
                    "same": len({one[name] for one in facts}) == 1,
                }
                for name in facts[0]
            },
        }


def _size_of(registry: Registry, version: ModelVersion, file: str) -> int | None:
    """Return the size of a file of a version's package; None if it cannot be found."""
    if registry.artifacts.is_behind_server(version.source):
        return registry.artifacts.sizes(version.source, limit=2 * MAX_FILES).get(file)
    try:
        return storage.size_of(storage.join(version.source, file))
    except OSError:
        return None


def compare(registry: Registry, versions: Sequence[ComparedVersion]) -> Comparison:
    """Compare versions with the first of them.

    If all have an evaluation on the same images, its metrics are compared, preferably on images
    that none has learned from; otherwise the metrics that each version was registered with, on its
    own test set. Differences have intervals and p-values where the predictions were kept.

    Args:
        registry: The registry.
        versions: The versions, at least two.

    Raises:
        InputError: If predictions cannot be read.
    """
    records = _common_records(versions)
    if records is None:
        tests = [side.manifest.lineage.test_digest for side in versions]
        same = None if None in tests else len(set(tests)) == 1
        rows = _rows(versions, [side.manifest.metrics for side in versions])
        return Comparison(tuple(versions), same, None, rows)
    predictions = [
        registry.predictions(side.version, record.data_digest)
        for side, record in zip(versions, records, strict=True)
    ]
    paired = [
        _paired(versions[0], predictions[0], side, own)
        for side, own in zip(versions[1:], predictions[1:], strict=True)
    ]
    rows = _rows(versions, [record.metrics for record in records], paired)
    leakage = tuple(record.leakage for record in records if record.leakage)
    return Comparison(tuple(versions), True, records[0].data, rows, leakage)


def _common_records(versions: Sequence[ComparedVersion]) -> list[EvaluationRecord] | None:
    """Return the evaluations of all versions on the same images; the newest that count first."""
    found = []
    for record in versions[0].evaluations:
        others = [
            next((one for one in side.evaluations if one.data_digest == record.data_digest), None)
            for side in versions[1:]
        ]
        known = [one for one in others if one is not None]
        if len(known) == len(others):
            found.append([record, *known])
    counting = [records for records in found if all(one.counts for one in records)]
    return next(iter([*counting, *found]), None)


def _paired(
    first: ComparedVersion,
    first_predictions: ImagePredictions | None,
    other: ComparedVersion,
    other_predictions: ImagePredictions | None,
) -> dict[str, Difference]:
    """Return the differences that resampling yields; none without predictions of the same task."""
    tasks = [first.manifest.task, other.manifest.task]
    if first_predictions is None or other_predictions is None:
        return {}
    if tasks[0].name != tasks[1].name or set(tasks[0].labels) != set(tasks[1].labels):
        return {}
    nothing = np.zeros(0, np.int64)
    sides = take_common(first_predictions, other_predictions, without=nothing)
    if not len(sides[0].rows):
        return {}
    one, two = (
        Measured(task, side.outputs, side.targets) for task, side in zip(tasks, sides, strict=True)
    )
    return paired_bootstrap(one, two)


def _rows(
    versions: Sequence[ComparedVersion],
    metrics: Sequence[Mapping[str, float]],
    paired: Sequence[Mapping[str, Difference]] = (),
) -> tuple[MetricRow, ...]:
    """Return a row for each metric: the headline metrics first, the others by name."""
    headline = list(versions[0].manifest.task.headline_names)

    def place_of(name: str) -> tuple[int, str]:
        plain = name.removeprefix("test_")
        return headline.index(plain) if plain in headline else len(headline), name

    rows = []
    for name in sorted({name for one in metrics for name in one}, key=place_of):
        values = tuple(one.get(name) for one in metrics)
        base = values[0]
        differences = tuple(
            None
            if base is None or value is None
            else _difference(value - base, paired[place].get(name) if paired else None)
            for place, value in enumerate(values[1:])
        )
        rows.append(MetricRow(name, values, differences))
    return tuple(rows)


def _difference(value: float, resampled: Difference | None) -> Difference:
    if resampled is None:
        return Difference(value)
    return Difference(value, resampled.interval, resampled.p_value)
