"""Records the trials of a tuning in MLflow, as children of the tuning's run."""

from __future__ import annotations

from typing import Self

from eagleray.registry.registry import Registry
from eagleray.registry.tracking import TrackedRun
from eagleray.training.spec import TrainSpec
from eagleray.training.tracking import track_run
from eagleray.training.tuning.trials import Trial

__all__ = ["TrialRuns"]


class TrialRuns:
    """The MLflow runs of a tuning's trials, as a context manager that ends all of them.

    Args:
        registry: Registry of the model.
        spec: Specification with the default values.
        parent: MLflow run of the tuning.
        name: Name of the tuning's run, which those of the trials begin with.
    """

    def __init__(self, registry: Registry, spec: TrainSpec, parent: TrackedRun, name: str) -> None:
        self._registry, self._spec, self._parent, self._name = registry, spec, parent, name
        self._known = registry.child_runs(parent)  # those of a tuning that is resumed
        self._runs: dict[str, TrackedRun] = {}
        self._trials: dict[str, Trial] = {}

    def update(self, trial: Trial) -> None:
        """Record the new epochs of a trial, and its end."""
        tracked = self._runs.get(trial.key) or self._start(trial)
        before = self._trials.get(trial.key)
        for epoch, metrics in enumerate(trial.epochs, start=1):
            tracked.log_epoch(epoch, metrics)
        if trial.state != "running" and (before is None or before.state == "running"):
            self._end(trial)
        if trial.reason is not None:
            # Known after the end, as is whether the values were invalid.
            tracked.set_tags({"eagleray.state": trial.state, "eagleray.reason": trial.reason})
        self._trials[trial.key] = trial

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for key, trial in self._trials.items():
            if trial.state == "running":
                self._runs[key].__exit__(kind)

    def _start(self, trial: Trial) -> TrackedRun:
        name = f"{self._name}-trial-{trial.number}"
        tracked = track_run(
            self._registry,
            self._spec,
            name,
            kind="trial",
            run_id=self._known.get(name),
            parent=self._parent,
        )
        tracked.log_parameters(trial.values)
        self._runs[trial.key] = tracked
        return tracked

    def _end(self, trial: Trial) -> None:
        tracked = self._runs[trial.key]
        tracked.set_tags({"eagleray.state": trial.state})
        if trial.score is not None:
            tracked.log_metrics({f"best_{trial.monitor.metric}": trial.score})
        tracked.end("FAILED" if trial.state in ("failed", "invalid") else "FINISHED")
