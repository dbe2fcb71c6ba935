"""Counts the files that a listing skips, by kind."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Mapping

from eagleray.io.storage import skipped_name_kind

__all__ = ["ANNOTATION", "SkippedFiles", "skipped_kind"]

ANNOTATION = "annotation"
"""Kind of the members of an archive that only describe an image; storage has the other kinds."""

_DESCRIPTIONS = {
    "hidden": "hidden",
    "system": "of an operating system",
    "marker": "of a program that writes data",
    ANNOTATION: "that only describe an image in their archive",
}


def skipped_kind(path: str, named: Collection[str] = ()) -> str | None:
    """Return the kind of a skipped file; None for an input.

    Args:
        path: Path below the location that the user named.
        named: Parts of paths that the user spelled out, and which are therefore inputs.
    """
    parts = (part for part in path.split("/") if part not in named)
    return next((kind for kind in map(skipped_name_kind, parts) if kind is not None), None)


class SkippedFiles:
    """Counts the files that are skipped while inputs are listed; threads may share it.

    The counts are complete when the listing was read to its end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, kind: str, path: str) -> None:
        """Count a file.

        Args:
            kind: Kind of the file.
            path: Path of the file; the first one in the order of names is the example.
        """
        with self._lock:
            self._counts[kind] += 1
            self._examples[kind] = min(path, self._examples.get(kind, path))

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of files of each kind."""
        with self._lock:
            return {kind: self._counts[kind] for kind in _DESCRIPTIONS if kind in self._counts}

    def describe(self) -> str | None:
        """Return one sentence with the counts and an example of each kind; None for no files."""
        counts = self.counts
        if not counts:
            return None
        kinds = [
            f"{count:,} {_DESCRIPTIONS[kind]} ({'such as ' * (count > 1)}{self._examples[kind]})"
            for kind, count in counts.items()
        ]
        total = sum(counts.values())
        return f"{total:,} file{'s were' if total > 1 else ' was'} skipped: {', '.join(kinds)}."
