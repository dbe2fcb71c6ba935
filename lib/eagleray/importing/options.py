"""What the options of an import say of a network: its task, its input and its golden images."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from eagleray.core.errors import BadImageError, InputError
from eagleray.core.validation import first_validation_error
from eagleray.imaging import FORMATS, ImageContract, decode
from eagleray.imaging.contract import Exact, Letterbox, ShortestSide
from eagleray.importing.graft import NetworkInput
from eagleray.importing.spec import ImportSpec
from eagleray.io import storage
from eagleray.io.fetch import fetch_image
from eagleray.models.architectures import imagenet_labels
from eagleray.sources import InputSpec, open_inputs
from eagleray.tasks import Task, task_class
from eagleray.tasks.segmentation.pixel_task import BACKGROUND

__all__ = [
    "Golden",
    "activation_of",
    "make_contract",
    "make_task",
    "read_golden",
    "read_labels",
    "read_things",
]

_MAX_GOLDEN = 8
_MAX_CHANNEL_VALUE = 65_535  # of a mean or a deviation
_MIN_STD = 1e-3
_OF_TASKS = {"threshold": "thresholds", "max_overlap": "max_overlap"}
"""Options that are for tasks with a field."""
_OVERLAPS = {"detr": 1.0}  # one query finds an object, and nothing needs to be suppressed


@dataclass(frozen=True)
class Golden:
    """The golden images of an import.

    Attributes:
        contents: The encoded images.
        pixels: Each decoded, uint8 (H, W, C).
    """

    contents: tuple[bytes, ...]
    pixels: tuple[npt.NDArray[np.uint8], ...]


def make_task(spec: ImportSpec, labels: Sequence[str], **others: Any) -> Task:
    """Return the task with its labels.

    Args:
        spec: The specification.
        labels: The labels, in the order of the outputs.
        others: Other fields of the task.

    Raises:
        InputError: If the labels do not fit it, or an option is for other tasks.
    """
    known = task_class(spec.task).model_fields
    for field, needed in _OF_TASKS.items():
        if needed not in known and getattr(spec, field) != ImportSpec.model_fields[field].default:
            raise InputError(
                f"{spec.name_of(field)} has no meaning for the task {spec.task}; leave it out."
            )
    _require_labels(spec, labels, needed="labels" in known)
    fields: dict[str, Any] = {"name": spec.task, **others}
    if labels:
        fields["labels"] = tuple(labels)
    if "thresholds" in known:
        fields["thresholds"] = (spec.threshold,) * len(labels)
    if "max_overlap" in known and spec.decoder is not None:
        overlap = spec.max_overlap
        fields["max_overlap"] = _OVERLAPS.get(spec.decoder, 0.6) if overlap is None else overlap
    if spec.task == "panoptic":  # pixels of no query
        fields["labels"] = (BACKGROUND, *labels)
        fields["things"] = read_things(spec, labels)
    try:
        return task_class(spec.task).model_validate(fields)
    except ValidationError as error:
        raise InputError(f"The labels are refused: {first_validation_error(error)}.") from None


def _require_labels(spec: ImportSpec, labels: Sequence[str], *, needed: bool) -> None:
    """Refuse a task that needs labels and has none, and one that has none and gets some.

    Raises:
        InputError: If it is one of both.
    """
    if needed and not labels:
        raise InputError(
            f"A model of the task {spec.task} needs --labels: name a file with a label on each "
            "line, in the order of the outputs, or every label."
        )
    if labels and not needed:
        raise InputError(f"--labels have no meaning for the task {spec.task}; leave them out.")


def read_things(spec: ImportSpec, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels whose objects are told apart.

    Raises:
        InputError: If one is none of the labels.
    """
    things = read_labels(spec.things, "things")
    others = [one for one in things if one not in labels]
    if others:
        raise InputError(
            f"--things: {others[0]!r} is none of the model's labels: {', '.join(labels)[:200]}."
        )
    return things


def activation_of(task: Task) -> Literal["softmax", "sigmoid"]:
    """Return what makes probabilities of a task's logits: labels exclude each other, or do not."""
    exclusive = not task.has_many_labels and task.num_outputs == len(task.labels)
    return "softmax" if exclusive else "sigmoid"


def read_labels(written: Sequence[str], option: str = "labels") -> tuple[str, ...]:
    """Return labels: those that are named, those of a file, or ImageNet's.

    Args:
        written: Value of the option.
        option: Its name, for messages.

    Raises:
        InputError: If a file cannot be read.
    """
    if list(written) == ["imagenet"]:
        return tuple(imagenet_labels())
    if len(written) != 1:
        return tuple(written)
    (location,) = written
    try:
        text = storage.read_bytes(location).decode("utf-8-sig")
    except (FileNotFoundError, InputError):
        if "," in location:
            return tuple(part.strip() for part in location.split(","))
        if option == "things":  # one is enough
            return tuple(written)
        raise InputError(
            f"--labels {location!r} is no file, and one label is too few; name a file with a label "
            "on each line, or every label."
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{location} is not text in UTF-8; write a label on each line.") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG and "," in location:
            return tuple(part.strip() for part in location.split(","))
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def make_contract(spec: ImportSpec, network_input: NetworkInput) -> ImageContract:
    """Return the contract of the images that the network takes.

    Raises:
        InputError: If the sizes are open, or a number does not fit.
    """
    channels = 1 if spec.colors == "gray" else 3
    if spec.layout != "auto" and network_input.channels not in (None, 1, 3):
        raise InputError(
            f"By --layout {spec.layout} the network takes {network_input.channels} channels, and "
            "images have 1 or 3; name the other layout, or none."
        )
    if network_input.channels not in (None, channels):
        raise InputError(
            f"The network takes {network_input.channels} channels, and {spec.colors} has "
            f"{channels}; name other --colors, or another --layout."
        )
    height, width = (side or spec.image_size for side in network_input.size)
    if height is None or width is None:
        raise InputError(f"{spec.file} leaves the size of its images open; name --image-size.")
    if spec.image_size not in (None, height) or spec.image_size not in (None, width):
        raise InputError(
            f"--image-size {spec.image_size}: the network takes {height} x {width} pixels; leave "
            "it out."
        )
    mean, std = (_channel_values(spec, name, channels) for name in ("mean", "std"))
    if not min(std) >= _MIN_STD:
        raise InputError(f"--std {spec.std!r}: {_MIN_STD} is the smallest, of pixels up to 255.")
    shorter = spec.resize or round(min(height, width) * 256 / 224)
    geometry: dict[str, Any] = {"resize": ShortestSide(size=shorter), "crop": (height, width)}
    if spec.stretch:
        geometry = {"resize": Exact(height=height, width=width)}
    elif spec.letterbox:
        geometry = {"resize": Letterbox(height=height, width=width, fill=spec.fill)}
    try:
        return ImageContract.model_validate(
            {
                "formats": FORMATS,
                "color": "gray" if spec.colors == "gray" else "rgb",
                "resampler": spec.resampler,
                "mean": tuple(value / 255 for value in mean),
                "std": tuple(value / 255 for value in std),
                **geometry,
            }
        )
    except ValidationError as error:
        raise InputError(f"The input is refused: {first_validation_error(error)}.") from None


def _channel_values(spec: ImportSpec, name: str, channels: int) -> tuple[float, ...]:
    """Return `mean` or `std` for each channel, in the order of the contract: RGB."""
    text = str(getattr(spec, name))
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--{name} {text!r}: write one number, or {channels} with commas between them."
        ) from None
    if len(values) not in (1, channels):
        raise InputError(f"--{name} {text!r} has {len(values)} numbers; write 1 or {channels}.")
    if not all(abs(value) <= _MAX_CHANNEL_VALUE for value in values):
        raise InputError(
            f"--{name} {text!r} is not of pixels from 0 to 255: {_MAX_CHANNEL_VALUE:,} is the "
            "limit."
        )
    values = values * channels if len(values) == 1 else values
    return tuple(reversed(values)) if spec.colors == "bgr" else tuple(values)


def read_golden(spec: ImportSpec, contract: ImageContract) -> Golden:
    """Read and decode the golden images.

    Raises:
        InputError: If there are none where some are named, or one cannot be decoded.
    """
    if not spec.golden:
        return Golden((), ())
    listing = open_inputs(InputSpec(tuple(spec.golden)))
    uris = (uri for table in listing.tables for uri in table.column("uri").to_pylist())
    contents = []
    pixels = []
    for uri in islice(uris, _MAX_GOLDEN):
        try:
            content = bytes(fetch_image(uri, contract))
            pixels.append(decode(content, contract).pixels)
        except BadImageError as error:
            raise InputError(f"--golden: {uri} cannot be used: {error.message}.") from None
        contents.append(content)
    if not contents:
        raise InputError("--golden: there is no image.")
    return Golden(tuple(contents), tuple(pixels))
