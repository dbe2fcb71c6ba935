"""The body of a request for a job: a command, its specification, and its options."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from eagleray.core.spec import Spec

__all__ = ["CommandName", "JobBody", "JobOptions"]

CommandName = Literal["predict", "train", "tune", "evaluate", "inspect", "pack"]
"""The commands that callers may submit."""


class JobOptions(Spec):
    """Options of a command beside its specification."""

    alias: str | None = Field(
        default=None, max_length=64, description="Alias that will point to the new version."
    )
    find_learning_rate: bool = Field(
        default=False, description="Run a learning-rate range test instead of training."
    )
    space: dict[str, Any] | None = Field(
        default=None, description="Search space of a tuning: its sections `fixed` and `search`."
    )
    num_trials: int | None = Field(default=None, ge=1, le=1000, description="Number of trials.")
    max_concurrent: int | None = Field(
        default=None, ge=1, le=1000, description="Maximum number of concurrent trials."
    )
    grace_epochs: int | None = Field(
        default=None, ge=1, le=100_000, description="Epochs before a trial may be stopped."
    )
    json_output: bool = Field(default=False, description="Have the command print JSON.")


class JobBody(Spec):
    """A job as a caller describes it."""

    command: CommandName = Field(description="Name of the command.")
    spec: dict[str, Any] = Field(
        description="Fields of the command's specification, which are its options: see the "
        "reference of commands."
    )
    options: JobOptions = Field(
        default=JobOptions(), description="Options of the command beside them."
    )
    priority: int = Field(
        default=0,
        ge=-1000,
        le=1000,
        description="Jobs of a higher priority run first, up to that of the application.",
    )
    retries: int = Field(
        default=0, ge=0, le=100, description="How often the job starts again if it is lost."
    )
    request_id: str = Field(
        pattern=r"^[A-Za-z0-9_.-]{8,64}$",
        description="Id of this submission, drawn by the caller: the same one is the same job.",
    )

    @field_validator("options", mode="before")
    @classmethod
    def _none_are_none(cls, value: Any) -> Any:
        return {} if value is None else value
