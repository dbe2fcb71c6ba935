"""Says what two models differ in, as callers of an alias notice it: task, labels and input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from eagleray.imaging import ImageContract
from eagleray.models.attributes import Attribute
from eagleray.tasks import Task

__all__ = ["ModelInterface", "describe_differences"]

_MAX_LABELS_NAMED = 5


class ModelInterface(Protocol):
    """What callers send to a model and get from it; packages, manifests and plans have it."""

    @property
    def task(self) -> Task:
        """The task."""

    @property
    def contract(self) -> ImageContract:
        """The image contract."""

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """The attributes that the network takes beside images."""


def describe_differences(before: ModelInterface, after: ModelInterface) -> tuple[str, ...]:
    """Return what callers notice when one model takes another's place, as phrases.

    Args:
        before: The model that callers know.
        after: The model that takes its place.

    Returns:
        Phrases such as `task multiclass instead of binary`; none if requests and responses keep
        their form.
    """
    task, other = before.task, after.task
    found = []
    if task.name != other.name:
        found.append(f"task {other.name} instead of {task.name}")
    elif task.labels != other.labels:
        found.append(_describe_labels(task.labels, other.labels))
    inputs = [_describe_input(one.contract) for one in (before, after)]
    if inputs[0] != inputs[1]:
        found.append(f"input {inputs[1]} instead of {inputs[0]}")
    names = [", ".join(one.name for one in side.attributes) for side in (before, after)]
    if names[0] != names[1]:
        found.append(f"attributes {names[1] or 'none'} instead of {names[0] or 'none'}")
    return tuple(found)


def _describe_labels(before: Sequence[str], after: Sequence[str]) -> str:
    added = [label for label in after if label not in set(before)]
    removed = [label for label in before if label not in set(after)]
    if not added and not removed:
        return f"labels in another order ({_shorten(after)} instead of {_shorten(before)})"
    parts = [f"with {_shorten(added)}"] * bool(added) + [f"without {_shorten(removed)}"] * bool(
        removed
    )
    return f"labels {' and '.join(parts)}"


def _describe_input(contract: ImageContract) -> str:
    height, width = contract.size
    return f"{height} x {width} {contract.color}"


def _shorten(labels: Sequence[str]) -> str:
    more = len(labels) - _MAX_LABELS_NAMED
    named = ", ".join(labels[:_MAX_LABELS_NAMED])
    return f"{named} and {more:,} more" if more > 0 else named
