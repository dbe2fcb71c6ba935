"""Compares the rows and values of an output with those of an undisturbed run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

from eagleray.batch.earlier import read_results
from eagleray.io import storage
from eagleray.sharded.layout import OutputLayout
from tests.chaos.places import Place
from tests.chaos.readers import arrow_filesystem
from tests.chaos.scenario_result import ScenarioResult
from tests.support.processes import in_child

_IGNORED_COLUMN = "milliseconds"


@dataclass(frozen=True)
class Difference:
    """How an output differs from the reference.

    Attributes:
        rows: Number of rows in the output.
        lost: Number of missing row numbers.
        doubled: Number of rows beyond the first of their number.
        different: Number of rows with other values or unexpected numbers.
        faults: Other faults.
        example: Example of a different row.
    """

    rows: int
    lost: int
    doubled: int
    different: int
    faults: tuple[str, ...] = ()
    example: str = ""


def save_reference(place: Place, output: str, file: Path) -> int:
    """Save the table of an undisturbed run; return its number of rows."""

    def save() -> int:
        storage.use_s3(place.s3)
        table = pa.concat_tables(read_results(output)).drop_columns([_IGNORED_COLUMN])
        pa.parquet.write_table(table, file)
        return int(table.num_rows)

    return int(in_child(save))


def check(result: ScenarioResult, place: Place, output: str, reference: Path) -> None:
    """Compare a finished output with the reference, and add the findings to the result."""
    count(result, output, in_child(lambda: compare(place, output, reference)))


def count(result: ScenarioResult, output: str, found: Difference) -> None:
    """Add a comparison to the counts."""
    result.outputs += 1
    result.rows += found.rows
    result.lost += found.lost
    result.doubled += found.doubled
    result.different += found.different
    result.faults += [f"{output}: {fault}" for fault in found.faults]
    if found.example:
        result.notes.append(f"{output}: {found.example}")


def compare(place: Place, output: str, reference: Path) -> Difference:
    """Read an output in both ways, and compare."""
    storage.use_s3(place.s3)
    layout = OutputLayout(output)
    table = pa.concat_tables(read_results(output)).drop_columns([_IGNORED_COLUMN])
    path = output.removeprefix("s3://")
    everything = pa.dataset.dataset(path, filesystem=arrow_filesystem(place), format="parquet")
    faults = []
    if everything.to_table(columns=["row"]).num_rows != table.num_rows:
        faults.append("the folder holds other rows than its commit")
    if not storage.exists(layout.success):
        faults.append("_SUCCESS is missing")
    if storage.is_folder(layout.shards) and any(True for _ in layout.finished_shards()):
        faults.append("shard results are left")
    return _difference(table.to_pylist(), pa.parquet.read_table(reference).to_pylist(), faults)


def _difference(
    found: list[dict[str, Any]], expected: list[dict[str, Any]], faults: list[str]
) -> Difference:
    times = Counter(row["row"] for row in found)
    by_number = {row["row"]: row for row in expected}
    wrong = [row for row in found if row != by_number.get(row["row"])]
    if [row["row"] for row in found] != sorted(times.elements()):
        faults.append("the rows are not in order")
    example = f"{wrong[0]} instead of {by_number.get(wrong[0]['row'])}" if wrong else ""
    return Difference(
        rows=len(found),
        lost=len(by_number.keys() - times.keys()),
        doubled=sum(times.values()) - len(times),
        different=len(wrong),
        faults=tuple(faults),
        example=example[:2000],
    )
