"""Chooses the images that a quantization is calibrated and checked on, and decodes them.

Calibration images give the ranges of activations. Held-out images, which are not among them, show
what the quantization costs.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eagleray.compression.spec import MIN_IMAGES
from eagleray.core.errors import BadImageError, InputError
from eagleray.data.annotations.reading import read_annotations
from eagleray.data.encoding import encode_attributes, targets_for_loss
from eagleray.data.labelled import LabelledImages
from eagleray.imaging import DecodedImage, decode
from eagleray.imaging.geometry import Frame, frame_of
from eagleray.io import storage
from eagleray.io.fetch import fetch_image
from eagleray.io.read_ahead import read_ahead
from eagleray.models.attributes import Features
from eagleray.models.graph import ATTRIBUTES_INPUT, IMAGES_INPUT
from eagleray.models.package import ModelPackage
from eagleray.sources import LISTING_SCHEMA, InputSpec, open_inputs
from eagleray.tasks.base import Targets

__all__ = [
    "SampleImages",
    "decode_sample",
    "list_images",
    "max_images",
    "require_enough",
    "stratified_order",
]

_MAX_BYTES = 2**31  # of the decoded images of a sample
_THREADS = 4


@dataclass(frozen=True)
class SampleImages:
    """Decoded images.

    Attributes:
        images: Their rows.
        pixels: uint8 array (N, H, W, C) of the contract's shape.
        attributes: float32 array (N, A); None if the model takes none.
        targets: Labels as the loss takes them (N, …), some of which are made when they are read;
            None if the labels are not known.
        frames: Maps places in each input back to the original image.
        num_failed: Number of images that could not be read or decoded, and were passed over.
    """

    images: LabelledImages
    pixels: npt.NDArray[np.uint8]
    attributes: Features | None
    targets: Targets | None
    frames: tuple[Frame, ...]
    num_failed: int

    def __len__(self) -> int:
        return len(self.pixels)

    def inputs(self, start: int = 0, stop: int | None = None) -> dict[str, npt.NDArray[np.generic]]:
        """Return the inputs of a graph for some of the images."""
        inputs: dict[str, npt.NDArray[np.generic]] = {IMAGES_INPUT: self.pixels[start:stop]}
        if self.attributes is not None:
            inputs[ATTRIBUTES_INPUT] = self.attributes[start:stop]
        return inputs


def list_images(location: str, column: str | None = None) -> LabelledImages:
    """List images of any source of inputs, without labels.

    Of a folder in a format of labels, such as COCO, they are the images that are labelled, and not
    the masks beside them.

    Args:
        location: A folder, a pattern, an archive or a table, local or in an object store.
        column: Column of a table with the images or their locations; None looks for it.

    Raises:
        InputError: If nothing is there, or it holds no images.
    """
    import pyarrow as pa

    found = read_annotations(location, policy=storage.PathPolicy(), max_invalid=1.0)
    if found is not None:
        files = [one.image for one in found.images]
        versions = tuple(file.version for file in files)
        uris = tuple(file.uri for file in files)
        return LabelledImages(uris, ("",) * len(uris), versions, notes=found.notes)
    listing = open_inputs(InputSpec((location,), column))
    rows = pa.concat_tables(listing.tables)
    count = len(LISTING_SCHEMA)
    uris = tuple(rows.column(0).to_pylist())
    columns = {
        name: tuple("" if value is None else str(value) for value in rows.column(index).to_pylist())
        for index, name in enumerate(rows.schema.names[count:], start=count)
    }
    versions = tuple(version or "" for version in rows.column(2).to_pylist())
    return LabelledImages(uris, ("",) * len(uris), versions, columns, notes=listing.all_notes())


def stratified_order(labels: Sequence[str], seed: int = 0) -> list[int]:
    """Return all rows in a random order whose every beginning has about as many of each label.

    Args:
        labels: Label of each row.
        seed: Seed of the order.
    """
    seen: Counter[str] = Counter()
    keyed = []
    for position, row in enumerate(np.random.default_rng(seed).permutation(len(labels)).tolist()):
        keyed.append((seen[labels[row]], position, row))
        seen[labels[row]] += 1
    return [row for _, _, row in sorted(keyed)]


def max_images(package: ModelPackage, wanted: int) -> int:
    """Return how many of the wanted images are decoded at most, by their memory."""
    return max(MIN_IMAGES, min(wanted, _MAX_BYTES // int(np.prod(package.contract.shape))))


def decode_sample(
    package: ModelPackage, images: LabelledImages, count: int, *, labelled: bool
) -> SampleImages:
    """Decode the first images that can be decoded.

    Args:
        package: The model package, whose contract holds.
        images: The images, in the order in which they are taken.
        count: Maximum number of images.
        labelled: Whether they have labels of the task.

    Raises:
        InputError: If a label is not one of the task's, or attributes that the model takes are
            missing.
    """
    contract = package.contract
    rows: list[int] = []
    decoded: list[DecodedImage] = []

    def read(uri: str) -> DecodedImage | None:
        try:
            return decode(fetch_image(uri, contract), contract)
        except BadImageError:
            return None

    done = 0
    results = read_ahead(read, images.uris, threads=_THREADS, max_ahead=2 * _THREADS)
    with contextlib.closing(results):
        for row, image in enumerate(results):
            if image is not None:
                rows.append(row)
                decoded.append(image)
            done = row + 1
            if len(decoded) == count:
                break
    taken = images.take(rows)
    shape = (0, *contract.shape)
    return SampleImages(
        images=taken,
        pixels=np.stack([one.pixels for one in decoded]) if decoded else np.zeros(shape, np.uint8),
        attributes=encode_attributes(package.attributes, taken),
        targets=targets_for_loss(package.task, taken, contract) if labelled else None,
        frames=tuple(frame_of(contract, one.width, one.height) for one in decoded),
        num_failed=done - len(rows),
    )


def require_enough(sample: SampleImages, where: str, num_held_out: int) -> None:
    """Refuse too few calibration images.

    Args:
        sample: The calibration images.
        where: Where they come from, for people.
        num_held_out: Number of other images, which the loss is measured on.

    Raises:
        InputError: If there are fewer than `MIN_IMAGES`.
    """
    if len(sample) < MIN_IMAGES:
        unreadable = f" ({sample.num_failed:,} cannot be read)" if sample.num_failed else ""
        raise InputError(
            f"{where} has {len(sample):,} images to calibrate on{unreadable} beside "
            f"{num_held_out:,} that the loss is measured on, and a quantization needs at least "
            f"{MIN_IMAGES}; name more images like those of the training by --data."
        )
