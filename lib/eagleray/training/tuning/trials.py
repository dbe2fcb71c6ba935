"""The trials of a tuning: their state, their tracker and their ranking."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from eagleray.core.errors import UserError
from eagleray.core.ray_errors import read_failure
from eagleray.io import storage
from eagleray.training.monitor import Monitor
from eagleray.training.tuning.search_space import SearchSpace

__all__ = ["OnTrial", "Trial", "TrialState", "TrialTracker", "TuneResult", "rank"]

OnTrial = Callable[["Trial"], None]
TrialState = Literal["running", "finished", "stopped", "failed", "invalid"]


@dataclass(frozen=True)
class Trial:
    """A trial of a tuning.

    Attributes:
        number: Number of the trial, from 1; the first one is the default.
        key: Name of the trial, and of its folder of checkpoints.
        values: Values of the searched fields.
        monitor: Metric that trials are ranked by.
        state: `running`, `finished`, `stopped` early, `failed`, or `invalid` if its values do not
            go together.
        epochs: Metrics of every epoch.
        reason: Reason why it failed or is invalid.
    """

    number: int
    key: str
    values: Mapping[str, Any]
    monitor: Monitor
    state: TrialState = "running"
    epochs: tuple[dict[str, float], ...] = ()
    reason: str | None = None

    @property
    def scores(self) -> list[float]:
        """The metric of every epoch."""
        return [epoch[self.monitor.metric] for epoch in self.epochs]

    @property
    def score(self) -> float | None:
        """The metric of the best epoch; None if no epoch has one."""
        return self.monitor.best(self.scores)

    @property
    def is_ranked(self) -> bool:
        """Whether the trial takes part in the ranking."""
        return self.score is not None and not self.has_failed

    @property
    def has_failed(self) -> bool:
        """Whether the trial failed, or could not start."""
        return self.state in ("failed", "invalid")


def rank(trials: Mapping[str, Trial], monitor: Monitor) -> list[Trial]:
    """Return the ranked trials, best first; of equal ones the first that was suggested."""

    def place(trial: Trial) -> tuple[float, int]:
        assert trial.score is not None
        return -trial.score if monitor.mode == "max" else trial.score, trial.number

    return sorted((trial for trial in trials.values() if trial.is_ranked), key=place)


@dataclass(frozen=True)
class TuneResult:
    """The result of a tuning.

    Attributes:
        trials: All trials, in the order of their suggestions.
        ranking: Ranked trials, best first.
        space: Search space.
        monitor: Metric that trials are ranked by.
        folder: Folder of the best trial's checkpoints.
    """

    trials: tuple[Trial, ...]
    ranking: tuple[Trial, ...]
    space: SearchSpace
    monitor: Monitor
    folder: str

    @property
    def default(self) -> Trial:
        """The trial with the default values."""
        return self.trials[0]

    @property
    def best(self) -> Trial:
        """The first of the ranking."""
        return self.ranking[0]

    @property
    def gain(self) -> float | None:
        """How much better the best trial is than the default; None if that failed."""
        if not self.default.is_ranked:
            return None
        assert self.best.score is not None
        assert self.default.score is not None
        difference = self.best.score - self.default.score
        return difference if self.monitor.mode == "max" else -difference


@dataclass
class TrialTracker:
    """Tracks the state of trials, and deletes checkpoints that cannot become the best.

    Attributes:
        monitor: Metric that trials are ranked by.
        folder: Folder of the checkpoints, with a folder for each trial.
        on_trial: Receives every change.
        save: Receives all trials when one starts or ends, to keep them for a resume.
        trials: Trials by key.
    """

    monitor: Monitor
    folder: str
    on_trial: OnTrial = lambda _: None
    save: Callable[[Iterable[Trial]], None] = lambda _: None
    trials: dict[str, Trial] = field(default_factory=dict)

    def start(self, key: str, number: int, values: Mapping[str, Any]) -> None:
        """Record that a trial has started; a second call changes nothing."""
        if key not in self.trials:
            self.trials[key] = Trial(number, key, dict(values), self.monitor)
            self.save(self.trials.values())

    def add_epoch(self, key: str, metrics: Mapping[str, float], *, last: bool) -> None:
        """Record an epoch of a trial.

        Args:
            key: Key of the trial.
            metrics: Metrics of the epoch.
            last: Whether the trial finishes with this epoch.
        """
        trial = self.trials[key]
        self._update(
            dataclasses.replace(
                trial,
                epochs=(*trial.epochs, dict(metrics)),
                state="finished" if last else "running",
            )
        )

    def end(self, key: str, *, failed: bool = False) -> None:
        """Record that a trial has ended; one that is still running was stopped early."""
        trial = self.trials[key]
        if failed:
            trial = dataclasses.replace(trial, state="failed")
        elif trial.state == "running":
            trial = dataclasses.replace(trial, state="stopped")
        self._update(trial)
        self.save(self.trials.values())
        self._delete_checkpoints()

    def explain(self, key: str, error: BaseException) -> None:
        """Record why a trial has failed; an error that the user can fix makes it invalid."""
        failure = read_failure(error)
        state: TrialState = "invalid" if failure.is_a(UserError) else "failed"
        trial = self.trials[key]
        self.trials[key] = dataclasses.replace(trial, state=state, reason=failure.sentence)

    def _update(self, trial: Trial) -> None:
        self.trials[trial.key] = trial
        self.on_trial(trial)

    def _delete_checkpoints(self) -> None:
        """Delete the checkpoints of ended trials but the best one's."""
        best = rank(self.trials, self.monitor)[:1]
        for trial in self.trials.values():
            folder = storage.join(self.folder, trial.key)
            if trial.state != "running" and trial not in best and storage.is_folder(folder):
                storage.remove_tree(folder)
