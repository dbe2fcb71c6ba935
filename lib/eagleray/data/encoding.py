"""Encodes labels and attributes of labelled images for a network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from eagleray.data.labelled import LabelledImages, encode_labels
from eagleray.imaging import ImageContract
from eagleray.models.attributes import Attribute, Features, encode_columns, require_columns
from eagleray.tasks import Task
from eagleray.tasks.base import Targets

__all__ = ["encode_attributes", "encode_targets", "targets_for_loss"]


def encode_targets(task: Task, images: LabelledImages) -> Tensor:
    """Return all labels as targets (N, …) of the task's dtype.

    Raises:
        InputError: If a label is not one of the task's; the message names the first.
    """
    return task.stack_targets(encode_labels(task, images))


def targets_for_loss(task: Task, images: LabelledImages, contract: ImageContract) -> Targets:
    """Return the targets of images by row, as a loss takes them.

    Raises:
        InputError: If a label is not one of the task's; the message names the first.
    """
    opened = task.open_targets(images.labels, contract)
    if opened is not None:
        return opened
    return task.targets_in_input(encode_targets(task, images), contract)


def encode_attributes(attributes: Sequence[Attribute], images: LabelledImages) -> Features | None:
    """Return all images' attributes: float32 array (N, num_features); None without attributes.

    Raises:
        InputError: If a column is missing, or has a value that the model cannot take.
    """
    if not attributes:
        return None
    names = [attribute.name for attribute in attributes]
    require_columns(names, images.attributes, "The table of labelled images")
    return encode_columns(attributes, images.attributes, images.places)
