"""An evaluation, from its specification to its report and its record.

spec -> open_evaluation     loads the model, reads the labels, checks what can be wrong
-> run_evaluation      predicts every image, computes metrics, writes the report
-> EvaluationSummary   what was found; `jobs/evaluate.py` prints and records it
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.data.encoding import encode_attributes, encode_targets
from eagleray.data.labelled import LabelledImages, read_labelled
from eagleray.data.split import require_no_splits
from eagleray.data.split_file import (
    is_split_file,
    read_named_split,
    take_named_split,
)
from eagleray.evaluation.bootstrap import Interval, bootstrap
from eagleray.evaluation.drawings import draw_mistakes
from eagleray.evaluation.evaluate import Evaluation, evaluate
from eagleray.evaluation.kpi import (
    Kpi,
    KpiResult,
    check_kpis,
    describe_kpis,
    read_kpis,
    require_known,
)
from eagleray.evaluation.leakage import NO_LEAKAGE, Leakage
from eagleray.evaluation.predictions import ImagePredictions
from eagleray.evaluation.record import EvaluationRecord
from eagleray.evaluation.report import render_evaluation
from eagleray.evaluation.slices import choose_columns, slice_metrics
from eagleray.evaluation.spec import EvaluateSpec
from eagleray.inference.predictor import Predictor
from eagleray.io import storage
from eagleray.models.package import ModelPackage
from eagleray.sources import require_readable

__all__ = [
    "EvaluatedModel",
    "EvaluationJob",
    "EvaluationSummary",
    "model_facts",
    "open_evaluation",
    "run_evaluation",
    "version_reference",
]


class EvaluatedModel(Protocol):
    """A model package and what it is called."""

    @property
    def reference(self) -> str:
        """The reference that the user wrote."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def version(self) -> str:
        """The version in the registry; empty for a model that is not registered."""

    @property
    def package(self) -> ModelPackage:
        """The verified package."""


@dataclass(frozen=True)
class EvaluationJob:
    """A checked evaluation.

    Attributes:
        spec: Specification of the evaluation.
        model: Model to evaluate.
        current: Model that KPIs such as `accuracy >= current` compare with; None without one.
        parent: Model that the model was made from; None unless a KPI compares with it.
        images: Labelled images.
        kpis: KPIs that the model must reach.
        columns: Columns to slice the metrics by.
        output: Location of the report.
        settings: Settings of this process.
    """

    spec: EvaluateSpec
    model: EvaluatedModel
    current: EvaluatedModel | None
    parent: EvaluatedModel | None
    images: LabelledImages
    kpis: tuple[Kpi, ...]
    columns: tuple[str, ...]
    output: str
    settings: Settings

    @property
    def data_digest(self) -> str:
        """SHA-256 of the labelled images, and of how they are divided into tiles if they are."""
        return _data_digest(self.spec, self.images)


@dataclass(frozen=True)
class EvaluationSummary:
    """The result of an evaluation."""

    record: EvaluationRecord
    evaluation: Evaluation
    intervals: dict[str, Interval]
    kpi_results: tuple[KpiResult, ...]
    page: str
    warnings: tuple[str, ...] = ()
    recorded_as: str = ""

    @property
    def predictions(self) -> ImagePredictions:
        """The predictions, image by image."""
        return ImagePredictions.of(self.evaluation)

    @property
    def passed(self) -> bool:
        """Whether every KPI passed, which none does on images that are no evidence."""
        return all(result.passed for result in self.kpi_results)

    def as_json(self) -> dict[str, Any]:
        """Return the summary for scripts."""
        return {
            "images": self.record.num_images,
            "failed": self.record.num_failed,
            "failures": [asdict(failure) for failure in self.evaluation.failures],
            "metrics": self.record.metrics,
            "positive": self.evaluation.task.positive,
            "intervals": {name: asdict(found) for name, found in self.intervals.items()},
            "kpis": [result.as_json() for result in self.kpi_results],
            "passed": self.passed,
            "leaked_images": self.record.num_leaked,
            "warnings": list(self.warnings),
            "data": self.record.data,
            "data_digest": self.record.data_digest,
            "tiles": self.record.tiles or None,
            "package_digest": self.record.package_digest,
            "recorded_as": self.recorded_as or None,
            "notes": list(self.evaluation.images.notes),
            "page": self.page,
        }


def open_evaluation(
    spec: EvaluateSpec,
    settings: Settings,
    load: Callable[[str], EvaluatedModel],
    load_parent: Callable[[EvaluatedModel], EvaluatedModel | None] = lambda _: None,
) -> EvaluationJob:
    """Check everything that can be wrong before an image is read.

    Args:
        spec: Specification of the evaluation.
        settings: Settings of this process.
        load: Loads and verifies the model that a reference names.
        load_parent: Loads the model that another was made from; None if the registry has none.

    Raises:
        UserError: If a model, the data, a KPI or the output cannot be used; the message says how to
            fix it.
    """
    storage.use_s3(spec.s3)
    if spec.output is not None and storage.is_folder(spec.output):
        raise InputError(
            f"{spec.output} is a folder; name the page, as in {spec.output.rstrip('/')}/page.html."
        )
    require_readable([spec.data], spec.path_policy)  # before it is opened to see what it is
    kpis = read_kpis(spec.kpi) if spec.kpi is not None else ()
    model = load(spec.model)
    package = model.package
    images = _read_images(spec, package.task.name)
    targets = encode_targets(package.task, images)
    if spec.kpi is not None:
        known = package.task.measured_names(targets)
        require_known(kpis, known, where=describe_kpis(spec.kpi))
    current = None if spec.current is None else load(spec.current)
    parent = load_parent(model) if any(kpi.baseline == "parent" for kpi in kpis) else None
    place = describe_kpis(spec.kpi or "")
    for kpi in kpis:
        if kpi.baseline == "current" and current is None:
            raise InputError(f"{place} asks for `{kpi}`; say which model is current by --current.")
        if kpi.baseline == "parent" and parent is None:
            raise InputError(
                f"{place} asks for `{kpi}`, and the registry has no version that "
                f"{model.reference} was made from; leave the line out or compare with `current`."
            )
    for each in (model, current, parent):
        if each is not None:
            encode_targets(each.package.task, images)
            encode_attributes(each.package.attributes, images)
            spec.tiling(each.package)
    name = f"{model.name}-{package.digest[:12]}-on-{_data_digest(spec, images)[:12]}.html"
    return EvaluationJob(
        spec=spec,
        model=model,
        current=current,
        parent=parent,
        images=images,
        kpis=kpis,
        columns=choose_columns(images, spec.slice),
        output=spec.output or str(settings.evaluations_folder / name),
        settings=settings,
    )


def _data_digest(spec: EvaluateSpec, images: LabelledImages) -> str:
    if spec.tiling_text is None:
        return images.digest
    return hashlib.sha256(f"{images.digest} in tiles: {spec.tiling_text}".encode()).hexdigest()


def _read_images(spec: EvaluateSpec, task: str) -> LabelledImages:
    if spec.split is not None and is_split_file(spec.data):
        return read_named_split(spec.data, spec.split, policy=spec.path_policy)
    images = read_labelled(
        spec.data,
        uri_column=spec.column,
        label_column=spec.label_column,
        label_columns=spec.label_columns,
        separator=spec.separator,
        task=task,
        policy=spec.path_policy,
        max_invalid=spec.max_invalid,
    )
    if spec.split is not None:
        images = take_named_split(images, spec.split, spec.data)
    require_no_splits(images, spec.data)
    return images


def run_evaluation(
    job: EvaluationJob,
    reporter: ProgressReporter,
    *,
    leakage: Leakage = NO_LEAKAGE,
    current_leakage: Leakage = NO_LEAKAGE,
) -> EvaluationSummary:
    """Predict every image, compute metrics, check the KPIs, and write the report.

    Args:
        job: The evaluation.
        reporter: Shows the progress.
        leakage: The images that the model learned from.
        current_leakage: The images that the model which KPIs compare with learned from.
    """
    predictor, evaluation = _evaluate(job, job.model, reporter)
    current, parent = (
        None if other is None else _evaluate(job, other, reporter)[1].metrics
        for other in (job.current, job.parent)
    )
    with reporter.status("Computing and drawing"):
        kpi_results = check_kpis(
            job.kpis,
            evaluation.metrics,
            current,
            parent,
            leakage=leakage,
            current_leakage=current_leakage,
        )
        intervals = bootstrap(evaluation.task, evaluation.outputs, evaluation.targets)
        record = EvaluationRecord(
            data=job.spec.data,
            data_digest=job.data_digest,
            tiles=job.spec.tiling_text or "",
            package_digest=job.model.package.digest,
            num_images=evaluation.num_images,
            num_failed=evaluation.num_failed,
            metrics=evaluation.metrics,
            arguments=job.spec.arguments,
            num_leaked=len(leakage.rows),
            leakage=leakage.sentence,
        )
        warnings = tuple(found.sentence for found in (leakage, current_leakage) if found)
        page = render_evaluation(
            evaluation,
            {**_facts(job, evaluation, record), "engine": predictor.engine},
            model_name=version_reference(job.model),
            intervals=intervals,
            kpi_results=kpi_results,
            slices=slice_metrics(evaluation, job.columns),
            warnings=warnings,
            drawn=draw_mistakes(predictor, evaluation, job.spec.tiling(job.model.package)),
        )
        _write(job.output, page)
    return EvaluationSummary(record, evaluation, intervals, kpi_results, job.output, warnings)


def version_reference(model: EvaluatedModel) -> str:
    """Return NAME/VERSION, which an alias that moves later does not change; else the reference."""
    return f"{model.name}/{model.version}" if model.version else model.reference


def _evaluate(
    job: EvaluationJob, model: EvaluatedModel, reporter: ProgressReporter
) -> tuple[Predictor, Evaluation]:
    """Return a model on its engine, and its evaluation."""
    predictor = Predictor(
        model.package,
        expected_images=len(job.images),
        cache_folder=job.settings.cache_folder,
    )
    with reporter.progress(f"Measuring {model.reference}", len(job.images)) as bar:

        def progress(count: int, failed: int) -> None:
            bar.advance(count, failed=failed)

        tiling = job.spec.tiling(model.package)
        return predictor, evaluate(predictor, job.images, tiling=tiling, progress=progress)


def _facts(
    job: EvaluationJob, evaluation: Evaluation, record: EvaluationRecord
) -> dict[str, object]:
    package, task = job.model.package, evaluation.task
    reference = version_reference(job.model)
    named = "" if reference == job.model.reference else f", named as {job.model.reference}"
    facts: dict[str, object] = {
        "model": f"{reference} (package {record.package_digest[:12]}{named})",
        **model_facts(package),
        "data": job.spec.data,
        "data digest": record.data_digest,
        "measured": record.created,
    }
    if job.spec.tiling_text is not None:
        facts["tiles"] = job.spec.tiling_text
    facts |= task.facts(evaluation.outputs, evaluation.targets)
    if job.images.notes:
        facts["how the data were read"] = " ".join(job.images.notes)
    if job.current is not None:
        facts["current"] = f"{job.current.reference} ({job.current.package.digest[:12]})"
    if job.parent is not None:
        facts["parent"] = f"{version_reference(job.parent)} ({job.parent.package.digest[:12]})"
    return facts


def model_facts(package: ModelPackage) -> dict[str, object]:
    """Return what a model is, for the last table of its page."""
    manifest = package.manifest
    return {
        "task": manifest.task.name,
        **manifest.task.settings(),
        "architecture": manifest.architecture.name,
        **manifest.facts,
        "input": manifest.input_text,
        "contract": manifest.contract_digest[:12],
    }


def _write(location: str, page: bytes) -> None:
    try:
        storage.put_atomic(location, page)
    except OSError as error:
        raise InputError(f"Cannot write {location}: {error.strerror or error}.") from error
