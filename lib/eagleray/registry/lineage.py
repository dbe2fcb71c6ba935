"""Where versions come from: their data, their parent, their run; and which images taught whom."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.registry.registry import DIGEST_TAG, ModelVersion, Registry

__all__ = ["ImageUse", "ImageUses", "VersionLineage", "find_image_uses", "trace_lineage"]

SPLIT_ARTIFACT = "split.parquet"
"""A training run's table of images: columns uri, version, label, part."""

SPECIFICATION_ARTIFACT = "spec.yaml"
"""What a training run was asked to do, as `eagleray train` reads it."""

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class VersionLineage:
    """Where a version comes from.

    Attributes:
        version: Of the registry.
        data_digest: Of the training table.
        split_digest: Of its parts.
        test_digest: Of the part that it was tested on.
        parent: NAME/VERSION of the model that training started from; where this registry does not
            have it, the digest of its package.
        parent_digest: Of that package.
        specification: Location of the specification file, if the run has one.
        split: Location of the table of images, if the run has one.
        run: Of MLflow.
        created: ISO time, UTC.
        eagleray: Version of Eagleray.
        torch: Version of PyTorch.
        note: Whatever a person should know.
    """

    version: str
    data_digest: str | None
    split_digest: str | None
    test_digest: str | None
    parent: str | None
    parent_digest: str | None
    specification: str | None
    split: str | None
    run: str | None
    created: str
    eagleray: str
    torch: str
    note: str


@dataclass(frozen=True, slots=True)
class ImageUse:
    """One version that an image was given to.

    Attributes:
        version: NAME/VERSION.
        split: `train`, `validation` or `test`.
        label: As it was then.
        changed: Whether the image is another one now; None if nobody can tell.
    """

    version: str
    split: str
    label: str
    changed: bool | None


@dataclass(frozen=True, slots=True)
class ImageUses:
    """What is known of an image.

    Attributes:
        uri: Of the image.
        uses: By version.
        unknown: Versions whose runs kept no table of images.
    """

    uri: str
    uses: tuple[ImageUse, ...]
    unknown: tuple[str, ...]


def trace_lineage(registry: Registry, version: ModelVersion) -> VersionLineage:
    """Find out where a version comes from.

    Raises:
        PackageError: Its package is not what was registered.
    """
    lineage = registry.manifest(version).lineage
    kept = registry.artifacts.names(version.run_id) if version.run_id else []
    folder = _run_folder(version)

    def location(name: str) -> str | None:
        return f"{folder}/{name}" if folder and name in kept else None

    return VersionLineage(
        version=version.reference,
        data_digest=lineage.data_digest,
        split_digest=lineage.split_digest,
        test_digest=lineage.test_digest,
        parent=_reference_of(registry, lineage.parent),
        parent_digest=lineage.parent,
        specification=location(SPECIFICATION_ARTIFACT),
        split=location(SPLIT_ARTIFACT),
        run=version.run_id,
        created=lineage.created,
        eagleray=lineage.eagleray,
        torch=lineage.torch,
        note=lineage.note,
    )


def find_image_uses(registry: Registry, location: str) -> ImageUses:
    """Find the versions that an image was given to, and as what.

    Args:
        registry: All of whose versions are asked.
        location: Path or URI of the image, as the training table names it.

    Raises:
        InputError: A run's table of images cannot be read.
    """
    uri = storage.file_info(location).uri
    versions = registry.all_versions()
    runs = {version.run_id: version for version in versions if version.run_id}
    with ThreadPoolExecutor(_AT_ONCE) as askers:
        answers = askers.map(lambda version: _rows_of(registry, version, uri), runs.values())
        by_run = dict(zip(runs, answers, strict=True))
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
                row["part"],
                row["label"],
                row["version"] != now if row["version"] and now else None,
            )
            for row in rows
        ]
    return ImageUses(uri, tuple(uses), tuple(unknown))


def _rows_of(registry: Registry, version: ModelVersion, uri: str) -> list[dict[str, Any]] | None:
    """Return an image's rows in the table of a version's run; None if there is no table."""
    assert version.run_id is not None
    folder = _run_folder(version)
    if folder is None or SPLIT_ARTIFACT not in registry.artifacts.names(version.run_id):
        return None
    with registry.artifacts.accessible(f"{folder}/{SPLIT_ARTIFACT}") as table:
        try:
            with storage.open_seekable(table) as file:
                columns = ["version", "label", "part"]
                # Row groups that cannot hold the image are not read.
                found = pq.read_table(file, columns=columns, filters=pc.field("uri") == uri)
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"The table of images of {version.reference} cannot be read: "
                f"{str(error).splitlines()[0].rstrip('.')}."
            ) from error
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def _run_folder(version: ModelVersion) -> str | None:
    """Return where a version's run keeps things, if that is where its package is."""
    folder, _, name = version.source.rpartition("/")
    return folder if name == "package" and version.run_id else None


def _reference_of(registry: Registry, digest: str | None) -> str | None:
    """Return the name of the version that has this package, or the digest itself."""
    if digest is None:
        return None
    found = registry.all_versions(filter_string=f"tag.`{DIGEST_TAG}` = '{digest}'")
    return found[0].reference if found else digest
