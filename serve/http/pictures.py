"""Draws a prediction over its image, for callers who want a picture."""

from __future__ import annotations

import numpy as np
from starlette.concurrency import run_in_threadpool

from eagleray.core.errors import BadImageError
from eagleray.reports.drawing import draw
from eagleray.reports.overlays import encode_picture, picture_contract
from eagleray.serve.http.bodies import PredictBody
from eagleray.serve.http.parameters import ParameterError, PredictParameters
from eagleray.serving.prediction.requests import PredictResult
from eagleray.tasks.page import Drawing

__all__ = ["PICTURE", "draw_result"]

PICTURE = "image/png"
"""Media type of pictures."""

_SIDE = 1280


async def draw_result(
    result: PredictResult, body: PredictBody, parameters: PredictParameters
) -> bytes:
    """Return a PNG of the request's image with its objects or its mask.

    Raises:
        ParameterError: If the request has several images or the address of one, or the model says
            no places.
        BadImageError: If the image cannot be used.
    """
    task, (image, *others) = result.loaded.manifest.task, body.images
    if others or not isinstance(image, bytes):
        raise ParameterError(f"A response of {PICTURE} is of one image; send its bytes.")
    outcome = result.outcomes[0].outcome
    if outcome.failure is not None:
        raise BadImageError(outcome.failure.reason, outcome.failure.message)
    prediction = outcome.prediction
    assert prediction is not None
    drawing = task.drawing(prediction, parameters.threshold)
    if drawing is None:
        raise ParameterError(
            f"A response of {PICTURE} shows where something is, which a {task.name} model does not "
            "say; accept application/json."
        )
    return await run_in_threadpool(_draw, result, image, drawing)


def _draw(result: PredictResult, image: bytes, drawing: Drawing) -> bytes:
    loaded, outcome = result.loaded, result.outcomes[0].outcome
    contract = picture_contract(
        loaded.manifest.contract, outcome.width, outcome.height, max_side=_SIDE
    )
    picture = draw(loaded.decoding.decode_one(image, contract), drawing)
    return encode_picture(np.asarray(picture), "PNG")
