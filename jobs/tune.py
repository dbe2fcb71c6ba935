"""Tune hyperparameters: try many specifications, stop poor ones early, register the best model.

    python -m eagleray.jobs.tune flowers/ --name flowers --num-trials 12
    eagleray tune flowers/ --name flowers --architecture resnet18 --pretrained --num-trials 20
    eagleray tune cifar10/train --name cifar10 --space space.yaml --num-trials 12 --max-concurrent 2
    eagleray tune --resume flowers-64499e1f
    eagleray tune digits.csv --name digits --architecture lenet5 --epochs 10 --grace-epochs 2

The file reads from top to bottom: parse, build, run, report.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from eagleray.cli.common import (
    ClusterOption,
    ForceOption,
    JsonOption,
    NewAliasOption,
    VerboseOption,
)
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import job_session, job_settings, run_command
from eagleray.cli.options import given_options, option_name, with_spec_options
from eagleray.core.errors import InputError
from eagleray.core.spec import Names
from eagleray.io import storage
from eagleray.io.spec_fields import S3Fields
from eagleray.training.plan import describe_plan
from eagleray.training.spec import TrainSpec
from eagleray.training.tuning.budget import Budget
from eagleray.training.tuning.job import (
    TuneSummary,
    best_file,
    open_tune_job,
    reopen_tune_job,
    run_tune_job,
)
from eagleray.training.tuning.report import Row, ranking_rows, summarize
from eagleray.training.tuning.search_space import default_space, read_space

_NUM_TRIALS = 20  # by default
_SHOWN = 20  # trials in the table of the terminal; the page has all of them


def show(summary: TuneSummary, console: Console) -> None:
    """Report the trials and the model."""
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
    title = f"Trials of {summary.run.name} by the {tuned.monitor.best_title}"
    console.table(title, columns, rows[:_SHOWN])
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
    facts["aliases"] = ", ".join(summary.version.aliases) or "none"
    facts["best specification"] = best_file(summary.run)
    facts["page"] = summary.run.page("tune")
    console.facts(f"Model {summary.version.name}", facts)
    console.say(f"At scale: eagleray train --spec {best_file(summary.run)} --workers 8")


def _settings(names: list[str], row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(names, row.values, strict=True))


@with_spec_options(TrainSpec, argument="data")
def main(
    fields: dict[str, Any],
    space: Annotated[
        str | None,
        typer.Option(help="YAML file of the search space; options are fixed."),
        Names.INPUT,
    ] = None,
    resume: Annotated[str | None, typer.Option(help="Tuning to resume.")] = None,
    num_trials: Annotated[
        int | None, typer.Option(help="Number of trials; default: 20.", min=1)
    ] = None,
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
    alias: NewAliasOption = None,
    force: ForceOption = False,
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Try many specifications of at most --epochs each; the best one's model becomes a version."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = job_settings(cluster=cluster)
        storage.use_s3(S3Fields().with_settings(settings).s3)  # the file of the space may be there
        if resume is not None:
            others: dict[str, object] = {"--space": space, "--num-trials": num_trials}
            others |= {"--max-concurrent": max_concurrent, "--grace-epochs": grace_epochs}
            given = given_options(fields, {**others, "--alias": alias, "--force": force})
            if given:
                raise InputError(
                    f"--resume continues tuning {resume} with its own options; leave out "
                    f"{', '.join(given)}, or begin a new tuning."
                )
            job = reopen_tune_job(resume, settings)
        else:
            if space is None:
                searched = default_space(fields, name=option_name)
            else:
                searched = read_space(space, fields, name=option_name)
            budget = Budget(num_trials or _NUM_TRIALS, max_concurrent, grace_epochs)
            job = open_tune_job(searched, budget, settings, alias=alias, force=force)
        plan = job.default.plan
        for note in (*plan.notes, *describe_plan(plan)):
            console.note(note)
        console.note(f"{job.budget.num_trials} trials on {', '.join(job.space.searched)}")
        if job.trials:
            ended = sum(trial.state != "running" for trial in job.trials)
            console.note(f"resumed: {ended} of {job.budget.num_trials} trials have ended before")
        console.note(f"ranking: by the {job.default.plan.monitor.best_title} of a trial")
        with job_session(settings, address=cluster, verbose=verbose) as session:
            summary = run_tune_job(job, session, console)
        show(summary, console)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
