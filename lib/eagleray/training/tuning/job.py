"""Runs a tuning job: inspect the data, run the trials, test the best one and register a version."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from eagleray.core.callbacks import ProgressBar, ProgressReporter
from eagleray.core.errors import resumable
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.registry.tracking import TrackedRun
from eagleray.training.inspection import inspect_data, keep_duplicates_together
from eagleray.training.job import start_run
from eagleray.training.monitor import Monitor, monitor_of
from eagleray.training.plan import TrainPlan, plan_network
from eagleray.training.prepare import TrainJob, open_job, reopen_job
from eagleray.training.registration.register import RunSummary, register_model
from eagleray.training.report import render_training_page
from eagleray.training.result import TrainResult, load_best_checkpoint
from eagleray.training.runs import Run
from eagleray.training.spec import TrainSpec
from eagleray.training.tracking import log_description, log_pages, log_result, track_run
from eagleray.training.tuning.budget import Budget, require_budget
from eagleray.training.tuning.record import read_tuning, write_tuning
from eagleray.training.tuning.report import render_tune_page
from eagleray.training.tuning.run import run_trials
from eagleray.training.tuning.search_space import SearchSpace, read_space
from eagleray.training.tuning.trial_runs import TrialRuns
from eagleray.training.tuning.trials import Trial, TuneResult

__all__ = [
    "TrialProgress",
    "TuneJob",
    "TuneSummary",
    "best_file",
    "open_tune_job",
    "reopen_tune_job",
    "run_tune_job",
]


@dataclass(frozen=True)
class TuneJob:
    """A checked tuning job.

    Attributes:
        default: Training job of the default values.
        space: Search space.
        budget: Number of trials and their concurrency.
        trials: Trials of before a resume, by number.
    """

    default: TrainJob
    space: SearchSpace
    budget: Budget
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class TuneSummary(RunSummary):
    """Summary of a finished tuning job.

    Attributes:
        spec: Specification of the best trial.
        tuned: Result of the tuning.
    """

    spec: TrainSpec
    tuned: TuneResult

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {
            **super().as_json(),
            "metric": self.tuned.monitor.metric,
            "mode": self.tuned.monitor.mode,
            "best": self.tuned.best.number,
            "default": self.tuned.default.number,
            "gain": self.tuned.gain,
            "trials": [_trial_as_json(trial) for trial in self.tuned.trials],
            "ranking": [trial.number for trial in self.tuned.ranking],
            "specification": best_file(self.run),
        }


def _trial_as_json(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state,
        "score": trial.score,
        "epochs": list(trial.epochs),
        "values": dict(trial.values),
        "reason": trial.reason,
    }


def best_file(run: Run) -> str:
    """Return the location of the best specification."""
    return storage.join(run.folder, "best.yaml")


def open_tune_job(
    space: SearchSpace,
    budget: Budget,
    settings: Settings,
    *,
    alias: str | None = None,
    force: bool = False,
) -> TuneJob:
    """Open a new tuning job; alias and force are those of `open_job`.

    Raises:
        UserError: If the specification cannot be carried out; the message says how to fix it.
    """
    spec = space.spec(space.default())
    require_budget(budget, spec)
    job = open_job(spec, settings, alias=alias, force=force)
    monitor = _monitor_of_all(space, job)
    chosen = {"monitor": monitor.name, "mode": monitor.mode}
    space = dataclasses.replace(space, fixed={**space.fixed, **chosen})
    plan = dataclasses.replace(job.plan, spec=space.spec(space.default()))
    return TuneJob(dataclasses.replace(job, plan=plan), space, budget)


def reopen_tune_job(name: str, settings: Settings) -> TuneJob:
    """Open an earlier tuning to resume it, with its own search space and budget.

    Raises:
        UserError: If it does not exist, is complete, is not a tuning, was begun by another version
            of Eagleray, or its data have changed.
    """
    default = reopen_job(name, settings, is_tuning=True)
    assert default.run is not None
    space = read_space(default.run.space_file, {})
    budget, trials = read_tuning(default.run, default.plan.monitor)
    return TuneJob(default, space, budget, trials)


def _monitor_of_all(space: SearchSpace, job: TrainJob) -> Monitor:
    """Return the metric that all trials are ranked by, and the best specification monitors.

    A balanced one is chosen if only some of the trials weight or balance the classes.
    """
    spec = job.spec
    if {"class_weights", "sampler"} & space.searched.keys():
        spec = spec.model_copy(update={"sampler": "balanced"})
    return monitor_of(spec, job.plan.task)


def run_tune_job(job: TuneJob, cluster: Cluster, reporter: ProgressReporter) -> TuneSummary:
    """Inspect the data, run the trials, then test and register the best one."""
    default = keep_duplicates_together(job.default, cluster, reporter)
    plan, report = inspect_data(default, cluster, reporter)
    run, record = start_run(default, report, reporter)
    storage.put_atomic(run.space_file, job.space.to_yaml().encode())
    write_tuning(run, job.budget, job.trials)
    with (
        resumable(f"eagleray tune --resume {run.name}"),
        track_run(
            default.registry,
            default.spec,
            run.name,
            kind="tune",
            run=run,
            run_id=record.mlflow_run,
        ) as tracked,
    ):
        run.write(record.model_copy(update={"mlflow_run": tracked.run_id}))
        log_pages(tracked, run, "data")
        tuned = _run_trials(job, plan, run, tracked, cluster, reporter)
        spec = job.space.spec(tuned.best.values)
        storage.put_atomic(best_file(run), spec.to_yaml().encode())
        _track(tuned, tracked, files=[run.space_file, run.split_file, best_file(run)])
        best, result = _load_best_checkpoint(job, plan, spec, tuned)
        log_description(tracked, default, best, cluster)
        log_result(tracked, spec, result)
        storage.put_atomic(run.page("tune"), render_tune_page(tuned, spec, run.name))
        with reporter.status("Testing and registering"):
            registered = register_model(default, best, tracked, run, result)
        page = render_training_page(
            spec, run.name, result, tuned.monitor, warnings=registered.warnings
        )
        storage.put_atomic(run.page("training"), page)
        log_pages(tracked, run, "tune", "training", "evaluation")
        ended = {"mlflow_run": tracked.run_id, "version": registered.version.reference}
        run.write(record.model_copy(update=ended))
    if registered.alias.moved:
        reporter.note(registered.alias.reason)
    for warning in registered.warnings:
        reporter.warn(warning)
    warnings = (*report.warnings, *registered.warnings)
    return TuneSummary(run, registered, warnings, report.notes, spec, tuned)


def _run_trials(
    job: TuneJob,
    plan: TrainPlan,
    run: Run,
    tracked: TrackedRun,
    cluster: Cluster,
    reporter: ProgressReporter,
) -> TuneResult:
    """Run the trials, report their progress and record each as a run of MLflow."""
    registry = job.default.registry
    with (
        reporter.progress("Trials", job.budget.num_trials) as bar,
        TrialRuns(registry, plan.spec, tracked, run.name) as runs,
    ):
        progress = TrialProgress(bar)

        def on_trial(trial: Trial) -> None:
            progress.update(trial)
            runs.update(trial)

        tuned = run_trials(
            plan,
            job.space,
            job.budget,
            run,
            settings=job.default.settings,
            s3=job.default.s3,
            cluster=cluster,
            earlier=job.trials,
            on_trial=on_trial,
        )
        for trial in tuned.trials:
            runs.update(trial)  # the reason of a failure is known last
        return tuned


class TrialProgress:
    """Shows the ended trials on a progress bar, and how many epochs all trials have trained."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self._trials: dict[str, Trial] = {}

    def update(self, trial: Trial) -> None:
        """Show the state of a trial."""
        before = self._trials.get(trial.key)
        self._trials[trial.key] = trial
        has_ended = trial.state != "running" and (before is None or before.state == "running")
        scores = [one.score for one in self._trials.values() if one.score is not None]
        best = trial.monitor.best(scores)
        num_epochs = sum(len(one.epochs) for one in self._trials.values())
        note = f"{num_epochs:,} epoch{'s' * (num_epochs != 1)}"
        if best is not None:
            note += f", best {trial.monitor.title} {best:.4f}"
        self._bar.advance(int(has_ended), note=note)


def _load_best_checkpoint(
    job: TuneJob, plan: TrainPlan, spec: TrainSpec, tuned: TuneResult
) -> tuple[TrainPlan, TrainResult]:
    """Plan the best specification, and load the best trial's weights into its network."""
    best = plan_network(spec, job.default.settings, plan.images, plan.split, plan.task)
    checkpoints = storage.join(tuned.folder, tuned.best.key)
    result = load_best_checkpoint(checkpoints, best.module, epochs=spec.epochs)
    # The scheduler's early stopping is not that of `patience`, which the page shows.
    ended_early = result.ended_early and tuned.best.state == "finished"
    return best, dataclasses.replace(result, ended_early=ended_early)


def _track(tuned: TuneResult, tracked: TrackedRun, *, files: list[str]) -> None:
    tracked.set_tags({"eagleray.best_trial": f"{tuned.best.number}"})
    for file in files:
        tracked.log_file(file)
    for trial in tuned.ranking:
        assert trial.score is not None
        tracked.log_metrics({f"trial_{tuned.monitor.metric}": trial.score}, step=trial.number)
    for epoch, metrics in enumerate(tuned.best.epochs, start=1):
        tracked.log_epoch(epoch, metrics)
