"""The commit of an output: one file, put where none was, that lists the files of the result.

Every step before and after the commit can be interrupted and repeated, here or by another run at
the same time. Of two runs exactly one commits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from eagleray.core.errors import InputError, JobFailedError
from eagleray.io import storage
from eagleray.sharded.layout import FileName, OutputLayout
from eagleray.sharded.plan import Plan, new_id

__all__ = ["Commit", "OutputFile", "publish", "read_commit", "tidy_up", "unless_committed"]

T = TypeVar("T")


class OutputFile(BaseModel):
    """A file of an output.

    Attributes:
        name: File name inside the output.
        first_row: Row number of its first input.
        num_rows: Number of its rows.
        num_failed: Number of its rows that are failures.
        reasons: Number of failures for each reason code, the most frequent first.
        num_bytes: Size of the file in bytes.
        sha256: SHA-256 digest of the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FileName
    first_row: int
    num_rows: int
    num_failed: int = 0
    reasons: dict[str, int] = {}
    num_bytes: int
    sha256: str


class Commit(BaseModel):
    """Content of `_manifest.json`: the files that are the result, and no others are.

    Attributes:
        job_id: Identifier of the job.
        run: Identifier of the run that committed.
        committed: ISO time of the commit, UTC.
        format: Format of the files.
        num_rows: Number of inputs.
        num_failed: Number of inputs that failed.
        skipped: Number of skipped files, by kind.
        image_bytes: Number of bytes of the packed images; None for predictions.
        files: Files in the order of rows.
        failures: Table of the failed inputs where they are not rows of the files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    run: str = Field(default_factory=new_id)
    committed: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    format: str
    num_rows: int
    num_failed: int
    skipped: dict[str, int] = {}
    image_bytes: int | None = None
    # Outputs of the version before have `parts`.
    files: tuple[OutputFile, ...] = Field(validation_alias=AliasChoices("files", "parts"))
    failures: OutputFile | None = None

    @property
    def num_ok(self) -> int:
        """Number of inputs that did not fail."""
        return self.num_rows - self.num_failed

    @property
    def reasons(self) -> Counter[str]:
        """Number of failures for each reason code."""
        files = (*self.files, self.failures) if self.failures else self.files
        return sum((Counter(file.reasons) for file in files), Counter())


def read_commit(layout: OutputLayout) -> Commit | None:
    """Return the commit of an output, or None before there is one.

    Raises:
        InputError: If the commit is of an incompatible version.
    """
    try:
        return Commit.model_validate_json(storage.read_bytes(layout.commit))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(
            f"{layout.commit} was not written by this version of Eagleray; name another folder."
        ) from error


def unless_committed(layout: OutputLayout, assemble: Callable[[], T]) -> T | None:
    """Assemble an output from its shards, or return None if another run committed meanwhile.

    Raises:
        JobFailedError: If a shard has no result.
    """
    try:
        return assemble()
    except FileNotFoundError as error:
        if storage.exists(layout.commit):  # and removed the shards
            return None
        raise JobFailedError(
            f"A shard has no result ({error}); run the same command again to make it."
        ) from error


def publish(layout: OutputLayout, commit: Commit) -> tuple[Commit, bool]:
    """Put a commit.

    Returns:
        What is committed, and whether this run did it: otherwise another was first.
    """
    content = commit.model_dump_json(indent=2, exclude_none=True).encode()
    if storage.put_if_absent(layout.commit, content):
        return commit, True
    other = read_commit(layout)
    assert other is not None
    return other, False


def tidy_up(layout: OutputLayout, plan: Plan[Any]) -> None:
    """Mark a committed output for other readers, and remove what is needed no more."""
    if not storage.exists(layout.success):
        storage.put_atomic(layout.success, b"")
    layout.remove_folder(layout.shards)
    try:
        for folder in layout.abandoned_folders(plan.manifest):
            layout.remove_folder(folder)
        for location in layout.unfinished_files():  # a run that still writes one finds the commit
            storage.delete(location)
    except InputError:  # another run tidies up as well and removed what was listed
        return
