"""The model package: a few named byte strings that make a model, none of them code.

    model.json          task, architecture, contract, metrics, lineage, and every file's SHA-256
    model.safetensors   the weights; or of a quantized or imported network model.onnx, its graph
    outliers.safetensors  statistics of the features of training images, for an outlier score
    golden.json         expected outputs of the golden images
    golden/*.png …      a few encoded images, as a health check

A package is the same in a folder, in an object store, and in the memory of a cluster. Reading a
package verifies it and refuses any other file, so that loading a package cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, SupportsIndex

import safetensors
from pydantic import ValidationError

from eagleray.core.errors import PackageError
from eagleray.core.limits import MAX_NAME_LENGTH
from eagleray.core.validation import first_validation_error
from eagleray.imaging import FORMATS, ImageContract
from eagleray.io import storage
from eagleray.models.architectures import Architecture
from eagleray.models.attributes import Attribute
from eagleray.models.building import build
from eagleray.models.golden import (
    GOLDEN_TOLERANCE,
    GoldenImage,
    GoldenSet,
    make_golden_files,
    parse_golden,
    require_golden_fits,
)
from eagleray.models.manifest import (
    Lineage,
    ModelManifest,
    manifest_digest,
    parse_manifest,
    require_digest,
)
from eagleray.models.outliers import OutlierStatistics, parse_outliers
from eagleray.models.package_files import (
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    OUTLIERS_FILE,
    WEIGHTS_FILE,
    PackageFiles,
    open_package,
)
from eagleray.models.weights import check_weights, view_reader
from eagleray.tasks import Task

if TYPE_CHECKING:  # packages are verified where PyTorch is not needed
    from torch import nn

__all__ = [
    "GOLDEN_FILE",
    "GRAPH_FILE",
    "MANIFEST_FILE",
    "OUTLIERS_FILE",
    "WEIGHTS_FILE",
    "GoldenImage",
    "GoldenSet",
    "Lineage",
    "ModelManifest",
    "ModelPackage",
    "create_package",
    "is_package_file",
    "manifest_digest",
    "parse_manifest",
    "read_manifest",
    "read_network",
    "read_package",
    "require_digest",
    "require_golden_fits",
    "require_listed",
    "write_package",
]

_PACKAGE_FILE = re.compile(
    r"model\.safetensors|model\.onnx|outliers\.safetensors|golden\.json|golden/[A-Za-z0-9_-]+\.("
    + "|".join(FORMATS)
    + ")"
)


@dataclass(frozen=True)
class ModelPackage:
    """A verified model: its manifest and its files' bytes."""

    manifest: ModelManifest
    files: Mapping[str, bytes]

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Pickle the weights out of band, so that the processes of a node share one copy.

        A pickler that stores such buffers, as Ray's object store does, returns a view of them.
        """
        if int(protocol) < 5:
            return super().__reduce_ex__(protocol)
        files: dict[str, Any] = dict(self.files)
        network = self.manifest.network_file
        files[network] = pickle.PickleBuffer(files[network])
        return ModelPackage, (self.manifest, files)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical manifest, which names every file with its digest."""
        return manifest_digest(self.manifest)

    @property
    def task(self) -> Task:
        """The model's task."""
        return self.manifest.task

    @property
    def contract(self) -> ImageContract:
        """The model's image contract."""
        return self.manifest.contract

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """The attributes that the model takes beside images."""
        return self.manifest.attributes

    @cached_property
    def golden(self) -> GoldenSet:
        """The golden images with their expected outputs."""
        if GOLDEN_FILE not in self.files:
            return GoldenSet(tolerance=GOLDEN_TOLERANCE * self.task.unit)
        return parse_golden(self.files[GOLDEN_FILE], GOLDEN_FILE)

    @cached_property
    def outliers(self) -> OutlierStatistics | None:
        """The statistics that the outlier score is computed from; None without any.

        Raises:
            PackageError: If they are not valid.
        """
        if OUTLIERS_FILE not in self.files:
            return None
        return parse_outliers(bytes(self.files[OUTLIERS_FILE]), OUTLIERS_FILE)

    @property
    def graph(self) -> bytes | None:
        """The ONNX file of a quantized or imported network; None for one of PyTorch."""
        if not self.manifest.has_graph:
            return None
        return bytes(self.files[GRAPH_FILE])

    def require_weights(self) -> None:
        """Compare the weights' header with the network, or check the graph, before it is built.

        Raises:
            PackageError: If the weights are not safetensors or do not fit the network, or the graph
                is refused.
        """
        if self.graph is not None:
            from eagleray.models.graph import check_graph

            check_graph(GRAPH_FILE, self.graph, self.manifest)
            return
        if self.manifest.hosted is not None:
            return
        content = memoryview(self.files[WEIGHTS_FILE])
        architecture = self.manifest.architecture
        check_weights(WEIGHTS_FILE, view_reader(content), len(content), architecture)

    def require_pytorch(self) -> None:
        """Refuse a network that PyTorch cannot build.

        Raises:
            PackageError: If the network is a graph; the message says what to use instead.
        """
        if self.manifest.imported is not None:
            raise PackageError(
                f"Model {self.manifest.name!r} is imported: it has a graph of another program and "
                "no weights of PyTorch, so nothing can be trained, quantized or taken out of it."
            )
        if self.manifest.hosted is not None:
            raise PackageError(
                f"Model {self.manifest.name!r} is hosted: another server has its weights, so "
                "nothing can be trained, quantized, exported or taken out of it."
            )
        if self.manifest.quantization is not None:
            raise PackageError(
                f"Model {self.manifest.name!r} is quantized: it has a graph and no weights of "
                "PyTorch; use the version that it was made from."
            )

    def build_module(self) -> nn.Module:
        """Build the network with the package's weights, float32, in evaluation mode.

        That of a hosted model has none: each forward pass asks its server.

        Raises:
            PackageError: If the weights are not safetensors, or do not fit the network, or the
                network is a graph.
        """
        from safetensors.torch import load

        if self.manifest.hosted is not None:
            from eagleray.models.hosted import HostedNetwork

            num_outputs = self.task.num_outputs
            return HostedNetwork(self.manifest.hosted, num_outputs=num_outputs).eval()
        self.require_pytorch()
        self.require_weights()
        try:
            weights = load(bytes(self.files[WEIGHTS_FILE]))
        except safetensors.SafetensorError as error:
            raise PackageError(f"{WEIGHTS_FILE} is not a safetensors file ({error}).") from None
        module = build(self.manifest.architecture, initialize=False)
        module.load_state_dict(weights)
        return module.eval()

    def build_network(self) -> nn.Module:
        """Build the network as it predicts: with the outlier score behind its logits, if any.

        Raises:
            PackageError: As `build_module`, or if the outlier statistics do not fit the network.
        """
        module = self.build_module()
        if self.outliers is not None:
            from eagleray.models.networks.outlier_head import add_outlier_score

            architecture, confidence = self.manifest.architecture, self.task.confidence
            add_outlier_score(module, architecture, self.outliers, confidence)
        return module.eval()


def create_package(
    *,
    name: str,
    task: Task,
    architecture: Architecture,
    contract: ImageContract,
    module: nn.Module,
    lineage: Lineage,
    metrics: Mapping[str, float] = MappingProxyType({}),
    hierarchy: Mapping[str, str] = MappingProxyType({}),
    golden_images: Sequence[bytes] = (),
    attributes: Sequence[Attribute] = (),
    golden_attributes: Sequence[Mapping[str, str]] = (),
) -> ModelPackage:
    """Make a package from a network.

    Args:
        name: The model's name: letters, digits, `_`, `.` and `-`.
        task: The model's task.
        architecture: The architecture that the network is built from.
        contract: The image contract.
        module: The network with its weights.
        lineage: The origin of the model.
        metrics: Metrics of its evaluation.
        hierarchy: The parent of each label that has one.
        golden_images: Encoded images; their expected outputs are computed here, in float32.
        attributes: The attributes that the network takes beside images.
        golden_attributes: The attributes of each golden image by name.

    Raises:
        PackageError: If the arguments do not fit each other.
    """
    from safetensors.torch import save

    golden = make_golden_files(
        golden_images,
        golden_attributes,
        module=module,
        contract=contract,
        task=task,
        attributes=attributes,
    )
    weights = {key: value.contiguous().cpu() for key, value in module.state_dict().items()}
    files = {WEIGHTS_FILE: save(weights), **golden}
    try:
        manifest = ModelManifest(
            name=name,
            task=task,
            architecture=architecture,
            hierarchy=dict(hierarchy),
            contract=contract,
            contract_digest=contract.digest,
            attributes=tuple(attributes),
            metrics=dict(metrics),
            lineage=lineage,
            files={file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
        )
    except ValidationError as error:
        raise PackageError(f"{MANIFEST_FILE}: {first_validation_error(error)}.") from None
    return ModelPackage(manifest, MappingProxyType(files))


# --- reading and writing ----------------------------------------------------------------------


def write_package(package: ModelPackage, folder: str) -> None:
    """Write a package into a folder or URI; the manifest, which completes it, comes last."""
    for name, content in package.files.items():
        storage.put_atomic(storage.join(folder, name), content)
    text = json.dumps(package.manifest.model_dump(mode="json"), indent=2)
    storage.put_atomic(storage.join(folder, MANIFEST_FILE), text.encode())


def read_package(folder: str, *, expected_digest: str | None = None) -> ModelPackage:
    """Read and verify a package from a folder or URI.

    Args:
        folder: The package's location.
        expected_digest: The digest that was recorded for the package, if any.

    Raises:
        PackageError: If the package is incomplete or altered, or has a file that is not allowed.
    """
    with open_package(folder) as opened:
        manifest = _open_manifest(folder, opened, expected_digest)
        require_listed(folder, opened.names(), manifest)
        files = {
            name: opened.read(name, digest=digest)
            for name, digest in manifest.files.items()
            if name != manifest.network_file
        }
        require_golden_fits(folder, manifest, files)
        if OUTLIERS_FILE in files:
            parse_outliers(files[OUTLIERS_FILE], f"{folder}: {OUTLIERS_FILE}")
        files[manifest.network_file] = read_network(opened, manifest)
    return ModelPackage(manifest, MappingProxyType({name: files[name] for name in manifest.files}))


def read_network(opened: PackageFiles, manifest: ModelManifest) -> bytes:
    """Read the weights or the graph of an open package.

    Raises:
        PackageError: If the file is missing, altered, or not valid.
        UserError: If the architecture is not known.
    """
    digest = manifest.files[manifest.network_file]
    if not manifest.has_graph:
        return opened.read_weights(manifest.architecture, digest=digest)
    architecture = manifest.architecture if manifest.imported is None else None
    content = opened.read_graph(architecture, digest=digest)
    from eagleray.models.graph import check_graph

    check_graph(GRAPH_FILE, content, manifest)
    return content


def read_manifest(folder: str, *, expected_digest: str | None = None) -> ModelManifest:
    """Read the manifest of a package, without its other files.

    Args:
        folder: The package's location.
        expected_digest: The digest that was recorded for the package, if any.

    Raises:
        PackageError: If the manifest is missing, not valid, or that of another package.
    """
    with open_package(folder) as opened:
        return _open_manifest(folder, opened, expected_digest)


def _open_manifest(folder: str, opened: PackageFiles, expected: str | None) -> ModelManifest:
    manifest = parse_manifest(opened.read(MANIFEST_FILE), f"{folder}: {MANIFEST_FILE}")
    require_digest(folder, manifest_digest(manifest), expected)
    return manifest


def is_package_file(name: str) -> bool:
    """Whether a package may have a file of this name beside its manifest."""
    return _PACKAGE_FILE.fullmatch(name) is not None


def require_listed(folder: str, present: Sequence[str], manifest: ModelManifest) -> None:
    """Refuse files that are not allowed, not listed or missing.

    Args:
        folder: The package's location, for messages.
        present: Names of the files in the folder.
        manifest: The package's manifest.

    Raises:
        PackageError: If there is such a file; the message names the first.
    """
    for name in manifest.files:
        if not is_package_file(name):
            raise PackageError(
                f"{folder}: {MANIFEST_FILE} lists {name[:MAX_NAME_LENGTH]!r}, which is not "
                "allowed: weights are safetensors, and pickles and code are never loaded."
            )
    if manifest.network_file not in manifest.files:
        raise PackageError(f"{folder}: {MANIFEST_FILE} lists no {manifest.network_file}.")
    other = ({WEIGHTS_FILE, GRAPH_FILE} - {manifest.network_file}).pop()
    if other in manifest.files:
        raise PackageError(
            f"{folder}: {MANIFEST_FILE} lists {other} beside {manifest.network_file}; a package "
            "holds one network."
        )
    needs_outliers = manifest.task.has_outlier_score and not manifest.has_graph
    if needs_outliers != (OUTLIERS_FILE in manifest.files):
        raise PackageError(
            f"{folder}: {MANIFEST_FILE} has a task {'with' if needs_outliers else 'without'} an "
            f"outlier score and lists {'no' if needs_outliers else 'a file'} {OUTLIERS_FILE}; "
            "fetch the package again."
        )
    unlisted = sorted({*present} - {*manifest.files} - {MANIFEST_FILE})
    if unlisted:
        raise PackageError(
            f"{folder} holds {unlisted[0][:MAX_NAME_LENGTH]!r}, which {MANIFEST_FILE} does not "
            "list; a package contains nothing else, and no pickle or code is ever loaded. Remove "
            "the file."
        )
    missing = sorted({*manifest.files} - {*present})
    if missing:
        raise PackageError(f"{folder}: {missing[0]} is missing; fetch the package again.")
