"""Ray Tune's searcher, scheduler and callback as a tuning uses them.

Each of them takes the trials of before, if the tuning is resumed, and then is in the state that it
was in when the tuning was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from eagleray.training.monitor import Monitor
from eagleray.training.tuning.budget import Budget
from eagleray.training.tuning.search_space import SearchSpace
from eagleray.training.tuning.trials import Trial, TrialTracker

__all__ = ["make_callback", "make_scheduler", "make_searcher"]

_REDUCTION_FACTOR = 3  # ASHA continues a third of the trials at each rung
_MAX_STARTUP_TRIALS = 10  # random trials before TPE


def make_searcher(
    space: SearchSpace, monitor: Monitor, budget: Budget, earlier: Sequence[Trial] = ()
) -> Any:
    """Return Optuna's TPE search; its first suggestion is the default.

    Args:
        space: Search space.
        monitor: Metric that trials are ranked by.
        budget: Number of trials.
        earlier: Trials of before a resume, by number: those that have ended are known to the
            search, the others are suggested first.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    default = space.default()
    seed = space.spec(default).seed

    def make_sampler(num_trials: int) -> Any:
        """Return a sampler whose random numbers depend on the seed and the number of trials."""
        return optuna.samplers.TPESampler(
            seed=int(np.random.SeedSequence((seed, num_trials)).generate_state(1)[0]),
            n_startup_trials=min(_MAX_STARTUP_TRIALS, max(2, budget.num_trials // 3)),
            # Running trials count as poor, so that concurrent ones do not try the same values.
            constant_liar=True,
        )

    class Searcher(OptunaSearch):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(
                dict(space.searched),
                metric=monitor.metric,
                mode=monitor.mode,
                sampler=make_sampler(0),
            )
            for trial in earlier:
                if trial.state != "running":
                    self._ot_study.add_trial(_as_optuna_trial(trial, space))
            again = [dict(trial.values) for trial in earlier if trial.state == "running"]
            for values in again if earlier else [default]:
                self._ot_study.enqueue_trial(values)

        def suggest(self, trial_id: str) -> Any:
            self._ot_study.sampler = make_sampler(len(self._ot_study.trials))
            return super().suggest(trial_id)

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            # Without an error a failed trial counts as poor, and is not suggested again.
            super().on_trial_complete(trial_id, None if error else result)

    return Searcher()


def _as_optuna_trial(trial: Trial, space: SearchSpace) -> Any:
    """Return an ended trial as the search would know it: by its last epoch."""
    import optuna

    scores = trial.scores
    last = scores[-1] if scores and not math.isnan(scores[-1]) else None
    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        state=states.PRUNED if trial.has_failed or last is None else states.COMPLETE,
        value=last,
        params=dict(trial.values),
        distributions=dict(space.searched),
        intermediate_values=dict(enumerate(scores, start=1)),
    )


def make_scheduler(
    monitor: Monitor, budget: Budget, epochs: int, earlier: Sequence[Trial] = ()
) -> Any:
    """Return ASHA (Li et al. 2020), with the default exempt from early stopping.

    Args:
        monitor: Metric that trials are ranked by.
        budget: Number of epochs before a trial may be stopped.
        epochs: Maximum number of epochs of a trial.
        earlier: Ended trials of before a resume, by number, which others are compared with.
    """
    from ray.tune.schedulers import ASHAScheduler

    class Scheduler(ASHAScheduler):  # type: ignore[misc]
        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
            action: str = super().on_trial_result(tune_controller, trial, result)
            if trial.trial_id == first.get("key") and result["epoch"] < epochs:
                return str(self.CONTINUE)
            return action

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            first.setdefault("key", trial.trial_id)
            super().on_trial_add(tune_controller, trial)

    first: dict[str, str] = {}
    scheduler = Scheduler(
        time_attr="epoch",
        metric=monitor.metric,
        mode=monitor.mode,
        max_t=epochs,
        grace_period=budget.grace_period(epochs),
        reduction_factor=_REDUCTION_FACTOR,
    )
    for trial in earlier:
        known = SimpleNamespace(trial_id=trial.key)
        if trial.number == 1:
            first["key"] = trial.key
        ASHAScheduler.on_trial_add(scheduler, None, known)
        for epoch, score in enumerate(trial.scores, start=1):
            scheduler.on_trial_result(None, known, {"epoch": epoch, monitor.metric: score})
    return scheduler


def make_callback(tracker: TrialTracker, numbers: Sequence[int]) -> Any:
    """Return a callback of Ray Tune that records trials in a tracker.

    Args:
        tracker: Tracker of the trials.
        numbers: Number of each trial, in the order of suggestions.
    """
    from ray.tune import Callback

    def start(trials: Any, trial: Any) -> None:
        # Trials start in any order, and are listed in the order of their suggestions.
        place = [other.trial_id for other in trials].index(trial.trial_id)
        tracker.start(trial.trial_id, numbers[place], trial.config)

    class TrackerCallback(Callback):  # type: ignore[misc]
        def __reduce__(self) -> Any:
            # Tune pickles its callbacks, and the tracker's reporter holds a terminal.
            return Callback, ()

        def on_trial_start(self, *, trials: Any, trial: Any, **_: Any) -> None:
            start(trials, trial)

        def on_trial_result(self, *, trial: Any, result: Any, **_: Any) -> None:
            tracker.add_epoch(trial.trial_id, result["metrics"], last=result["last"])

        def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
            tracker.end(trial.trial_id)

        def on_trial_error(self, *, trials: Any, trial: Any, **_: Any) -> None:
            start(trials, trial)
            tracker.end(trial.trial_id, failed=True)

    return TrackerCallback()
