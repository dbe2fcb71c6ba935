"""Limits on how many objects of a label an image may have, such as `person>10`."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.tasks.base import Task
from eagleray.tasks.outcome import Prediction

__all__ = ["CountLimit", "LimitText", "exceeded_limits", "require_limits"]

_FORM = re.compile(r"\s*(.+?)\s*(>=|<=|>|<)\s*(\d{1,9})\s*")
_MAX_SHOWN = 20
_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclass(frozen=True, slots=True)
class CountLimit:
    """A number of objects that is to be noticed.

    Attributes:
        label: Label of the objects.
        comparison: `>`, `>=`, `<` or `<=`.
        number: What their number is compared with.
    """

    label: str
    comparison: str
    number: int

    @classmethod
    def parse(cls, text: str) -> CountLimit:
        """Read a limit such as `person>10`.

        Raises:
            ValueError: If it has another form, or holds of every image or of none.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(
                f"{text!r} is not a limit such as person>10 or helmet<1, with a whole number from 0"
            )
        limit = cls(found[1], found[2], int(found[3]))
        if limit.number == 0 and limit.comparison in ("<", ">="):
            always = "always" if limit.comparison == ">=" else "never"
            raise ValueError(
                f"{limit} {always} holds, as no image has fewer than 0 objects; write "
                f"{limit.label}>0 for images with such an object, or {limit.label}<1 for those "
                "without"
            )
        return limit

    def __str__(self) -> str:
        return f"{self.label}{self.comparison}{self.number}"

    def is_exceeded(self, counts: Mapping[str, int]) -> bool:
        """Return whether numbers of objects by label meet the comparison."""
        return bool(_COMPARE[self.comparison](counts.get(self.label, 0), self.number))


def _checked(text: str) -> str:
    return str(CountLimit.parse(text))


LimitText = Annotated[str, AfterValidator(_checked)]
"""A limit as a field of a specification."""


def require_limits(texts: Sequence[str], task: Task, *, where: str) -> tuple[CountLimit, ...]:
    """Return the limits of a request for a model.

    Args:
        texts: The limits as written.
        task: Task of the model.
        where: Name of the option or the parameter, for messages.

    Raises:
        InputError: If the task does not count objects.
        UnknownNameError: If the model has no such label.
    """
    limits = tuple(map(CountLimit.parse, texts))
    for limit in limits:
        if not task.counts_objects:
            raise InputError(
                f"{where}: {limit} is for models that find objects, and this is {task.as_model}; "
                "leave it out."
            )
        if limit.label not in task.labels:
            labels = ", ".join(task.labels[:_MAX_SHOWN])
            raise UnknownNameError(
                "label", limit.label, task.labels, where=where, hint=f"The model has {labels}."
            )
    return limits


def exceeded_limits(
    limits: Sequence[CountLimit],
    task: Task,
    prediction: Prediction,
    *,
    threshold: float | None = None,
) -> list[str]:
    """Return the limits that an image exceeds, as written.

    Args:
        limits: Numbers of objects that are to be noticed.
        task: Task of the model.
        prediction: The image's prediction.
        threshold: Lowest score of an object that counts; None for the model's own thresholds.
    """
    counts = task.counts(prediction, threshold) if limits else {}
    return [str(limit) for limit in limits if limit.is_exceeded(counts)]
