"""What a scenario has done and found, and the table of all of them."""

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
class Tally:
    """The counts of one scenario on one storage.

    Attributes:
        scenario: Its name.
        storage: `disk` or `S3`.
        kills: Signals sent that ended what they were sent to.
        resumes: Runs of a job that had been begun before.
        outputs: Finished ones that were compared with an undisturbed run's.
        rows: In them.
        lost: Rows that should be there and are not.
        doubled: Rows that are there more often than once.
        different: Rows with other values than an undisturbed run's, milliseconds aside.
        reads: Polls by the reader that follows `_manifest.json`.
        partial: Of these, the ones that saw a table that was not whole, or not the same again.
        naive_reads: Polls by the reader that takes every part file.
        naive_partial: Of these, the ones that saw a table that was not whole.
        naive_marked_partial: Of these, the ones that had seen `_SUCCESS` before.
        seconds: Taken.
        faults: Whatever else went wrong, in sentences.
        notes: Facts worth a line below the table.
        counts: More of them, by name.
        ours: Whether it is our batch system that was attacked, and not another.
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
        """Whether all that is promised was kept."""
        broken = (self.lost, self.doubled, self.different, self.partial, self.naive_marked_partial)
        return not any(broken) and not self.faults

    def tell(self, progress: str) -> None:
        """Print how far it is; whoever watches should not have to wait for the table."""
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


def render(tallies: Sequence[Tally]) -> str:
    """Return a Markdown table, its sums, and what is to be said below it."""
    rows = [list(COLUMNS), *(tally.cells() for tally in tallies)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    lines += ["", _sums(tallies), ""]
    for tally in tallies:
        name = f"{tally.scenario} on {tally.storage}"
        lines += [f"{name}: {note}" for note in tally.notes]
        if tally.counts:
            counts = ", ".join(f"{what} {count:,}" for what, count in sorted(tally.counts.items()))
            lines.append(f"{name}: {counts}")
        lines += [f"{name}: WRONG: {fault}" for fault in tally.faults]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.ljust(width) if place < 2 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "| " + " | ".join(padded) + " |"


def _sums(tallies: Sequence[Tally]) -> str:
    names = ("kills", "resumes", "outputs", "rows", "lost", "doubled", "different", "partial")
    sums = {name: sum(getattr(one, name) for one in tallies if one.ours) for name in names}
    return (
        "In all, of ours: " + ", ".join(f"{value:,} {name}" for name, value in sums.items()) + "."
    )
