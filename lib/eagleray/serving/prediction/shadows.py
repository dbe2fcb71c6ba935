"""Sends copies of requests to shadow versions, and compares their predictions.

A shadow only predicts if the workers have nothing else to do. Its predictions are never returned.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from eagleray.core.errors import AttributeValueError
from eagleray.serving.prediction.pipeline import Pipeline
from eagleray.serving.prediction.requests import PredictRequest, PredictResult
from eagleray.serving.prediction.tracing import NO_TRACE
from eagleray.serving.prediction.workers import TimedOutcome
from eagleray.serving.telemetry import Telemetry
from eagleray.serving.versions.loading import LoadedVersion
from eagleray.serving.versions.model_pool import ModelPool
from eagleray.serving.versions.routing import Choice
from eagleray.tasks import Outcome, Task

__all__ = ["ShadowComparison", "ShadowDifference", "Shadows"]

_MAX_EXAMPLES = 50


@dataclass(frozen=True, slots=True)
class ShadowDifference:
    """An image for which a shadow predicted another label."""

    request_id: str
    version: int
    label: str | None
    shadow_version: int
    shadow_label: str | None


@dataclass(slots=True)
class ShadowComparison:
    """How the predictions of a model's shadow compare with those that were returned.

    Attributes:
        same: Number of images with the same label.
        different: Number of images with another label.
        skipped: Number of requests that the shadow did not predict, for example because the
            workers were busy.
        examples: The latest differences.
    """

    same: int = 0
    different: int = 0
    skipped: int = 0
    examples: deque[ShadowDifference] = field(default_factory=lambda: deque(maxlen=_MAX_EXAMPLES))

    def compare(
        self,
        request: PredictRequest,
        returned: PredictResult,
        version: int,
        predicted: Sequence[TimedOutcome],
    ) -> Iterator[str]:
        """Count the images of a request, and yield `same` or `different` for each.

        Args:
            request: The request.
            returned: The result that its caller got.
            version: Version number of the shadow.
            predicted: The outcomes of the shadow.
        """
        task = returned.loaded.manifest.task
        for ours, theirs in zip(returned.outcomes, predicted, strict=True):
            if _same(task, ours.outcome, theirs.outcome):
                self.same += 1
                yield "same"
                continue
            self.different += 1
            self.examples.append(
                ShadowDifference(
                    request.request_id,
                    returned.loaded.version,
                    _describe(task, ours.outcome),
                    version,
                    _describe(task, theirs.outcome),
                )
            )
            yield "different"


class Shadows:
    """The shadows of all models, and how their predictions compare.

    Args:
        model_pool: Pool of loaded versions.
        pipeline: Pipeline that predicts.
        telemetry: Metrics that count the comparisons.
        is_idle: Whether the workers have nothing else to do.
        timeout: Seconds for a shadow's predictions.
    """

    def __init__(
        self,
        model_pool: ModelPool[LoadedVersion],
        pipeline: Pipeline,
        telemetry: Telemetry,
        *,
        is_idle: Callable[[], bool],
        timeout: float,
    ) -> None:
        self._model_pool, self._pipeline, self._telemetry = model_pool, pipeline, telemetry
        self._is_idle, self._timeout = is_idle, timeout
        self.comparisons: dict[str, ShadowComparison] = {}
        """Comparisons by model, of the models whose shadow got a request."""

    async def predict(
        self, choice: Choice, request: PredictRequest, returned: PredictResult
    ) -> None:
        """Let a shadow predict a request again, and compare the results.

        Args:
            choice: The shadow's role and version.
            request: The request.
            returned: The result that its caller got.
        """
        comparison = self.comparisons.setdefault(request.model, ShadowComparison())
        if not self._is_idle() or self._model_pool.serving(choice.role) is None:
            comparison.skipped += 1
            return
        version, loaded = await self._model_pool.acquire(choice, patience=0)
        deadline = time.monotonic() + self._timeout
        try:
            predicted = await self._pipeline.predict(
                loaded, replace(request, deadline=deadline, trace=NO_TRACE)
            )
        except AttributeValueError:  # the shadow takes other attributes than the version did
            comparison.skipped += 1
            return
        finally:
            self._model_pool.release(request.model, version)
        for agreement in comparison.compare(request, returned, version, predicted):
            self._telemetry.shadows.labels(request.model, agreement).inc()


def _same(task: Task, ours: Outcome, theirs: Outcome) -> bool:
    if ours.prediction is None or theirs.prediction is None:
        return _describe(task, ours) == _describe(task, theirs)
    return task.same_answer(ours.prediction, theirs.prediction)


def _describe(task: Task, outcome: Outcome) -> str | None:
    if outcome.prediction is None:
        assert outcome.failure is not None
        return f"failed: {outcome.failure.reason.value}"
    return task.describe(outcome.prediction)
