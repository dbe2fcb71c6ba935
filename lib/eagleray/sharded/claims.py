"""Whose an output is: nobody's, or that of the one plan that was put there first.

The same for every kind of job that fills an output: those that predict, and those that pack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict

from eagleray.core.errors import InputError, OutputExistsError
from eagleray.io import storage
from eagleray.sharded.layout import OutputLayout

__all__ = ["SettledWork", "claim", "read_committed", "require_equal", "require_free"]

M = TypeVar("M", bound=BaseModel)

_MAX_SHOWN = 80  # characters of a value


class SettledWork(BaseModel):
    """What decides a job's results: two runs with equal work give equal outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def differences(self, other: Self) -> list[str]:
        """Name each field that is not the same in the other, with both values."""
        ours, theirs = self.model_dump(), other.model_dump()
        return [
            f"{name} is {_short(theirs[name])} there and {_short(ours[name])} here"
            for name in ours
            if ours[name] != theirs[name]
        ]


def _short(value: object) -> str:
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}…"


def require_free(layout: OutputLayout) -> None:
    """Refuse an output that holds anything of others.

    Raises:
        OutputExistsError: It does.
    """
    if storage.exists(layout.location) and _is_file(layout.location):
        raise OutputExistsError(f"Output {layout.location} is a file; name a folder.")
    # With a plan in it by now, another run of this job has begun since we looked.
    if layout.is_taken() and not storage.exists(layout.plan):
        raise OutputExistsError(
            f"Output {layout.location} is not empty, and what is there is never overwritten; name "
            "another folder."
        )


def _is_file(location: str) -> bool:
    """Ask in one question: to another, a run beside this one may have changed the answer."""
    try:
        storage.size_of(location)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True


def claim(layout: OutputLayout, plan: M, read: Callable[[OutputLayout], M | None]) -> M:
    """Make this the plan of an output, or return the one that another run made it first.

    Args:
        layout: Of the output.
        plan: To be put.
        read: Reads the plan that is there.
    """
    if storage.put_if_absent(layout.plan, plan.model_dump_json(indent=2).encode()):
        return plan
    winner = read(layout)
    assert winner is not None
    return winner


def require_equal(layout: OutputLayout, asked: SettledWork, there: SettledWork) -> None:
    """Refuse to continue a plan that is not of the work that is asked for.

    Raises:
        OutputExistsError: Naming what differs.
    """
    differences = asked.differences(there)
    if differences:
        raise OutputExistsError(
            f"Output {layout.location} belongs to another plan: {'; '.join(differences)}. Ask for "
            "the same, or name another folder."
        )


def read_committed(layout: OutputLayout, kind: type[M]) -> M | None:
    """Return what is committed; None before that.

    Raises:
        InputError: It is of another kind of job, or of another version.
    """
    try:
        return kind.model_validate_json(storage.read_bytes(layout.commit))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(
            f"{layout.commit} was not written by this version of Eagleray; name another folder."
        ) from error
