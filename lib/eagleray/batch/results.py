"""The result table of a batch job: one row for each input, predicted or failed.

`docs/results.md` describes the columns for users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from eagleray.batch.sinks import sink_named
from eagleray.registry.references import LoadedModel
from eagleray.sharded.columns import USER_PREFIX, names_beside_ours, user_columns
from eagleray.tasks import Outcome, Task, task_class
from eagleray.tasks.limits import CountLimit, exceeded_limits

__all__ = ["ResultWriter", "output_names", "read_columns", "result_schema"]

_IDENTITY = (
    pa.field("row", pa.int64(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
)
_STATUS = (
    pa.field("status", pa.string(), nullable=False),
    pa.field("reason", pa.string()),
    pa.field("message", pa.string()),
)
_ABOUT = (
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("milliseconds", pa.float32()),
    pa.field("model", pa.string(), nullable=False),
    pa.field("model_version", pa.string(), nullable=False),
    pa.field("model_digest", pa.string(), nullable=False),
    pa.field("contract_digest", pa.string(), nullable=False),
)
_EXCEEDS = pa.field("exceeds", pa.list_(pa.string()))  # of jobs with limits
_GENERAL = (*_IDENTITY, *_STATUS, _EXCEEDS, *_ABOUT)
_NO_COLUMNS = pa.schema([])


def _our_fields(task: type[Task] | None) -> dict[str, pa.Field]:
    """Return the columns that are not the user's, without those that depend on labels."""
    types = {**Task.result_types(), **({} if task is None else task.result_types())}
    fields = {name: pa.field(name, data_type) for name, data_type in types.items()}
    return fields | {field.name: field for field in _GENERAL}


def output_names(user_columns: Sequence[str], task: type[Task] | None = None) -> list[str]:
    """Return the names of the user's columns in the output, which differ from all others.

    Args:
        user_columns: Names in the user's table.
        task: Task of the model, for columns of its own.
    """
    ours, prefixes = _our_fields(task), tuple(_label_types(task))
    return names_beside_ours(user_columns, lambda name: name in ours or name.startswith(prefixes))


def _label_types(task: type[Task] | None) -> dict[str, pa.DataType]:
    """Return the types of columns of one label each, by the prefix of their names."""
    return (Task if task is None else task).label_types()


def result_schema(
    model: LoadedModel,
    manifest_schema: pa.Schema,
    *,
    has_limits: bool = False,
    has_masks: bool = False,
) -> pa.Schema:
    """Return the columns of a job's results.

    Args:
        model: The model, whose task has columns of its own.
        manifest_schema: Schema of the manifest; columns that begin with `USER_PREFIX` are the
            user's.
        has_limits: Whether the job has limits, so that a column lists those that are exceeded.
        has_masks: Whether the job has the columns that a task has on request only.
    """
    task = model.package.task
    user = _renamed(user_columns(manifest_schema), type(task))
    of_limits = [_EXCEEDS] if has_limits else []
    left_out = frozenset() if has_masks else task.optional_columns
    own = [field for field in task.result_fields() if field.name not in left_out]
    return pa.schema([*_IDENTITY, *user, *_STATUS, *own, *of_limits, *_ABOUT])


def _renamed(user_schema: pa.Schema, task: type[Task] | None) -> list[pa.Field]:
    names = output_names(user_schema.names, task)
    return [field.with_name(name) for field, name in zip(user_schema, names, strict=True)]


def read_columns(
    content: bytes,
    output_format: str,
    columns: Sequence[str] | None = None,
    *,
    user_schema: pa.Schema = _NO_COLUMNS,
    task: str | None = None,
) -> pa.Table:
    """Read some columns, or all, of a result file, with the types of the result table.

    Args:
        content: Bytes of the file.
        output_format: Format of the file.
        columns: Names of the columns; None for all.
        user_schema: The user's own columns, under their own names.
        task: Name of the model's task, for columns of its own.

    Raises:
        ValueError: If the file is damaged or is not a result file; `OSError` and `KeyError` may say
            so as well.
    """
    kind = None if task is None else task_class(task)
    known = {**_our_fields(kind), **{field.name: field for field in _renamed(user_schema, kind)}}
    fields, label_types = [], _label_types(kind)
    sink = sink_named(output_format)
    for name in sink.column_names(content) if columns is None else columns:
        of_label = [found for prefix, found in label_types.items() if name.startswith(prefix)]
        if name not in known and not of_label:
            raise ValueError(f"a result table has no column {name!r}")
        fields.append(known.get(name) or pa.field(name, of_label[0]))
    return sink.decode(content, pa.schema(fields))


@dataclass(frozen=True)
class ResultWriter:
    """Makes the result rows of shards.

    Attributes:
        model: The model.
        schema: Schema of the results.
        top_k: Number of labels to list with their probabilities.
        limits: Limits of the job; `exceeds` lists those that an image exceeds.
    """

    model: LoadedModel
    schema: pa.Schema
    top_k: int
    limits: tuple[CountLimit, ...] = ()

    def table(
        self, rows: pa.Table, outcomes: Sequence[Outcome], milliseconds: Sequence[float]
    ) -> pa.Table:
        """Make the result rows of a shard.

        Args:
            rows: Rows of the manifest.
            outcomes: One outcome for each row, in order.
            milliseconds: Time that each row took, reading included.

        Returns:
            A table of the schema.
        """
        package = self.model.package
        users = [name for name in rows.column_names if name.startswith(USER_PREFIX)]
        names = output_names([name.removeprefix(USER_PREFIX) for name in users], type(package.task))
        columns: dict[str, Any] = {name: rows.column(name) for name in ("row", "uri")}
        columns |= {name: rows.column(own) for name, own in zip(names, users, strict=True)}
        columns |= self._outcome_columns(outcomes)
        columns["milliseconds"] = milliseconds
        constants = {
            "model": self.model.name,
            "model_version": self.model.version,
            "model_digest": package.digest,
            "contract_digest": package.contract.digest,
        }
        columns |= {name: [value] * rows.num_rows for name, value in constants.items()}
        arrays = [_as_array(columns[field.name], field.type) for field in self.schema]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _outcome_columns(self, outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
        task = self.model.package.task
        fields = (*_STATUS, *task.result_fields(), _EXCEEDS, *_ABOUT[:2])
        rows = [self._outcome_row(outcome) for outcome in outcomes]
        return {field.name: [row.get(field.name) for row in rows] for field in fields}

    def _outcome_row(self, outcome: Outcome) -> dict[str, Any]:
        if outcome.prediction is None:
            assert outcome.failure is not None
            failure = outcome.failure
            return {
                "status": "failed",
                "reason": failure.reason.value,
                "message": failure.message,
            }
        task = self.model.package.task
        return {
            "status": "ok",
            **task.result_row(outcome.prediction, self.top_k),
            _EXCEEDS.name: exceeded_limits(self.limits, task, outcome.prediction),
            "width": outcome.width,
            "height": outcome.height,
        }


def _as_array(values: Any, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)
