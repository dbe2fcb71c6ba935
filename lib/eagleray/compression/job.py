"""Quantizes a registered version and registers the result as the next version of the same model.

spec -> open_quantization   finds the version, its calibration images and its test images
     -> run_quantization    calibrates, makes the package, tests it as its parent, registers it
     -> QuantizeSummary     what was found
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eagleray.compression.calibration import (
    SampleImages,
    decode_sample,
    max_images,
    require_enough,
)
from eagleray.compression.prepare import QuantizeJob, split_artifact
from eagleray.compression.quantization import QuantizedGraph, quantize_graph
from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import InputError
from eagleray.data.labelled import LabelledImages
from eagleray.evaluation.bootstrap import bootstrap
from eagleray.evaluation.evaluate import Evaluation, evaluate
from eagleray.evaluation.job import model_facts
from eagleray.evaluation.leakage import Leakage
from eagleray.evaluation.predictions import ImagePredictions
from eagleray.evaluation.record import EvaluationRecord
from eagleray.evaluation.report import render_evaluation
from eagleray.evaluation.slices import choose_columns, slice_metrics
from eagleray.imaging import decode
from eagleray.inference.predictor import Predictor
from eagleray.io import storage
from eagleray.models.attributes import encode_mappings
from eagleray.models.manifest import Lineage, Quantization
from eagleray.models.package import ModelPackage
from eagleray.models.quantized import create_quantized_package, fit_tolerance
from eagleray.registry.leakage import find_leakage
from eagleray.registry.registry import ModelVersion
from eagleray.registry.tracking import PARENT_TAG, TrackedRun

__all__ = ["QuantizeSummary", "run_quantization"]

_PAGES = "pages"


@dataclass(frozen=True)
class QuantizeSummary:
    """A quantized version.

    Attributes:
        version: The new version.
        parent: The version that was quantized.
        package: The new package.
        graph: The quantized network, and what quantization changed.
        evaluation: Its evaluation on the parent's test images; None if these are not known.
        parent_metrics: Metrics of the parent on the same images; empty if these are not known.
        engine: What ran the quantized network, for display.
        page: Location of the page of the evaluation; empty without one.
        warnings: Sentences on what the user should know.
    """

    version: ModelVersion
    parent: ModelVersion
    package: ModelPackage
    graph: QuantizedGraph
    evaluation: Evaluation | None
    parent_metrics: dict[str, float]
    engine: str
    page: str
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the summary for scripts."""
        quantization = self.package.manifest.quantization
        assert quantization is not None
        return {
            "model": self.version.reference,
            "aliases": list(self.version.aliases),
            "package_digest": self.version.digest,
            "parent": self.parent.reference,
            "parent_digest": self.parent.digest,
            "quantization": quantization.model_dump(mode="json"),
            "layers": self.graph.num_layers,
            "held_out": {
                "images": self.graph.num_held_out,
                "score": self.graph.score,
                "one_image": self.graph.image_share,
                "drop": self.graph.drop,
                "drop_with_all_layers_in_int8": self.graph.static_drop,
                "max_difference": self.graph.max_difference,
            },
            "golden_tolerance": self.package.golden.tolerance,
            "test": self.evaluation.metrics if self.evaluation else None,
            "test_of_parent": self.parent_metrics or None,
            "bytes": len(self.package.files[self.package.manifest.network_file]),
            "engine": self.engine,
            "page": self.page or None,
            "warnings": list(self.warnings),
        }


def run_quantization(job: QuantizeJob, reporter: ProgressReporter) -> QuantizeSummary:
    """Calibrate, make the package, test it and register it.

    Raises:
        InputError: If too few images can be decoded, or the network cannot be quantized.
        PackageError: If the package's files do not fit each other.
    """
    with reporter.status("Decoding calibration images"):
        calibration, held_out = _decode(job)
    graph = quantize_graph(
        job.package, calibration, held_out, max_drop=job.spec.max_drop, reporter=reporter
    )
    tags = {
        "eagleray.kind": "quantize",
        "eagleray.parent": job.parent.reference,
        "mlflow.source.name": "eagleray models quantize",
        **({} if job.parent.run_id is None else {PARENT_TAG: job.parent.run_id}),
    }
    with job.registry.start_run(f"quantize {job.parent.reference}", tags=tags) as tracked:
        return _finish(job, graph, calibration, tracked, reporter)


def _decode(job: QuantizeJob) -> tuple[SampleImages, SampleImages]:
    """Decode the calibration images and the held-out images.

    Raises:
        InputError: If too few can be decoded.
    """
    count = max_images(job.package, job.spec.num_images)
    calibration = decode_sample(job.package, job.calibration, count, labelled=False)
    require_enough(calibration, job.where, len(job.held_out))
    labelled = job.held_out_labelled
    held_out = decode_sample(job.package, job.held_out, count, labelled=labelled)
    if not len(held_out):
        raise InputError(
            f"None of the {len(job.held_out):,} images of {job.where} that are held out to "
            "measure the loss can be decoded; name images that can by --data."
        )
    return calibration, held_out


def _finish(
    job: QuantizeJob,
    graph: QuantizedGraph,
    calibration: SampleImages,
    tracked: TrackedRun,
    reporter: ProgressReporter,
) -> QuantizeSummary:
    """Test the quantized network, register it, and record both."""
    quantization = Quantization(
        method="static",
        calibration_digest=calibration.images.digest,
        num_images=len(calibration),
        float_layers=graph.float_layers,
    )
    draft = _package(job, graph, quantization, _lineage(job, tracked))
    predictor = Predictor(draft, device="cpu", cache_folder=job.settings.cache_folder)
    evaluation = None if job.test is None else _evaluate(predictor, job.test, reporter)
    package = _package(
        job,
        graph,
        quantization,
        draft.manifest.lineage,
        golden_outputs=_golden_outputs(job.package, predictor),
        metrics=evaluation.headline if evaluation is not None else {},
    )
    with reporter.status("Registering"):
        version = job.registry.register(package, run=tracked, alias=job.spec.alias)
        _log(job, graph, quantization, tracked)
        page, parent_metrics = "", {}
        if evaluation is not None:
            record = _parent_record(job, evaluation.images, reporter)
            parent_metrics = record.metrics
            page = _record(job, version, package, evaluation, record, predictor, tracked)
    return QuantizeSummary(
        version=version,
        parent=job.parent,
        package=package,
        graph=graph,
        evaluation=evaluation,
        parent_metrics=parent_metrics,
        engine=predictor.engine,
        page=page,
        warnings=_warnings(job, graph, calibration, version),
    )


def _lineage(job: QuantizeJob, tracked: TrackedRun) -> Lineage:
    note = f"quantized from {job.parent.reference}"
    origin = job.package.manifest.lineage
    return origin.of_child(parent=job.package.digest, run=tracked.run_id, note=note)


def _package(
    job: QuantizeJob,
    graph: QuantizedGraph,
    quantization: Quantization,
    lineage: Lineage,
    *,
    golden_outputs: list[list[float]] | None = None,
    metrics: dict[str, float] | None = None,
) -> ModelPackage:
    return create_quantized_package(
        job.package,
        graph.content,
        quantization=quantization,
        lineage=lineage,
        tolerance=fit_tolerance(job.package.task, graph.max_difference),
        golden_outputs=golden_outputs or [],
        metrics={f"test_{name}": value for name, value in (metrics or {}).items()},
    )


def _golden_outputs(parent: ModelPackage, predictor: Predictor) -> list[list[float]]:
    """Return the outputs of the quantized network for the parent's golden images."""
    images = parent.golden.images
    if not images:
        return []
    pixels = np.stack([decode(parent.files[one.file], parent.contract).pixels for one in images])
    attributes = None
    if parent.attributes:
        attributes = encode_mappings(parent.attributes, [one.attributes for one in images])
    outputs = torch.from_numpy(predictor.forward(pixels, attributes))
    summary: list[list[float]] = parent.task.summarize(outputs).tolist()
    return summary


def _evaluate(
    predictor: Predictor, images: LabelledImages, reporter: ProgressReporter
) -> Evaluation:
    with reporter.progress("Testing", len(images)) as bar:

        def progress(count: int, failed: int) -> None:
            bar.advance(count, failed=failed)

        return evaluate(predictor, images, progress=progress)


def _parent_record(
    job: QuantizeJob, images: LabelledImages, reporter: ProgressReporter
) -> EvaluationRecord:
    """Return the parent's evaluation on the test images, which is made if there is none."""
    registry, parent = job.registry, job.parent
    kept = (one for one in registry.evaluations(parent) if one.data_digest == images.digest)
    found = next(kept, None)
    if found is not None:
        return found
    predictor = Predictor(job.package, precision="float32", cache_folder=job.settings.cache_folder)
    evaluation = _evaluate(predictor, images, reporter)
    leakage = find_leakage(registry, parent, images)
    record = _make_record(evaluation, parent, leakage, f"the test split of {parent.reference}")
    registry.record_evaluation(parent, record, ImagePredictions.of(evaluation))
    return record


def _make_record(
    evaluation: Evaluation,
    version: ModelVersion,
    leakage: Leakage,
    data: str,
    arguments: tuple[str, ...] = (),
) -> EvaluationRecord:
    return EvaluationRecord(
        data=data,
        data_digest=evaluation.images.digest,
        package_digest=version.digest,
        num_images=evaluation.num_images,
        num_failed=evaluation.num_failed,
        metrics=evaluation.metrics,
        arguments=arguments,
        num_leaked=len(leakage.rows),
        leakage=leakage.sentence,
    )


def _record(
    job: QuantizeJob,
    version: ModelVersion,
    package: ModelPackage,
    evaluation: Evaluation,
    parent_record: EvaluationRecord,
    predictor: Predictor,
    tracked: TrackedRun,
) -> str:
    """Record the evaluation with the version, and return the location of its page."""
    registry, images = job.registry, evaluation.images
    leakage = find_leakage(registry, version, images)
    record = _make_record(evaluation, version, leakage, parent_record.data, parent_record.arguments)
    registry.record_evaluation(version, record, ImagePredictions.of(evaluation))
    tracked.log_metrics({f"test_{name}": value for name, value in evaluation.headline.items()})
    task, outputs, targets = evaluation.task, evaluation.outputs, evaluation.targets
    content = render_evaluation(
        evaluation,
        {
            "model": f"{version.reference} (package {version.digest[:12]})",
            **model_facts(package),
            "parent": f"{job.parent.reference} (package {job.parent.digest[:12]})",
            "data": record.data,
            "data digest": record.data_digest,
            **task.facts(outputs, targets),
            "engine": predictor.engine,
        },
        model_name=version.reference,
        intervals=bootstrap(task, outputs, targets),
        slices=slice_metrics(evaluation, choose_columns(images)),
        warnings=(leakage.sentence,) if leakage else (),
    )
    name = f"{version.name}-{version.digest[:12]}-on-{images.digest[:12]}.html"
    page = str(job.settings.evaluations_folder / name)
    storage.put_atomic(page, content)
    tracked.log_file(page, _PAGES)
    return page


def _log(
    job: QuantizeJob, graph: QuantizedGraph, quantization: Quantization, tracked: TrackedRun
) -> None:
    """Record with the run how the network was quantized, and the parent's table of images."""
    tracked.log_parameters(
        {
            **job.spec.model_dump(include={"data", "num_images", "max_drop", "seed"}),
            **quantization.model_dump(),
            "float_layers": ", ".join(quantization.float_layers),
            "parent": job.parent.reference,
            "parent_digest": job.parent.digest,
        }
    )
    tracked.log_metrics(
        {
            "held_out_images": graph.num_held_out,
            "held_out_drop": graph.drop,
            "held_out_drop_with_all_layers_in_int8": graph.static_drop,
            "held_out_max_difference": graph.max_difference,
        }
    )
    with split_artifact(job.registry, job.parent) as file:
        if file is not None:
            tracked.log_file(file)


def _warnings(
    job: QuantizeJob, graph: QuantizedGraph, calibration: SampleImages, version: ModelVersion
) -> tuple[str, ...]:
    found = []
    if calibration.num_failed:
        found.append(f"{calibration.num_failed:,} calibration images cannot be read.")
    if len(calibration) < min(job.spec.num_images, len(job.calibration)):
        found.append(
            f"Calibrated on {len(calibration):,} images, not {job.spec.num_images:,}: more would "
            "take too much memory."
        )
    share, max_drop = graph.image_share, job.spec.max_drop
    if share is not None and 0 < max_drop < share:
        found.append(
            f"--max-drop {max_drop:g} is less than one of the {graph.num_held_out:,} held-out "
            "images, so a single lost one keeps layers in float32; allow "
            f"{math.ceil(1e4 * share) / 1e4:g} or more."
        )
    if graph.drop > max_drop:
        found.append(
            f"The loss on held-out images stays at {graph.drop:.4f} ({graph.score}), above "
            f"--max-drop {max_drop:g}, with {len(graph.float_layers)} of "
            f"{graph.num_layers} layers in float32."
        )
    if job.test is None:
        found.append(
            f"{job.parent.reference} keeps no table of its test images, so {version.reference} is "
            f"not tested; run: eagleray evaluate {version.reference} DATA."
        )
    return tuple(found)
