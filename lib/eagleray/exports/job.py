"""An export from its specification to a folder that is written only if it is proven.

spec -> open_export    checks what can be wrong, and reads the images of the comparison
-> run_export     converts and runs the model in processes of their own, compares, and writes
-> ExportFacts    what was found; the command prints it
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import InputError, JobFailedError, OutputExistsError
from eagleray.core.settings import Settings
from eagleray.exports.base import EXPORTERS, Exporter, output_names
from eagleray.exports.compare import Comparison, compare, tolerance_of
from eagleray.exports.environment import environment_folder, make_environment
from eagleray.exports.files import ExportFacts, render_files
from eagleray.exports.images import ComparisonImages, collect_images, evaluation_uris
from eagleray.exports.process import CONVERT, RUN, Limits, run_step
from eagleray.exports.spec import ExportSpec
from eagleray.inference.predictor import Predictor
from eagleray.io import storage
from eagleray.models.graph_export import require_graph_outputs
from eagleray.models.package import ModelPackage, write_package
from eagleray.registry.references import LoadedModel
from eagleray.registry.registry import Registry
from eagleray.tasks import Prediction

__all__ = ["ExportJob", "open_export", "run_export"]


@dataclass(frozen=True)
class _Original:
    """What the model itself predicts for the images of the comparison.

    Attributes:
        images: The N images.
        outputs: Activated outputs (N, …).
        predictions: The N predictions.
    """

    images: ComparisonImages
    outputs: npt.NDArray[np.float32]
    predictions: Sequence[Prediction]


@dataclass(frozen=True)
class ExportJob:
    """A checked export.

    Attributes:
        spec: Specification of the export.
        model: The model.
        exporter: The exporter.
        images: Images of the comparison; None if the runtime cannot run on this machine.
        settings: Settings of this process.
    """

    spec: ExportSpec
    model: LoadedModel
    exporter: Exporter
    images: ComparisonImages | None
    settings: Settings

    @property
    def output(self) -> Path:
        """The folder to be written."""
        return Path(storage.absolute(self.spec.output))

    @property
    def reference(self) -> str:
        """NAME/VERSION, which an alias that moves later does not change; else the reference."""
        model = self.model
        return f"{model.name}/{model.version}" if model.version else model.reference


def open_export(spec: ExportSpec, model: LoadedModel, settings: Settings) -> ExportJob:
    """Check everything that can be wrong before anything is installed or converted.

    Raises:
        UnknownNameError: If there is no such format.
        OutputExistsError: If the output is not empty.
        InputError: If the format cannot carry the model, or there is no image to compare it on.
    """
    exporter = EXPORTERS.get(spec.format)
    require_new_folder(spec.output)
    _require_carried(model.package, exporter)
    images = None
    if exporter.cannot_run is None:
        registry = Registry(settings)
        version = registry.get(model.name, version=int(model.version)) if model.version else None
        uris, source = evaluation_uris(spec, registry, version)
        images = collect_images(model.package, uris, source, spec.max_images)
    return ExportJob(spec, model, exporter, images, settings)


def require_new_folder(output: str) -> None:
    """Refuse an output that is not a new or empty local folder.

    Raises:
        OutputExistsError: If there is something.
        InputError: If it is a URI.
    """
    if storage.is_remote(output):
        raise InputError(f"{output} is a URI; export to a local folder, and copy that.")
    path = Path(storage.absolute(output))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputExistsError(f"{output} exists and is not empty; name a new folder.")


def _require_carried(package: ModelPackage, exporter: Exporter) -> None:
    """Refuse what a format cannot carry.

    Raises:
        InputError: With what it is.
    """
    manifest = package.manifest
    if manifest.has_graph and not exporter.carries_graphs:
        able = " or ".join(name for name in EXPORTERS.names() if EXPORTERS.get(name).carries_graphs)
        if manifest.imported is not None:
            raise InputError(
                f"Model {manifest.name!r} is an imported graph, and {exporter.title} exports are "
                f"made from networks of PyTorch; export it to {able}."
            )
        raise InputError(
            f"Model {manifest.name!r} is quantized, and {exporter.title} exports are made from "
            f"float models; export the version that it was made from, or to {able}."
        )
    if not package.task.has_exports:
        if manifest.imported is None:
            raise InputError(
                f"Model {manifest.name!r} has outputs ({', '.join(package.task.network_outputs)}) "
                "that exports do not describe; serve it by `eagleray serve`."
            )
        raise InputError(
            f"Model {manifest.name!r} was imported with outputs that exports do not describe; use "
            "what it was imported from."
        )
    if package.attributes:
        raise InputError(
            f"Model {manifest.name!r} takes the attributes "
            f"{', '.join(one.name for one in package.attributes)} beside images, and exports take "
            "images only; serve it by `eagleray serve`."
        )
    names = output_names(package)
    if len(names) > 1 and not exporter.carries_several:
        able = " or ".join(
            name for name in EXPORTERS.names() if EXPORTERS.get(name).carries_several
        )
        raise InputError(
            f"Model {manifest.name!r} has several outputs ({', '.join(names)}), and "
            f"{exporter.title} exports have one; export it to {able}."
        )
    if not manifest.has_graph:
        require_graph_outputs(package)


def run_export(job: ExportJob, reporter: ProgressReporter) -> ExportFacts:
    """Convert the model, compare it with the original, and write the folder if it passes.

    Raises:
        InputError: If the packages of the format cannot be installed, it cannot carry the model, or
            the model finds nothing in the images of the comparison.
        JobFailedError: If a process fails, or the outputs differ too much; nothing is written then.
    """
    original = None if job.images is None else _run_original(job, job.images, reporter)
    output = job.output
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        _prepare(job, work)
        _convert_and_run(job, work, reporter)
        facts = _facts(job, original, work)
        _require_equal(facts)
        _write(facts, work / "export", output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return facts


def _prepare(job: ExportJob, work: Path) -> None:
    (work / "export").mkdir(mode=0o755)
    (work / "request.json").write_text(json.dumps({"format": job.exporter.name}))
    write_package(job.model.package, str(work / "package"))
    if job.images is not None:
        np.save(work / "pixels.npy", job.images.pixels)


def _convert_and_run(job: ExportJob, work: Path, reporter: ProgressReporter) -> None:
    """Make the format's environment if need be, and run both steps."""
    spec, exporter = job.spec, job.exporter
    cache, packages = job.settings.cache_folder, None
    if exporter.requirements is not None:
        if not environment_folder(exporter.requirements, cache).exists():
            reporter.note(f"Installing the packages for {exporter.title} exports, once.")
        with reporter.status("Installing packages"):
            packages = make_environment(exporter.requirements, cache)
    limits = Limits(spec.max_seconds, spec.max_memory_gb * 1e9)
    log = job.settings.home_folder / "logs" / "export.log"
    with reporter.status(f"Converting to {exporter.title}"):
        run_step(CONVERT, work, packages, limits, log)
    with reporter.status(f"Running {exporter.title}"):
        run_step(RUN, work, packages, limits, log)


def _facts(job: ExportJob, original: _Original | None, work: Path) -> ExportFacts:
    result: dict[str, Any] = json.loads((work / "result.json").read_text())
    images = job.images
    files = (file for file in (work / "export").rglob("*") if file.is_file())
    return ExportFacts(
        reference=job.reference,
        package=job.model.package,
        exporter=job.exporter,
        size=sum(file.stat().st_size for file in files),
        comparison=None if original is None else _compare(job, original, work / "outputs.npy"),
        num_golden=0 if images is None else images.num_golden,
        runtime=result.get("runtime", ""),
        milliseconds=result.get("milliseconds"),
        inspected=result["inspected"],
        notes=() if images is None else images.notes,
    )


def _compare(job: ExportJob, original: _Original, file: Path) -> Comparison:
    package, images = job.model.package, original.images
    exported = np.load(file)
    if exported.shape != original.outputs.shape:
        raise JobFailedError(
            f"The exported model returns outputs of the shape {exported.shape[1:]}, the original "
            f"{original.outputs.shape[1:]}; nothing is written."
        )
    return compare(
        package.task,
        images.uris,
        (original.outputs, original.predictions),
        (exported, images.predictions(package, exported)),
        tolerance_of(package),
    )


def _run_original(
    job: ExportJob, images: ComparisonImages, reporter: ProgressReporter
) -> _Original:
    """Run the package itself on the images of the comparison.

    Raises:
        InputError: If it finds no object in any of them, so that nothing could be compared.
    """
    package = job.model.package
    with reporter.status("Running the original"):
        outputs = _original_outputs(package, images, job.settings)
        predictions = images.predictions(package, outputs)
    if all(package.task.is_empty(one) for one in predictions):
        count = len(predictions)
        where = "the only image" if count == 1 else f"any of the {count:,} images"
        raise InputError(
            f"Model {package.manifest.name!r} finds no object in {where} that its export would be "
            "compared on, which would prove nothing; name images in which it finds some by --data."
        )
    return _Original(images, outputs, predictions)


def _original_outputs(
    package: ModelPackage, images: ComparisonImages, settings: Settings
) -> npt.NDArray[np.float32]:
    """Return the outputs of the package itself: in PyTorch, float32, unless it is a graph."""
    has_graph = package.manifest.has_graph
    predictor = Predictor(
        package,
        device="cpu",
        engine="auto" if has_graph else "eager",
        precision="auto" if package.manifest.quantization is not None else "float32",
        cache_folder=settings.cache_folder,
    )
    outputs = torch.from_numpy(predictor.forward(images.pixels))
    return package.task.drop_outlier_score(outputs).numpy()


def _require_equal(facts: ExportFacts) -> None:
    """Refuse an export that does not predict like the original.

    Raises:
        JobFailedError: With how it differs, and the worst image.
    """
    compared = facts.comparison
    if compared is None or not compared.faults:
        return
    worst = compared.worst
    alike = (
        "" if worst.similarity is None else f" ({compared.similarity_name} {worst.similarity:.3f})"
    )
    raise JobFailedError(
        f"The {facts.exporter.title} model {' and '.join(compared.faults)}, on "
        f"{len(compared.images):,} images; nothing is written. The worst image is {worst.uri}: "
        f"{worst.original} in the original, {worst.exported} in {facts.runtime}{alike}."
    )


def _write(facts: ExportFacts, folder: Path, output: Path) -> None:
    """Complete the folder, and move it to its place at once."""
    for name, text in render_files(facts).items():
        (folder / name).write_text(text, encoding="utf-8")
    try:
        folder.replace(output)  # in the place of nothing, or of an empty folder
    except OSError as error:
        raise OutputExistsError(
            f"{output} could not be written ({error.strerror}); name a new folder."
        ) from error
