"""Reads why workers failed from the errors and status texts of Ray.

Ray hands on an exception of a worker in several forms: as the cause of a task's error, as the
traceback in an actor's or a dataset's error, as the message of a deployment. A worker that was
killed has raised nothing; Ray says why in a text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from eagleray.core import errors
from eagleray.core.errors import EaglerayError

__all__ = ["WorkerFailure", "first_line", "read_failure", "read_failure_text"]

_RAISED = re.compile(
    r"(?P<module>([a-zA-Z_]\w*\.)*)(?P<name>[A-Z]\w*(Error|Exception|Interrupt)): (?P<message>.+)"
)
_WRAPPERS = ("UserCodeException", "RayTaskError")
_KILLED = (  # by the class of Ray's error, or by its text where that is an actor's
    (r"OutOfMemoryError|OUT_OF_MEMORY|running low on memory", "a worker's node ran out of memory"),
    (r"NodeDiedError|its node has died|node was (preempted|terminated)", "a worker's node died"),
    (r"WorkerCrashedError|worker process has died", "a worker process died"),
)


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """Why workers stopped.

    Attributes:
        message: Eagleray's own message, "Class: message" of another exception, or how the worker
            was killed; without a full stop.
        error: The exception of Eagleray that a worker raised, if Ray has carried it.
        error_class: The class of Eagleray's exception that a worker raised, if it was one.
        killed: Whether a worker or its node ended without raising an exception.
    """

    message: str
    error: EaglerayError | None = None
    error_class: type[EaglerayError] | None = None
    killed: bool = False

    @property
    def sentence(self) -> str:
        """The message with its full stop."""
        return f"{self.message}."

    def is_a(self, *classes: type[EaglerayError]) -> bool:
        """Whether a worker raised one of these exceptions of Eagleray."""
        return self.error_class is not None and issubclass(self.error_class, classes)


def read_failure(error: BaseException) -> WorkerFailure:
    """Return why workers failed.

    Args:
        error: What Ray raised: of a task, an actor, a dataset, a training or a trial.
    """
    failures = getattr(error, "worker_failures", None)  # of Ray Train, by rank
    if failures:
        return read_failure(next(iter(failures.values())))
    cause = getattr(error, "cause", None)
    # Ray Data wraps what a worker raised, and leaves it to the text to say what it was.
    if isinstance(cause, BaseException) and type(cause).__name__ not in _WRAPPERS:
        return read_failure(cause)
    if isinstance(error, EaglerayError):
        return WorkerFailure(_without_stop(str(error)), error, type(error))
    if (failure := _read_text(str(error), type(error).__name__)) is not None:
        return failure
    lines = _lines(str(error)) or ["no message"]
    # Ray's own errors end with the cause; others begin with it.
    line = lines[-1] if type(error).__module__.startswith("ray.") else lines[0]
    return WorkerFailure(_without_stop(f"{type(error).__name__}: {line}"))


def read_failure_text(text: str) -> WorkerFailure:
    """Return why workers failed, from a text such as the message of a deployment of Ray Serve."""
    lines = _lines(text) or ["no message"]
    return _read_text(text, "") or WorkerFailure(_without_stop(lines[-1]))


def _read_text(text: str, name: str) -> WorkerFailure | None:
    """Return what was raised according to a text with a traceback, or how a worker was killed."""
    raised = [match for match in map(_RAISED.match, _lines(text)) if match is not None]
    raised = [match for match in raised if match["name"] not in _WRAPPERS]
    for match in reversed(raised):
        if (error_class := _own_class(match)) is not None:
            return WorkerFailure(_without_stop(match["message"]), error_class=error_class)
    for pattern, message in _KILLED:
        if re.search(pattern, name) or (not raised and re.search(pattern, text)):
            return WorkerFailure(message, killed=True)
    if raised:
        return WorkerFailure(_without_stop(f"{raised[-1]['name']}: {raised[-1]['message']}"))
    return None


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _own_class(match: re.Match[str]) -> type[EaglerayError] | None:
    if match["module"] not in ("", "eagleray.core.errors."):
        return None
    found = getattr(errors, match["name"], None)
    return found if isinstance(found, type) and issubclass(found, EaglerayError) else None


def _without_stop(text: str) -> str:
    return text.strip().rstrip(".")


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of Ray says, without its full stop."""
    text = str(error.__cause__ or error).strip()
    return _without_stop(text.splitlines()[0]) if text else type(error).__name__
