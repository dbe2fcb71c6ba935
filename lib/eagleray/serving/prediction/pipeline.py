"""Runs the images of a request through a loaded version: fetch, check, queue, decode, predict."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from eagleray.core.errors import BadImageError
from eagleray.imaging import DecodedImage
from eagleray.models.attributes import Features
from eagleray.serving.prediction.image_urls import ImageUrl, ImageUrlReader
from eagleray.serving.prediction.requests import PredictRequest
from eagleray.serving.prediction.tracing import ONLY_FAILURES
from eagleray.serving.prediction.workers import TimedOutcome, WorkerThreads
from eagleray.serving.telemetry import Telemetry
from eagleray.serving.versions.loading import ImageWithAttributes, LoadedVersion
from eagleray.tasks.outcome import Outcome

__all__ = ["Pipeline"]


class Pipeline:
    """The way of an image from a request to its outcome.

    Args:
        workers: Worker threads that decode and predict.
        image_urls: Reader of images that a request only names.
        telemetry: Metrics that count each image.
    """

    def __init__(
        self, workers: WorkerThreads, image_urls: ImageUrlReader, telemetry: Telemetry
    ) -> None:
        self._workers, self._image_urls, self._telemetry = workers, image_urls, telemetry

    async def predict(
        self, loaded: LoadedVersion, request: PredictRequest
    ) -> Sequence[TimedOutcome]:
        """Predict all images of a request; if one of them is refused, the others are cancelled.

        Raises:
            AttributeValueError: If the version takes attributes and the request lacks them.
            ServiceError: If there is no room or no time for an image.
        """
        encoded = loaded.encode_attributes(request.attributes, len(request.images))
        if len(request.images) == 1:
            return [await self._predict_one(loaded, request, 0, encoded[0])]
        tasks = [
            asyncio.ensure_future(self._predict_one(loaded, request, number, row))
            for number, row in enumerate(encoded)
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def fetch(
        self, loaded: LoadedVersion, request: PredictRequest, number: int
    ) -> bytes | DecodedImage:
        """Return an image of a request, fetched if the request only names it.

        Raises:
            BadImageError: If it cannot be fetched.
        """
        image = request.images[number]
        if not isinstance(image, ImageUrl):
            return image
        with request.trace.stage("fetch", image=number):
            return await self._image_urls.read(
                image, max_bytes=loaded.manifest.contract.max_bytes, deadline=request.deadline
            )

    async def _predict_one(
        self,
        loaded: LoadedVersion,
        request: PredictRequest,
        number: int,
        attributes: Features | None,
    ) -> TimedOutcome:
        trace = request.trace
        try:
            image = await self.fetch(loaded, request, number)
            pixels = loaded.num_pixels(image)
        except BadImageError as error:
            return TimedOutcome(Outcome.from_error(error), 0.0, 0.0, 0.0, 0)
        queued = image if attributes is None else ImageWithAttributes(image, attributes)
        with trace.stage("predict", image=number, min_seconds=ONLY_FAILURES):
            timed = await self._workers.predict(
                loaded, queued, pixels=pixels, deadline=request.deadline
            )
        trace.record_prediction(number, timed)
        self._telemetry.record_prediction(loaded.model, loaded.version, timed)
        return timed
