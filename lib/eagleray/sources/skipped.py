"""What a listing skips, counted by kind."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Mapping

from eagleray.io.storage import skipped_name_kind

__all__ = ["ANNOTATION", "SkippedFiles", "skipped_kind"]

ANNOTATION = "annotation"
"""Members of an archive that only describe an image; the other kinds are storage's."""

_WORDS = {
    "hidden": "hidden",
    "system": "of an operating system",
    "marker": "of a program that writes data",
    ANNOTATION: "that only describe an image in their archive",
}


def skipped_kind(path: str, asked_for: Collection[str] = ()) -> str | None:
    """Return of which kind a file is that is skipped; None for an input.

    Args:
        path: Below the place that the user named.
        asked_for: Parts that are none the less inputs, since the user spelled them out.
    """
    parts = (part for part in path.split("/") if part not in asked_for)
    return next((kind for kind in map(skipped_name_kind, parts) if kind is not None), None)


class SkippedFiles:
    """Counts the files that are skipped while inputs are listed; threads may share it.

    It is complete when the listing was read to its end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, kind: str, path: str) -> None:
        """Count a file.

        Args:
            kind: Of it.
            path: Of it; the first one in the order of names is the example.
        """
        with self._lock:
            self._counts[kind] += 1
            self._examples[kind] = min(path, self._examples.get(kind, path))

    @property
    def counts(self) -> Mapping[str, int]:
        """Files by kind."""
        with self._lock:
            return {kind: self._counts[kind] for kind in _WORDS if kind in self._counts}

    def describe(self) -> str | None:
        """Return one sentence with the counts and an example of each kind; None for no files."""
        counts = self.counts
        if not counts:
            return None
        kinds = [
            f"{count:,} {_WORDS[kind]} ({'such as ' * (count > 1)}{self._examples[kind]})"
            for kind, count in counts.items()
        ]
        total = sum(counts.values())
        return f"{total:,} file{'s were' if total > 1 else ' was'} skipped: {', '.join(kinds)}."
