"""Gives a registered classifier an outlier score, and registers the result as its next version.

spec -> open_outliers    finds the version, its training images and its validation images
     -> run_outliers     fits the statistics, makes the package and registers it
     -> OutliersSummary  what was found
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from eagleray.compression.calibration import list_images, stratified_order
from eagleray.compression.prepare import read_splits, split_artifact
from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import InputError
from eagleray.core.names import require_alias
from eagleray.core.settings import Settings
from eagleray.data.labelled import LabelledImages
from eagleray.inference.predictor import Predictor
from eagleray.io import storage
from eagleray.models.manifest import Lineage
from eagleray.models.outliers import OutlierStatistics
from eagleray.models.package import OUTLIERS_FILE, ModelPackage
from eagleray.outliers.fitting import FittedStatistics, fit_statistics
from eagleray.outliers.spec import MIN_IMAGES, OutliersSpec
from eagleray.registry.references import require_version
from eagleray.registry.registry import ModelVersion, Registry
from eagleray.registry.tracking import PARENT_TAG, TrackedRun

__all__ = ["OutliersJob", "OutliersSummary", "open_outliers", "run_outliers", "with_outliers"]

_HELD_OUT_SHARE = 4  # one in so many images gives the levels where there is no validation split


@dataclass(frozen=True)
class OutliersJob:
    """A checked specification.

    Attributes:
        spec: The specification.
        registry: The registry.
        parent: The version that gets an outlier score.
        package: Its package.
        train: Images whose features are described, in the order in which they are taken.
        validation: Other images, which give the levels.
        settings: Settings of this process.
        notes: Sentences on what was decided for the user.
    """

    spec: OutliersSpec
    registry: Registry
    parent: ModelVersion
    package: ModelPackage
    train: LabelledImages
    validation: LabelledImages
    settings: Settings
    notes: tuple[str, ...]


@dataclass(frozen=True)
class OutliersSummary:
    """A version with an outlier score.

    Attributes:
        version: The new version.
        parent: The version that it was made from.
        fitted: The statistics, and of how many images they were made.
    """

    version: ModelVersion
    parent: ModelVersion
    fitted: FittedStatistics

    def as_json(self) -> dict[str, Any]:
        """Return the summary for scripts."""
        return {
            "model": self.version.reference,
            "aliases": list(self.version.aliases),
            "package_digest": self.version.digest,
            "parent": self.parent.reference,
            "parent_digest": self.parent.digest,
            "train_images": self.fitted.num_train,
            "validation_images": self.fitted.num_validation,
            "failed_images": self.fitted.num_failed,
            "bytes": len(self.fitted.statistics.to_bytes()),
        }


def open_outliers(spec: OutliersSpec, settings: Settings) -> OutliersJob:
    """Find everything that the statistics need, before an image is read.

    Raises:
        UserError: If the version is unknown, is no classifier of PyTorch, or there are no images.
    """
    storage.use_s3(spec.s3)
    if spec.alias is not None:
        require_alias(spec.alias)
    registry = Registry(settings)
    parent = require_version(spec.model, registry)
    package = registry.load(parent)
    package.task.with_outlier_score()
    package.require_pytorch()
    splits: dict[str, LabelledImages] = {}
    notes: tuple[str, ...] = ()
    if spec.data is not None:
        images = list_images(spec.data, spec.column)
        splits, notes = {"train": images}, images.notes
    else:
        with split_artifact(registry, parent) as file:
            splits = {} if file is None else read_splits(file)
    if "train" not in splits:
        raise InputError(
            f"{parent.reference} keeps no table of its training images; name images like them by "
            "--data."
        )
    train, validation = _divide(splits, spec, parent)
    return OutliersJob(
        spec=spec,
        registry=registry,
        parent=parent,
        package=package,
        train=train,
        validation=validation,
        settings=settings,
        notes=notes,
    )


def _divide(
    splits: dict[str, LabelledImages], spec: OutliersSpec, parent: ModelVersion
) -> tuple[LabelledImages, LabelledImages]:
    """Return the images to describe and those that give the levels, as many as are wanted.

    Raises:
        InputError: If there are too few.
    """
    train, validation = splits["train"], splits.get("validation")
    train = train.take(stratified_order(train.labels, spec.seed))
    if spec.data is not None:
        rows = range(len(train))
        validation = train.take([row for row in rows if row % _HELD_OUT_SHARE == 0])
        train = train.take([row for row in rows if row % _HELD_OUT_SHARE != 0])
        least = MIN_IMAGES * _HELD_OUT_SHARE
        if len(validation) < MIN_IMAGES:
            raise InputError(
                f"--data has {len(train) + len(validation):,} images, and an outlier score needs "
                f"at least {least:,}, a quarter of which gives its levels; name more."
            )
    elif validation is None or len(validation) < MIN_IMAGES:
        count = 0 if validation is None else len(validation)
        raise InputError(
            f"The run of {parent.reference} keeps {count:,} validation images, and the levels of "
            f"an outlier score need at least {MIN_IMAGES}, which the network was not trained on; "
            "name other images like those of the training by --data."
        )
    else:
        validation = validation.take(stratified_order(validation.labels, spec.seed))
    return train.take(range(len(train))[: spec.num_images]), validation.take(
        range(len(validation))[: spec.num_images]
    )


def run_outliers(job: OutliersJob, reporter: ProgressReporter) -> OutliersSummary:
    """Fit the statistics, make the package, check it and register it.

    Raises:
        InputError: If the last layer is not a linear one, or too few images can be decoded.
    """
    fitted = fit_statistics(job.package, job.train, job.validation, reporter)
    tags = {
        "eagleray.kind": "outliers",
        "eagleray.parent": job.parent.reference,
        "mlflow.source.name": "eagleray models outliers",
        **({} if job.parent.run_id is None else {PARENT_TAG: job.parent.run_id}),
    }
    with job.registry.start_run(f"outliers {job.parent.reference}", tags=tags) as tracked:
        package = with_outliers(job.package, fitted.statistics, _lineage(job, tracked))
        Predictor(package, device="cpu", cache_folder=job.settings.cache_folder).require_healthy()
        with reporter.status("Registering"):
            version = job.registry.register(package, run=tracked, alias=job.spec.alias)
            _log(job, fitted, tracked)
    return OutliersSummary(version, job.parent, fitted)


def with_outliers(
    package: ModelPackage, statistics: OutlierStatistics, lineage: Lineage
) -> ModelPackage:
    """Return the package of a classifier with outlier statistics.

    Raises:
        InputError: If the task has no outlier score.
    """
    files = {**package.files, OUTLIERS_FILE: statistics.to_bytes()}
    digest = hashlib.sha256(files[OUTLIERS_FILE]).hexdigest()
    manifest = package.manifest.model_copy(
        update={
            "task": package.task.with_outlier_score(),
            "lineage": lineage,
            "files": {**package.manifest.files, OUTLIERS_FILE: digest},
        }
    )
    return ModelPackage(manifest, MappingProxyType(files))


def _lineage(job: OutliersJob, tracked: TrackedRun) -> Lineage:
    note = f"{job.parent.reference} with an outlier score"
    origin = job.package.manifest.lineage
    return origin.of_child(parent=job.package.digest, run=tracked.run_id, note=note)


def _log(job: OutliersJob, fitted: FittedStatistics, tracked: TrackedRun) -> None:
    """Record with the run what the statistics were made of, and the parent's table of images."""
    tracked.log_parameters(
        {
            **job.spec.model_dump(include={"data", "num_images", "seed"}),
            "parent": job.parent.reference,
            "parent_digest": job.parent.digest,
        }
    )
    tracked.log_metrics(
        {
            "train_images": fitted.num_train,
            "validation_images": fitted.num_validation,
            "failed_images": fitted.num_failed,
        }
    )
    with split_artifact(job.registry, job.parent) as file:
        if file is not None:
            tracked.log_file(file)
