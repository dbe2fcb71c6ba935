"""A progress reporter that keeps what it is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class RecordingReporter:
    """Receives a job's progress and keeps it.

    Attributes:
        notes: Every note and warning, in order.
        advanced: Every step of a progress bar: its units, and how many of them failed.
        lines: Every line that stays.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.advanced: list[tuple[int, int]] = []
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.notes.append(text)

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def progress(self, description: str, total: int) -> Iterator[RecordingReporter]:
        yield self

    def advance(self, count: int, *, failed: int = 0, note: str | None = None) -> None:
        self.advanced.append((count, failed))

    def line(self, text: str) -> None:
        self.lines.append(text)
