"""Draws a prediction over its image, for callers who want a picture."""

from __future__ import annotations

import io

from starlette.concurrency import run_in_threadpool

from eagleray.reports.drawing import draw
from eagleray.serve.http.bodies import PredictBody
from eagleray.serve.http.parameters import ParameterError, PredictParameters
from eagleray.serving.requests import PredictResult

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
    """
    task, (image, *others) = result.loaded.manifest.task, body.images
    if others or not isinstance(image, bytes):
        raise ParameterError(f"A response of {PICTURE} is of one image; send its bytes.")
    prediction = result.outcomes[0].outcome.prediction
    assert prediction is not None
    drawing = task.drawing(prediction, parameters.threshold)
    if drawing is None:
        raise ParameterError(
            f"A response of {PICTURE} shows where something is, which a {task.name} model does not "
            "say; accept application/json."
        )
    picture = await run_in_threadpool(draw, image, drawing, side=_SIDE)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
