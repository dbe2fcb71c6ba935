"""Explanations of a set of images, from their specification to their page.

spec -> open_explanations    loads the model, lists the images, checks what can be wrong
-> run_explanations     predicts and explains every image, writes the page
-> ExplainSummary       what was found; `jobs/explain.py` prints it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import BadImageError, InputError
from eagleray.core.settings import Settings
from eagleray.explanations.page import ExplainedImage, draw_image, render_explanations
from eagleray.explanations.patches import StrongestPatches
from eagleray.explanations.spec import ExplainSpec
from eagleray.imaging import DecodedImage, ImageContract, decode
from eagleray.inference.explain import Explainer
from eagleray.inference.predictor import Predictor
from eagleray.io import storage
from eagleray.io.fetch import fetch_image
from eagleray.io.read_ahead import read_ahead
from eagleray.models.package import ModelPackage
from eagleray.reports.overlays import picture_contract
from eagleray.sources import InputSpec, open_inputs
from eagleray.tasks import Failure, Outcome

__all__ = ["ExplainJob", "ExplainSummary", "open_explanations", "run_explanations"]


_MAX_SIDE = 320  # of a picture on the page


class ExplainedModel(Protocol):
    """A model package and what it is called."""

    @property
    def reference(self) -> str:
        """The reference that the user wrote."""

    @property
    def package(self) -> ModelPackage:
        """The verified package."""


@dataclass(frozen=True)
class ExplainJob:
    """Checked explanations.

    Attributes:
        spec: Specification.
        model: Model whose predictions are explained.
        explainer: Explainer of the model.
        uris: Locations of the images.
        notes: Sentences on how the images were found and chosen.
        settings: Settings of this process.
    """

    spec: ExplainSpec
    model: ExplainedModel
    explainer: Explainer
    uris: tuple[str, ...]
    notes: tuple[str, ...]
    settings: Settings


@dataclass(frozen=True)
class ExplainSummary:
    """What was found.

    Attributes:
        images: The explained images.
        failures: Images that could not be explained, by location.
        patches: The strongest patches.
        page: Location of the page.
    """

    images: tuple[ExplainedImage, ...]
    failures: dict[str, Failure]
    patches: StrongestPatches
    page: str

    def as_json(self) -> dict[str, Any]:
        """Return the summary for scripts."""
        return {
            "images": [image.as_json() for image in self.images],
            "failed": {
                uri: {"reason": failure.reason.value, "message": failure.message}
                for uri, failure in self.failures.items()
            },
            "channels": {
                label: [
                    {"channel": one.number, "share": one.share} for one in self.patches.of(label)
                ]
                for label in self.patches.counts
            },
            "page": self.page,
        }


def open_explanations(
    spec: ExplainSpec, settings: Settings, load: Callable[[str], ExplainedModel]
) -> ExplainJob:
    """Check everything that can be wrong before an image is read.

    Args:
        spec: Specification.
        settings: Settings of this process.
        load: Loads and verifies the model that a reference names.

    Raises:
        UserError: If the model, the label or the images cannot be used; the message says how to
            fix it.
    """
    storage.use_s3(spec.s3)
    model = load(spec.model)
    package = model.package
    if package.attributes:
        names = ", ".join(one.name for one in package.attributes)
        raise InputError(
            f"{spec.model} takes the attributes {names} beside images, which this command does not "
            "read; have the service explain its predictions."
        )
    explainer = Explainer(package)
    if spec.label is not None:
        with spec.naming("label"):
            explainer.require_label(spec.label)
    listing = open_inputs(InputSpec((spec.images,), spec.column, spec.path_policy))
    uris = [uri for table in listing.tables for uri in table.column("uri").to_pylist()]
    rows = np.linspace(0, len(uris) - 1, min(spec.max_images, len(uris))).round().astype(int)
    notes = list(listing.all_notes())
    if len(rows) < len(uris):
        notes.append(f"{len(rows):,} of {len(uris):,} images are explained; see --max-images.")
    chosen = tuple(uris[row] for row in rows)
    return ExplainJob(spec, model, explainer, chosen, tuple(notes), settings)


def run_explanations(job: ExplainJob, reporter: ProgressReporter) -> ExplainSummary:
    """Predict and explain every image, and write the page.

    Raises:
        InputError: If no image can be decoded, or the page cannot be written.
    """
    package = job.model.package
    predictor = Predictor(
        package, engine="eager", precision="float32", cache_folder=job.settings.cache_folder
    )
    images: list[ExplainedImage] = []
    failures: dict[str, Failure] = {}
    patches = StrongestPatches()
    read = partial(_read, contract=package.contract)
    with reporter.progress(f"Explaining {job.model.reference}", len(job.uris)) as bar:
        for uri, found in zip(job.uris, read_ahead(read, job.uris), strict=True):
            outcome = found if isinstance(found, Outcome) else _predict(predictor, found)
            bar.advance(1, failed=not outcome.ok)
            if outcome.failure is not None:
                failures[uri] = outcome.failure
            if isinstance(found, Outcome) or outcome.prediction is None:
                continue
            prediction = outcome.prediction
            label = job.spec.label or package.task.explained_label(prediction)
            explanation = job.explainer.explain(found.decoded, label)
            patches.add(found.decoded, explanation)
            images.append(draw_image(uri, prediction, found.picture, explanation))
    if not images:
        first = next(iter(failures.values()))
        raise InputError(
            f"None of the {len(failures):,} images can be explained; of the first: {first.message}."
        )
    with reporter.status("Drawing"):
        page = render_explanations(images, failures, patches, _facts(job))
        _write(job.spec.output, page)
    return ExplainSummary(tuple(images), failures, patches, job.spec.output)


@dataclass(frozen=True)
class _ReadImage:
    """An image as the network takes it, and whole as a picture (height, width, 1 or 3)."""

    decoded: DecodedImage
    picture: npt.NDArray[np.uint8]


def _read(uri: str, contract: ImageContract) -> _ReadImage | Outcome:
    try:
        content = fetch_image(uri, contract)
        decoded = decode(content, contract)
        drawn = picture_contract(contract, decoded.width, decoded.height, max_side=_MAX_SIDE)
        return _ReadImage(decoded, decode(content, drawn).pixels)
    except BadImageError as error:
        return Outcome.from_error(error)


def _predict(predictor: Predictor, image: _ReadImage) -> Outcome:
    (outcome,) = predictor.predict_decoded([image.decoded])
    return outcome


def _facts(job: ExplainJob) -> dict[str, object]:
    manifest = job.model.package.manifest
    return {
        "model": f"{job.model.reference} (package {job.model.package.digest[:12]})",
        "architecture": manifest.architecture.name,
        "feature map": f"output of {job.explainer.layer}",
        "input": manifest.input_text,
        "images": job.spec.images,
        **({"how the images were chosen": " ".join(job.notes)} if job.notes else {}),
    }


def _write(location: str, page: bytes) -> None:
    try:
        storage.put_atomic(location, page)
    except OSError as error:
        raise InputError(f"Cannot write {location}: {error.strerror or error}.") from error
