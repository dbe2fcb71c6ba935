"""Everything that can go wrong, as a caller sees it.

    EaglerayError
    ├── UserError               something that the caller can mend     exit 2
    │   ├── InputError          a path, a table or a value is wrong    400
    │   │   └── AttributeValueError  what is said of an image is wrong 422
    │   ├── UnknownNameError    no such thing; carries near names      404
    │   ├── UnknownVersionError a model has no version of that number  404
    │   ├── OutputExistsError   results are never overwritten          409
    │   ├── ContractError       an image contract that cannot be met   422
    │   ├── PackageError        a model package that is refused        422
    │   └── OutageError         registry or database do not answer     503
    │       └── DatabaseReplacedError  it is not the one that it was  503
    ├── JobFailedError          a job started and could not finish     exit 3
    ├── KpiFailedError          a model is not as good as it must be   exit 4
    └── BadImageError           one image; becomes a row, not an exit  400

An image's own faults never leave the predictor as exceptions: they become an `Outcome` with a
`Reason`. Every message is one sentence that says what is wrong, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum
from typing import ClassVar

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
    "UnknownNameError",
    "UnknownVersionError",
    "UserError",
    "nearest_names",
]


class Reason(StrEnum):
    """Why an input has no prediction. The value is what tables and answers carry."""

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
        """Whether such an image took the process that decoded it along."""
        return self in (Reason.TIMEOUT, Reason.DECODER_CRASH, Reason.OUT_OF_MEMORY)


class ExitCode:
    """What a command's exit status means. Documented in `docs/commands.md`."""

    OK: ClassVar[int] = 0
    BUG: ClassVar[int] = 1
    USER: ClassVar[int] = 2
    JOB_FAILED: ClassVar[int] = 3
    KPI_FAILED: ClassVar[int] = 4
    INTERRUPTED: ClassVar[int] = 130


class EaglerayError(Exception):
    """The root: catch this to catch all that Eagleray raises on purpose."""

    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = ExitCode.BUG


class UserError(EaglerayError):
    """The caller can mend this, and the message says how."""

    http_status = 400
    exit_code = ExitCode.USER


class InputError(UserError):
    """A path, a table, a column or a value is not what the command needs."""


class AttributeValueError(InputError):
    """What is said of an image is missing, or is not what its model learned."""

    http_status = 422


class UnknownNameError(UserError):
    """A name that is not known here, with the nearest known ones in the message."""

    http_status = 404

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        self.name = name
        self.nearest = nearest_names(name, known)
        near = f" Nearest: {', '.join(self.nearest)}." if self.nearest else ""
        super().__init__(f"No {kind} is named {name!r}.{near}{' ' + hint if hint else ''}")


class UnknownVersionError(InputError):
    """A model has no version of that number."""

    http_status = 404


class OutputExistsError(UserError):
    """The output holds something already; results are never overwritten."""

    http_status = 409


class ContractError(UserError):
    """An image contract is inconsistent, or differs from the one a model was made with."""

    http_status = 422


class PackageError(UserError):
    """A model package is incomplete, altered, or holds something that no package may hold."""

    http_status = 422


class OutageError(UserError):
    """A part that others rely on, such as the registry or the database, does not answer.

    Its message is for whoever runs Eagleray, and may name places and addresses. Callers of the
    service are shown `public` instead, which names none.

    Attributes:
        public: One sentence for callers of the service.
        retry_after: Seconds after which another try makes sense.
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
    """The organisation's database is empty, or another one than it was."""


class JobFailedError(EaglerayError):
    """A job started and could not finish; the message says where its traces are."""

    exit_code = ExitCode.JOB_FAILED


class KpiFailedError(EaglerayError):
    """A model was measured and is not as good as it must be; the message says where it is not."""

    http_status = 409
    exit_code = ExitCode.KPI_FAILED


class BadImageError(EaglerayError):
    """One input could not become a tensor.

    Attributes:
        reason: The code that the result row carries.
        message: One sentence for a person.
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
