"""Ray Tune's searcher, scheduler and callback as a tuning uses them."""

from __future__ import annotations

from typing import Any

from eagleray.training.budget import Budget
from eagleray.training.monitor import Monitor
from eagleray.training.search_space import SearchSpace
from eagleray.training.trials import TrialTracker

__all__ = ["make_callback", "make_scheduler", "make_searcher"]

_REDUCTION_FACTOR = 3  # ASHA continues a third of the trials at each rung
_MAX_STARTUP_TRIALS = 10  # random trials before TPE


def make_searcher(space: SearchSpace, monitor: Monitor, budget: Budget) -> Any:
    """Return Optuna's TPE search; its first suggestion is the default."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    class Searcher(OptunaSearch):  # type: ignore[misc]
        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            # Without an error a failed trial counts as poor, and is not suggested again.
            super().on_trial_complete(trial_id, None if error else result)

    default = space.default()
    sampler = optuna.samplers.TPESampler(
        seed=space.spec(default).seed,
        n_startup_trials=min(_MAX_STARTUP_TRIALS, max(2, budget.num_trials // 3)),
        # Running trials count as poor, so that concurrent ones do not try the same values.
        constant_liar=True,
    )
    return Searcher(
        dict(space.searched),
        metric=monitor.metric,
        mode=monitor.mode,
        points_to_evaluate=[default],
        sampler=sampler,
    )


def make_scheduler(monitor: Monitor, budget: Budget, epochs: int) -> Any:
    """Return ASHA (Li et al. 2020), with the default exempt from early stopping."""
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
    return Scheduler(
        time_attr="epoch",
        metric=monitor.metric,
        mode=monitor.mode,
        max_t=epochs,
        grace_period=budget.grace_period(epochs),
        reduction_factor=_REDUCTION_FACTOR,
    )


def make_callback(tracker: TrialTracker) -> Any:
    """Return a callback of Ray Tune that records trials in a tracker."""
    from ray.tune import Callback

    def start(trials: Any, trial: Any) -> None:
        # Trials start in any order, and are listed in the order of their suggestions.
        number = [other.trial_id for other in trials].index(trial.trial_id) + 1
        tracker.start(trial.trial_id, number, trial.config)

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
