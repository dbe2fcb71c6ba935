"""Encodes labels and attributes of images as a network takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eagleray.data.labelled import LabelledImages, encode_labels
from eagleray.models.attributes import Attribute, Features, encode_columns, require_columns
from eagleray.tasks.tasks import Task

__all__ = ["encode_attributes", "encode_targets"]


def encode_targets(task: Task, images: LabelledImages) -> Tensor:
    """Return all labels as targets: int64 (N,), float32 (N,) or float32 (N, num_labels).

    Raises:
        InputError: If a label is not one of the task's.
    """
    encoded = encode_labels(task, images)
    return torch.tensor(encoded, dtype=getattr(torch, task.target_type))


def encode_attributes(attributes: Sequence[Attribute], images: LabelledImages) -> Features | None:
    """Return all images' attributes: float32 array (N, num_features); None where there are none.

    Raises:
        InputError: If a column is missing, or has values that the model does not take.
    """
    if not attributes:
        return None
    names = [attribute.name for attribute in attributes]
    require_columns(names, images.attributes, "The table of labelled images")
    return encode_columns(attributes, images.attributes, images.uris)
