"""Imports a network: checks its file, grafts the contract on, and tries it in a process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from eagleray.core.errors import BadImageError, InputError
from eagleray.core.limits import MAX_GRAPH_BYTES
from eagleray.core.settings import Settings
from eagleray.core.validation import first_validation_error
from eagleray.imaging import FORMATS, ImageContract, decode
from eagleray.imaging.contract import Exact, Letterbox, ShortestSide
from eagleray.importing.decoders import DECODERS, DetectorOutputs
from eagleray.importing.graft import (
    Behind,
    NetworkInput,
    behind_detector,
    behind_scores,
    find_input,
    find_output,
    find_scores,
    graft,
    output_shapes,
)
from eagleray.importing.spec import ImportSpec
from eagleray.importing.transformers_folder import convert_folder, read_folder
from eagleray.importing.trial import Promises, Trial, try_graph
from eagleray.inference.choice import require_engine
from eagleray.io import storage
from eagleray.io.fetch import fetch_image
from eagleray.models.architectures import Architecture, imagenet_labels
from eagleray.models.golden import golden_files
from eagleray.models.graph import check_graph, parse_foreign_graph
from eagleray.models.manifest import Import, Lineage, ModelManifest
from eagleray.models.package import ModelPackage
from eagleray.models.package_files import GRAPH_FILE
from eagleray.sources import InputSpec, open_inputs
from eagleray.tasks import Task, task_class

__all__ = [
    "Golden",
    "activation_of",
    "import_network",
    "make_contract",
    "make_task",
    "read_golden",
]

ARCHITECTURE = "onnx"
"""Name of the architecture of imported networks: a graph is all that is known of it."""

_MAX_GOLDEN = 8
_MAX_CHANNEL_VALUE = 65_535  # of a mean or a deviation
_MIN_STD = 1e-3
_OVERLAPS = {"detr": 1.0}  # one query finds an object, and nothing needs to be suppressed


@dataclass(frozen=True)
class Golden:
    """The golden images of an import.

    Attributes:
        contents: The encoded images.
        pixels: Each decoded, uint8 (H, W, C).
    """

    contents: tuple[bytes, ...]
    pixels: tuple[npt.NDArray[np.uint8], ...]


def import_network(spec: ImportSpec, settings: Settings) -> ModelPackage:
    """Make the package of a network that another program wrote as an ONNX file.

    Raises:
        UserError: If the file, the specification or an image is refused; the message says why.
        JobFailedError: If the trial run crashes, or takes too much time or memory.
    """
    require_engine("openvino", device="cpu")
    source = _open(spec, settings)
    spec, content, task = source.spec, source.content, source.task
    try:
        model = parse_foreign_graph(content)
        network_input = find_input(model, spec.layout)
        contract = make_contract(spec, network_input)
        behind, scores = _behind(spec, task, model, network_input, contract)
        manifest = _manifest(source, contract, model, scores)
        network = _Network(content, network_input, contract, behind, manifest)
        network.graph(spec, frees_batch=True)
    except ValueError as error:
        raise InputError(f"{spec.file} is refused: {error}.") from None
    golden = read_golden(spec, contract)
    graph, trial = _graph_that_runs(spec, network, golden, settings)
    files = {GRAPH_FILE: graph}
    if golden.contents:
        files |= golden_files(golden.contents, outputs=trial.outputs.tolist(), task=task)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return ModelPackage(manifest.model_copy(update={"files": digests}), MappingProxyType(files))


@dataclass(frozen=True)
class _Source:
    """What is imported.

    Attributes:
        spec: What the network takes and gives.
        content: The ONNX file.
        task: The task.
        digest: SHA-256 of the file that was named, or of a folder's weights.
        producer: The program that wrote a folder; empty for a file, which says it itself.
    """

    spec: ImportSpec
    content: bytes
    task: Task
    digest: str
    producer: str = ""


def _open(spec: ImportSpec, settings: Settings) -> _Source:
    """Read a file, or convert the network of a folder."""
    if not spec.is_folder:
        task = make_task(spec)
        content = _read(spec.file)
        return _Source(spec, content, task, hashlib.sha256(content).hexdigest())
    found = read_folder(spec)
    task = make_task(found.spec, found.labels, max_objects=found.max_objects)
    graph = convert_folder(found, settings)
    return _Source(found.spec, graph, task, found.digest, found.producer)


@dataclass(frozen=True)
class _Network:
    """A network of a file, and what its graph becomes."""

    content: bytes
    input: NetworkInput
    contract: ImageContract
    behind: Behind
    manifest: ModelManifest

    def graph(self, spec: ImportSpec, *, frees_batch: bool) -> bytes:
        """Return the graph of the package.

        Raises:
            ValueError: If a decoder cannot read the outputs.
            PackageError: If the graph is refused.
        """
        model = parse_foreign_graph(self.content)
        graft(
            model,
            self.input,
            self.contract,
            reverses_channels=spec.colors == "bgr",
            behind=self.behind,
            frees_batch=frees_batch,
        )
        graph: bytes = model.SerializeToString()
        check_graph(spec.file, graph, self.manifest)
        return graph


def _graph_that_runs(
    spec: ImportSpec, network: _Network, golden: Golden, settings: Settings
) -> tuple[bytes, Trial]:
    """Return a graph that takes any number of images, or one if the network has no other way.

    Raises:
        InputError: If the network cannot run, or outputs depend on the batch.
        JobFailedError: If the process crashes, or takes too much time or memory.
    """
    takes_one = network.input.fixed_batch == 1
    for frees_batch in (True, False) if takes_one else (True,):
        graph = network.graph(spec, frees_batch=frees_batch)
        task, contract = network.manifest.task, network.contract
        promises = _promises(network.manifest)
        trial = try_graph(spec, graph, task, contract, golden.pixels, settings, promises=promises)
        if trial.fault is None:
            return graph, trial
    raise InputError(f"{trial.fault}.")


def _promises(manifest: ModelManifest) -> Promises:
    """Return what the scores of the file are taken for, as far as their values can show it."""
    assert manifest.imported is not None
    if manifest.imported.scores != "probabilities":
        return None
    is_exclusive = not manifest.imported.decoder and activation_of(manifest.task) == "softmax"
    return "exclusive" if is_exclusive else "probabilities"


def _behind(
    spec: ImportSpec,
    task: Task,
    model: Any,
    network_input: NetworkInput,
    contract: ImageContract,
) -> tuple[Behind, Literal["logits", "probabilities", "values"]]:
    """Return what makes the task's outputs of the network's, and what these are.

    Raises:
        ValueError: If the outputs do not fit the task.
    """
    if spec.decoder is not None:
        shapes = output_shapes(model, network_input, contract.size)
        source = DetectorOutputs(
            shapes, contract.size, task.num_outputs, spec.scores, spec.activation
        )
        is_logits = spec.scores == "logits" or (spec.scores, spec.decoder) == ("auto", "detr")
        behind = behind_detector(source, DECODERS[spec.decoder])
        return behind, "logits" if is_logits else "probabilities"
    output = find_output(model, task.num_outputs)
    scores = find_scores(model, output) if spec.scores == "auto" else spec.scores
    if not task.labels:
        return behind_scores(output, "logits", task.num_outputs), "values"
    kind = "logits" if scores == "logits" else activation_of(task)
    return behind_scores(output, kind, task.num_outputs), scores


def _manifest(
    source: _Source,
    contract: ImageContract,
    model: Any,
    scores: Literal["logits", "probabilities", "values"],
) -> ModelManifest:
    """Return the manifest of the package, without its files."""
    spec, task = source.spec, source.task
    of_file = " ".join(filter(None, (model.producer_name, model.producer_version)))
    return ModelManifest(
        name=spec.name,
        task=task,
        architecture=Architecture(
            name=ARCHITECTURE, in_channels=contract.channels, num_outputs=task.num_outputs
        ),
        contract=contract,
        contract_digest=contract.digest,
        lineage=Lineage.now(note=f"imported from {Path(spec.file).name}"),
        imported=Import(
            file_digest=source.digest,
            scores=scores,
            decoder=spec.decoder or "",
            producer=(source.producer or of_file)[:100],
            num_parameters=sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer),
        ),
        files={GRAPH_FILE: hashlib.sha256(source.content).hexdigest()},
    )


def _read(location: str) -> bytes:
    try:
        content = storage.read_bytes(location, limit=MAX_GRAPH_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"There is no file {location}; check the path.") from None
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from error
    if len(content) > MAX_GRAPH_BYTES:
        raise InputError(f"{location} is too large: {MAX_GRAPH_BYTES:,} bytes is the limit.")
    return content


def make_task(spec: ImportSpec, labels: Sequence[str] | None = None, **others: Any) -> Task:
    """Return the task with its labels.

    Args:
        spec: The specification.
        labels: The labels; None for those that the specification names.
        others: Other fields of the task.

    Raises:
        InputError: If the labels do not fit it.
    """
    labels = _labels(spec.labels) if labels is None else labels
    fields: dict[str, Any] = {"name": spec.task, **others}
    if labels:
        fields["labels"] = tuple(labels)
    if "thresholds" in task_class(spec.task).model_fields:
        fields["thresholds"] = (spec.threshold,) * len(labels)
    if spec.decoder is not None:
        overlap = spec.max_overlap
        fields["max_overlap"] = _OVERLAPS.get(spec.decoder, 0.6) if overlap is None else overlap
    try:
        return task_class(spec.task).model_validate(fields)
    except ValidationError as error:
        raise InputError(f"The labels are refused: {first_validation_error(error)}.") from None


def activation_of(task: Task) -> Literal["softmax", "sigmoid"]:
    """Return what makes probabilities of a task's logits: labels exclude each other, or do not."""
    exclusive = not task.has_many_labels and task.num_outputs == len(task.labels)
    return "softmax" if exclusive else "sigmoid"


def _labels(written: Sequence[str]) -> tuple[str, ...]:
    """Return the labels: those that are named, those of a file, or ImageNet's."""
    if list(written) == ["imagenet"]:
        return tuple(imagenet_labels())
    if len(written) != 1:
        return tuple(written)
    (location,) = written
    try:
        text = storage.read_bytes(location).decode("utf-8-sig")
    except (FileNotFoundError, InputError):
        if "," in location:
            return tuple(part.strip() for part in location.split(","))
        raise InputError(
            f"--labels {location!r} is no file, and one label is too few; name a file with a label "
            "on each line, or every label."
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{location} is not text in UTF-8; write a label on each line.") from None
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def make_contract(spec: ImportSpec, network_input: NetworkInput) -> ImageContract:
    """Return the contract of the images that the network takes.

    Raises:
        InputError: If the sizes are open, or a number does not fit.
    """
    channels = 1 if spec.colors == "gray" else 3
    if network_input.channels not in (None, channels):
        raise InputError(
            f"The network takes {network_input.channels} channels, and {spec.colors} has "
            f"{channels}; name other --colors, or another --layout."
        )
    height, width = (side or spec.image_size for side in network_input.size)
    if height is None or width is None:
        raise InputError(f"{spec.file} leaves the size of its images open; name --image-size.")
    if spec.image_size not in (None, height) or spec.image_size not in (None, width):
        raise InputError(
            f"--image-size {spec.image_size}: the network takes {height} x {width} pixels; leave "
            "it out."
        )
    mean, std = (_channel_values(spec, name, channels) for name in ("mean", "std"))
    if not min(std) >= _MIN_STD:
        raise InputError(f"--std {spec.std!r}: {_MIN_STD} is the smallest, of pixels up to 255.")
    shorter = spec.resize or round(min(height, width) * 256 / 224)
    geometry: dict[str, Any] = {"resize": ShortestSide(size=shorter), "crop": (height, width)}
    if spec.stretch:
        geometry = {"resize": Exact(height=height, width=width)}
    elif spec.letterbox:
        geometry = {"resize": Letterbox(height=height, width=width, fill=spec.fill)}
    try:
        return ImageContract.model_validate(
            {
                "formats": FORMATS,
                "color": "gray" if spec.colors == "gray" else "rgb",
                "resampler": spec.resampler,
                "mean": tuple(value / 255 for value in mean),
                "std": tuple(value / 255 for value in std),
                **geometry,
            }
        )
    except ValidationError as error:
        raise InputError(f"The input is refused: {first_validation_error(error)}.") from None


def _channel_values(spec: ImportSpec, name: str, channels: int) -> tuple[float, ...]:
    """Return `mean` or `std` for each channel, in the order of the contract: RGB."""
    text = str(getattr(spec, name))
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--{name} {text!r}: write one number, or {channels} with commas between them."
        ) from None
    if len(values) not in (1, channels):
        raise InputError(f"--{name} {text!r} has {len(values)} numbers; write 1 or {channels}.")
    if not all(abs(value) <= _MAX_CHANNEL_VALUE for value in values):
        raise InputError(
            f"--{name} {text!r} is not of pixels from 0 to 255: {_MAX_CHANNEL_VALUE:,} is the "
            "limit."
        )
    values = values * channels if len(values) == 1 else values
    return tuple(reversed(values)) if spec.colors == "bgr" else tuple(values)


def read_golden(spec: ImportSpec, contract: ImageContract) -> Golden:
    """Read and decode the golden images.

    Raises:
        InputError: If there are none where some are named, or one cannot be decoded.
    """
    if not spec.golden:
        return Golden((), ())
    listing = open_inputs(InputSpec(tuple(spec.golden)))
    uris = (uri for table in listing.tables for uri in table.column("uri").to_pylist())
    contents = []
    pixels = []
    for uri in islice(uris, _MAX_GOLDEN):
        try:
            content = bytes(fetch_image(uri, contract))
            pixels.append(decode(content, contract).pixels)
        except BadImageError as error:
            raise InputError(f"--golden: {uri} cannot be used: {error.message}.") from None
        contents.append(content)
    if not contents:
        raise InputError("--golden: there is no image.")
    return Golden(tuple(contents), tuple(pixels))
