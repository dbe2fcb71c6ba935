"""Explains predictions in a replica: one at a time, in a thread beside those that predict.

    with explanations.turn():                       # refuses while another one is made
        … predict …
        await explanations.explain(loaded, image, prediction)

An explanation takes a float32 copy of the network and several times the work of a prediction. The
copy of the version that was explained last stays in memory, so there is at most one.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from eagleray.imaging import DecodedImage
from eagleray.inference.explain import Explainer
from eagleray.models.attributes import Features
from eagleray.reports.overlays import encode_picture, overlay, picture_contract
from eagleray.serving.problems import DeadlineError, FullError
from eagleray.serving.versions.loading import LoadedVersion

__all__ = ["Explanations", "LabelOverlay"]

_MAX_SIDE = 512  # of an overlay, in pixels
_FIRST_SECONDS = 1.0  # until one is measured


@dataclass(frozen=True)
class LabelOverlay:
    """Where the evidence for a label is, drawn over the image.

    Attributes:
        label: The label that is explained.
        png: The overlay as a PNG file.
    """

    label: str
    png: bytes

    def as_json(self) -> dict[str, str]:
        """Return the members of an `ImageExplanation`."""
        content = base64.b64encode(self.png).decode()
        return {"label": self.label, "media_type": "image/png", "image": content}


class Explanations:
    """The one explanation that a replica makes at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explainer")
        self._is_taken = False
        self._running: Future[LabelOverlay] | None = None
        self._last_seconds = _FIRST_SECONDS
        self._kept: tuple[str, Explainer] | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the right to one explanation in the block, and until an unfinished one has ended.

        Raises:
            FullError: If another request holds it; it has the seconds until a retry makes sense.
        """
        if self._is_taken:
            raise FullError(
                "This replica explains one prediction at a time, and is explaining another one",
                retry_after=self._last_seconds,
            )
        self._is_taken, self._running = True, None
        try:
            yield
        finally:
            self._end_turn()

    def _end_turn(self) -> None:
        if self._running is None:
            self._is_taken = False
        else:  # it may run on after its caller gave up
            self._running.add_done_callback(self._release)

    def _release(self, _: Future[LabelOverlay]) -> None:
        self._is_taken = False

    async def explain(
        self,
        loaded: LoadedVersion,
        image: bytes | DecodedImage,
        label: str,
        attributes: Features | None,
        *,
        deadline: float,
    ) -> LabelOverlay:
        """Explain a label of an image, in a turn.

        Args:
            loaded: Version of the model.
            image: The encoded image.
            label: One of the model's labels.
            attributes: float32 array (num_features,) of the image's attributes, if the model takes
                any.
            deadline: Moment on the monotonic clock after which the caller does not wait.

        Raises:
            UserError: If predictions of this model cannot be explained; the message says why.
            BadImageError: If the image cannot be decoded again.
            DeadlineError: If the deadline passes first.
        """
        self._running = self._thread.submit(self._explain, loaded, image, label, attributes)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await asyncio.wrap_future(self._running)
        except TimeoutError:
            raise DeadlineError(
                "The deadline passed before the prediction was explained."
            ) from None

    def _explain(
        self,
        loaded: LoadedVersion,
        image: bytes | DecodedImage,
        label: str,
        attributes: Features | None,
    ) -> LabelOverlay:
        began = time.monotonic()
        contract = loaded.manifest.contract
        explainer = self._explainer_of(loaded)
        decoded = loaded.decoding.decode_one(image, contract)
        drawn = picture_contract(contract, decoded.width, decoded.height, max_side=_MAX_SIDE)
        found = explainer.explain(decoded, label, attributes)
        pixels = overlay(loaded.decoding.decode_one(image, drawn).pixels, found.heat, found.frame)
        self._last_seconds = time.monotonic() - began
        return LabelOverlay(label, encode_picture(pixels, "PNG"))

    def _explainer_of(self, loaded: LoadedVersion) -> Explainer:
        if self._kept is None or self._kept[0] != loaded.package_digest:
            self._kept = None  # two copies would not be in memory together
            predictor = loaded.predictor
            explainer = Explainer(
                predictor.package,
                device=predictor.plan.device,
                num_threads=predictor.plan.num_threads,
            )
            self._kept = loaded.package_digest, explainer
        return self._kept[1]

    def close(self) -> None:
        """End; an explanation that has begun is finished first."""
        self._thread.shutdown(cancel_futures=True)
