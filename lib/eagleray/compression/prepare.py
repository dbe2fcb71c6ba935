"""Finds the images that a quantization of a version is calibrated, checked and tested on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from eagleray.compression.calibration import list_images, stratified_order
from eagleray.compression.spec import MIN_IMAGES, QuantizeSpec
from eagleray.core.errors import InputError
from eagleray.core.names import require_alias
from eagleray.core.settings import Settings
from eagleray.data.labelled import LabelledImages
from eagleray.data.split import SPLIT_NAMES
from eagleray.data.split_file import read_named_split
from eagleray.inference.choice import require_engine
from eagleray.io import storage
from eagleray.models.graph_export import require_graph_outputs
from eagleray.models.package import ModelPackage
from eagleray.registry.lineage import SPLIT_ARTIFACT
from eagleray.registry.references import require_version
from eagleray.registry.registry import ModelVersion, Registry

__all__ = ["QuantizeJob", "open_quantization", "read_splits", "split_artifact"]

_HELD_OUT_SHARE = 4  # one in so many images is held out where there is no validation split


@dataclass(frozen=True)
class QuantizeJob:
    """A checked quantization.

    Attributes:
        spec: Specification of the quantization.
        settings: Settings of this process.
        registry: The registry.
        parent: The version to quantize.
        package: Its package.
        calibration: Images to calibrate on, in the order in which they are taken.
        where: Where they come from, for people.
        held_out: Other images, on which the loss is measured.
        held_out_labelled: Whether these have labels.
        test: The images that the parent was tested on; None if they are not known.
        notes: Sentences on what was decided for the user.
    """

    spec: QuantizeSpec
    settings: Settings
    registry: Registry
    parent: ModelVersion
    package: ModelPackage
    calibration: LabelledImages
    where: str
    held_out: LabelledImages
    held_out_labelled: bool
    test: LabelledImages | None
    notes: tuple[str, ...]


def open_quantization(spec: QuantizeSpec, settings: Settings) -> QuantizeJob:
    """Find everything that a quantization needs, before an image is read.

    Raises:
        UserError: If the version is unknown, imported, hosted, quantized already or has several
            outputs, or there are no images to calibrate on, or OpenVINO is not installed; the
            message says how to fix it.
    """
    storage.use_s3(spec.s3)
    if spec.alias is not None:
        require_alias(spec.alias)
    require_engine("openvino", device="cpu")
    registry = Registry(settings)
    parent = require_version(spec.model, registry)
    manifest = registry.manifest(parent)
    if manifest.imported is not None:
        raise InputError(
            f"{parent.reference} is imported, and only networks of PyTorch are quantized here; "
            "quantize it where it was made, and import the result, or quantize a model that was "
            "trained by `eagleray train`."
        )
    if manifest.hosted is not None:
        raise InputError(
            f"{parent.reference} is run by another server, so its network is not here; quantize it "
            "where it runs, or quantize a model that was trained by `eagleray train`."
        )
    if manifest.quantization is not None:
        raise InputError(
            f"{parent.reference} is quantized already; quantize the version that it was made from."
        )
    if not manifest.task.has_exports:
        raise InputError(
            f"{parent.reference} has outputs ({', '.join(manifest.task.network_outputs)}) that are "
            "not quantized; use the float model."
        )
    with split_artifact(registry, parent) as file:
        splits = {} if file is None else read_splits(file)
    test = splits.get("test")
    notes: list[str] = []
    if spec.data is not None:
        calibration, where = list_images(spec.data, spec.column), spec.data
        notes += calibration.notes
        if test is not None:
            calibration = _without(calibration, test, notes)
    elif "train" in splits:
        calibration, where = splits["train"], f"the training split of {parent.reference}"
    else:
        raise InputError(
            f"{parent.reference} keeps no table of its training images; name images like them by "
            "--data."
        )
    package = registry.load(parent)
    require_graph_outputs(package)
    calibration = calibration.take(stratified_order(calibration.labels, spec.seed))
    held_out, labelled = splits.get("validation"), True
    if held_out is None or len(held_out) < MIN_IMAGES:
        rows = range(len(calibration))
        held_out = calibration.take([row for row in rows if row % _HELD_OUT_SHARE == 0])
        calibration = calibration.take([row for row in rows if row % _HELD_OUT_SHARE != 0])
        labelled = spec.data is None
    else:
        held_out = held_out.take(stratified_order(held_out.labels, spec.seed))
    return QuantizeJob(
        spec=spec,
        settings=settings,
        registry=registry,
        parent=parent,
        package=package,
        calibration=calibration,
        where=where,
        held_out=held_out,
        held_out_labelled=labelled,
        test=test,
        notes=tuple(notes),
    )


@contextlib.contextmanager
def split_artifact(registry: Registry, version: ModelVersion) -> Iterator[str | None]:
    """Yield a location of the table of images of a version's run; None if it keeps none."""
    folder = version.run_folder
    kept = registry.artifacts.names(version.run_id) if version.run_id is not None else []
    if folder is None or SPLIT_ARTIFACT not in kept:
        yield None
    else:
        with registry.artifacts.accessible(f"{folder}/{SPLIT_ARTIFACT}") as location:
            yield location


def read_splits(location: str) -> dict[str, LabelledImages]:
    """Return the splits of a table of images that have any.

    Raises:
        InputError: If the table cannot be read.
    """
    found = {}
    fault: InputError | None = None
    for name in SPLIT_NAMES:
        try:
            found[name] = read_named_split(location, name)
        except InputError as error:  # the split has no images
            fault = error
    if fault is not None and not found:
        raise fault
    return found


def _without(images: LabelledImages, test: LabelledImages, notes: list[str]) -> LabelledImages:
    """Leave out the images that the result is tested on."""
    tested = set(test.uris)
    rows = [row for row, uri in enumerate(images.uris) if uri not in tested]
    if len(rows) < len(images):
        notes.append(
            f"{len(images) - len(rows):,} of the calibration images are test images of the model, "
            "and left out."
        )
    return images.take(rows)
