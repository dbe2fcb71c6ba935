"""A search over training specifications, from its space to the registered model.

space -> open_tune_job   checks everything that can be wrong
-> run_tune_job    runs the trials, tests the best one and registers it
-> TuneSummary     the result; `jobs/tune.py` prints it
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from eagleray.core.callbacks import ProgressBar, ProgressReporter
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.data.page import render_data_report
from eagleray.io import storage
from eagleray.registry.registry import ModelVersion
from eagleray.registry.tracking import TrackedRun
from eagleray.training.job import (
    evaluation_page,
    inspect_data,
    model_summary,
    open_run,
    register_model,
)
from eagleray.training.launch import TrainResult, load_best_checkpoint, make_worker_input
from eagleray.training.packaging import FinishedModel
from eagleray.training.plan import TrainPlan, plan_network
from eagleray.training.prepare import TrainJob, open_job
from eagleray.training.report import render_training_page
from eagleray.training.runs import Run
from eagleray.training.search_space import SearchSpace
from eagleray.training.spec import TrainSpec
from eagleray.training.trials import Trial, TuneResult
from eagleray.training.tune_report import render_tune_page
from eagleray.training.tuning import Budget, require_budget, run_trials

__all__ = ["TuneJob", "TuneSummary", "best_file", "open_tune_job", "run_tune_job"]


@dataclass(frozen=True)
class TuneJob:
    """A checked search.

    Attributes:
        default: Training job of the default values.
        space: Search space.
        budget: Number of trials and their limits.
    """

    default: TrainJob
    space: SearchSpace
    budget: Budget


@dataclass(frozen=True)
class TuneSummary:
    """The result of a search."""

    run: Run
    spec: TrainSpec
    tuned: TuneResult
    version: ModelVersion
    tested: FinishedModel
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the summary for scripts."""
        return {
            **model_summary(self.version, self.tested),
            "metric": self.tuned.metric,
            "best": self.tuned.best.number,
            "default": self.tuned.default.number,
            "gain": self.tuned.gain,
            "trials": [_trial_as_json(trial) for trial in self.tuned.trials],
            "ranking": [trial.number for trial in self.tuned.ranking],
            "specification": best_file(self.run),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "run": self.run.name,
            "folder": self.run.folder,
            "mlflow_run": self.version.run_id,
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


def open_tune_job(space: SearchSpace, budget: Budget, settings: Settings, *, alias: str) -> TuneJob:
    """Check everything that can be wrong before expensive work starts.

    Raises:
        UserError: If the data or the search cannot be used; the message says how to fix it.
    """
    spec = space.spec(space.default())
    require_budget(budget, spec)
    return TuneJob(open_job(spec, settings, alias=alias), space, budget)


def run_tune_job(job: TuneJob, cluster: Cluster, reporter: ProgressReporter) -> TuneSummary:
    """Inspect the data, run the trials, then test and register the best one."""
    default = job.default
    plan, report = inspect_data(default, cluster, reporter)
    kept, record = open_run(default)
    reporter.note(f"run {kept.name}, in {kept.folder}")
    about = {"data": default.spec.data, "run": kept.name}
    page = render_data_report(report, about, title=f"Data of {kept.name}")
    storage.put_atomic(kept.page("data"), page)
    space_file = storage.join(kept.folder, "space.yaml")
    storage.put_atomic(space_file, job.space.to_yaml().encode())
    with default.registry.start_run(f"tune {default.spec.name}") as tracked:
        tuned = _run_trials(job, plan, kept, cluster, reporter)
        spec = job.space.spec(tuned.best.values)
        storage.put_atomic(best_file(kept), spec.to_yaml().encode())
        _track(tuned, spec, tracked, files=[space_file, kept.split_file, best_file(kept)])
        best, trained = _load_best_checkpoint(job, plan, spec, tuned, kept)
        for name, page in (
            ("tune", render_tune_page(tuned, spec, kept.name)),
            ("training", render_training_page(spec, kept.name, trained)),
        ):
            storage.put_atomic(kept.page(name), page)
        with reporter.status("Testing and registering"):
            tested, version = register_model(default, best, tracked)
            page = evaluation_page(tested, version, kept)
            storage.put_atomic(kept.page("evaluation"), page)
        ended = {"mlflow_run": tracked.run_id, "version": version.reference}
        kept.write(record.model_copy(update=ended))
    return TuneSummary(kept, spec, tuned, version, tested, report.warnings, report.notes)


def _run_trials(
    job: TuneJob, plan: TrainPlan, kept: Run, cluster: Cluster, reporter: ProgressReporter
) -> TuneResult:
    """Run the trials and report their progress."""
    num_epochs = job.budget.num_trials * plan.spec.epochs
    with reporter.progress("Epochs", num_epochs) as bar:
        return run_trials(
            plan,
            job.space,
            job.budget,
            run=kept.name,
            folder=storage.join(kept.folder, "trials"),
            ray_folder=kept.ray_folder,
            settings=job.default.settings,
            s3=job.default.s3,
            cluster=cluster,
            reporter=_TrialProgress(bar, plan.spec.epochs).update,
        )


class _TrialProgress:
    """Shows the epochs of all trials on one progress bar."""

    def __init__(self, bar: ProgressBar, epochs: int) -> None:
        self._bar, self._epochs = bar, epochs
        self._shown: dict[str, int] = {}
        self._best = -float("inf")

    def update(self, trial: Trial) -> None:
        """Show the state of a trial; the epochs that it skips count as done."""
        done = len(trial.epochs) if trial.state == "running" else self._epochs
        if trial.score is not None:
            self._best = max(self._best, trial.score)
        note = f"best {self._best:.4f}" if self._best > -float("inf") else ""
        self._bar.advance(done - self._shown.get(trial.key, 0), note=note)
        self._shown[trial.key] = done


def _load_best_checkpoint(
    job: TuneJob, plan: TrainPlan, spec: TrainSpec, tuned: TuneResult, kept: Run
) -> tuple[TrainPlan, TrainResult]:
    """Load the best trial's checkpoint into a network."""
    settings = job.default.settings
    best = plan_network(spec, settings, plan.images, plan.split, plan.task)
    given = make_worker_input(
        best,
        run=kept.name,
        checkpoints=storage.join(tuned.folder, tuned.best.key),
        cache_folder=settings.cache_folder,
        s3=job.default.s3,
    )
    trained = load_best_checkpoint(given, best.module)
    # Patience ends a trial by itself; one that was stopped for another's sake is not its doing.
    itself = trained.ended_early and tuned.best.state == "finished"
    return best, dataclasses.replace(trained, ended_early=itself)


def _track(tuned: TuneResult, spec: TrainSpec, tracked: TrackedRun, *, files: list[str]) -> None:
    tracked.log_parameters(spec.model_dump())
    for file in files:
        tracked.log_file(file)
    for trial in tuned.ranking:
        assert trial.score is not None
        tracked.log_metrics({f"trial_{tuned.metric}": trial.score}, step=trial.number)
    for epoch, metrics in enumerate(tuned.best.epochs, start=1):
        tracked.log_metrics(metrics, step=epoch)
