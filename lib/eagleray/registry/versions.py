"""A version of a registered model, and its tags in MLflow."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import ValidationError

from eagleray.inference.latency import Latency
from eagleray.models.package import ModelPackage

__all__ = [
    "DIGEST_TAG",
    "FOLDER_TAG",
    "MODEL_ARTIFACT",
    "PACKAGE_ARTIFACT",
    "ModelVersion",
    "alias_numbers",
    "latency_tag",
    "make_version",
    "package_tags",
]

MODEL_ARTIFACT = "model"
"""The folder of a run's artifacts in MLflow's model format, which contains the package."""

PACKAGE_ARTIFACT = "package"
"""The folder of a package beside `MLmodel`; of earlier versions, in the run's artifacts."""

FOLDER_TAG = "eagleray.package_folder"
"""The tag of versions in MLflow's model format; those of earlier releases lack it."""

DIGEST_TAG = "eagleray.package_digest"
CONTRACT_TAG = "eagleray.contract_digest"
TASK_TAG = "eagleray.task"
ARCHITECTURE_TAG = "eagleray.architecture"
METRIC_TAG_PREFIX = "eagleray.metric."
DID_NOT_LEARN_TAG = "eagleray.did_not_learn"
"""Sentences, a line each, that say why the training of a version did not learn."""
LATENCY_TAG_PREFIX = "eagleray.latency."
"""Prefix of the tags with measurements, one for each machine and engine."""
QUANTIZATION_TAG = "eagleray.precision"
"""The precision of a quantized network; other versions lack the tag."""
MAX_TAG_LENGTH = 4000
"""Maximum number of characters of a tag, below MLflow's limit."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a registered model.

    Attributes:
        name: The model's name.
        version: The version's number, which counts from 1.
        aliases: Aliases that point to the version, sorted.
        created: Time of registration in milliseconds since 1970.
        source: Location of the version's package.
        run_id: ID of the MLflow run that registered the version, if any.
        digest: Digest of the package; empty for a version that Eagleray has not registered.
        task: Name of the task.
        architecture: Name of the architecture.
        metrics: Metrics of the package's manifest.
        did_not_learn: Sentences that say why its training did not learn; none if it did.
        precision: Precision of a quantized network; None for a float network.
        latencies: Measurements of its speed, one for each machine and engine, newest first.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    created: int
    source: str
    run_id: str | None
    digest: str
    task: str
    architecture: str
    metrics: Mapping[str, float]
    did_not_learn: tuple[str, ...] = ()
    precision: str | None = None
    latencies: tuple[Latency, ...] = ()

    @property
    def reference(self) -> str:
        """The reference that loads exactly this version."""
        return f"{self.name}/{self.version}"

    @property
    def run_folder(self) -> str | None:
        """Location of the artifacts of the version's run, if the package is among them."""
        folder, _, name = self.source.rpartition("/")
        if self.run_id is None or name != PACKAGE_ARTIFACT:
            return None
        return folder.removesuffix(f"/{MODEL_ARTIFACT}")


def package_tags(package: ModelPackage) -> dict[str, str]:
    """Return the tags of a package's version in MLflow."""
    manifest = package.manifest
    metrics = {METRIC_TAG_PREFIX + key: repr(value) for key, value in manifest.metrics.items()}
    quantization = manifest.quantization
    return {
        FOLDER_TAG: PACKAGE_ARTIFACT,
        DIGEST_TAG: package.digest,
        CONTRACT_TAG: manifest.contract_digest,
        TASK_TAG: manifest.task.name,
        ARCHITECTURE_TAG: manifest.architecture.name,
        **({QUANTIZATION_TAG: quantization.precision} if quantization else {}),
        **metrics,
    }


def alias_numbers(model: Any) -> dict[str, int]:
    """Return the aliases of an MLflow model with their versions."""
    return {alias: int(version) for alias, version in dict(model.aliases).items()}


def make_version(found: Any, aliases: Mapping[str, int]) -> ModelVersion:
    """Make a version from MLflow's, which often lacks the aliases."""
    tags = dict(found.tags or {})
    inside = f"/{PACKAGE_ARTIFACT}" if FOLDER_TAG in tags else ""
    number = int(found.version)
    return ModelVersion(
        name=found.name,
        version=number,
        aliases=tuple(sorted(name for name, target in aliases.items() if target == number)),
        created=int(found.creation_timestamp),
        source=found.source + inside,
        run_id=found.run_id or None,
        digest=tags.get(DIGEST_TAG, ""),
        task=tags.get(TASK_TAG, ""),
        architecture=tags.get(ARCHITECTURE_TAG, ""),
        metrics={
            key.removeprefix(METRIC_TAG_PREFIX): float(value)
            for key, value in tags.items()
            if key.startswith(METRIC_TAG_PREFIX)
        },
        did_not_learn=tuple(tags.get(DID_NOT_LEARN_TAG, "").splitlines()),
        precision=tags.get(QUANTIZATION_TAG),
        latencies=_latencies(tags),
    )


def latency_tag(latency: Latency) -> str:
    """Return the name of the tag that keeps a measurement."""
    place = sha256(repr(latency.place).encode()).hexdigest()[:12]
    return f"{LATENCY_TAG_PREFIX}{place}"


def _latencies(tags: Mapping[str, str]) -> tuple[Latency, ...]:
    """Return the measurements in the tags, newest first; damaged ones are passed over."""
    found = []
    for name, text in tags.items():
        if name.startswith(LATENCY_TAG_PREFIX):
            with contextlib.suppress(ValidationError):
                found.append(Latency.model_validate_json(text))
    return tuple(sorted(found, key=lambda one: one.created, reverse=True))
