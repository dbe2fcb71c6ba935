"""The plan of a durable job: the work and its inputs, written once before anything is done.

A run on an output continues the plan that it finds there, or stops and says what differs.
"""

from __future__ import annotations

import secrets
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from eagleray.core.errors import InputError, OutputExistsError
from eagleray.core.validation import first_validation_error
from eagleray.io import storage
from eagleray.sharded.layout import FileName, OutputLayout

__all__ = ["Plan", "Work", "claim_plan", "new_id", "read_plan", "require_same_work"]

_MAX_SHOWN = 80  # characters of a value


class Work(BaseModel):
    """What decides a job's results: two runs with equal work give equal outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def differences(self, other: Self) -> list[str]:
        """Name each field that differs in the other, with both values."""
        ours, theirs = self.model_dump(), other.model_dump()
        return [
            f"{name} is {_short(theirs[name])} there and {_short(ours[name])} here"
            for name in ours
            if ours[name] != theirs[name]
        ]


def _short(value: object) -> str:
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}…"


W = TypeVar("W")


class Plan(BaseModel, Generic[W]):
    """A job's work with the list of its inputs.

    Attributes:
        kind: Kind of the job: `predict` or `pack`.
        job_id: Identifier of the job, however many runs it takes.
        created: ISO time of the plan, UTC.
        work: What decides the results.
        manifest: Name of the manifest's folder.
        manifest_digest: SHA-256 digest of the manifest's files.
        num_rows: Number of inputs.
        num_shards: Number of shards.
        remarks: Sentences about decisions made while the inputs were listed.
        skipped: Number of skipped files, by kind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    job_id: str
    created: str
    work: W
    manifest: FileName
    manifest_digest: str
    num_rows: int
    num_shards: int
    remarks: tuple[str, ...] = ()
    skipped: dict[str, int] = {}

    def describe(self) -> dict[str, object]:
        """Return names and values for a page, without what is empty."""
        facts = self.model_dump(exclude={"remarks", "skipped"})
        facts = {**facts.pop("work"), **facts}
        return {
            name: ", ".join(value) if isinstance(value, tuple | list) else value
            for name, value in facts.items()
            if value not in (None, (), [], "")
        }


P = TypeVar("P", bound=Plan[Any])


def new_id() -> str:
    """Return a short random name."""
    return secrets.token_hex(6)


def read_plan(layout: OutputLayout, kind: type[P]) -> P | None:
    """Return the plan of an output, or None if it has none.

    Raises:
        OutputExistsError: If the plan is of another kind of job or of an incompatible version.
        InputError: If the storage cannot be read.
    """
    try:
        content = storage.read_bytes(layout.plan)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(
            f"Cannot access output {layout.location} ({error.strerror or error}); check its name, "
            "the credentials and the endpoint."
        ) from error
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise OutputExistsError(
            f"Output {layout.location} belongs to another kind of job or another version of "
            f"Eagleray ({first_validation_error(error)}); name another folder."
        ) from None


def claim_plan(layout: OutputLayout, plan: P) -> P:
    """Make this the plan of an output, or return the one that another run put there first.

    Raises:
        OutputExistsError: If the other plan is for different work.
    """
    if storage.put_if_absent(layout.plan, plan.model_dump_json(indent=2).encode()):
        return plan
    winner = read_plan(layout, type(plan))
    assert winner is not None
    require_same_work(layout, winner, plan.work)
    return winner


def require_same_work(layout: OutputLayout, plan: Plan[Any], work: Work) -> None:
    """Refuse to continue a plan that is for different work.

    Raises:
        OutputExistsError: If it is; the message names the differing fields.
    """
    differences = work.differences(plan.work)
    if differences:
        raise OutputExistsError(
            f"Output {layout.location} belongs to another plan: {'; '.join(differences)}. Ask for "
            "the same, or name another folder."
        )
