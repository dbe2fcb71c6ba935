"""The result table: one row for each input, whatever became of it.

`docs/results.md` describes the columns for those who read the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from eagleray.core.types import OutputFormat
from eagleray.io.arrow_files import column_names, decode_table
from eagleray.registry.references import LoadedModel
from eagleray.sharded.columns import USER_PREFIX, names_beside_ours, user_columns
from eagleray.tasks.outcome import Outcome

__all__ = ["ResultWriter", "output_names", "read_columns", "result_schema", "score_columns"]

MAX_LABEL_COLUMNS = 1000
SCORE_PREFIX = "score_"
"""Of the columns with one label's probability each, which a multilabel table has."""

_TOP_ENTRY = pa.struct([pa.field("label", pa.string()), pa.field("score", pa.float32())])
_IDENTITY = (
    pa.field("row", pa.int64(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
)
_ANSWER = (
    pa.field("status", pa.string(), nullable=False),
    pa.field("reason", pa.string()),
    pa.field("message", pa.string()),
    pa.field("label", pa.string()),
    pa.field("score", pa.float32()),
    pa.field("labels", pa.list_(pa.string())),
    pa.field("value", pa.float64()),
)
_TOP = (pa.field("top_k", pa.list_(_TOP_ENTRY)),)
_ABOUT = (
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("milliseconds", pa.float32()),
    pa.field("model", pa.string(), nullable=False),
    pa.field("model_version", pa.string(), nullable=False),
    pa.field("model_digest", pa.string(), nullable=False),
    pa.field("contract_digest", pa.string(), nullable=False),
)
_OURS = {field.name: field for field in (*_IDENTITY, *_ANSWER, *_TOP, *_ABOUT)}
_NO_COLUMNS = pa.schema([])


def output_names(user_columns: Sequence[str]) -> list[str]:
    """Return what the columns of the user's table are called in the output."""
    return names_beside_ours(
        user_columns, lambda name: name in _OURS or name.startswith(SCORE_PREFIX)
    )


def score_columns(model: LoadedModel) -> tuple[str, ...]:
    """Return the columns with one label's probability each: a multilabel model has them."""
    task = model.package.task
    if task.name != "multilabel" or len(task.labels) > MAX_LABEL_COLUMNS:
        return ()
    return tuple(SCORE_PREFIX + label for label in task.labels)


def result_schema(model: LoadedModel, manifest_schema: pa.Schema) -> pa.Schema:
    """Return the columns of a job's results.

    Args:
        model: A multilabel one gets a column for each label instead of `top_k`.
        manifest_schema: Its columns that begin with `USER_PREFIX` come along.
    """
    user = _renamed(user_columns(manifest_schema))
    scores = [pa.field(name, pa.float32()) for name in score_columns(model)]
    return pa.schema([*_IDENTITY, *user, *_ANSWER, *(scores or _TOP), *_ABOUT])


def _renamed(user_schema: pa.Schema) -> list[pa.Field]:
    names = output_names(user_schema.names)
    return [field.with_name(name) for field, name in zip(user_schema, names, strict=True)]


def read_columns(
    content: bytes,
    output_format: OutputFormat,
    columns: Sequence[str] | None = None,
    *,
    user_schema: pa.Schema = _NO_COLUMNS,
) -> pa.Table:
    """Read some columns, or all, of a result file, with the types of the result table.

    Args:
        content: Of the file.
        output_format: Of the file.
        columns: Names; None for all.
        user_schema: The user's own columns, under their own names.

    Raises:
        ValueError: The file is damaged, or no result file; `OSError` and `KeyError` may say so as
            well.
    """
    known = {**_OURS, **{field.name: field for field in _renamed(user_schema)}}
    fields = []
    for name in column_names(content, output_format) if columns is None else columns:
        if name not in known and not name.startswith(SCORE_PREFIX):
            raise ValueError(f"a result table has no column {name!r}")
        fields.append(known.get(name, pa.field(name, pa.float32())))
    return decode_table(content, output_format, pa.schema(fields))


@dataclass(frozen=True)
class ResultWriter:
    """Makes the result rows of shards.

    Attributes:
        model: What answers.
        schema: Of the results.
        top_k: How many labels to list with their probabilities.
    """

    model: LoadedModel
    schema: pa.Schema
    top_k: int

    def table(
        self, rows: pa.Table, outcomes: Sequence[Outcome], milliseconds: Sequence[float]
    ) -> pa.Table:
        """Make the result rows of a shard.

        Args:
            rows: Of the manifest.
            outcomes: One for each row, in order.
            milliseconds: Time that each row took, reading included.

        Returns:
            A table of the schema.
        """
        users = [name for name in rows.column_names if name.startswith(USER_PREFIX)]
        names = output_names([name.removeprefix(USER_PREFIX) for name in users])
        columns: dict[str, Any] = {name: rows.column(name) for name in ("row", "uri")}
        columns |= {name: rows.column(own) for name, own in zip(names, users, strict=True)}
        columns |= self._answers(outcomes)
        columns["milliseconds"] = milliseconds
        package = self.model.package
        constants = {
            "model": self.model.name,
            "model_version": self.model.version,
            "model_digest": package.digest,
            "contract_digest": package.contract.digest,
        }
        columns |= {name: [value] * rows.num_rows for name, value in constants.items()}
        arrays = [_as_array(columns[field.name], field.type) for field in self.schema]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _answers(self, outcomes: Sequence[Outcome]) -> Mapping[str, list[Any]]:
        labels = self.model.package.task.labels
        scores = score_columns(self.model)
        names = [field.name for field in (*_ANSWER, *(() if scores else _TOP), *_ABOUT[:2])]
        records = [_outcome_columns(outcome, labels, self.top_k) for outcome in outcomes]
        columns = {name: [record.get(name) for record in records] for name in names}
        for index, name in enumerate(scores):
            columns[name] = [
                None if outcome.prediction is None else outcome.prediction.probabilities[index]
                for outcome in outcomes
            ]
        return columns


def _as_array(values: Any, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)


def _outcome_columns(outcome: Outcome, labels: tuple[str, ...], top_k: int) -> dict[str, Any]:
    if outcome.failure is not None:
        return {
            "status": "failed",
            "reason": outcome.failure.reason.value,
            "message": outcome.failure.message,
        }
    prediction = outcome.prediction
    assert prediction is not None
    top = [{"label": label, "score": score} for label, score in prediction.top(labels, top_k)]
    return {
        "status": "ok",
        "label": prediction.label,
        "score": prediction.score,
        "labels": list(prediction.labels),
        "value": prediction.value,
        "top_k": top,
        "width": outcome.width,
        "height": outcome.height,
    }
