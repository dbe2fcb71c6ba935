"""What a submission tells the process that runs a job on the cluster: which record is its job."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = [
    "COMMAND",
    "HANDED_OVER",
    "SPEC_VARIABLE",
    "VARIABLE",
    "Assignment",
    "next_submission",
]

VARIABLE: Final = "EAGLERAY_SUBMISSION"
"""Environment variable of an assignment, as JSON."""

COMMAND: Final = "python -P -m eagleray.scheduling.run"
"""The command that runs an assigned job."""

SPEC_VARIABLE: Final = "EAGLERAY_JOB_SPEC"
"""Environment variable of a job's specification, as JSON: nothing that a caller of the service
wrote becomes a word of a command line, or passes through a shell."""

HANDED_OVER: Final = 75
"""Exit code of a process whose job waits in the database, or belongs to another attempt."""


class Assignment(BaseModel):
    """One submission of a job.

    Attributes:
        job: Id of the job.
        submission: Name of this submission on the cluster.
        version: Version of Eagleray that submits it.
        record: Columns of the job's record, which is added if the database does not have it: the
            submitter may not reach that.
        after: Name of the attempt that this one follows; "" for the first one, and for one that
            the record knows already.
        database: Identity of the submitter's database; "" if it may be another one.
        inputs: Locations of the images of a prediction or packing, to tell small jobs.
        ray_address: Address of the Ray that the command joins; "" for the one that runs it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    job: str
    submission: str
    version: str = Field(default_factory=lambda: version("eagleray"))
    record: dict[str, Any] = Field(default_factory=dict)
    after: str = ""
    database: str = ""
    inputs: tuple[str, ...] = ()
    ray_address: str = ""

    @classmethod
    def parse(cls, text: str) -> Assignment | None:
        """Return an assignment from JSON; None if it is none."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None

    @property
    def environment(self) -> dict[str, str]:
        """The variable that hands the assignment over."""
        return {VARIABLE: self.model_dump_json()}


def next_submission(job: str, last: str) -> str:
    """Return the name of the next attempt of a job: NAME, then NAME.2, NAME.3 and so on.

    Args:
        job: Id of the job.
        last: Name of its last attempt; "" for none.
    """
    if not last:
        return job
    number = last.removeprefix(job).removeprefix(".")
    return f"{job}.{int(number) + 1 if number.isdecimal() else 2}"
