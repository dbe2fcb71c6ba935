"""A conversion of labels, from its specification to the written files.

spec -> open_conversion   reads the labels, checks the output and what the format can carry
-> run_conversion    writes the labels and copies the images
-> ConvertSummary    what was written and what was lost; `jobs/convert.py` prints it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import BadImageError, InputError, OutputExistsError
from eagleray.data.annotations.image_sizes import ANY_IMAGE
from eagleray.data.annotations.output import Losses, NamedImage, Writer, classes_of, name_images
from eagleray.data.annotations.spec import ConvertSpec, LabelFormatName
from eagleray.data.annotations.write_coco import write_coco
from eagleray.data.annotations.write_masks import write_index_masks, write_instance_masks
from eagleray.data.annotations.write_panoptic import write_panoptic
from eagleray.data.annotations.write_voc import write_voc
from eagleray.data.annotations.write_yolo import write_yolo
from eagleray.data.labelled import read_objects
from eagleray.io import storage
from eagleray.io.fetch import fetch_image
from eagleray.io.read_ahead import read_ahead

__all__ = ["ConvertJob", "ConvertSummary", "open_conversion", "run_conversion"]

_WRITERS: Mapping[LabelFormatName, Writer] = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "masks": write_index_masks,
    "instances": write_instance_masks,
    "panoptic": write_panoptic,
}
_THREADS = 16
_NOT_COPIED = "images that cannot be read, which are not copied"


@dataclass(frozen=True)
class ConvertJob:
    """A checked conversion.

    Attributes:
        spec: Specification of the conversion.
        images: The images, named as they are written.
        notes: Sentences on how they were read, and what was left out.
    """

    spec: ConvertSpec
    images: Sequence[NamedImage]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ConvertSummary:
    """The result of a conversion.

    Attributes:
        output: Where the labels are.
        format: Format that was written.
        num_images: Number of images.
        num_objects: Number of objects that were read.
        classes: Number of classes.
        num_files: Number of files of labels that were written.
        num_copied: Number of images that were copied.
        losses: What the format cannot carry, by its words, with counts.
        finding: A sentence on how the images are found, if they are not copied; else empty.
    """

    output: str
    format: str
    num_images: int
    num_objects: int
    classes: int
    num_files: int
    num_copied: int
    losses: Mapping[str, int]
    finding: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the summary for scripts."""
        return asdict(self)


def open_conversion(spec: ConvertSpec) -> ConvertJob:
    """Read the labels and check the output.

    Raises:
        UserError: If the data or the output cannot be used; the message says how to fix it.
    """
    storage.use_s3(spec.s3)
    _require_empty(spec.output)
    images = read_objects(
        spec.data,
        uri_column=spec.column,
        label_column=spec.label_column,
        policy=spec.path_policy,
        max_invalid=spec.max_invalid,
    )
    return ConvertJob(spec, name_images(images), images.notes)


def _require_empty(output: str) -> None:
    if storage.exists(output) and (
        not storage.is_folder(output) or next(iter(storage.list_files(output)), None) is not None
    ):
        raise OutputExistsError(f"{output} exists and is not empty; name a new folder.")


def run_conversion(job: ConvertJob, reporter: ProgressReporter) -> ConvertSummary:
    """Write the labels, and copy the images if that is wanted.

    Raises:
        InputError: If the format cannot hold the labels, or the output cannot be written.
    """
    losses: Losses = Losses()
    num_files = _write_labels(job, losses, reporter)
    num_copied = _copy_images(job, losses, reporter) if job.spec.copy_images else 0
    return ConvertSummary(
        output=job.spec.output,
        format=job.spec.to,
        num_images=len(job.images),
        num_objects=sum(len(image.annotation.known) for image in job.images),
        classes=len(classes_of(job.images)),
        num_files=num_files,
        num_copied=num_copied,
        losses={words: count for words, count in losses.items() if count},
        finding="" if job.spec.copy_images else _how_images_are_found(job),
    )


def _how_images_are_found(job: ConvertJob) -> str:
    folder = storage.join(job.spec.output, "images")
    first = job.images[0].name
    return (
        f"The images are not copied: the labels are read once the images lie in {folder} under "
        f"the names of the labels (the first is {first}); --copy-images puts them there."
    )


def _write_labels(job: ConvertJob, losses: Losses, reporter: ProgressReporter) -> int:
    def write(file: tuple[str, bytes]) -> None:
        _put(storage.join(job.spec.output, file[0]), file[1])

    files = _WRITERS[job.spec.to](job.images, losses)
    num_files = 0
    with reporter.progress("Writing labels", len(job.images)) as bar:
        for _ in read_ahead(write, files, threads=_THREADS, max_ahead=2 * _THREADS):
            num_files += 1
            bar.advance(int(num_files <= len(job.images)))
    return num_files


def _copy_images(job: ConvertJob, losses: Losses, reporter: ProgressReporter) -> int:
    def copy(image: NamedImage) -> bool:
        try:
            content = fetch_image(image.uri, ANY_IMAGE)
        except BadImageError:
            return False
        if len(content) > ANY_IMAGE.max_bytes:  # and it is not all of them
            return False
        _put(storage.join(job.spec.output, "images", image.name), content)
        return True

    num_copied = 0
    with reporter.progress("Copying images", len(job.images)) as bar:
        for is_copied in read_ahead(copy, job.images, threads=_THREADS, max_ahead=2 * _THREADS):
            num_copied += is_copied
            losses[_NOT_COPIED] += not is_copied
            bar.advance(1, failed=int(not is_copied))
    return num_copied


def _put(location: str, content: bytes) -> None:
    try:
        storage.put_atomic(location, content)
    except OSError as error:
        raise InputError(
            f"{location} cannot be written ({error.strerror or error}); free space, or name "
            "another output."
        ) from error
