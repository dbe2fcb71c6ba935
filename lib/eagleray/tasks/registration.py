"""Finds tasks by name: those of Eagleray, and those that extensions register."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, SerializeAsAny, ValidationInfo, WrapValidator

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.extensions import Extensions
from eagleray.tasks.base import Task

__all__ = ["StoredTask", "TaskName", "make_task", "register_task", "task_class", "task_names"]

_TASKS: Extensions[type[Task]] = Extensions("task")
_Task = TypeVar("_Task", bound=Task)


def register_task(cls: type[_Task]) -> type[_Task]:
    """Make a task known by the name that its class has, as a decorator of the class."""
    name: str = cls.model_fields["name"].default
    _TASKS.register(name, cls)
    return cls


def task_class(name: str) -> type[Task]:
    """Return the class of a task.

    Raises:
        UnknownNameError: If no task has the name.
        InputError: If an extension cannot be imported.
    """
    return _TASKS.get(name)


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks."""
    return _TASKS.names()


def _known_name(name: str) -> str:
    try:
        task_class(name)
    except UnknownNameError as error:
        raise ValueError(str(error)) from None
    return name


TaskName = Annotated[str, AfterValidator(_known_name)]
"""The name of a task as a field of a specification."""


def make_task(name: str, texts: Sequence[str], uris: Sequence[str] = ()) -> Task:
    """Make the task of a name that fits the labels of a training table.

    Args:
        name: Name of the task.
        texts: Every label of the table, as written.
        uris: Locations of the images, so that an error names the one at fault.

    Raises:
        InputError: If the labels do not fit the task.
    """
    if not texts:
        raise InputError("The data have no labels: there is nothing to learn.")
    return task_class(name).from_labels(texts, uris)


def _validate(value: Any, validate: Any, info: ValidationInfo) -> Task:
    """Read a task from the JSON of a package, by its name."""
    if isinstance(value, Task):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("it has no name")
    try:
        cls = task_class(value["name"])
    except UnknownNameError as error:
        raise ValueError(str(error)) from None
    return cls.model_validate(_with_tuples(value) if info.mode == "json" else value)


def _with_tuples(value: Any) -> Any:
    """Turn the lists of JSON into tuples: a task is a frozen value."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


StoredTask = Annotated[SerializeAsAny[Task], WrapValidator(_validate)]
"""A task as a field of a model, such as a package's manifest."""
