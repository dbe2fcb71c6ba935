"""HTTP routes for predictions: our own interface, and MLflow's."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from eagleray.core.errors import BadImageError, InputError
from eagleray.serve.http.accept import prefers_picture
from eagleray.serve.http.bodies import BODIES, PredictBody, read_body
from eagleray.serve.http.content_types import require_json
from eagleray.serve.http.guard import CLIENT, TRACE, request_id_of
from eagleray.serve.http.mlflow import MLFLOW_BODY, parse_mlflow
from eagleray.serve.http.parameters import (
    PredictParameters,
    QueryParameters,
    limits_for,
    read_parameters,
)
from eagleray.serve.http.pictures import PICTURE, draw_result
from eagleray.serve.http.schemas import MlflowResponse, refusals
from eagleray.serving.prediction.requests import PredictRequest, PredictResult
from eagleray.serving.prediction.responses import PredictResponse
from eagleray.serving.service import ImageService

__all__ = ["predict_routes"]

_REFUSALS = refusals(400, 401, 403, 404, 408, 413, 415, 422, 429, 503, 504)


def predict_routes(service: ImageService) -> APIRouter:
    """Return the routes that predict images."""
    router = APIRouter(tags=["predict"])

    @router.post(
        "/v1/models/{name}/predict",
        response_model=PredictResponse,
        responses=_REFUSALS,
        openapi_extra={"requestBody": BODIES},
        summary="Predict one image or several.",
    )
    async def predict(
        request: Request,
        name: str,
        _parameters: Annotated[QueryParameters, Query()],
    ) -> Response:
        """Predict the images of the body.

        A single image that cannot be used is an error; of several images, each has its result. With
        the header `Accept: image/png` or `image/*`, the objects or the mask of one image are drawn
        over it.
        """
        body = await read_body(request, max_bytes=service.config.max_body_bytes)
        parameters = read_parameters(request, body.parameters)
        if parameters.explain and len(body.images) != 1:
            raise InputError(
                f"explain is for one image, and the request has {len(body.images)}; send each in "
                "a request of its own."
            )
        result = await _predict(service, request, name, body, parameters)
        if body.is_single:
            _require_prediction(result)
        if prefers_picture(request):
            return Response(await draw_result(result, body, parameters), media_type=PICTURE)
        response = result.as_json(
            request_id=request_id_of(request.scope),
            top_k=parameters.top_k,
            threshold=parameters.threshold,
            limits=limits_for(parameters, result.loaded.manifest.task),
        )
        return JSONResponse(response)

    @router.post(
        "/v1/models/{name}/invocations",
        response_model=MlflowResponse,
        responses=_REFUSALS,
        openapi_extra={"requestBody": MLFLOW_BODY},
        summary="Predict images in the format of MLflow's servers.",
    )
    async def invocations_of_model(request: Request, name: str) -> Response:
        require_json(request)
        body = parse_mlflow(await request.body())
        parameters = read_parameters(request, body.parameters)
        if parameters.explain:
            raise InputError("explain is a parameter of /v1/models/NAME/predict alone.")
        result = await _predict(service, request, name, body, parameters)
        response = result.as_json(
            request_id="",
            top_k=parameters.top_k,
            threshold=parameters.threshold,
            limits=limits_for(parameters, result.loaded.manifest.task),
        )
        return JSONResponse({"predictions": response["results"]})

    @router.post(
        "/invocations",
        response_model=MlflowResponse,
        responses=_REFUSALS,
        openapi_extra={"requestBody": MLFLOW_BODY},
        summary="As above, for the only model of the service.",
    )
    async def invocations(request: Request) -> Response:
        names = service.config.models or tuple(service.snapshot.aliases)
        if len(names) != 1:
            raise InputError(
                f"This service has {len(names)} models; use /v1/models/NAME/invocations."
            )
        return await invocations_of_model(request, names[0])

    return router


async def _predict(
    service: ImageService,
    request: Request,
    model: str,
    body: PredictBody,
    parameters: PredictParameters,
) -> PredictResult:
    client = request.scope[CLIENT]
    seconds = service.config.timeout_s
    if parameters.timeout_ms is not None:
        seconds = min(seconds, parameters.timeout_ms / 1000)
    client["model"] = model if model in service.snapshot.aliases else ""
    result = await service.predict(
        PredictRequest(
            model=model,
            images=body.images,
            attributes=body.attributes,
            explain=parameters.explain,
            application=client["application"],
            request_id=client["request_id"],
            deadline=time.monotonic() + seconds,
            version=parameters.version,
            trace=request.scope[TRACE],
        )
    )
    client["version"] = str(result.loaded.version)
    return result


def _require_prediction(result: PredictResult) -> None:
    """Refuse a request about one image that cannot be used.

    Raises:
        BadImageError: If the image has no prediction; it has the reason.
    """
    failure = result.outcomes[0].outcome.failure
    if failure is not None:
        raise BadImageError(failure.reason, failure.message)
