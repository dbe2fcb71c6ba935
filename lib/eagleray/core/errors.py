"""The exceptions of Eagleray, the reason codes of failed images, and the exit codes.

    EaglerayError
    ├── UserError               the caller can fix it                  exit 2
    │   ├── InputError          a path, a table or a value is invalid  400
    │   │   ├── AttributeValueError  an attribute of an image is invalid 422
    │   │   └── UnsupportedError     a machine cannot run a model so   400
    │   │       └── UnsupportedNetworkError  an engine cannot run it   400
    │   ├── UnknownNameError    a name is unknown; has nearest names   404
    │   ├── UnknownVersionError a model has no version of that number  404
    │   ├── OutputExistsError   the output is not empty                409
    │   ├── ContractError       an image contract is invalid           422
    │   ├── PackageError        a model package is refused             422
    │   └── OutageError         registry or database do not answer     503
    │       └── DatabaseReplacedError  it is another database          503
    ├── JobFailedError          a job started and could not finish     exit 3
    ├── KpiFailedError          a model misses a KPI                   exit 4
    └── BadImageError           one image cannot be used               400

Failures of single images never leave the predictor as exceptions: they become an `Outcome` with a
`Reason`. Every message is one sentence that says what is wrong, where, and what to do.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import ClassVar

from eagleray.core.job_channel import process_channel

__all__ = [
    "BadImageError",
    "ContractError",
    "DatabaseReplacedError",
    "EaglerayError",
    "ExitCode",
    "InputError",
    "JobFailedError",
    "KpiFailedError",
    "OutageError",
    "OutputExistsError",
    "PackageError",
    "Reason",
    "ResumableInterrupt",
    "UnknownNameError",
    "UnknownVersionError",
    "UnsupportedError",
    "UnsupportedNetworkError",
    "UserError",
    "nearest_names",
    "resumable",
    "unknown_alias",
]


class Reason(StrEnum):
    """The reason code of a failed input, as in result tables and responses."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_MANY_BYTES = "too_many_bytes"
    TIMEOUT = "timeout"
    DECODER_CRASH = "decoder_crash"
    OUT_OF_MEMORY = "out_of_memory"

    @property
    def ends_its_decoder(self) -> bool:
        """Whether such an image ended the process that decoded it."""
        return self in (Reason.TIMEOUT, Reason.DECODER_CRASH, Reason.OUT_OF_MEMORY)


class ExitCode:
    """The exit codes of commands, documented in `docs/commands.md`."""

    OK: ClassVar[int] = 0
    BUG: ClassVar[int] = 1
    USER: ClassVar[int] = 2
    JOB_FAILED: ClassVar[int] = 3
    KPI_FAILED: ClassVar[int] = 4
    INTERRUPTED: ClassVar[int] = 130


class EaglerayError(Exception):
    """Base class of all exceptions that Eagleray raises on purpose."""

    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = ExitCode.BUG


class UserError(EaglerayError):
    """An error that the caller can fix; the message says how."""

    http_status = 400
    exit_code = ExitCode.USER


class InputError(UserError):
    """A path, a table, a column or a value is invalid."""


class AttributeValueError(InputError):
    """An attribute of an image is missing, or is not one that the model was trained with."""

    http_status = 422


class UnsupportedError(InputError):
    """A machine cannot run a model as requested: it lacks the device, engine or precision."""


class UnsupportedNetworkError(UnsupportedError):
    """An engine cannot run a network, whatever the precision; the message says why."""


class UnknownNameError(UserError):
    """A name is unknown; the message has the nearest known names."""

    http_status = 404

    def __init__(
        self, kind: str, name: str, known: Iterable[str], *, hint: str = "", where: str = ""
    ) -> None:
        self.name = name
        self.nearest = nearest_names(name, known)
        near = f" Nearest: {', '.join(self.nearest)}." if self.nearest else ""
        place = f"{where}: " if where else ""
        super().__init__(f"{place}No {kind} is named {name!r}.{near}{' ' + hint if hint else ''}")


def unknown_alias(model: str, alias: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error of an alias that a model does not have; all are named if none is near."""
    aliases = sorted(known)
    hint = ""
    if not nearest_names(alias, aliases):
        has = f"It has {', '.join(aliases)}" if aliases else "It has none yet"
        hint = f"{has}; set this one, or name a version by its number."
    return UnknownNameError(f"alias of model {model!r}", alias, aliases, hint=hint)


class UnknownVersionError(InputError):
    """A model has no version of the given number."""

    http_status = 404


class OutputExistsError(UserError):
    """The output is not empty; results are never overwritten."""

    http_status = 409


class ContractError(UserError):
    """An image contract is inconsistent, or differs from the one a model was made with."""

    http_status = 422


class PackageError(UserError):
    """A model package is incomplete, altered, or has content that is not allowed."""

    http_status = 422


class OutageError(UserError):
    """A service that Eagleray depends on, such as the registry or the database, does not answer.

    The message is for operators and may name locations and addresses. Callers of the service
    receive `public` instead, which names none.

    Attributes:
        public: Sentence for callers of the service.
        retry_after: Seconds until the next attempt is worthwhile.
    """

    http_status = 503
    title: ClassVar[str] = "Not available"

    def __init__(
        self,
        message: str,
        *,
        public: str = "A part that the service relies on does not answer now; try again later.",
        retry_after: float = 5.0,
    ) -> None:
        super().__init__(message)
        self.public, self.retry_after = public, retry_after


class DatabaseReplacedError(OutageError):
    """The organisation's database is empty, or has been replaced by another one."""


class JobFailedError(EaglerayError):
    """A job started and could not finish; the message says what is kept."""

    exit_code = ExitCode.JOB_FAILED


class KpiFailedError(EaglerayError):
    """A model misses a KPI; the message names it."""

    http_status = 409
    exit_code = ExitCode.KPI_FAILED


class ResumableInterrupt(KeyboardInterrupt):
    """The user interrupted a job that can be resumed.

    Attributes:
        command: Command that resumes it.
    """

    def __init__(self, command: str) -> None:
        super().__init__(command)
        self.command = command


@contextlib.contextmanager
def resumable(command: str) -> Iterator[None]:
    """Name the command that resumes the block's work if it is interrupted, or its machine is lost.

    Raises:
        ResumableInterrupt: If the user interrupts the block.
    """
    process_channel().resumed_by(command.split()[2:])  # without `eagleray train`
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise ResumableInterrupt(command) from interrupt


class BadImageError(EaglerayError):
    """An image cannot be used.

    Attributes:
        reason: Reason code of the result row.
        message: Sentence that describes the failure.
    """

    http_status = 400

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type[BadImageError], tuple[Reason, str]]:
        # Exceptions are rebuilt from `args` when they cross a process; ours takes two arguments.
        return BadImageError, (self.reason, self.message)


def nearest_names(name: str, known: Iterable[str], count: int = 5) -> list[str]:
    """Return up to `count` known names that resemble `name`, best first."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5)
    return [by_lower[match] for match in close]
