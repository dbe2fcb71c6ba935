"""The model package: a handful of named byte strings that make a model, none of them code.

    model.json          task, architecture, contract, metrics, lineage, and every file's SHA-256
    model.safetensors   the weights
    golden.json         expected outputs of the golden images
    golden/*.png …      a few encoded images, as a health check

A package is the same in a folder, in an object store, and in the memory of a cluster. Reading one
verifies it; whatever does not belong there is refused, so loading a package cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, SupportsIndex, TypeVar

import numpy as np
import safetensors
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from eagleray import storage
from eagleray.errors import PackageError
from eagleray.imaging import FORMATS, ImageContract, decode, probe
from eagleray.imaging.contract import canonical_json, first_fault
from eagleray.models.architectures import Architecture, build
from eagleray.models.attributes import Attribute, encode_mappings, num_features
from eagleray.models.tasks import Regression, Task
from eagleray.names import ModelName

if TYPE_CHECKING:  # packages are verified where PyTorch is not needed
    from torch import nn

__all__ = [
    "GoldenSet",
    "Lineage",
    "ModelManifest",
    "ModelPackage",
    "create_package",
    "read_manifest",
    "read_package",
    "write_package",
]

MANIFEST_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
GOLDEN_FILE = "golden.json"
_ALLOWED_FILE = re.compile(
    r"model\.safetensors|golden\.json|golden/[A-Za-z0-9_-]+\.(" + "|".join(FORMATS) + ")"
)

GOLDEN_TOLERANCE = 0.03
"""Largest difference of a golden image's outputs that counts as healthy: of a probability, or of a
regression's value in units of its spread. Reduced precision moves them by up to about 0.01."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Lineage(_Frozen):
    """Where a model comes from.

    Attributes:
        data_digest: SHA-256 of the training table (URIs, versions and labels).
        split_digest: Of the parts that the table was divided into.
        test_digest: Of the part that the model was tested on.
        run: The MLflow run.
        parent: Package digest of the model that training started from.
        created: UTC time in ISO 8601.
        eagleray: Version of Eagleray.
        torch: Version of PyTorch.
        note: Whatever a person should know.
    """

    data_digest: Digest | None = None
    split_digest: Digest | None = None
    test_digest: Digest | None = None
    run: str | None = None
    parent: Digest | None = None
    created: str
    eagleray: str
    torch: str
    note: str = ""

    @model_serializer(mode="wrap")
    def _without_what_older_packages_lack(
        self, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leave unset what came later, so that packages made before keep their digests."""
        fields: dict[str, Any] = serialize(self)
        for name in ("split_digest", "test_digest"):
            if fields.get(name) is None:
                fields.pop(name, None)
        return fields

    @classmethod
    def now(
        cls,
        *,
        data_digest: str | None = None,
        split_digest: str | None = None,
        test_digest: str | None = None,
        run: str | None = None,
        parent: str | None = None,
        note: str = "",
    ) -> Lineage:
        """Make the lineage of a model that is created here and now."""
        return cls(
            data_digest=data_digest,
            split_digest=split_digest,
            test_digest=test_digest,
            run=run,
            parent=parent,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            eagleray=version("eagleray"),
            torch=version("torch"),
            note=note,
        )


class GoldenImage(_Frozen):
    """One golden image.

    Attributes:
        file: Of the image.
        outputs: Expected of it, in the labels' order, or the value.
        attributes: Its values by name, as text, where the model takes any.
    """

    file: str
    outputs: tuple[FiniteFloat, ...]
    attributes: dict[str, str] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_what_older_packages_lack(
        self, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leave empty what came later, so that the same model has the same digest."""
        return _without_empty(serialize(self), "attributes")


class GoldenSet(_Frozen):
    """The health check of a package: float32 outputs that any device must reproduce."""

    tolerance: Annotated[float, Field(gt=0)]
    images: tuple[GoldenImage, ...] = ()


class ModelManifest(_Frozen):
    """`model.json`: all there is to know about a model but its weights."""

    format: Literal[1] = 1
    name: ModelName
    task: Task
    architecture: Architecture
    hierarchy: dict[str, str] = Field(default_factory=dict, description="label -> parent label")
    contract: ImageContract
    contract_digest: Digest
    attributes: tuple[Attribute, ...] = ()
    metrics: dict[str, FiniteFloat] = Field(default_factory=dict)
    lineage: Lineage
    files: dict[str, Digest]

    @model_serializer(mode="wrap")
    def _without_what_older_packages_lack(
        self, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leave empty what came later, so that packages made before keep their digests."""
        return _without_empty(serialize(self), "attributes")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.contract_digest != self.contract.digest:
            raise ValueError("contract_digest is not the digest of the contract")
        if self.architecture.num_outputs != self.task.num_outputs:
            raise ValueError(
                f"the architecture has {self.architecture.num_outputs} outputs, the task needs "
                f"{self.task.num_outputs}"
            )
        if self.architecture.in_channels != self.contract.channels:
            raise ValueError(
                f"the architecture takes {self.architecture.in_channels} channels, the contract "
                f"gives {self.contract.channels}"
            )
        length = num_features(self.attributes)
        if self.architecture.num_attributes != length:
            raise ValueError(
                f"the architecture takes {self.architecture.num_attributes} numbers of attributes, "
                f"the attributes give {length}"
            )
        names = [attribute.name for attribute in self.attributes]
        if len(set(names)) < len(names):
            raise ValueError("two attributes have the same name")
        return self


def _without_empty(fields: dict[str, Any], name: str) -> dict[str, Any]:
    if not fields.get(name):
        fields.pop(name, None)
    return fields


@dataclass(frozen=True)
class ModelPackage:
    """A verified model: its manifest and its files' bytes."""

    manifest: ModelManifest
    files: Mapping[str, bytes]

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Pickle the weights beside the rest, so that processes of a node share one copy of them.

        Where the pickler gives them a place of their own, as Ray's object store does, they come
        back as a view of that place.
        """
        if int(protocol) < 5:
            return super().__reduce_ex__(protocol)
        files: dict[str, Any] = dict(self.files)
        files[WEIGHTS_FILE] = pickle.PickleBuffer(files[WEIGHTS_FILE])
        return ModelPackage, (self.manifest, files)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical manifest, which names every file by digest."""
        return _digest(self.manifest)

    @property
    def task(self) -> Task:
        """What the model answers."""
        return self.manifest.task

    @property
    def contract(self) -> ImageContract:
        """How images become the model's input."""
        return self.manifest.contract

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """What the model wants to know of an image besides its pixels."""
        return self.manifest.attributes

    @property
    def golden(self) -> GoldenSet:
        """The golden images' names and expected outputs."""
        if GOLDEN_FILE not in self.files:
            return GoldenSet(tolerance=GOLDEN_TOLERANCE)
        return _parse(GoldenSet, self.files[GOLDEN_FILE], GOLDEN_FILE)

    def build_module(self) -> nn.Module:
        """Build the network with the package's weights, float32, in evaluation mode.

        Raises:
            PackageError: The weights are no safetensors, or are another network's.
        """
        from safetensors.torch import load

        try:
            weights = load(bytes(self.files[WEIGHTS_FILE]))
        except safetensors.SafetensorError as error:
            raise PackageError(f"{WEIGHTS_FILE} is not a safetensors file ({error}).") from None
        module = build(self.manifest.architecture, initialize=False)
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            fault = str(error).splitlines()[1:2] or [str(error)]
            raise PackageError(
                f"{WEIGHTS_FILE} does not fit {self.manifest.architecture.name}: {fault[0].strip()}"
            ) from None
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
    """Make a package from a network and what belongs to it.

    Args:
        name: Of the model; letters, digits, `_`, `.` and `-`.
        task: What it answers.
        architecture: How the network is built again.
        contract: How images become its input.
        module: The network with its weights.
        lineage: Where it comes from.
        metrics: Figures of its evaluation.
        hierarchy: Parent label for each label that has one.
        golden_images: Encoded images; their outputs are computed here, in float32.
        attributes: That it wants to know of an image.
        golden_attributes: Their values for each golden image.

    Raises:
        PackageError: The parts do not fit each other.
    """
    from safetensors.torch import save

    weights = {key: value.contiguous().cpu() for key, value in module.state_dict().items()}
    files = {WEIGHTS_FILE: save(weights)}
    if golden_images:
        files |= _golden_files(golden_images, golden_attributes, module, contract, task, attributes)
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
        raise PackageError(f"{MANIFEST_FILE}: {first_fault(error)}.") from None
    return ModelPackage(manifest, MappingProxyType(files))


def _golden_files(
    images: Sequence[bytes],
    values: Sequence[Mapping[str, str]],
    module: nn.Module,
    contract: ImageContract,
    task: Task,
    attributes: Sequence[Attribute],
) -> dict[str, bytes]:
    import torch

    from eagleray.models.network import ImageNetwork

    network = ImageNetwork(module, contract).float().eval()
    pixels = np.stack([decode(image, contract).pixels for image in images])
    inputs = [torch.from_numpy(pixels)]
    if attributes:
        inputs.append(torch.from_numpy(encode_mappings(attributes, values)))
    with torch.inference_mode():
        outputs = task.activate(network(*inputs)).tolist()
    names = [f"golden/{index:02d}.{probe(image).format}" for index, image in enumerate(images)]
    unit = task.std if isinstance(task, Regression) else 1.0
    golden = GoldenSet(
        tolerance=GOLDEN_TOLERANCE * unit,
        images=tuple(
            GoldenImage(file=name, outputs=tuple(row), attributes=dict(known))
            for name, row, known in zip(names, outputs, values or [{}] * len(names), strict=True)
        ),
    )
    text = canonical_json(golden.model_dump(mode="json"))
    return {GOLDEN_FILE: text.encode(), **dict(zip(names, images, strict=True))}


# --- reading and writing ----------------------------------------------------------------------


def write_package(package: ModelPackage, folder: str) -> None:
    """Write a package into a folder or under a URI; the manifest comes last and completes it."""
    for name, content in package.files.items():
        storage.put_atomic(storage.join(folder, name), content)
    text = json.dumps(package.manifest.model_dump(mode="json"), indent=2)
    storage.put_atomic(storage.join(folder, MANIFEST_FILE), text.encode())


def read_package(folder: str, *, expected_digest: str | None = None) -> ModelPackage:
    """Read and verify a package from a folder or URI.

    Args:
        folder: Where the package is.
        expected_digest: What the package's digest must be, when somebody recorded it.

    Raises:
        PackageError: It is incomplete, altered, or holds something that no package may hold.
    """
    root = storage.absolute(folder)
    manifest = read_manifest(folder)
    _refuse_strangers(folder, root, manifest)
    files = {}
    for name, digest in manifest.files.items():
        try:
            content = storage.read_bytes(storage.join(root, name))
        except OSError as error:
            raise _unreadable(folder, name, error) from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise PackageError(
                f"{folder}: {name} is not the file that {MANIFEST_FILE} describes (its SHA-256 "
                "differs); fetch the package again."
            )
        files[name] = content
    package = ModelPackage(manifest, MappingProxyType(files))
    _require_golden_fits(folder, package)
    _require_digest(folder, package.digest, expected_digest)
    return package


def read_manifest(folder: str, *, expected_digest: str | None = None) -> ModelManifest:
    """Read what a package says of itself, without its other files.

    Args:
        folder: Where the package is.
        expected_digest: As for `read_package`.

    Raises:
        PackageError: It is not there, is not valid, or is of another package.
    """
    root = storage.absolute(folder)
    try:
        content = storage.read_bytes(storage.join(root, MANIFEST_FILE))
    except (FileNotFoundError, NotADirectoryError):
        raise PackageError(f"{folder} is no model package: it has no {MANIFEST_FILE}.") from None
    except OSError as error:
        raise _unreadable(folder, MANIFEST_FILE, error) from error
    manifest = _parse(ModelManifest, content, f"{folder}: {MANIFEST_FILE}")
    _require_digest(folder, _digest(manifest), expected_digest)
    return manifest


def _digest(manifest: ModelManifest) -> str:
    text = canonical_json(manifest.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()


def _require_digest(folder: str, digest: str, expected: str | None) -> None:
    if expected is not None and digest != expected:
        raise PackageError(
            f"{folder} holds package {digest[:12]}, but {expected[:12]} was registered; restore "
            "the registered files or register this package as a new version."
        )


def _unreadable(folder: str, name: str, error: OSError) -> PackageError:
    return PackageError(f"{folder}: {name} cannot be read ({error.strerror or error}).")


def _require_golden_fits(folder: str, package: ModelPackage) -> None:
    """Refuse golden images that are not there, or whose outputs are not this task's."""
    num_outputs = len(package.task.labels) or 1
    for image in package.golden.images:
        if not image.file.startswith("golden/") or image.file not in package.files:
            raise PackageError(f"{folder}: {GOLDEN_FILE} names {image.file!r}, which is not there.")
        for attribute in package.attributes:
            if attribute.name not in image.attributes:
                raise PackageError(
                    f"{folder}: {GOLDEN_FILE} says nothing of {attribute.name!r} of {image.file}."
                )
        if len(image.outputs) != num_outputs:
            raise PackageError(
                f"{folder}: {GOLDEN_FILE} expects {len(image.outputs)} outputs of {image.file}, "
                f"the task gives {num_outputs}."
            )


def _refuse_strangers(folder: str, root: str, manifest: ModelManifest) -> None:
    """Refuse files that no package may hold, and report those that are missing."""
    for name in manifest.files:
        if not _ALLOWED_FILE.fullmatch(name):
            raise PackageError(
                f"{folder}: {MANIFEST_FILE} lists {name!r}, which no package may hold: weights "
                "are safetensors, and pickles and code are never loaded."
            )
    if WEIGHTS_FILE not in manifest.files:
        raise PackageError(f"{folder}: {MANIFEST_FILE} lists no {WEIGHTS_FILE}.")
    prefix = root.rstrip("/") + "/"
    present = {info.uri.removeprefix(prefix) for info in storage.list_files(root)}
    strangers = sorted(present - set(manifest.files) - {MANIFEST_FILE})
    if strangers:
        raise PackageError(
            f"{folder} holds {strangers[0]!r}, which {MANIFEST_FILE} does not list; a package "
            "contains nothing else, and no pickle or code is ever loaded. Remove the file."
        )
    missing = sorted(set(manifest.files) - present)
    if missing:
        raise PackageError(f"{folder}: {missing[0]} is missing; fetch the package again.")


_Parsed = TypeVar("_Parsed", bound=BaseModel)


def _parse(kind: type[_Parsed], content: bytes, where: str) -> _Parsed:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors()[0]
        if fault["type"] == "extra_forbidden":
            field = ".".join(str(part) for part in fault["loc"])
            raise PackageError(f"{where} has the unknown field {field!r}.") from None
        raise PackageError(f"{where} is not valid: {first_fault(error)}.") from None
