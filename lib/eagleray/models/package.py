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
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from eagleray.core.errors import PackageError
from eagleray.core.json_limits import JsonLimits, parse_json
from eagleray.core.limits import (
    GOLDEN_JSON,
    MANIFEST_JSON,
    MAX_ATTRIBUTES,
    MAX_FILES,
    MAX_GOLDEN_BYTES,
    MAX_GOLDEN_IMAGES,
    MAX_HIERARCHY_DEPTH,
    MAX_LABELS,
    MAX_NAME_LENGTH,
    MAX_NOTE_LENGTH,
)
from eagleray.core.names import ModelName
from eagleray.core.types import HEALTH_TOLERANCE
from eagleray.core.validation import first_validation_error
from eagleray.imaging import FORMATS, ImageContract, decode, probe
from eagleray.imaging.contract import canonical_json
from eagleray.io import storage
from eagleray.models.architectures import Architecture, build
from eagleray.models.attributes import Attribute, encode_mappings, num_features
from eagleray.models.package_files import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    PackageFiles,
    open_package,
)
from eagleray.models.weights import check_weights, view_reader
from eagleray.tasks.tasks import Task

if TYPE_CHECKING:  # packages are verified where PyTorch is not needed
    from torch import nn

__all__ = [
    "GOLDEN_FILE",
    "MANIFEST_FILE",
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
    "read_package",
    "require_digest",
    "require_golden_fits",
    "require_listed",
    "write_package",
]

_ALLOWED_FILE = re.compile(
    r"model\.safetensors|golden\.json|golden/[A-Za-z0-9_-]+\.(" + "|".join(FORMATS) + ")"
)

GOLDEN_TOLERANCE = max(HEALTH_TOLERANCE.values())
"""What a package may allow an output of its golden images to differ by, in the task's unit."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(max_length=MAX_NAME_LENGTH)]


def _require_hierarchy(parents: object) -> object:
    """Check each label's parent, so that the first fault is the only one that is kept.

    Raises:
        ValueError: With the fault.
    """
    if not isinstance(parents, dict):
        return parents
    if len(parents) > MAX_LABELS:
        raise ValueError(f"it has {len(parents):,} entries, {MAX_LABELS:,} is the limit")
    for text in (*parents, *parents.values()):
        if not isinstance(text, str) or len(text) > MAX_NAME_LENGTH:
            raise ValueError(f"every label is a text of at most {MAX_NAME_LENGTH:,} characters")
    _require_shallow(parents)
    return parents


def _require_shallow(parents: Mapping[str, str]) -> None:
    """Refuse a hierarchy that is too deep, or has no end."""
    depths: dict[str, int] = {}
    for label in parents:
        path: list[str] = []
        above = label
        while above in parents and above not in depths:
            path.append(above)
            above = parents[above]
            if above == label:
                raise ValueError(f"{label[:50]!r} is above itself: it is a circle")
            if len(path) > MAX_HIERARCHY_DEPTH:
                break
        depth = depths.get(above, 0)
        if depth + len(path) > MAX_HIERARCHY_DEPTH:
            raise ValueError(f"it is too deep: {MAX_HIERARCHY_DEPTH} levels is the limit")
        depths.update({name: depth + up for up, name in enumerate(reversed(path), start=1)})


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
    run: Name | None = None
    parent: Digest | None = None
    created: Name
    eagleray: Name
    torch: Name
    note: Annotated[str, Field(max_length=MAX_NOTE_LENGTH)] = ""

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

    file: Name
    outputs: Annotated[tuple[FiniteFloat, ...], Field(max_length=MAX_LABELS, fail_fast=True)]
    attributes: dict[Name, Name] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_what_older_packages_lack(
        self, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leave empty what came later, so that the same model has the same digest."""
        return _without_empty(serialize(self), "attributes")


class GoldenSet(_Frozen):
    """The health check of a package: float32 outputs that any device must reproduce."""

    tolerance: Annotated[FiniteFloat, Field(gt=0)]
    images: Annotated[
        tuple[GoldenImage, ...], Field(max_length=MAX_GOLDEN_IMAGES, fail_fast=True)
    ] = ()


class ModelManifest(_Frozen):
    """`model.json`: all there is to know about a model but its weights."""

    format: Literal[1] = 1
    name: ModelName
    task: Task
    architecture: Architecture
    hierarchy: Annotated[dict[str, str], BeforeValidator(_require_hierarchy)] = Field(
        default_factory=dict, description="label -> parent label"
    )
    contract: ImageContract
    contract_digest: Digest
    attributes: Annotated[
        tuple[Attribute, ...], Field(max_length=MAX_ATTRIBUTES, fail_fast=True)
    ] = ()
    metrics: dict[Name, FiniteFloat] = Field(default_factory=dict)
    lineage: Lineage
    files: Annotated[dict[str, Digest], Field(max_length=MAX_FILES)]

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
        return manifest_digest(self.manifest)

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

    @cached_property
    def golden(self) -> GoldenSet:
        """The golden images' names and expected outputs."""
        if GOLDEN_FILE not in self.files:
            return GoldenSet(tolerance=GOLDEN_TOLERANCE * self.task.unit)
        return _parse(GoldenSet, self.files[GOLDEN_FILE], GOLDEN_FILE, GOLDEN_JSON)

    def require_weights(self) -> None:
        """Compare the weights with the network, before anything is allocated for it.

        Raises:
            PackageError: They are no safetensors, or another network's.
        """
        content = memoryview(self.files[WEIGHTS_FILE])
        architecture = self.manifest.architecture
        check_weights(WEIGHTS_FILE, view_reader(content), len(content), architecture)

    def build_module(self) -> nn.Module:
        """Build the network with the package's weights, float32, in evaluation mode.

        Raises:
            PackageError: The weights are no safetensors, or are another network's.
        """
        from safetensors.torch import load

        self.require_weights()
        try:
            weights = load(bytes(self.files[WEIGHTS_FILE]))
        except safetensors.SafetensorError as error:
            raise PackageError(f"{WEIGHTS_FILE} is not a safetensors file ({error}).") from None
        module = build(self.manifest.architecture, initialize=False)
        module.load_state_dict(weights)
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

    _require_few(golden_images)
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
        raise PackageError(f"{MANIFEST_FILE}: {first_validation_error(error)}.") from None
    return ModelPackage(manifest, MappingProxyType(files))


def _require_few(golden_images: Sequence[bytes]) -> None:
    total = sum(map(len, golden_images))
    if len(golden_images) > MAX_GOLDEN_IMAGES or total > MAX_GOLDEN_BYTES:
        raise PackageError(
            f"{len(golden_images):,} golden images of {total:,} bytes in all are too many for a "
            f"package: {MAX_GOLDEN_IMAGES} of {MAX_GOLDEN_BYTES:,} bytes are the limit."
        )


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
    golden = GoldenSet(
        tolerance=GOLDEN_TOLERANCE * task.unit,
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
    with open_package(folder) as opened:
        manifest = _open_manifest(folder, opened, expected_digest)
        require_listed(folder, opened.names(), manifest)
        files = {
            name: opened.read(name, digest=digest)
            for name, digest in manifest.files.items()
            if name != WEIGHTS_FILE
        }
        require_golden_fits(folder, manifest, files)
        weights = opened.read_weights(manifest.architecture, digest=manifest.files[WEIGHTS_FILE])
    files[WEIGHTS_FILE] = weights
    in_order = {name: files[name] for name in manifest.files}
    return ModelPackage(manifest, MappingProxyType(in_order))


def read_manifest(folder: str, *, expected_digest: str | None = None) -> ModelManifest:
    """Read what a package says of itself, without its other files.

    Args:
        folder: Where the package is.
        expected_digest: As for `read_package`.

    Raises:
        PackageError: It is not there, is not valid, or is of another package.
    """
    with open_package(folder) as opened:
        return _open_manifest(folder, opened, expected_digest)


def _open_manifest(folder: str, opened: PackageFiles, expected: str | None) -> ModelManifest:
    manifest = parse_manifest(opened.read(MANIFEST_FILE), f"{folder}: {MANIFEST_FILE}")
    require_digest(folder, manifest_digest(manifest), expected)
    return manifest


def manifest_digest(manifest: ModelManifest) -> str:
    """Return the digest of the package that a manifest describes."""
    text = canonical_json(manifest.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()


def require_digest(folder: str, digest: str, expected: str | None) -> None:
    """Refuse another package than the one that somebody recorded.

    Raises:
        PackageError: The digests differ.
    """
    if expected is not None and digest != expected:
        raise PackageError(
            f"{folder} holds package {digest[:12]}, but {expected[:12]} was registered; restore "
            "the registered files or register this package as a new version."
        )


def require_golden_fits(folder: str, manifest: ModelManifest, files: Mapping[str, bytes]) -> None:
    """Refuse golden images that are not there, or whose outputs are not this task's.

    Args:
        folder: For messages.
        manifest: Of the package.
        files: Of the package, the weights need not be among them.

    Raises:
        PackageError: With what is wrong.
    """
    if GOLDEN_FILE not in files:
        return
    where = f"{folder}: {GOLDEN_FILE}"
    golden = _parse(GoldenSet, files[GOLDEN_FILE], where, GOLDEN_JSON)
    most = GOLDEN_TOLERANCE * manifest.task.unit
    if golden.tolerance > most * (1 + 1e-9):  # which some may have written with fewer digits
        raise PackageError(
            f"{folder}: {GOLDEN_FILE} has a tolerance of {golden.tolerance:.3g}, with which any "
            f"answers could be healthy; {most:.3g} is the limit for this task."
        )
    num_outputs = len(manifest.task.labels) or 1
    for image in golden.images:
        if not image.file.startswith("golden/") or image.file not in files:
            raise PackageError(
                f"{folder}: {GOLDEN_FILE} names {image.file[:100]!r}, which is not there."
            )
        for attribute in manifest.attributes:
            if attribute.name not in image.attributes:
                raise PackageError(
                    f"{folder}: {GOLDEN_FILE} says nothing of {attribute.name!r} of {image.file}."
                )
        if len(image.outputs) != num_outputs:
            raise PackageError(
                f"{folder}: {GOLDEN_FILE} expects {len(image.outputs)} outputs of {image.file}, "
                f"the task gives {num_outputs}."
            )


def is_package_file(name: str) -> bool:
    """Whether a package may list a file of this name."""
    return _ALLOWED_FILE.fullmatch(name) is not None


def require_listed(folder: str, present: Sequence[str], manifest: ModelManifest) -> None:
    """Refuse files that no package may hold, and report those that are missing.

    Args:
        folder: For messages.
        present: Names of the files that are there.
        manifest: Of the package.

    Raises:
        PackageError: With the first of them.
    """
    for name in manifest.files:
        if not is_package_file(name):
            raise PackageError(
                f"{folder}: {MANIFEST_FILE} lists {name[:MAX_NAME_LENGTH]!r}, which no package may "
                "hold: weights are safetensors, and pickles and code are never loaded."
            )
    if WEIGHTS_FILE not in manifest.files:
        raise PackageError(f"{folder}: {MANIFEST_FILE} lists no {WEIGHTS_FILE}.")
    strangers = sorted({*present} - {*manifest.files} - {MANIFEST_FILE})
    if strangers:
        raise PackageError(
            f"{folder} holds {strangers[0][:MAX_NAME_LENGTH]!r}, which {MANIFEST_FILE} does not "
            "list; a package contains nothing else, and no pickle or code is ever loaded. Remove "
            "the file."
        )
    missing = sorted({*manifest.files} - {*present})
    if missing:
        raise PackageError(f"{folder}: {missing[0]} is missing; fetch the package again.")


def parse_manifest(content: bytes, where: str) -> ModelManifest:
    """Read the text of a `model.json`.

    Raises:
        PackageError: It is not valid; the message begins with `where`.
    """
    return _parse(ModelManifest, content, where, MANIFEST_JSON)


_Parsed = TypeVar("_Parsed", bound=BaseModel)


def _parse(kind: type[_Parsed], content: bytes, where: str, limits: JsonLimits) -> _Parsed:
    try:
        parse_json(content, limits)
    except ValueError as error:
        raise PackageError(f"{where} is not valid: {error}.") from None
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if fault["type"] == "extra_forbidden":
            field = ".".join(str(part) for part in fault["loc"])
            raise PackageError(
                f"{where} has the unknown field {field[:MAX_NAME_LENGTH]!r}."
            ) from None
        raise PackageError(f"{where} is not valid: {first_validation_error(error)}.") from None
