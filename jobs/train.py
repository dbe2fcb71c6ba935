"""Train a model on several workers and register the best epoch as a version.

    python -m eagleray.jobs.train flowers/ --name flowers --architecture resnet18 --pretrained
    eagleray train flowers/ --name flowers --architecture resnet18 --workers 2
    eagleray train digits.csv --name digits --architecture lenet5 --workers 2 --epochs 20
    eagleray train cifar10/train --test-data cifar10/test --name cifar10 --architecture resnet20
    eagleray train --spec flowers.yaml --epochs 30
    eagleray train --resume flowers-1f3a9c02
    eagleray train --resume flowers-1f3a9c02 --epochs 40
    eagleray train flowers/ --name flowers --find-learning-rate

The file reads from top to bottom: report, then parse, build and run.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eagleray.cli.common import (
    ClusterOption,
    ForceOption,
    JsonOption,
    NewAliasOption,
    SpecFileOption,
    VerboseOption,
)
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import job_session, job_settings, run_command
from eagleray.cli.options import given_options, read_spec, with_spec_options
from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.core.system import num_usable_cores
from eagleray.io import storage
from eagleray.io.spec_fields import S3Fields
from eagleray.training.extension import describe_extension
from eagleray.training.plan import describe_plan
from eagleray.training.prepare import open_job, reopen_job
from eagleray.training.runs import find_run
from eagleray.training.spec import TrainSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eagleray.training.cross_validation import CrossValidation
    from eagleray.training.lr_finder import LearningRateSuggestion
    from eagleray.training.plan import TrainPlan
    from eagleray.training.prepare import TrainJob
    from eagleray.training.summary import TrainSummary

_WORKER_MODULES = ("eagleray.training.loop.trainer", "ray.train.torch")
_MAX_PRELOADING = 8  # workers, each of which takes 0.4 GB then

# --- report -----------------------------------------------------------------------------------


def describe(plan: TrainPlan) -> Iterator[str]:
    """Describe what is trained on which images, a sentence each."""
    yield from describe_plan(plan)
    yield f"best epoch: that of the {plan.monitor.best_title}"
    for attribute in plan.attributes:
        yield f"attribute {attribute.describe}"
    if plan.extensions:
        yield describe_extension(plan.spec, plan.extensions[-1])


def show(summary: TrainSummary, console: Console) -> None:
    """Report the result of a run."""
    if console.for_scripts:
        console.emit(summary.as_json())
        return
    evaluation = summary.tested.evaluation
    facts: dict[str, object] = {
        f"test {name}": f"{value:.4f}" for name, value in evaluation.headline.items()
    }
    if evaluation.task.positive is not None:
        facts["positive label"] = evaluation.task.positive
    facts["test images"] = f"{evaluation.num_images:,} ({evaluation.num_failed} unreadable)"
    facts["skipped"] = f"{len(summary.skipped):,} unreadable images"
    facts["best epoch"] = f"{summary.result.best.epoch} of {len(summary.result.epochs)}"
    best = summary.result.metrics[summary.monitor.metric]
    facts[summary.monitor.best_title] = f"{best:.4f}"
    facts["registered as"] = summary.version.reference
    facts["aliases"] = ", ".join(summary.version.aliases) or "none"
    facts["pages"] = summary.run.page("*")
    console.facts(f"Model {summary.version.name}", facts)
    for fault in summary.skipped[:10]:
        console.warn(f"skipped: {fault}")


def show_rate(suggestion: LearningRateSuggestion, page: str, console: Console) -> None:
    """Report the suggested learning rate."""
    if console.for_scripts:
        console.emit({"learning_rate": suggestion.learning_rate, "page": page})
    elif suggestion.learning_rate is None:
        console.say(f"The loss fell at no learning rate; see {page}.")
    else:
        console.say(f"--learning-rate {suggestion.learning_rate:.2g} (see {page})")


def show_folds(found: CrossValidation, console: Console) -> None:
    """Report the mean and the standard deviation of the folds."""
    if console.for_scripts:
        console.emit(found.as_json())
        return
    rows = [
        [
            name,
            f"{mean:.4f} ± {deviation:.4f}",
            *(f"{fold.metrics[name]:.4f}" for fold in found.folds),
        ]
        for name, (mean, deviation) in found.spread.items()
    ]
    columns = ["metric", "mean ± sd", *(f"fold {number + 1}" for number in range(len(found.folds)))]
    console.table(f"Cross-validation {found.run.name}", columns, rows)


# --- the command line -------------------------------------------------------------------------


@with_spec_options(TrainSpec, argument="data")
def main(
    fields: dict[str, Any],
    spec: SpecFileOption = None,
    resume: Annotated[
        str | None, typer.Option(help="Run to resume, or to extend to more --epochs.")
    ] = None,
    from_run: Annotated[
        str | None,
        typer.Option("--from", help="Run whose specification is used; options override it."),
    ] = None,
    find_learning_rate: Annotated[
        bool,
        typer.Option(
            "--find-learning-rate", help="Run a learning-rate range test instead of training."
        ),
    ] = False,
    alias: NewAliasOption = None,
    force: ForceOption = False,
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a model on several workers; the best epoch becomes a version of the registry."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = job_settings(cluster=cluster)
        storage.use_s3(S3Fields().with_settings(settings).s3)  # specification or run may be there
        if resume is not None:
            others: dict[str, object] = {"--spec": spec, "--from": from_run}
            others |= {"--alias": alias, "--force": force}
            _require_resumable(resume, fields, others)
            job = reopen_job(resume, settings, epochs=fields.get("epochs"))
        else:
            request = _read_request(fields, spec, from_run, settings)
            if (find_learning_rate or request.folds) and (alias or force):
                raise InputError(
                    "--folds and --find-learning-rate register no version; leave out --alias and "
                    "--force."
                )
            job = open_job(request, settings, alias=alias, force=force)
        for note in (*job.plan.notes, *describe(job.plan)):
            console.note(note)
        # What takes seconds to import follows, so that a mistake above is reported sooner.
        with job_session(
            settings,
            address=cluster,
            verbose=verbose,
            meanwhile=partial(_prepare, job),
            preload=_worker_modules(job),
        ) as session:
            if find_learning_rate:
                from eagleray.training.lr_finder import run_lr_finder

                suggestion, page = run_lr_finder(job, session, console)
            elif job.spec.folds:
                from eagleray.training.cross_validation import cross_validate

                folds = cross_validate(job, session, console)
            else:
                from eagleray.training.job import run_job

                summary = run_job(job, session, console)
        if find_learning_rate:
            show_rate(suggestion, page, console)
        elif job.spec.folds:
            show_folds(folds, console)
        else:
            show(summary, console)


def _prepare(job: TrainJob) -> None:
    """Connect to the registry, and import what takes seconds, while Ray starts."""
    _ = job.registry
    import eagleray.training.job  # noqa: F401


def _worker_modules(job: TrainJob) -> tuple[str, ...]:
    """Return the modules that all workers of Ray import as soon as they start.

    Ray starts one for each core. Those that inspect images train no network, as Ray uses no worker
    for a task and for an actor.
    """
    from eagleray.training.inspection import is_inspection_cached

    few = num_usable_cores() <= _MAX_PRELOADING
    return _WORKER_MODULES if few and is_inspection_cached(job) else ()


def _require_resumable(run: str, fields: dict[str, Any], others: dict[str, object]) -> None:
    """Refuse options that a resumed run cannot follow.

    Raises:
        InputError: If there is one; the message names them.
    """
    given = given_options({name: fields[name] for name in fields if name != "epochs"}, others)
    if given:
        raise InputError(
            f"--resume continues run {run} with its own specification, of which --epochs alone may "
            f"change; leave out {', '.join(given)}, or begin a new run with --from {run}."
        )


def _read_request(
    fields: dict[str, Any], spec: str | None, from_run: str | None, settings: Settings
) -> TrainSpec:
    """Make the specification from the options, over those of a file or a run if named."""
    if spec and from_run:
        raise InputError("--spec and --from both name a specification; leave one out.")
    file = find_run(settings, from_run).spec_file if from_run else spec
    return read_spec(TrainSpec, fields, file=file)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
