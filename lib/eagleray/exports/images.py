"""Collects the decoded images that an export is compared on: golden and evaluation images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from eagleray.compression.calibration import list_images
from eagleray.core.errors import BadImageError, EaglerayError, InputError, PackageError
from eagleray.exports.spec import ExportSpec
from eagleray.imaging import DecodedImage, decode
from eagleray.imaging.geometry import frame_of
from eagleray.io.fetch import fetch_image
from eagleray.models.package import ModelPackage
from eagleray.registry.lineage import read_split_artifact
from eagleray.registry.registry import ModelVersion, Registry
from eagleray.tasks import Prediction

__all__ = ["ComparisonImages", "collect_images", "evaluation_uris"]

_MAX_BYTES = 2**30  # of the decoded images
_MAX_OUTPUT_BYTES = 2**29  # of the outputs of each of the two models


@dataclass(frozen=True)
class ComparisonImages:
    """Decoded images that an export is compared on.

    Attributes:
        uris: Locations of the N images; `golden/…` for those of the package.
        decoded: The images.
        num_golden: Number of golden images, which come first.
        notes: Sentences on where the others are from, and how many could not be read.
    """

    uris: tuple[str, ...]
    decoded: tuple[DecodedImage, ...]
    num_golden: int
    notes: tuple[str, ...]

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """The images as one array (N, H, W, C)."""
        return np.stack([image.pixels for image in self.decoded])

    def predictions(
        self, package: ModelPackage, outputs: npt.NDArray[np.float32]
    ) -> list[Prediction]:
        """Return what outputs (N, num_values) mean."""
        return [
            package.task.postprocess(row, frame_of(package.contract, image.width, image.height))
            for row, image in zip(outputs, self.decoded, strict=True)
        ]


def evaluation_uris(
    spec: ExportSpec, registry: Registry, version: ModelVersion | None
) -> tuple[list[str], str]:
    """Return the locations of evaluation images, and a sentence on where they are from.

    They are those of `--data`, or the test split of the run that made the version or its parent.

    Raises:
        InputError: If `--data` cannot be read.
    """
    if spec.data is not None:
        uris = list(list_images(spec.data, spec.column).uris)
        return uris, f"Evaluation images are from {spec.data}."
    if version is not None:
        try:
            for one in _with_parent(registry, version):
                used = read_split_artifact(registry, one, filters=pc.field("split") == "test")
                if used is not None and len(used):
                    uris = used.column("uri").to_pylist()
                    return uris, f"Evaluation images are from the test split of {one.reference}."
        except (EaglerayError, OSError):
            pass  # golden images alone remain, which the note says
    return [], "There is no test split to read; only golden images are compared."


def _with_parent(registry: Registry, version: ModelVersion) -> Iterator[ModelVersion]:
    yield version
    parent = registry.manifest(version).lineage.parent
    found = registry.version_of_package(parent) if parent is not None else None
    if found is not None:
        yield found


def collect_images(
    package: ModelPackage, uris: Sequence[str], source: str, max_images: int
) -> ComparisonImages:
    """Read and decode the golden images, and evaluation images that are evenly spread.

    Args:
        package: The model package.
        uris: Locations of evaluation images.
        source: A sentence on where they are from.
        max_images: Maximum number of evaluation images.

    Raises:
        InputError: If there is no image.
        PackageError: If a golden image cannot be decoded.
    """
    contract = package.contract
    golden = [image.file for image in package.golden.images]
    try:
        decoded = [decode(package.files[name], contract) for name in golden]
    except BadImageError as error:
        raise PackageError(
            f"Model {package.manifest.name!r} has a golden image that cannot be decoded "
            f"({error.message})."
        ) from error
    by_outputs = _MAX_OUTPUT_BYTES // (4 * package.task.num_activated(contract))
    by_pixels = _MAX_BYTES // int(np.prod(contract.shape))
    most = min(max_images, max(1, min(by_outputs, by_pixels)))
    rows = np.linspace(0, len(uris) - 1, min(most, len(uris))).astype(int)
    read, failed = [], 0
    for uri in [uris[row] for row in rows]:
        try:
            decoded.append(decode(fetch_image(uri, contract), contract))
            read.append(uri)
        except BadImageError:
            failed += 1
    if not decoded:
        images = "no evaluation image can be read" if uris else "no evaluation images are known"
        raise InputError(
            f"Model {package.manifest.name!r} has no golden images, and {images}, so an export "
            "cannot be compared with it; name images by --data."
        )
    notes = [source]
    if failed:
        notes.append(f"{failed:,} of {len(rows):,} evaluation images could not be read.")
    return ComparisonImages((*golden, *read), tuple(decoded), len(golden), tuple(notes))
