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
        bar_notes: Every note beside the bar.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.advanced: list[tuple[int, int]] = []
        self.lines: list[str] = []
        self.bar_notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def announce(self, text: str) -> None:
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
        if note is not None:
            self.bar_notes.append(note)

    def line(self, text: str) -> None:
        self.lines.append(text)
