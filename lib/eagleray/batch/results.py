"""The result table: one row for each input, whatever became of it.

`docs/results.md` describes the columns for those who read the table.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from eagleray.models.sources import LoadedModel
from eagleray.outcome import Outcome

__all__ = ["RESULT_SCHEMA", "OutputFormat", "encode_table", "result_table"]

OutputFormat = Literal["parquet", "csv", "jsonl"]

_TOP_ENTRY = pa.struct([pa.field("label", pa.string()), pa.field("score", pa.float32())])

RESULT_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("value", pa.float64()),
        pa.field("top_k", pa.list_(_TOP_ENTRY)),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("milliseconds", pa.float32()),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("model_digest", pa.string(), nullable=False),
        pa.field("contract_digest", pa.string(), nullable=False),
    ]
)


def result_table(
    rows: Sequence[int],
    uris: Sequence[str],
    outcomes: Sequence[Outcome],
    *,
    milliseconds: float,
    model: LoadedModel,
    top_k: int,
) -> pa.Table:
    """Make the result rows of a shard.

    Args:
        rows: Row numbers of the manifest.
        uris: Locations of the manifest.
        outcomes: One for each row, in order.
        milliseconds: Mean time of an image in this shard, reading included.
        model: What answered.
        top_k: How many labels to list with their probabilities.

    Returns:
        A table of `RESULT_SCHEMA`.
    """
    package = model.package
    constant = {
        "milliseconds": milliseconds,
        "model": model.name,
        "model_version": model.version,
        "model_digest": package.digest,
        "contract_digest": package.contract.digest,
    }
    labels = package.task.labels
    records = [
        {"row": row, "uri": uri, **_outcome_columns(outcome, labels, top_k), **constant}
        for row, uri, outcome in zip(rows, uris, outcomes, strict=True)
    ]
    return pa.Table.from_pylist(records, schema=RESULT_SCHEMA)


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


def encode_table(table: pa.Table, output_format: OutputFormat) -> bytes:
    """Encode result rows as the bytes of one file; CSV spells nested columns as JSON."""
    buffer = io.BytesIO()
    if output_format == "parquet":
        pyarrow.parquet.write_table(table, buffer, compression="zstd")
    elif output_format == "csv":
        pyarrow.csv.write_csv(_flatten(table), buffer)
    else:
        for record in table.to_pylist():
            buffer.write(json.dumps(record, ensure_ascii=False).encode())
            buffer.write(b"\n")
    return buffer.getvalue()


def _flatten(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = [
                None if value is None else json.dumps(value, ensure_ascii=False)
                for value in table.column(index).to_pylist()
            ]
            table = table.set_column(index, field.name, pa.array(texts, pa.string()))
    return table
