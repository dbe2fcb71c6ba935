"""The callbacks through which a job reports its progress to a terminal, a log or a test."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

__all__ = ["ProgressBar", "ProgressReporter"]


class ProgressBar(Protocol):
    """Shows how far something is."""

    def advance(self, count: int, *, failed: int = 0, note: str | None = None) -> None:
        """Move by so many units, some of them failures, and show a note beside the bar."""

    def line(self, text: str) -> None:
        """Print a line that stays, such as the result of an epoch."""


class ProgressReporter(Protocol):
    """Receives what a job reports while it runs."""

    def note(self, text: str) -> None:
        """Report what is happening."""

    def announce(self, text: str) -> None:
        """Report where the job keeps its work, which the user of a script reads too."""

    def warn(self, text: str) -> None:
        """Report what the user should know."""

    def status(self, text: str) -> AbstractContextManager[None]:
        """Show that the job waits for something."""

    def progress(self, description: str, total: int) -> AbstractContextManager[ProgressBar]:
        """Show a progress bar."""
