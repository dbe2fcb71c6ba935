"""Measure a model on labelled images: metrics with intervals, KPIs, and a page to look at.

    python -m eagleray.jobs.evaluate flowers@candidate flowers-test/
    eagleray evaluate flowers@candidate flowers-test/ --kpi kpi.txt
    eagleray evaluate flowers/3 test.csv --label-column kind --slice camera --output page.html
    eagleray evaluate flowers/3 test.csv --kpi kpi.txt --current flowers@production --json
    eagleray evaluate flowers/3 flowers/ --split test

Reads from top to bottom: the request, build, run, report, and last the words of the command line.
It needs no Ray: one process measures, on a GPU where there is one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import JsonOption, run_command
from eagleray.core.errors import InputError, KpiMissedError
from eagleray.core.settings import Settings, read_settings
from eagleray.data.encoding import encode_attributes, encode_targets
from eagleray.data.labelled import LabelledImages, read_labelled
from eagleray.data.split import read_named_split, require_no_splits, take_named_split
from eagleray.evaluation.bootstrap import Interval, bootstrap
from eagleray.evaluation.calibration import fit_temperature
from eagleray.evaluation.evaluate import Evaluation, evaluate
from eagleray.evaluation.kpi import Kpi, Verdict, judge, read_kpis, require_known
from eagleray.evaluation.metrics import metric_names
from eagleray.evaluation.record import EvaluationRecord
from eagleray.evaluation.report import render_evaluation
from eagleray.evaluation.slices import choose_columns, slice_metrics
from eagleray.inference.predictor import Predictor
from eagleray.io import storage
from eagleray.registry.references import LoadedModel, load_model
from eagleray.registry.registry import Registry
from eagleray.tasks.tasks import Regression


@dataclass(frozen=True)
class EvaluationJob:
    """What was asked for with all that it needs, checked."""

    model: LoadedModel
    data: str
    images: LabelledImages
    kpis: tuple[Kpi, ...]
    current: LoadedModel | None
    columns: tuple[str, ...]
    output: str
    settings: Settings


@dataclass(frozen=True)
class EvaluationSummary:
    """What was found."""

    record: EvaluationRecord
    evaluation: Evaluation
    intervals: dict[str, Interval]
    verdicts: tuple[Verdict, ...]
    page: str
    recorded_as: str

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "images": self.record.num_images,
            "failed": self.record.num_failed,
            "failures": [asdict(failure) for failure in self.evaluation.failures],
            "metrics": self.record.metrics,
            "intervals": {name: asdict(found) for name, found in self.intervals.items()},
            "kpis": [verdict.as_json() for verdict in self.verdicts],
            "passed": all(verdict.passed for verdict in self.verdicts),
            "data": self.record.data,
            "data_digest": self.record.data_digest,
            "package_digest": self.record.package_digest,
            "recorded_as": self.recorded_as or None,
            "notes": list(self.evaluation.images.notes),
            "page": self.page,
        }


def build(
    model: str,
    data: str,
    settings: Settings,
    *,
    split: str | None = None,
    column: str | None = None,
    label_column: str | None = None,
    label_columns: tuple[str, ...] = (),
    separator: str | None = None,
    kpi: str | None = None,
    current: str | None = None,
    slices: tuple[str, ...] = (),
    output: str | None = None,
) -> EvaluationJob:
    """Check everything that can be wrong before an image is read.

    Raises:
        UserError: With what to mend.
    """
    if output is not None and storage.is_folder(output):
        raise InputError(
            f"{output} is a folder; name the page, as in {output.rstrip('/')}/page.html."
        )
    kpis = read_kpis(kpi) if kpi is not None else ()
    loaded = load_model(model, settings)
    task = loaded.package.task
    if split is not None and not storage.is_folder(data):
        images = read_named_split(data, split)
    else:
        images = read_labelled(
            data,
            uri_column=column,
            label_column=label_column,
            label_columns=label_columns,
            separator=separator,
            task=task.name,
        )
        if split is not None:
            images = take_named_split(images, split, data)
        require_no_splits(images, data)
    targets = encode_targets(task, images)
    if kpi is not None:
        require_known(kpis, metric_names(task, targets), where=kpi)
    holder = None if current is None else load_model(current, settings)
    for one in kpis:
        if one.from_current and holder is None:
            raise InputError(f"{kpi} asks for `{one}`; say which model is current by --current.")
    encode_attributes(loaded.package.attributes, images)
    if holder is not None:
        encode_targets(holder.package.task, images)
        encode_attributes(holder.package.attributes, images)
    name = f"{loaded.name}-{loaded.package.digest[:12]}-on-{images.digest[:12]}.html"
    return EvaluationJob(
        model=loaded,
        data=data,
        images=images,
        kpis=kpis,
        current=holder,
        columns=choose_columns(images, slices),
        output=output or str(settings.evaluations_folder / name),
        settings=settings,
    )


def run(job: EvaluationJob, console: Console) -> EvaluationSummary:
    """Measure, judge, write the page, and keep the figures of a registered version."""
    evaluation, engine = _measure(job, job.model, console)
    current = None if job.current is None else _measure(job, job.current, console)[0].metrics
    with console.status("Computing and drawing"):
        verdicts = judge(job.kpis, evaluation.metrics, current)
        task = evaluation.task
        intervals = bootstrap(task, evaluation.outputs, evaluation.targets)
        record = EvaluationRecord(
            data=job.data,
            data_digest=job.images.digest,
            package_digest=job.model.package.digest,
            num_images=evaluation.num_images,
            num_failed=evaluation.num_failed,
            metrics=evaluation.metrics,
        )
        page = render_evaluation(
            evaluation,
            {**_facts(job, evaluation, record), "engine": engine},
            model_name=job.model.reference,
            intervals=intervals,
            verdicts=verdicts,
            slices=slice_metrics(evaluation, job.columns),
        )
        _write(job.output, page)
        recorded_as = _keep(job, record)
    return EvaluationSummary(record, evaluation, intervals, verdicts, job.output, recorded_as)


def _measure(job: EvaluationJob, model: LoadedModel, console: Console) -> tuple[Evaluation, str]:
    """Return how a model does, and what ran it."""
    predictor = Predictor(
        model.package,
        expected_images=len(job.images),
        cache_folder=job.settings.cache_folder,
    )
    with console.progress(f"Measuring {model.reference}", len(job.images)) as bar:

        def progress(count: int, failed: int) -> None:
            bar.advance(count, failed=failed)

        return evaluate(predictor, job.images, progress=progress), predictor.engine


def _facts(
    job: EvaluationJob, evaluation: Evaluation, record: EvaluationRecord
) -> dict[str, object]:
    package, task = job.model.package, evaluation.task
    facts: dict[str, object] = {
        "model": f"{job.model.reference} (package {record.package_digest[:12]})",
        "task": task.name,
        "architecture": package.manifest.architecture.name,
        "contract": package.manifest.contract_digest[:12],
        "data": job.data,
        "data digest": record.data_digest,
        "measured": record.created,
    }
    if not isinstance(task, Regression):
        best = fit_temperature(task, evaluation.outputs, evaluation.targets)
        facts["temperature"] = f"{task.temperature:.3g}; {best:.3g} would suit these images best"
    if job.images.notes:
        facts["how the data were read"] = " ".join(job.images.notes)
    if job.current is not None:
        facts["current"] = f"{job.current.reference} ({job.current.package.digest[:12]})"
    return facts


def _write(location: str, page: bytes) -> None:
    try:
        storage.put_atomic(location, page)
    except OSError as error:
        raise InputError(f"Cannot write {location}: {error.strerror or error}.") from error


def _keep(job: EvaluationJob, record: EvaluationRecord) -> str:
    """Record the figures of a registered version, and return what it is called."""
    if not job.model.version:
        return ""
    registry = Registry(job.settings)
    version = registry.get(job.model.name, version=int(job.model.version))
    registry.record_evaluation(version, record)
    return version.reference


def show(summary: EvaluationSummary, console: Console) -> None:
    """Tell the user how good the model is."""
    if console.for_scripts:
        console.emit(summary.as_json())
        return
    rows = []
    for name, value in summary.evaluation.headline.items():
        found = summary.intervals.get(name)
        between = f"{found.low:.4g} to {found.high:.4g}" if found else ""
        rows.append([name, f"{value:.4f}", between])
    num_failed = summary.record.num_failed
    title = f"{summary.record.num_images:,} images ({num_failed:,} failed)"
    console.table(title, ["metric", "value", "95 % interval"], rows)
    for verdict in summary.verdicts:
        console.say(str(verdict))
    for failure in summary.evaluation.failures[:10]:
        console.warn(f"failed: {failure.uri}: {failure.reason}: {failure.message}")
    if summary.recorded_as:
        console.say(f"recorded with {summary.recorded_as}")
    console.say(f"page:  {summary.page}")


def require_reached(summary: EvaluationSummary) -> None:
    """End the command with a code of its own when a KPI is missed.

    Raises:
        KpiMissedError: Naming those that are.
    """
    missed = [verdict for verdict in summary.verdicts if not verdict.passed]
    if missed:
        raise KpiMissedError(
            f"{len(missed)} of {len(summary.verdicts)} KPIs missed: "
            f"{'; '.join(str(verdict) for verdict in missed)}."
        )


def main(
    model: Annotated[
        str,
        typer.Argument(
            help="NAME@ALIAS, NAME/VERSION, a folder, a URI, or random:ARCHITECTURE.",
            metavar="MODEL",
        ),
    ],
    data: Annotated[
        str, typer.Argument(help="Folder with a folder for each class, or a table.", metavar="DATA")
    ],
    split: Annotated[
        str | None,
        typer.Option(
            help="train, validation or test of DATA, a run's split.parquet or a divided folder."
        ),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of the locations.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.")] = None,
    label_columns: Annotated[
        str | None,
        typer.Option(help="Columns of 0 and 1, one for each label.", metavar="A,B,…"),
    ] = None,
    separator: Annotated[
        str | None, typer.Option(help="Between several labels in one column.")
    ] = None,
    kpi: Annotated[
        str | None, typer.Option(help="File of what the model must reach.", metavar="FILE")
    ] = None,
    current: Annotated[
        str | None,
        typer.Option(help="Model that KPIs such as `accuracy >= current` compare with."),
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice", help="CSV column to measure by. Repeatable; default: all with few values."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="The page; default: in the home folder's evaluations.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Measure a model on labelled images: metrics with intervals, KPIs, and a page."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = read_settings()
        settings.make_home()
        job = build(
            model,
            data,
            settings,
            split=split,
            column=column,
            label_column=label_column,
            label_columns=tuple(filter(None, (label_columns or "").split(","))),
            separator=separator,
            kpi=kpi,
            current=current,
            slices=tuple(slices or ()),
            output=output,
        )
        for note in job.images.notes:
            console.note(note)
        summary = run(job, console)
        show(summary, console)
        require_reached(summary)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
