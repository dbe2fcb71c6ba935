"""Collects the counts of scenarios, and renders them as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

COLUMNS = (
    *("scenario", "storage", "kills", "resumes", "outputs", "rows", "lost", "doubled"),
    *("different", "reads", "partial", "naive reads", "naive partial", "seconds", "holds"),
)


@dataclass
class ScenarioResult:
    """The counts of one scenario on one storage.

    Attributes:
        scenario: Name of the scenario.
        storage: `disk` or `S3`.
        kills: Number of killed processes.
        resumes: Number of resumed runs.
        outputs: Number of finished outputs, compared with an undisturbed run's.
        rows: Number of rows in the outputs.
        lost: Number of missing rows.
        doubled: Number of rows beyond the first of their number.
        different: Number of rows that differ from an undisturbed run's, milliseconds aside.
        reads: Number of polls by the reader that follows `_manifest.json`.
        partial: Number of these that saw an incomplete or changed table.
        naive_reads: Number of polls by the reader of all result files.
        naive_partial: Number of these that saw an incomplete table.
        naive_marked_partial: Number of these after `_SUCCESS`.
        seconds: Duration of the scenario.
        faults: Other faults, in sentences.
        notes: Facts to print below the table.
        counts: Other counts by name.
        ours: Whether our batch system was attacked, not another one.
    """

    scenario: str
    storage: str
    kills: int = 0
    resumes: int = 0
    outputs: int = 0
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    reads: int = 0
    partial: int = 0
    naive_reads: int = 0
    naive_partial: int = 0
    naive_marked_partial: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    ours: bool = True

    @property
    def holds(self) -> bool:
        """Whether all guarantees held."""
        broken = (self.lost, self.doubled, self.different, self.partial, self.naive_marked_partial)
        return not any(broken) and not self.faults

    def add_kill(self, what: str) -> None:
        """Count a kill, and print what was killed."""
        self.kills += 1
        self.print_progress(f"killed {what}")

    def add_note(self, note: str) -> None:
        """Keep a fact for the report, and print it."""
        self.notes.append(note)
        self.print_progress(note)

    def print_progress(self, progress: str) -> None:
        """Print the progress of the scenario."""
        words = f"{self.scenario} on {self.storage}: {progress}, {self.kills:,} kills"
        print(f"{words}, {'nothing wrong' if self.holds else 'NOT HOLDING'}", flush=True)

    def cells(self) -> list[str]:
        values = (
            *(self.scenario, self.storage, self.kills, self.resumes, self.outputs, self.rows),
            *(self.lost, self.doubled, self.different, self.reads, self.partial),
            *(self.naive_reads, self.naive_partial, round(self.seconds)),
            "yes" if self.holds else "NO",
        )
        return [f"{value:,}" if isinstance(value, int) else str(value) for value in values]

    def as_json(self) -> dict[str, Any]:
        plain = replace(self, counts=Counter())  # a Counter does not survive `asdict`
        return {**asdict(plain), "counts": dict(self.counts), "holds": self.holds}


def render(results: Sequence[ScenarioResult]) -> str:
    """Return a Markdown table, its sums, and the notes."""
    rows = [list(COLUMNS), *(result.cells() for result in results)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    lines += ["", _sums(results), ""]
    for result in results:
        name = f"{result.scenario} on {result.storage}"
        lines += [f"{name}: {note}" for note in result.notes]
        if result.counts:
            counts = ", ".join(f"{what} {count:,}" for what, count in sorted(result.counts.items()))
            lines.append(f"{name}: {counts}")
        lines += [f"{name}: FAULT: {fault}" for fault in result.faults]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.ljust(width) if place < 2 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "| " + " | ".join(padded) + " |"


def _sums(results: Sequence[ScenarioResult]) -> str:
    names = ("kills", "resumes", "outputs", "rows", "lost", "doubled", "different", "partial")
    sums = {name: sum(getattr(one, name) for one in results if one.ours) for name in names}
    return (
        "Total of our system: "
        + ", ".join(f"{value:,} {name}" for name, value in sums.items())
        + "."
    )
