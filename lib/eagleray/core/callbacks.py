"""Who is told what a job does: a terminal, a log, or nobody. Jobs know no more of it than this."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

__all__ = ["Audience", "Bar", "Listener", "NotedBar"]


class Bar(Protocol):
    """Shows how far something is."""

    def advance(self, count: int, *, failed: int = 0) -> None:
        """Move by so many units, some of them failures."""


class Listener(Protocol):
    """Who hears how a job goes."""

    def note(self, text: str) -> None:
        """Hear what is happening."""

    def progress(self, description: str, total: int) -> AbstractContextManager[Bar]:
        """Show a bar."""


class NotedBar(Protocol):
    """A bar with words beside it."""

    def advance(self, count: int, *, failed: int = 0, note: str | None = None) -> None:
        """Move by so many units, some of them failures, and show a note."""


class Audience(Listener, Protocol):
    """Who hears of a job that has more to say: warnings, and what is waited for."""

    def warn(self, text: str) -> None:
        """Hear what the user should know."""

    def status(self, text: str) -> AbstractContextManager[None]:
        """Show that something is being waited for."""

    def progress(self, description: str, total: int) -> AbstractContextManager[NotedBar]:
        """Show a bar."""
