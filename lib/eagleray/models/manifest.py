"""The manifest of a model package (`model.json`): all about a model but its weights.

A field that is added later is left out of the JSON while it is empty, so that the manifests of
existing packages keep their digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal, Self, TypeVar

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

from eagleray.core.display import escape_text
from eagleray.core.errors import PackageError
from eagleray.core.json_limits import JsonLimits, parse_json
from eagleray.core.limits import (
    MANIFEST_JSON,
    MAX_ATTRIBUTES,
    MAX_FILES,
    MAX_HIERARCHY_DEPTH,
    MAX_LABELS,
    MAX_NAME_LENGTH,
    MAX_NOTE_LENGTH,
)
from eagleray.core.names import ModelName
from eagleray.core.validation import first_validation_error
from eagleray.imaging import ImageContract
from eagleray.imaging.contract import canonical_json
from eagleray.models.architectures import Architecture
from eagleray.models.attributes import Attribute, num_features
from eagleray.models.package_files import GRAPH_FILE, WEIGHTS_FILE
from eagleray.tasks import StoredTask

__all__ = [
    "FrozenModel",
    "Hosted",
    "Import",
    "Lineage",
    "ModelManifest",
    "Name",
    "Quantization",
    "manifest_digest",
    "omit_empty",
    "parse_manifest",
    "parse_package_json",
    "require_digest",
]

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(max_length=MAX_NAME_LENGTH)]


def _check_hierarchy(parents: object) -> object:
    """Check the labels' parents before pydantic does, which would collect every fault.

    Raises:
        ValueError: If the hierarchy is not valid.
    """
    if not isinstance(parents, dict):
        return parents
    if len(parents) > MAX_LABELS:
        raise ValueError(f"it has {len(parents):,} entries, {MAX_LABELS:,} is the limit")
    for text in (*parents, *parents.values()):
        if not isinstance(text, str) or len(text) > MAX_NAME_LENGTH:
            raise ValueError(f"every label is a text of at most {MAX_NAME_LENGTH:,} characters")
    _check_depth(parents)
    return parents


def _check_depth(parents: Mapping[str, str]) -> None:
    """Refuse a hierarchy that is too deep, or has a cycle."""
    depths: dict[str, int] = {}
    for label in parents:
        path: list[str] = []
        above = label
        while above in parents and above not in depths:
            path.append(above)
            above = parents[above]
            if above == label:
                raise ValueError(f"{label[:50]!r} is its own ancestor")
            if len(path) > MAX_HIERARCHY_DEPTH:
                break
        depth = depths.get(above, 0)
        if depth + len(path) > MAX_HIERARCHY_DEPTH:
            raise ValueError(f"it is too deep: {MAX_HIERARCHY_DEPTH} levels is the limit")
        depths.update({name: depth + up for up, name in enumerate(reversed(path), start=1)})


class FrozenModel(BaseModel):
    """A part of a package's JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Lineage(FrozenModel):
    """The origin of a model.

    Attributes:
        data_digest: SHA-256 of the training table (URIs, versions and labels).
        split_digest: Digest of the assignment of images to splits.
        test_digest: Digest of the test split.
        run: ID of the MLflow run.
        parent: Package digest of the model with the initial weights.
        teacher: Package digest of the model whose predictions it learned from.
        created: UTC time of creation in ISO 8601.
        eagleray: Version of Eagleray.
        torch: Version of PyTorch.
        note: A note for people.
    """

    data_digest: Digest | None = None
    split_digest: Digest | None = None
    test_digest: Digest | None = None
    run: Name | None = None
    parent: Digest | None = None
    teacher: Digest | None = None
    created: Name
    eagleray: Name
    torch: Name
    note: Annotated[str, Field(max_length=MAX_NOTE_LENGTH)] = ""

    @model_serializer(mode="wrap")
    def _omit_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit later fields that are unset."""
        return omit_empty(serialize(self), "split_digest", "test_digest", "teacher")

    @classmethod
    def now(
        cls,
        *,
        data_digest: str | None = None,
        split_digest: str | None = None,
        test_digest: str | None = None,
        run: str | None = None,
        parent: str | None = None,
        teacher: str | None = None,
        note: str = "",
    ) -> Lineage:
        """Make the lineage of a model that is created now."""
        return cls(
            data_digest=data_digest,
            split_digest=split_digest,
            test_digest=test_digest,
            run=run,
            parent=parent,
            teacher=teacher,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            eagleray=version("eagleray"),
            torch=version("torch"),
            note=note,
        )

    def of_child(self, *, parent: str, run: str | None, note: str) -> Lineage:
        """Return the lineage of a model that is made now of this one, and not trained again.

        Args:
            parent: Package digest of this model.
            run: ID of the MLflow run that makes it.
            note: A note for people.
        """
        return Lineage.now(
            data_digest=self.data_digest,
            split_digest=self.split_digest,
            test_digest=self.test_digest,
            run=run,
            parent=parent,
            note=note,
        )


class Quantization(FrozenModel):
    """How a float network was made into a graph of integers.

    Attributes:
        precision: Type of weights and activations.
        method: `static` calibrates a trained network; `trained` fine-tunes it as well.
        calibration_digest: SHA-256 of the list of calibration images.
        num_images: Number of calibration images.
        float_layers: Layers that stay in float32, because the outputs suffer most from them.
    """

    precision: Literal["int8"] = "int8"
    method: Literal["static", "trained"]
    calibration_digest: Digest
    num_images: Annotated[int, Field(ge=1)]
    float_layers: Annotated[tuple[Name, ...], Field(max_length=MAX_LABELS, fail_fast=True)] = ()

    @property
    def facts(self) -> dict[str, str]:
        """The quantization for people, by name."""
        how = ", and fine-tuned" if self.method == "trained" else ""
        return {
            "precision": f"{self.precision}, calibrated on {self.num_images:,} images{how}",
            "calibration digest": self.calibration_digest,
            "layers in float32": ", ".join(self.float_layers) or "none",
        }


class Import(FrozenModel):
    """Where a graph of another program came from.

    Attributes:
        file_digest: SHA-256 of the file that was imported.
        scores: What the file's network gives: `logits`, `probabilities` (of which the package's
            graph takes the logarithm), or `values` of a regression.
        decoder: How boxes or masks and scores were read from outputs; empty for none.
        producer: The program that wrote the file, as the file says.
        num_parameters: Number of trained numbers in it.
    """

    file_digest: Digest
    scores: Literal["logits", "probabilities", "values"]
    decoder: Name = ""
    producer: Name = ""
    num_parameters: Annotated[int, Field(ge=0)]

    @model_serializer(mode="wrap")
    def _omit_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit later fields that are empty."""
        return omit_empty(serialize(self), "decoder")

    @property
    def _places(self) -> str:
        return "masks" if self.decoder.startswith("mask") else "boxes"

    @property
    def facts(self) -> dict[str, str]:
        """The import for people, by name."""
        by = f", written by {escape_text(self.producer)}" if self.producer else ""
        return {
            "imported from": f"a file of the SHA-256 {self.file_digest[:12]}{by}",
            "its outputs": f"{self.scores} and {self._places}, read by {self.decoder}"
            if self.decoder
            else self.scores,
        }


class Hosted(FrozenModel):
    """A network that another server runs, by the Open Inference Protocol.

    Attributes:
        url: Of the model there, as in `https://models.example.com/v2/models/products`.
        server: What the server says of itself and of the model.
        input: Name of its input.
        datatype: Type of its input.
        layout: Order of the input's dimensions.
        reverses_channels: Whether it takes BGR.
        one_image: Whether it takes a single image with each request.
        binary: Whether it takes tensors as bytes beside the JSON of a request.
        output: Name of its output.
        scores: What it gives: `logits`, the probabilities of a `softmax` or of `sigmoid`s, or
            `values` of a regression.
        timeout_seconds: Time that a batch may take, with all attempts.
        max_images_per_second: Most images that a process sends in a second; None for any number.
    """

    url: Name
    server: Name = ""
    input: Name
    datatype: Literal["FP32", "UINT8"]
    layout: Literal["nchw", "nhwc"]
    reverses_channels: bool = False
    one_image: bool = False
    binary: bool = False
    output: Name
    scores: Literal["logits", "softmax", "sigmoid", "values"]
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    max_images_per_second: Annotated[float, Field(gt=0)] | None = None

    @property
    def facts(self) -> dict[str, str]:
        """The server for people, by name."""
        by = f" ({escape_text(self.server)})" if self.server else ""
        rate = self.max_images_per_second
        return {
            "hosted at": f"{escape_text(self.url)}{by}",
            "its outputs": self.scores,
            "limits": f"{self.timeout_seconds:g} s for a batch"
            + (f", {rate:g} images/s from each process" if rate else ""),
        }


class ModelManifest(FrozenModel):
    """All about a model but its weights.

    Attributes:
        quantization: How the network was quantized: the package holds a graph and no weights then.
        imported: Where the graph came from, if another program made it.
        hosted: The server that runs the network; the package holds no weights then.
    """

    format: Literal[1] = 1
    name: ModelName
    task: StoredTask
    architecture: Architecture
    hierarchy: Annotated[dict[str, str], BeforeValidator(_check_hierarchy)] = Field(
        default_factory=dict, description="label -> parent label"
    )
    contract: ImageContract
    contract_digest: Digest
    attributes: Annotated[
        tuple[Attribute, ...], Field(max_length=MAX_ATTRIBUTES, fail_fast=True)
    ] = ()
    metrics: dict[Name, FiniteFloat] = Field(default_factory=dict)
    lineage: Lineage
    quantization: Quantization | None = None
    imported: Import | None = None
    hosted: Hosted | None = None
    files: Annotated[dict[str, Digest], Field(max_length=MAX_FILES)]

    @property
    def has_graph(self) -> bool:
        """Whether the network is a graph: a quantized one, or one of another program."""
        return self.quantization is not None or self.imported is not None

    @property
    def has_weights(self) -> bool:
        """Whether the network is one of PyTorch, which every engine and precision may run."""
        return not self.has_graph and self.hosted is None

    @property
    def network_file(self) -> str:
        """The file with the network: weights for its architecture, none if hosted, or a graph."""
        return GRAPH_FILE if self.has_graph else WEIGHTS_FILE

    @property
    def is_black_box(self) -> bool:
        """Whether another program made the network, and its layers are not known."""
        return self.imported is not None or self.hosted is not None

    @property
    def facts(self) -> dict[str, str]:
        """How the graph was made or where it runs, for people; nothing for one of PyTorch."""
        found: dict[str, str] = {}
        for one in (self.quantization, self.imported, self.hosted):
            found |= {} if one is None else one.facts
        return found

    @property
    def input_text(self) -> str:
        """The input for people, as in `28 x 28 pixels, gray, and the attributes age, site`."""
        height, width = self.contract.size
        names = ", ".join(attribute.name for attribute in self.attributes)
        image = f"{height} x {width} pixels, {self.contract.color}"
        return f"{image}, and the attributes {names}" if names else image

    @model_serializer(mode="wrap")
    def _omit_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit later fields that are empty."""
        return omit_empty(serialize(self), "attributes", "quantization", "imported", "hosted")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if sum(one is not None for one in (self.quantization, self.imported, self.hosted)) > 1:
            raise ValueError("a network is one of quantized, imported and hosted")
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
        num_attributes = num_features(self.attributes)
        if self.architecture.num_attributes != num_attributes:
            raise ValueError(
                f"the architecture takes {self.architecture.num_attributes} numbers of attributes, "
                f"the attributes give {num_attributes}"
            )
        names = [attribute.name for attribute in self.attributes]
        if len(set(names)) < len(names):
            raise ValueError("two attributes have the same name")
        return self


def omit_empty(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    """Remove the named fields that are empty."""
    for name in names:
        if not fields.get(name):
            fields.pop(name, None)
    return fields


def manifest_digest(manifest: ModelManifest) -> str:
    """Return the digest of the package that a manifest describes, as it names all files."""
    text = canonical_json(manifest.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()


def require_digest(folder: str, digest: str, expected: str | None) -> None:
    """Refuse a package with another digest than the recorded one.

    Raises:
        PackageError: If the digests differ.
    """
    if expected is not None and digest != expected:
        raise PackageError(
            f"{folder} holds package {digest[:12]}, but {expected[:12]} was registered; restore "
            "the registered files or register this package as a new version."
        )


def parse_manifest(content: bytes, where: str) -> ModelManifest:
    """Parse the content of a `model.json`.

    Raises:
        PackageError: If it is not valid; the message begins with `where`.
    """
    return parse_package_json(ModelManifest, content, where, MANIFEST_JSON)


_Parsed = TypeVar("_Parsed", bound=BaseModel)


def parse_package_json(
    kind: type[_Parsed], content: bytes, where: str, limits: JsonLimits
) -> _Parsed:
    """Parse a JSON file of a package.

    Raises:
        PackageError: If it is not valid; the message begins with `where`.
    """
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
