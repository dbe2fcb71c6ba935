"""Traces the origin of versions (data, parent, run), and the versions that used an image."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.io.yaml_fields import read_fields
from eagleray.registry.registry import ModelVersion, Registry
from eagleray.registry.tracking import registry_errors

__all__ = [
    "ImageUse",
    "ImageUses",
    "VersionLineage",
    "find_image_uses",
    "find_run_name",
    "find_run_names",
    "read_specification",
    "read_split_artifact",
    "reference_of",
    "trace_lineage",
]

SPLIT_ARTIFACT = "split.parquet"
"""A training run's table of images: columns uri, version, label, split (`part` in earlier ones)."""

SPECIFICATION_ARTIFACT = "spec.yaml"
"""A training run's specification, as `eagleray train` reads it."""

SPECIFICATION_ARTIFACTS = (SPECIFICATION_ARTIFACT, "best.yaml")
"""A training's specification, and that of the best trial of a tuning."""

_MAX_REQUESTS = 8  # to MLflow at a time
_MAX_SPECIFICATION_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class VersionLineage:
    """The origin of a version.

    Attributes:
        version: NAME/VERSION.
        data_digest: Digest of the training table.
        split_digest: Digest of the assignment of images to splits.
        test_digest: Digest of the test split.
        parent: NAME/VERSION of the model with the initial weights; the digest of its package if
            this registry does not have it.
        parent_digest: Digest of the parent's package.
        teacher: NAME/VERSION of the model whose predictions it learned from, if there is one; the
            digest of its package if this registry does not have it.
        teacher_digest: Digest of the teacher's package.
        specification: Location of the specification file, if the run has one.
        split: Location of the table of images, if the run has one.
        run: Name of the run, as `eagleray train --from` takes it; None if MLflow has no such run.
        mlflow_run: ID of the MLflow run.
        created: UTC time of creation in ISO 8601.
        eagleray: Version of Eagleray.
        torch: Version of PyTorch.
        note: A note for people.
    """

    version: str
    data_digest: str | None
    split_digest: str | None
    test_digest: str | None
    parent: str | None
    parent_digest: str | None
    teacher: str | None
    teacher_digest: str | None
    specification: str | None
    split: str | None
    run: str | None
    mlflow_run: str | None
    created: str
    eagleray: str
    torch: str
    note: str


@dataclass(frozen=True, slots=True)
class ImageUse:
    """The use of an image by one version.

    Attributes:
        version: NAME/VERSION.
        split: `train`, `validation` or `test`.
        label: The image's label at that time.
        changed: Whether the file has changed since; None if not known.
    """

    version: str
    split: str
    label: str
    changed: bool | None


@dataclass(frozen=True, slots=True)
class ImageUses:
    """The versions that used an image.

    Attributes:
        uri: URI of the image.
        uses: The known uses, by version.
        unknown: Versions whose runs have no table of images.
    """

    uri: str
    uses: tuple[ImageUse, ...]
    unknown: tuple[str, ...]


def trace_lineage(registry: Registry, version: ModelVersion) -> VersionLineage:
    """Trace the origin of a version.

    Raises:
        PackageError: If its package is not the one that was registered.
    """
    lineage = registry.manifest(version).lineage
    kept = registry.artifacts.names(version.run_id) if version.run_id else []
    folder = version.run_folder

    def location(name: str) -> str | None:
        return f"{folder}/{name}" if folder and name in kept else None

    return VersionLineage(
        version=version.reference,
        data_digest=lineage.data_digest,
        split_digest=lineage.split_digest,
        test_digest=lineage.test_digest,
        parent=reference_of(registry, lineage.parent),
        parent_digest=lineage.parent,
        teacher=reference_of(registry, lineage.teacher),
        teacher_digest=lineage.teacher,
        specification=location(SPECIFICATION_ARTIFACT),
        split=location(SPLIT_ARTIFACT),
        run=find_run_name(registry, version),
        mlflow_run=version.run_id,
        created=lineage.created,
        eagleray=lineage.eagleray,
        torch=lineage.torch,
        note=lineage.note,
    )


def find_run_name(registry: Registry, version: ModelVersion) -> str | None:
    """Return the name of the run that registered a version; None if MLflow has no such run."""
    from mlflow.exceptions import MlflowException

    if version.run_id is None:
        return None
    with registry_errors(registry.settings):
        try:
            return str(registry.client.get_run(version.run_id).info.run_name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def find_run_names(registry: Registry, versions: Sequence[ModelVersion]) -> list[str | None]:
    """Return the name of the run that registered each version, as `find_run_name` does."""
    with ThreadPoolExecutor(_MAX_REQUESTS) as pool:
        return list(pool.map(partial(find_run_name, registry), versions))


def find_image_uses(registry: Registry, location: str) -> ImageUses:
    """Find the versions that an image was used for, and in which split.

    Args:
        registry: The registry whose versions are searched.
        location: Path or URI of the image, as in the training table.

    Raises:
        InputError: If a run's table of images cannot be read.
    """
    uri = storage.file_info(location).uri
    versions = registry.all_versions()
    runs = {version.run_id: version for version in versions if version.run_id}
    with ThreadPoolExecutor(_MAX_REQUESTS) as pool:
        tables = pool.map(lambda version: _rows_of(registry, version, uri), runs.values())
        by_run = dict(zip(runs, tables, strict=True))
    now = storage.file_info(location).version
    uses, unknown = [], []
    for version in versions:
        rows = by_run.get(version.run_id) if version.run_id else None
        if rows is None:
            unknown.append(version.reference)
            continue
        uses += [
            ImageUse(
                version.reference,
                row["split"],
                row["label"],
                row["version"] != now if row["version"] and now else None,
            )
            for row in rows
        ]
    return ImageUses(uri, tuple(uses), tuple(unknown))


def _rows_of(registry: Registry, version: ModelVersion, uri: str) -> list[dict[str, Any]] | None:
    """Return an image's rows in the table of a version's run; None if there is no table."""
    found = read_split_artifact(registry, version, filters=pc.field("uri") == uri)
    return None if found is None else found.to_pylist()


def read_split_artifact(
    registry: Registry, version: ModelVersion, *, filters: pc.Expression
) -> pa.Table | None:
    """Read the images that a version's run was given, and the split that each was in.

    Args:
        registry: The registry.
        version: The version.
        filters: Which rows to read. Row groups that cannot hold any are skipped.

    Returns:
        A table with the columns uri, version, label, split; None if the run keeps none.

    Raises:
        InputError: If the table cannot be read.
    """
    folder = version.run_folder
    if folder is None or version.run_id is None:
        return None
    if SPLIT_ARTIFACT not in registry.artifacts.names(version.run_id):
        return None
    with registry.artifacts.accessible(f"{folder}/{SPLIT_ARTIFACT}") as location:
        try:
            with storage.open_seekable(location) as file:
                names = pq.read_schema(file).names
                split = next(name for name in ("split", "part") if name in names)
                columns = ["uri", "version", "label", split]
                found = pq.read_table(file, columns=columns, filters=filters)
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"The table of images of {version.reference} cannot be read: "
                f"{str(error).splitlines()[0].rstrip('.')}."
            ) from error
    return found.rename_columns(["uri", "version", "label", "split"])


def read_specification(registry: Registry, version: ModelVersion) -> dict[str, Any]:
    """Return the fields of a version's training specification; empty if its run keeps none.

    Raises:
        InputError: If the specification cannot be read.
    """
    folder = version.run_folder
    if folder is None or version.run_id is None:
        return {}
    kept = registry.artifacts.names(version.run_id)
    for name in SPECIFICATION_ARTIFACTS:
        if name in kept:
            uri = f"{folder}/{name}"
            with registry.artifacts.accessible(uri, max_bytes=_MAX_SPECIFICATION_BYTES) as file:
                return read_fields(file)
    return {}


def reference_of(registry: Registry, digest: str | None) -> str | None:
    """Return the reference of the version with this package, or the digest if there is none."""
    if digest is None:
        return None
    found = registry.version_of_package(digest)
    return found.reference if found else digest
