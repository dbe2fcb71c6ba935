"""Compares the predictions of a shadow version with those that callers got."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from eagleray.serving.requests import Answers, PredictRequest
from eagleray.serving.workers import Answered
from eagleray.tasks import Outcome, Task

__all__ = ["ShadowDifference", "ShadowTally"]

_MAX_EXAMPLES = 50


@dataclass(frozen=True, slots=True)
class ShadowDifference:
    """An image for which a shadow predicted something else."""

    request_id: str
    version: int
    label: str | None
    shadow_version: int
    shadow_label: str | None


@dataclass(slots=True)
class ShadowTally:
    """Counts of a shadow's predictions, compared with those that callers got.

    Attributes:
        same: Number of images with the same prediction.
        different: Number of images with another prediction.
        skipped: Number of requests that the shadow did not get, because the service was busy.
        examples: The latest differences.
    """

    same: int = 0
    different: int = 0
    skipped: int = 0
    examples: deque[ShadowDifference] = field(default_factory=lambda: deque(maxlen=_MAX_EXAMPLES))

    def compare(
        self,
        request: PredictRequest,
        given: Answers,
        version: int,
        answered: Sequence[Answered],
    ) -> Iterator[str]:
        """Count the images of a request, and yield `same` or `different` for each.

        Args:
            request: The request.
            given: Response to the caller.
            version: Version of the shadow.
            answered: Predictions of the shadow.
        """
        task = given.loaded.manifest.task
        for ours, theirs in zip(given.answered, answered, strict=True):
            if _same(task, ours.outcome, theirs.outcome):
                self.same += 1
                yield "same"
                continue
            self.different += 1
            self.examples.append(
                ShadowDifference(
                    request.request_id,
                    given.loaded.version,
                    _describe(task, ours.outcome),
                    version,
                    _describe(task, theirs.outcome),
                )
            )
            yield "different"


def _same(task: Task, ours: Outcome, theirs: Outcome) -> bool:
    if ours.prediction is None or theirs.prediction is None:
        return _describe(task, ours) == _describe(task, theirs)
    return task.same_answer(ours.prediction, theirs.prediction)


def _describe(task: Task, outcome: Outcome) -> str | None:
    if outcome.prediction is None:
        assert outcome.failure is not None
        return f"failed: {outcome.failure.reason.value}"
    return task.describe(outcome.prediction)
