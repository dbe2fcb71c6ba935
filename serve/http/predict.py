"""Predictions: our own interface, and MLflow's."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from eagleray.core.errors import BadImageError, InputError
from eagleray.serve.http.bodies import (
    BODIES,
    Asked,
    AskedInQuery,
    ImageInJson,
    ImagesAsked,
    fault_of,
    read_asked,
    read_images,
    require_json,
)
from eagleray.serve.http.documents import MlflowAnswer, refusals
from eagleray.serve.http.guard import CLIENT, TRACE, request_id_of
from eagleray.serving.json_body import read_json
from eagleray.serving.requests import Answers, PredictRequest
from eagleray.serving.responses import Answer
from eagleray.serving.service import ImageService

__all__ = ["predict_routes"]

_IMAGES = {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}}
_FORMS: dict[str, Any] = {
    "inputs": {"anyOf": [_IMAGES, {"type": "object"}, {"type": "array"}]},
    "instances": {"anyOf": [_IMAGES, {"type": "object"}, {"type": "array"}]},
    "dataframe_split": {"type": "object", "properties": {"data": {"type": "array"}}},
    "dataframe_records": {"type": "array"},
}
_IMAGE_MEMBERS = {*ImageInJson.model_fields, "b64"}
_MLFLOW_SENTENCE = (
    "The body has one of inputs, instances, dataframe_split and dataframe_records, with one image "
    "in base64 for each row; where a row has attributes too, the image's column is named image"
)
_MLFLOW_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {**_FORMS, "params": Asked.model_json_schema()},
                "oneOf": [{"required": [name]} for name in _FORMS],
            }
        }
    },
}


def predict_routes(service: ImageService) -> APIRouter:
    """Return the routes that answer images."""
    router = APIRouter()

    @router.post(
        "/v1/models/{name}/predict",
        response_model=Answer,
        responses=refusals(400, 401, 403, 404, 408, 413, 415, 422, 429, 503, 504),
        openapi_extra={"requestBody": BODIES},
        tags=["predict"],
        summary="Predict one image or several.",
    )
    async def predict(
        request: Request,
        name: str,
        _asked: Annotated[AskedInQuery, Query()],
    ) -> Response:
        """Answer the images of the body.

        A single image that cannot be used is an error of its own; of several, each has its result.
        """
        given = await read_images(request, max_bytes=service.config.max_body_bytes)
        asked = read_asked(request, given.asked)
        answers = await _ask(service, request, name, given, asked)
        if given.alone:
            _require_used(answers)
        body = answers.as_json(
            request_id=request_id_of(request.scope),
            top_k=asked.top_k,
            threshold=asked.threshold,
        )
        return JSONResponse(body)

    @router.post(
        "/v1/models/{name}/invocations",
        response_model=MlflowAnswer,
        responses=refusals(400, 401, 403, 404, 408, 413, 415, 422, 429, 503, 504),
        openapi_extra={"requestBody": _MLFLOW_BODY},
        tags=["predict"],
        summary="Predict images in the form that MLflow's servers take.",
    )
    async def invocations_of_model(request: Request, name: str) -> Response:
        require_json(request)
        given = _read_mlflow(await request.body())
        asked = read_asked(request, given.asked)
        answers = await _ask(service, request, name, given, asked)
        body = answers.as_json(request_id="", top_k=asked.top_k, threshold=asked.threshold)
        return JSONResponse({"predictions": body["results"]})

    @router.post(
        "/invocations",
        response_model=MlflowAnswer,
        responses=refusals(400, 401, 403, 404, 408, 413, 415, 422, 429, 503, 504),
        openapi_extra={"requestBody": _MLFLOW_BODY},
        tags=["predict"],
        summary="As the above, of the service's only model.",
    )
    async def invocations(request: Request) -> Response:
        names = service.config.models or tuple(service.snapshot.aliases)
        if len(names) != 1:
            raise InputError(
                f"This service has {len(names)} models; ask /v1/models/NAME/invocations."
            )
        return await invocations_of_model(request, names[0])

    return router


async def _ask(
    service: ImageService,
    request: Request,
    model: str,
    given: ImagesAsked,
    asked: Asked,
) -> Answers:
    client = request.scope[CLIENT]
    limit = service.config.timeout_s
    seconds = limit if asked.timeout_ms is None else min(limit, asked.timeout_ms / 1000)
    client["model"] = model if model in service.snapshot.aliases else ""
    answers = await service.predict(
        PredictRequest(
            model=model,
            images=given.images,
            attributes=given.attributes,
            application=client["application"],
            request_id=client["request_id"],
            deadline=time.monotonic() + seconds,
            asked=asked.version,
            trace=request.scope[TRACE],
        )
    )
    client["version"] = str(answers.loaded.version)
    return answers


def _require_used(answers: Answers) -> None:
    """Refuse a request about one image that cannot be used.

    Raises:
        BadImageError: With its reason.
    """
    failure = answers.answered[0].outcome.failure
    if failure is not None:
        raise BadImageError(failure.reason, failure.message)


def _read_mlflow(body: bytes) -> ImagesAsked:
    """Read the images of a body for MLflow's `/invocations`, and its parameters.

    A row of one cell is an image. In a row of several the column `image` is, and the others are
    attributes.

    Raises:
        InputError: It is none.
    """
    parsed = read_json(body)
    if not isinstance(parsed, dict) or len(parsed.keys() & _FORMS.keys()) != 1:
        raise InputError(f"{_MLFLOW_SENTENCE}.")
    if others := parsed.keys() - _FORMS.keys() - {"params"}:
        raise InputError(
            f"The body has {min(others)!r}, which is not known; parameters are members of params."
        )
    params = parsed.get("params") or {}
    if not isinstance(params, dict):
        raise InputError('params is an object, as in {"top_k": 3}.')
    rows = _rows(parsed)
    if not isinstance(rows, list):
        raise InputError(f"{_MLFLOW_SENTENCE}.")
    images = [_image_in_row(number, row) for number, row in enumerate(rows)]
    attributes = [
        {**(row if isinstance(row, dict) else {}), **(image.attributes or {})}
        for row, image in zip(rows, images, strict=True)
    ]
    return ImagesAsked(
        [image.content() for image in images],
        alone=False,
        asked=params,
        attributes=attributes if any(attributes) else None,
    )


def _rows(body: dict[str, Any]) -> Any:
    """Return what stands where the rows belong; it may be anything."""
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
    """Return the rows of named columns, each a list or a single value; None where they are not."""
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
    """Return the image of a row, however rows are written.

    Raises:
        InputError: There is none.
    """
    try:
        return ImageInJson.model_validate(_image_cell(row))
    except ValidationError as error:
        raise InputError(
            f"Row {number}: {fault_of(error, ImageInJson)}. {_MLFLOW_SENTENCE}."
        ) from None


def _image_cell(row: Any) -> Any:
    if isinstance(row, dict) and "image" in row:
        return row["image"]
    if isinstance(row, dict) and not row.keys() <= _IMAGE_MEMBERS:
        row = list(row.values())
    if isinstance(row, list) and len(row) == 1:
        return row[0]
    return row
