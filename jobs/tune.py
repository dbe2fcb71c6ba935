"""Try many specifications, stop the poor ones early, and register the best one's model.

    python -m eagleray.jobs.tune flowers/ --name flowers --num-trials 12
    eagleray tune flowers/ --name flowers --architecture resnet18 --pretrained --num-trials 20
    eagleray tune cifar10/train --name cifar10 --space space.yaml --num-trials 12 --max-concurrent 2
    eagleray tune digits.csv --name digits --architecture lenet5 --epochs 10 --grace-epochs 2

Reads from top to bottom: the request, build, run, report, and last the words of the command line.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from eagleray.cli.console import Console, ProgressBar, command_errors
from eagleray.cli.job import (
    ClusterOption,
    JsonOption,
    VerboseOption,
    job_session,
    job_settings,
    run_command,
    s3_options,
)
from eagleray.cli.options import with_spec_options
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.data.report import render_data_report
from eagleray.io import storage
from eagleray.registry.registry import ModelVersion
from eagleray.registry.tracking import TrackedRun
from eagleray.training.budget import Budget, require_budget
from eagleray.training.inspection import inspect_data
from eagleray.training.job import (
    evaluation_page,
    model_summary,
    open_run,
    register_model,
)
from eagleray.training.packaging import FinishedModel
from eagleray.training.plan import TrainPlan, plan_network
from eagleray.training.prepare import TrainJob, open_job
from eagleray.training.report import render_training_page
from eagleray.training.result import TrainResult, load_best_checkpoint
from eagleray.training.runs import Run
from eagleray.training.search_space import SearchSpace, default_space, read_space
from eagleray.training.spec import TrainSpec
from eagleray.training.trials import Trial, TuneResult
from eagleray.training.tune_report import (
    Row,
    metric_name,
    ranking_rows,
    render_tune_page,
    summarize,
)
from eagleray.training.tuning import run_trials
from eagleray.training.worker_input import make_worker_input

_SHOWN = 20  # trials in the table of the terminal; the page has all of them


@dataclass(frozen=True)
class TuneJob:
    """A search with all that it needs, checked.

    Attributes:
        default: What is trained when nobody searches.
        space: What is searched.
        budget: How much is tried.
    """

    default: TrainJob
    space: SearchSpace
    budget: Budget


@dataclass(frozen=True)
class TuneSummary:
    """What became of the search."""

    run: Run
    spec: TrainSpec
    tuned: TuneResult
    version: ModelVersion
    tested: FinishedModel
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
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
    """Return where the best specification is."""
    return storage.join(run.folder, "best.yaml")


# --- build ------------------------------------------------------------------------------------


def build(space: SearchSpace, budget: Budget, settings: Settings, *, alias: str) -> TuneJob:
    """Check everything that can be wrong before expensive work starts.

    Raises:
        UserError: With what to mend.
    """
    spec = space.spec(space.default())
    require_budget(budget, spec)
    return TuneJob(open_job(spec, settings, alias=alias), space, budget)


# --- run --------------------------------------------------------------------------------------


def run(job: TuneJob, cluster: Cluster, console: Console) -> TuneSummary:
    """Look at the data once, try, and finish the best trial as a training is finished."""
    default = job.default
    plan, report = inspect_data(default, cluster, console)
    kept, record = open_run(default)
    console.note(f"run {kept.name}, in {kept.folder}")
    about = {"data": default.spec.data, "run": kept.name}
    page = render_data_report(report, about, title=f"Data of {kept.name}")
    storage.put_atomic(kept.page("data"), page)
    space_file = storage.join(kept.folder, "space.yaml")
    storage.put_atomic(space_file, job.space.to_yaml().encode())
    with default.registry.start_run(f"tune {default.spec.name}") as tracked:
        tuned = _try(job, plan, kept, cluster, console)
        spec = job.space.spec(tuned.best.values)
        storage.put_atomic(best_file(kept), spec.to_yaml().encode())
        _track(tuned, spec, tracked, files=[space_file, kept.split_file, best_file(kept)])
        best, trained = _load_best_checkpoint(job, plan, spec, tuned, kept)
        for name, page in (
            ("tune", render_tune_page(tuned, spec, kept.name)),
            ("training", render_training_page(spec, kept.name, trained)),
        ):
            storage.put_atomic(kept.page(name), page)
        with console.status("Testing and registering"):
            tested, version = register_model(default, best, tracked)
            page = evaluation_page(tested, version, kept)
            storage.put_atomic(kept.page("evaluation"), page)
        ended = {"mlflow_run": tracked.run_id, "version": version.reference}
        kept.write(record.model_copy(update=ended))
    return TuneSummary(kept, spec, tuned, version, tested, report.warnings, report.notes)


def _try(
    job: TuneJob, plan: TrainPlan, kept: Run, cluster: Cluster, console: Console
) -> TuneResult:
    """Run the trials, showing how it goes."""
    num_epochs = job.budget.num_trials * plan.spec.epochs
    with console.progress("Epochs", num_epochs) as bar:
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
            on_trial=_TrialProgress(bar, plan.spec.epochs).show,
        )


class _TrialProgress:
    """Shows the trials on a bar of epochs."""

    def __init__(self, bar: ProgressBar, epochs: int) -> None:
        self._bar, self._epochs = bar, epochs
        self._shown: dict[str, int] = {}
        self._best = -float("inf")

    def show(self, trial: Trial) -> None:
        """Show a trial; the epochs after an early stop count as done."""
        done = len(trial.epochs) if trial.state == "running" else self._epochs
        if trial.score is not None:
            self._best = max(self._best, trial.score)
        note = f"best {self._best:.4f}" if self._best > -float("inf") else ""
        self._bar.advance(done - self._shown.get(trial.key, 0), note=note)
        self._shown[trial.key] = done


def _load_best_checkpoint(
    job: TuneJob, plan: TrainPlan, spec: TrainSpec, tuned: TuneResult, kept: Run
) -> tuple[TrainPlan, TrainResult]:
    """Put the best trial's weights into a network."""
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


# --- report -----------------------------------------------------------------------------------


def show(summary: TuneSummary, console: Console) -> None:
    """Tell the user what became of the search."""
    if console.for_scripts:
        console.emit(summary.as_json())
        return
    tuned = summary.tuned
    names = list(tuned.space.searched)
    rows = [
        [row.rank, row.name, row.score, row.epochs, row.state, _settings(names, row)]
        for row in ranking_rows(tuned)
    ]
    columns = ["rank", "trial", "metric", "epochs", "state", "settings"]
    console.table(f"Trials of {summary.run.name} by {metric_name(tuned)}", columns, rows[:_SHOWN])
    if len(rows) > _SHOWN:
        console.say(f"{len(rows) - _SHOWN} more trials are on the page.")
    for trial in tuned.trials:
        if trial.reason is not None:
            console.warn(f"trial {trial.number} {trial.state}: {trial.reason}")
    console.say(summarize(tuned))
    evaluation = summary.tested.evaluation
    facts: dict[str, object] = {
        f"test {name}": f"{value:.4f}" for name, value in evaluation.headline.items()
    }
    facts["test images"] = f"{evaluation.num_images:,} ({evaluation.num_failed} unreadable)"
    facts["registered as"] = summary.version.reference
    facts["aliases"] = ", ".join(summary.version.aliases)
    facts["best specification"] = best_file(summary.run)
    facts["page"] = summary.run.page("tune")
    console.facts(f"Model {summary.version.name}", facts)
    console.say(f"At scale: eagleray train --spec {best_file(summary.run)} --workers 8")


def _settings(names: list[str], row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(names, row.values, strict=True))


# --- the command line -------------------------------------------------------------------------


@with_spec_options(TrainSpec, argument="data")
def main(
    fields: dict[str, Any],
    space: Annotated[
        str | None, typer.Option(help="YAML file of the search space; options are fixed.")
    ] = None,
    num_trials: Annotated[int, typer.Option(help="Number of trials.", min=1)] = 20,
    max_concurrent: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of concurrent trials; default: one per core, or GPU.", min=1
        ),
    ] = None,
    grace_epochs: Annotated[
        int | None,
        typer.Option(help="Epochs before a trial may be stopped; default: a quarter.", min=1),
    ] = None,
    alias: Annotated[str, typer.Option(help="Points to the new version.")] = "candidate",
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Try many specifications of --epochs each at most; the best becomes a version."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = job_settings(cluster=cluster)
        storage.use_s3(s3_options(settings))
        searched = default_space(fields) if space is None else read_space(space, fields)
        job = build(
            searched, Budget(num_trials, max_concurrent, grace_epochs), settings, alias=alias
        )
        for note in job.default.plan.notes:
            console.note(note)
        parts = job.default.plan.split
        console.note(
            f"train {len(parts.train):,}, validation {len(parts.validation):,}, test "
            f"{len(parts.test):,} images; {num_trials} trials on {', '.join(searched.searched)}"
        )
        with job_session(settings, address=cluster, verbose=verbose) as session:
            summary = run(job, session, console)
        show(summary, console)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
