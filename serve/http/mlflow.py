"""Parses the bodies that MLflow's model servers accept."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from eagleray.core.errors import InputError
from eagleray.serve.http.bodies import PredictBody
from eagleray.serve.http.image_json import ImageInJson
from eagleray.serve.http.parameters import PredictParameters, describe_fault
from eagleray.serving.protocol.json_body import read_json

__all__ = ["MLFLOW_BODY", "parse_mlflow"]

_IMAGES = {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}}
_FORMS: dict[str, Any] = {
    "inputs": {"anyOf": [_IMAGES, {"type": "object"}, {"type": "array"}]},
    "instances": {"anyOf": [_IMAGES, {"type": "object"}, {"type": "array"}]},
    "dataframe_split": {"type": "object", "properties": {"data": {"type": "array"}}},
    "dataframe_records": {"type": "array"},
}
_IMAGE_MEMBERS = {*ImageInJson.model_fields, "b64"}
_EXPECTED = (
    "The body has one of inputs, instances, dataframe_split and dataframe_records, with one image "
    "in base64 for each row; where a row has attributes too, the image's column is named image"
)

MLFLOW_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {**_FORMS, "params": PredictParameters.model_json_schema()},
                "oneOf": [{"required": [name]} for name in _FORMS],
            }
        }
    },
}
"""The supported body, for the OpenAPI document."""


def parse_mlflow(body: bytes) -> PredictBody:
    """Parse a body for MLflow's `/invocations`.

    A row of one cell is an image. In a row of several, the column `image` is the image, and the
    others are attributes.

    Raises:
        InputError: If the body is malformed.
    """
    parsed = read_json(body)
    if not isinstance(parsed, dict) or len(parsed.keys() & _FORMS.keys()) != 1:
        raise InputError(f"{_EXPECTED}.")
    if others := parsed.keys() - _FORMS.keys() - {"params"}:
        raise InputError(
            f"The body has {min(others)!r}, which is not known; parameters are members of params."
        )
    params = parsed.get("params") or {}
    if not isinstance(params, dict):
        raise InputError('params must be an object, as in {"top_k": 3}.')
    rows = _rows(parsed)
    if not isinstance(rows, list):
        raise InputError(f"{_EXPECTED}.")
    images = [_image_in_row(number, row) for number, row in enumerate(rows)]
    attributes = [
        {**(row if isinstance(row, dict) else {}), **(image.attributes or {})}
        for row, image in zip(rows, images, strict=True)
    ]
    return PredictBody(
        [image.content() for image in images],
        is_single=False,
        parameters=params,
        attributes=attributes if any(attributes) else None,
    )


def _rows(body: dict[str, Any]) -> Any:
    """Return the value in place of the rows, which may be anything."""
    for name in ("inputs", "instances"):
        if name in body:
            found = body[name]
            if isinstance(found, dict):
                return _rows_of_columns(found)
            return [found] if isinstance(found, str) else found
    split = body.get("dataframe_split")
    if not isinstance(split, dict):
        return body.get("dataframe_records")
    rows, columns = split.get("data"), split.get("columns")
    if not isinstance(rows, list) or not isinstance(columns, list) or len(columns) < 2:
        return rows
    return [_named(row, columns) for row in rows]


def _rows_of_columns(columns: dict[str, Any]) -> Any:
    """Return the rows of named columns, lists or single values; None if lengths differ."""
    if columns.keys() <= _IMAGE_MEMBERS:
        return [columns]
    lists = [cells if isinstance(cells, list) else [cells] for cells in columns.values()]
    if len({len(cells) for cells in lists}) != 1:
        return None
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _named(row: Any, columns: list[Any]) -> Any:
    if not isinstance(row, list) or len(row) != len(columns):
        return None
    return {str(column): cell for column, cell in zip(columns, row, strict=True)}


def _image_in_row(number: int, row: Any) -> ImageInJson:
    """Return the image of a row.

    Raises:
        InputError: If the row has no valid image.
    """
    try:
        return ImageInJson.model_validate(_image_cell(row))
    except ValidationError as error:
        fault = describe_fault(error, ImageInJson)
        raise InputError(f"Row {number}: {fault}. {_EXPECTED}.") from None


def _image_cell(row: Any) -> Any:
    if isinstance(row, dict) and "image" in row:
        return row["image"]
    if isinstance(row, dict) and not row.keys() <= _IMAGE_MEMBERS:
        row = list(row.values())
    if isinstance(row, list) and len(row) == 1:
        return row[0]
    return row
