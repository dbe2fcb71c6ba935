"""Builders for tests of batch jobs: listings, outcomes, and whole outputs made without Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eagleray.batch.merge import merge
from eagleray.batch.plan import PredictPlan, PredictWork
from eagleray.batch.results import ResultWriter, result_schema
from eagleray.batch.shard_summary import ShardSummary, encode_shard
from eagleray.core.errors import Reason
from eagleray.core.types import OutputFormat
from eagleray.imaging.geometry import Frame
from eagleray.io import storage
from eagleray.registry.references import LoadedModel
from eagleray.sharded.commit import Commit, publish, tidy_up
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ManifestReader, write_manifest
from eagleray.sharded.plan import claim_plan, new_id
from eagleray.sources import LISTING_SCHEMA
from eagleray.tasks import Multilabel, Regression, Task
from eagleray.tasks.outcome import Outcome, Prediction
from tests.support.models import DIGITS, small_package

MULTILABEL = Multilabel(labels=("cat", "dog", "row"), thresholds=(0.5, 0.5, 0.5))
FRAME = Frame(8, 6)
REGRESSION = Regression(mean=1.0, std=2.0)
NO_COLUMNS = pa.schema([])


@cache
def loaded_model(task: Task = DIGITS) -> LoadedModel:
    return LoadedModel("digits/3", small_package(task=task), "3")


def s3_fields(options: storage.S3Options) -> dict[str, Any]:
    """Return the fields of a specification that say how S3 is reached."""
    return {f"s3_{name}": value for name, value in dataclasses.asdict(options).items()}


# --- inputs -----------------------------------------------------------------------------------


def listing(
    rows: int = 3,
    *,
    uris: Sequence[str] | None = None,
    sizes: Sequence[int | None] | None = None,
    versions: Sequence[str] | None = None,
    user: pa.Table | None = None,
) -> pa.Table:
    """Make what a listing yields: our columns, then those of `user`."""
    columns: list[Any] = [
        pa.array(uris or [f"/images/{row}.png" for row in range(rows)], pa.string()),
        pa.array(sizes or [100] * rows, pa.int64()),
        pa.array(versions or ["v1"] * rows, pa.string()),
        *(pa.nulls(rows, LISTING_SCHEMA.field(index).type) for index in range(3, 6)),
    ]
    own = user if user is not None else pa.table({})
    return pa.table([*columns, *own.columns], schema=pa.schema([*LISTING_SCHEMA, *own.schema]))


# --- outcomes ---------------------------------------------------------------------------------


def classified(label: str = "zero", score: float = 0.75) -> Outcome:
    rest = (1 - score) / (len(DIGITS.labels) - 1)
    chances = np.asarray([score if name == label else rest for name in DIGITS.labels], np.float32)
    prediction = Prediction(label, score, (label,), None, chances)
    return Outcome(prediction=prediction, width=8, height=6)


def multilabelled(*scores: float) -> Outcome:
    prediction = MULTILABEL.postprocess(np.asarray(scores, np.float32), FRAME)
    return Outcome(prediction=prediction, width=8, height=6)


def measured(value: float) -> Outcome:
    prediction = REGRESSION.postprocess(np.asarray([value], np.float32), FRAME)
    return Outcome(prediction=prediction, width=8)


def failure(message: str = "the file ends early", reason: Reason = Reason.TRUNCATED) -> Outcome:
    return Outcome.failed(reason, message)


def result_rows(
    outcomes: Sequence[Outcome],
    *,
    first_row: int = 0,
    user: pa.Table | None = None,
    model: LoadedModel | None = None,
    top_k: int = 2,
    uris: Sequence[str] | None = None,
    has_masks: bool = False,
) -> pa.Table:
    """Make result rows as a worker does."""
    count = len(outcomes)
    own = user if user is not None else pa.table({})
    rows = pa.table(
        [
            pa.array(range(first_row, first_row + count), pa.int64()),
            pa.array(uris or [f"/images/{first_row + row}.png" for row in range(count)]),
            *own.columns,
        ],
        names=["row", "uri", *(f"user:{name}" for name in own.column_names)],
    )
    model = model or loaded_model()
    schema = result_schema(model, rows.schema, has_masks=has_masks)
    writer = ResultWriter(model, schema, top_k)
    return writer.table(rows, outcomes, [1.5] * count)


# --- outputs ----------------------------------------------------------------------------------


def work(**overrides: Any) -> PredictWork:
    model = loaded_model()
    parts: dict[str, Any] = {
        "inputs": ("/images",),
        "model": model.reference,
        "model_version": model.version,
        "model_digest": model.package.digest,
        "contract_digest": model.package.contract.digest,
        "top_k": 2,
        "seconds_per_image": 60.0,
        "format": "parquet",
    }
    return PredictWork(**{**parts, **overrides})


@dataclass(frozen=True)
class Output:
    """An output on disk, as far as a job has come."""

    layout: OutputLayout
    plan: PredictPlan
    model: LoadedModel
    failed: Collection[int]

    @property
    def folder(self) -> Path:
        return Path(self.layout.location)

    @property
    def manifest(self) -> ManifestReader:
        return ManifestReader(self.layout.manifest(self.plan.manifest), self.plan.num_shards)

    def put_shards(self, shards: Iterable[int] | None = None, *, milliseconds: float = 1.5) -> None:
        """Do what the workers do: put the result of every shard, or of some."""
        manifest = self.manifest
        writer = ResultWriter(self.model, result_schema(self.model, manifest.schema), 2)
        for shard in range(self.plan.num_shards) if shards is None else shards:
            rows = manifest.shard(shard)
            numbers = rows.column("row").to_pylist()
            outcomes = [failure() if row in self.failed else _outcome_of(row) for row in numbers]
            num_failed = sum(row in self.failed for row in numbers)
            summary = ShardSummary(
                shard, rows.num_rows - num_failed, num_failed, 1000.0 + shard, 1001.0 + shard
            )
            table = writer.table(rows, outcomes, [milliseconds] * rows.num_rows)
            storage.put_atomic(self.layout.shard(shard), encode_shard(table, summary))

    def commit(self) -> tuple[Commit, bool] | None:
        """Do what a driver does when every shard has its result."""
        draft = merge(self.layout, self.plan)
        committed = None if draft is None else publish(self.layout, draft.commit(self.plan))
        tidy_up(self.layout, self.plan)
        return committed


def _outcome_of(row: int) -> Outcome:
    return classified(DIGITS.labels[row % 3], 0.5 + (row % 50) / 100)


def output(
    folder: Path,
    *,
    rows: int = 40,
    failed: Collection[int] = (),
    user: pa.Table | None = None,
    uris: Sequence[str] | None = None,
    versions: Sequence[str] | None = None,
    output_format: OutputFormat = "parquet",
    rows_per_file: int = 1000,
    shards: Iterable[int] | None = None,
    tables: Sequence[pa.Table] | None = None,
) -> Output:
    """Make an output as it is before its commit: a manifest, a plan, and shards' results.

    Args:
        folder: Where.
        rows: Inputs; the manifest cuts them into shards of 16.
        failed: Numbers of rows that failed.
        user: The user's own columns.
        uris: Of the inputs.
        versions: Of the inputs.
        output_format: Of the result files.
        rows_per_file: As in the plan.
        shards: That have results; None for all.
        tables: The listing, instead of `rows`, `user`, `uris` and `versions`.
    """
    layout = OutputLayout(str(folder))
    tables = tables or [listing(rows, uris=uris, versions=versions, user=user)]
    user_schema = pa.schema(list(tables[0].schema)[len(LISTING_SCHEMA) :])
    name = f"manifest-{new_id()}"
    manifest = write_manifest(tables, user_schema, layout.manifest(name))
    model = loaded_model()
    plan = PredictPlan(
        job_id=new_id(),
        created="2026-01-01T00:00:00+00:00",
        work=work(format=output_format),
        task=model.package.task.name,
        architecture=model.package.manifest.architecture.name,
        contract=model.package.contract.to_json(),
        manifest=name,
        manifest_digest=manifest.digest,
        num_rows=manifest.num_rows,
        num_shards=manifest.num_shards,
        rows_per_file=rows_per_file,
    )
    made = Output(layout, claim_plan(layout, plan), model, failed)
    made.put_shards(shards)
    return made


# --- crashes ----------------------------------------------------------------------------------

CHANGES = ("put_atomic", "put_if_absent", "delete", "remove_tree")
"""Functions of `storage` that change something."""


class Killed(BaseException):
    """The process ends here."""


def dies_at(
    monkeypatch: pytest.MonkeyPatch, call: int, *, after: bool
) -> Callable[[], Iterator[str]]:
    """Make the process die at a change of storage, just before it or just after it.

    Args:
        monkeypatch: Undoes it.
        call: Which change, counted from 0.
        after: Whether the change is still made.

    Returns:
        Gives the names of the changes that were begun.
    """
    begun: list[str] = []

    def dying(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any) -> Any:
            if storage.name_of(arguments[0]) == "progress.json":  # put whenever its thread runs
                return original(*arguments)
            begun.append(f"{name} {storage.name_of(arguments[0])}")
            if len(begun) == call + 1 and not after:
                raise Killed
            answer = original(*arguments)
            if len(begun) == call + 1:
                raise Killed
            return answer

        return change

    for name in CHANGES:
        monkeypatch.setattr(storage, name, dying(name, getattr(storage, name)))
    return lambda: iter(begun)
