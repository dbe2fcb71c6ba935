"""Imports a network: checks its file, grafts the contract on, and tries it in a process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from eagleray.core.errors import InputError
from eagleray.core.limits import MAX_GRAPH_BYTES
from eagleray.core.settings import Settings
from eagleray.imaging import ImageContract
from eagleray.importing.attention import widen_softmaxes
from eagleray.importing.graft import NetworkInput, find_input, graft
from eagleray.importing.options import (
    Golden,
    make_contract,
    make_task,
    read_golden,
    read_labels,
    read_things,
)
from eagleray.importing.outputs import ReadOutputs, read_outputs
from eagleray.importing.pixels import MASK_DECODERS
from eagleray.importing.spec import ImportSpec
from eagleray.importing.transformers_folder import convert_folder, read_folder
from eagleray.importing.trial import Trial, try_graph
from eagleray.inference.choice import require_engine
from eagleray.io import storage
from eagleray.models.architectures import Architecture
from eagleray.models.golden import golden_files
from eagleray.models.graph import check_graph, parse_foreign_graph
from eagleray.models.manifest import Import, Lineage, ModelManifest
from eagleray.models.package import ModelPackage
from eagleray.models.package_files import GRAPH_FILE
from eagleray.tasks import Task

__all__ = ["import_network"]

ARCHITECTURE = "onnx"
"""Name of the architecture of imported networks: a graph is all that is known of it."""


def import_network(
    spec: ImportSpec, settings: Settings, *, note: Callable[[str], None] | None = None
) -> ModelPackage:
    """Make the package of a network that another program wrote as an ONNX file.

    Args:
        spec: The specification.
        settings: Settings of this process.
        note: Gets a sentence where images come to the network in another way than before.

    Raises:
        UserError: If the file, the specification or an image is refused; the message says why.
        JobFailedError: If the trial run crashes, or takes too much time or memory.
    """
    if spec.file.lower().startswith(("http://", "https://")):
        raise InputError(
            f"{spec.file} is not the URL of a model on a server, which ends in /v2/models/NAME; to "
            "import a file, copy it to this machine."
        )
    require_engine("openvino", device="cpu")
    source = _open(spec, settings)
    if note is not None and source.difference:
        note(source.difference)
    spec, content = source.spec, source.content
    try:
        model = parse_foreign_graph(content)
        network_input = find_input(model, spec.layout)
        contract = make_contract(spec, network_input)
        read = read_outputs(spec, source.labels, model, network_input, contract.size)
        task = make_task(spec, source.labels, **source.fields, **read.fields)
        manifest = _manifest(source, task, contract, model, read.scores)
        network = _Network(content, network_input, contract, read, manifest)
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
        labels: The labels, in the order of the outputs.
        digest: SHA-256 of the file that was named, or of a folder's weights.
        producer: The program that wrote a folder; empty for a file, which says it itself.
        fields: Fields of the task that a folder says.
        difference: How images differ from those of transformers, as a sentence.
    """

    spec: ImportSpec
    content: bytes
    labels: tuple[str, ...]
    digest: str
    producer: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    difference: str = ""


def _open(spec: ImportSpec, settings: Settings) -> _Source:
    """Read a file, or convert the network of a folder."""
    if not spec.is_folder:
        labels = read_labels(spec.labels)
        read_things(spec, labels)
        content = _read(spec.file)
        digest = hashlib.sha256(content).hexdigest()
        return _Source(spec, _that_runs(spec, content), labels, digest)
    found = read_folder(spec)
    read_things(spec, found.labels)
    graph = _that_runs(found.spec, convert_folder(found, settings))
    return _Source(
        found.spec,
        graph,
        found.labels,
        found.digest,
        found.producer,
        found.fields,
        found.difference,
    )


def _that_runs(spec: ImportSpec, content: bytes) -> bytes:
    """Return a file with what OpenVINO can run of mask queries.

    Raises:
        InputError: If it is refused.
    """
    if spec.decoder not in MASK_DECODERS:
        return content
    try:
        return widen_softmaxes(content)
    except ValueError as error:
        raise InputError(f"{spec.file} is refused: {error}.") from None


@dataclass(frozen=True)
class _Network:
    """A network of a file, and what its graph becomes."""

    content: bytes
    input: NetworkInput
    contract: ImageContract
    read: ReadOutputs
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
            behind=self.read.behind,
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
        promise = network.read.promise
        trial = try_graph(spec, graph, task, contract, golden.pixels, settings, promise=promise)
        if trial.fault is None:
            return graph, trial
    raise InputError(f"{trial.fault}.")


def _manifest(
    source: _Source,
    task: Task,
    contract: ImageContract,
    model: Any,
    scores: Literal["logits", "probabilities", "values"],
) -> ModelManifest:
    """Return the manifest of the package, without its files."""
    spec = source.spec
    of_file = " ".join(filter(None, (model.producer_name, model.producer_version)))
    return ModelManifest(
        name=spec.name,
        task=task,
        architecture=Architecture(
            name=ARCHITECTURE, in_channels=contract.channels, num_outputs=task.num_outputs
        ),
        contract=contract,
        contract_digest=contract.digest,
        lineage=Lineage.now(note=_lineage_note(source)),
        imported=Import(
            file_digest=source.digest,
            scores=scores,
            decoder=spec.decoder or "",
            producer=(source.producer or of_file)[:100],
            num_parameters=sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer),
        ),
        files={GRAPH_FILE: hashlib.sha256(source.content).hexdigest()},
    )


def _lineage_note(source: _Source) -> str:
    note = f"imported from {Path(source.spec.file).name}"
    return f"{note}. {source.difference}" if source.difference else note


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
