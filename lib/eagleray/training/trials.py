"""The trials of a tuning: what each of them was, how far it came, and their ranking."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from eagleray.core.errors import UserError
from eagleray.core.ray_errors import read_failure
from eagleray.io import storage
from eagleray.training.search_space import SearchSpace

__all__ = ["Trial", "TrialState", "TrialTracker", "TuneResult", "rank"]

TrialState = Literal["running", "finished", "stopped", "failed", "refused"]


@dataclass(frozen=True)
class Trial:
    """A specification that is tried.

    Attributes:
        number: Counts from 1; the first one is the default.
        key: Names it, and the folder of its checkpoints.
        values: Of the searched fields.
        metric: What it is ranked by; higher is better.
        state: `finished`, `stopped` as poor, `failed` while it ran, `refused` before it ran.
        epochs: Metrics of every epoch.
        reason: Why it failed or was refused.
    """

    number: int
    key: str
    values: Mapping[str, Any]
    metric: str
    state: TrialState = "running"
    epochs: tuple[dict[str, float], ...] = ()
    reason: str | None = None

    @property
    def scores(self) -> list[float]:
        """The metric of every epoch."""
        return [epoch[self.metric] for epoch in self.epochs]

    @property
    def score(self) -> float | None:
        """The metric of the best epoch, whose weights are kept; None where there is no number."""
        return max((score for score in self.scores if not math.isnan(score)), default=None)

    @property
    def is_ranked(self) -> bool:
        """Whether it has a metric, and weights to go with it."""
        return self.score is not None and self.state not in ("failed", "refused")


def rank(trials: Mapping[str, Trial]) -> list[Trial]:
    """Return the trials that are ranked, best first; of equal ones the one that was begun first."""

    def place(trial: Trial) -> tuple[float, int]:
        assert trial.score is not None
        return -trial.score, trial.number

    return sorted((trial for trial in trials.values() if trial.is_ranked), key=place)


@dataclass(frozen=True)
class TuneResult:
    """What a tuning gives back.

    Attributes:
        trials: In the order in which they were begun.
        ranking: Those with a metric, best first.
        space: What was searched.
        metric: What they are ranked by; higher is better.
        folder: Of the best trial's checkpoints.
    """

    trials: tuple[Trial, ...]
    ranking: tuple[Trial, ...]
    space: SearchSpace
    metric: str
    folder: str

    @property
    def default(self) -> Trial:
        """The trial that nobody searched for."""
        return self.trials[0]

    @property
    def best(self) -> Trial:
        """The first of the ranking."""
        return self.ranking[0]

    @property
    def gain(self) -> float | None:
        """How much better the best is than the default; None where the default failed."""
        if not self.default.is_ranked:
            return None
        assert self.best.score is not None
        assert self.default.score is not None
        return self.best.score - self.default.score


@dataclass
class TrialTracker:
    """What has become of the trials so far.

    Attributes:
        metric: What they are ranked by.
        folder: Of their checkpoints, a folder for each.
        reporter: Receives every change.
        trials: By key.
    """

    metric: str
    folder: str
    reporter: Callable[[Trial], None] = lambda _: None
    trials: dict[str, Trial] = field(default_factory=dict)

    def begin(self, key: str, number: int, values: Mapping[str, Any]) -> None:
        """Enter a trial, once."""
        self.trials.setdefault(key, Trial(number, key, dict(values), self.metric))

    def add_epoch(self, key: str, metrics: Mapping[str, float], *, last: bool) -> None:
        """Enter an epoch of a trial.

        Args:
            key: Of the trial.
            metrics: Of the epoch.
            last: Whether the trial ends with it by itself.
        """
        trial = self.trials[key]
        self._put(
            dataclasses.replace(
                trial,
                epochs=(*trial.epochs, dict(metrics)),
                state="finished" if last else "running",
            )
        )

    def end(self, key: str, *, failed: bool = False) -> None:
        """Enter that a trial has ended: by an error, by itself, or else it was stopped as poor."""
        trial = self.trials[key]
        if failed:
            trial = dataclasses.replace(trial, state="failed")
        elif trial.state == "running":
            trial = dataclasses.replace(trial, state="stopped")
        self._put(trial)
        self._sweep()

    def explain(self, key: str, error: BaseException) -> None:
        """Enter why a trial has failed; what the user can mend was refused before it ran."""
        failure = read_failure(error)
        state: TrialState = "refused" if failure.is_a(UserError) else "failed"
        trial = self.trials[key]
        self.trials[key] = dataclasses.replace(trial, state=state, reason=failure.sentence)

    def _put(self, trial: Trial) -> None:
        self.trials[trial.key] = trial
        self.reporter(trial)

    def _sweep(self) -> None:
        """Remove the checkpoints of trials that have ended and are not the best one so far."""
        best = rank(self.trials)[:1]
        for trial in self.trials.values():
            folder = storage.join(self.folder, trial.key)
            if trial.state != "running" and trial not in best and storage.is_folder(folder):
                storage.remove_tree(folder)
