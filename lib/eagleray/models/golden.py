"""Golden images of a model package: encoded images with the outputs that any device must reproduce.

They are the health check of a loaded model: `golden.json` has the expected outputs, in float32, and
`golden/` the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, FiniteFloat, SerializerFunctionWrapHandler, model_serializer

from eagleray.core.errors import PackageError
from eagleray.core.limits import GOLDEN_JSON, MAX_GOLDEN_BYTES, MAX_GOLDEN_IMAGES, MAX_LABELS
from eagleray.core.types import HEALTH_TOLERANCE
from eagleray.imaging import ImageContract, decode, probe
from eagleray.imaging.contract import canonical_json
from eagleray.models.attributes import Attribute, encode_mappings
from eagleray.models.manifest import (
    FrozenModel,
    ModelManifest,
    Name,
    omit_empty,
    parse_package_json,
)
from eagleray.models.package_files import GOLDEN_FILE
from eagleray.tasks import Task

if TYPE_CHECKING:  # packages are verified where PyTorch is not needed
    from torch import nn

__all__ = [
    "GOLDEN_TOLERANCE",
    "GoldenImage",
    "GoldenSet",
    "golden_files",
    "make_golden_files",
    "parse_golden",
    "require_golden_fits",
]

GOLDEN_TOLERANCE = HEALTH_TOLERANCE["bfloat16"]
"""The largest tolerance that the package of a float network may state for its golden images, in the
task's unit."""


class GoldenImage(FrozenModel):
    """One golden image.

    Attributes:
        file: The image's file in the package.
        outputs: Summary of the expected outputs of the task, such as a probability for each label.
        attributes: The image's attributes by name, as text, if the model takes any.
    """

    file: Name
    outputs: Annotated[tuple[FiniteFloat, ...], Field(max_length=MAX_LABELS, fail_fast=True)]
    attributes: dict[Name, Name] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _omit_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit later fields that are empty."""
        return omit_empty(serialize(self), "attributes")


class GoldenSet(FrozenModel):
    """The golden images of a package.

    Attributes:
        tolerance: Largest difference of an output from the expected output.
        images: The images with their expected outputs.
    """

    tolerance: Annotated[FiniteFloat, Field(gt=0)]
    images: Annotated[
        tuple[GoldenImage, ...], Field(max_length=MAX_GOLDEN_IMAGES, fail_fast=True)
    ] = ()


def make_golden_files(
    images: Sequence[bytes],
    values: Sequence[Mapping[str, str]],
    *,
    module: nn.Module,
    contract: ImageContract,
    task: Task,
    attributes: Sequence[Attribute],
) -> dict[str, bytes]:
    """Compute the outputs of golden images, and return the files by name; none for no images.

    Args:
        images: Encoded images.
        values: Attributes of each image by name, if the model takes any.
        module: The network with its weights.
        contract: The image contract.
        task: The task.
        attributes: The attributes that the model takes.

    Raises:
        PackageError: If the images are too many or too large for a package.
    """
    _require_within_limits(images)
    if not images:
        return {}
    import torch

    from eagleray.models.network import ImageNetwork

    network = ImageNetwork(module, contract).float().eval()
    pixels = np.stack([decode(image, contract).pixels for image in images])
    inputs = [torch.from_numpy(pixels)]
    if attributes:
        inputs.append(torch.from_numpy(encode_mappings(attributes, values)))
    with torch.inference_mode():
        outputs = task.summarize(task.activate(network(*inputs))).tolist()
    return golden_files(images, values, outputs=outputs, task=task)


def golden_files(
    images: Sequence[bytes],
    values: Sequence[Mapping[str, str]] = (),
    *,
    outputs: Sequence[Sequence[float]],
    task: Task,
) -> dict[str, bytes]:
    """Return the files of golden images by name.

    Args:
        images: Encoded images.
        values: Attributes of each image by name, if the model takes any.
        outputs: Summary of the expected activated outputs of each image.
        task: The task.
    """
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


def _require_within_limits(golden_images: Sequence[bytes]) -> None:
    total = sum(map(len, golden_images))
    if len(golden_images) > MAX_GOLDEN_IMAGES or total > MAX_GOLDEN_BYTES:
        raise PackageError(
            f"{len(golden_images):,} golden images of {total:,} bytes in all are too many for a "
            f"package: {MAX_GOLDEN_IMAGES} of {MAX_GOLDEN_BYTES:,} bytes are the limit."
        )


def parse_golden(content: bytes, where: str) -> GoldenSet:
    """Parse the content of a `golden.json`.

    Raises:
        PackageError: If it is not valid; the message begins with `where`.
    """
    return parse_package_json(GoldenSet, content, where, GOLDEN_JSON)


def require_golden_fits(folder: str, manifest: ModelManifest, files: Mapping[str, bytes]) -> None:
    """Refuse golden images that are missing, or whose outputs are not those of the task.

    Args:
        folder: The package's location, for messages.
        manifest: The package's manifest.
        files: The package's files by name; the weights are not needed.

    Raises:
        PackageError: If the golden images do not fit the manifest.
    """
    if GOLDEN_FILE not in files:
        return
    where = f"{folder}: {GOLDEN_FILE}"
    golden = parse_golden(files[GOLDEN_FILE], where)
    quantization = manifest.quantization
    largest = HEALTH_TOLERANCE[quantization.precision] if quantization else GOLDEN_TOLERANCE
    max_tolerance = largest * manifest.task.unit
    if golden.tolerance > max_tolerance * (1 + 1e-9):  # it may be written with fewer digits
        raise PackageError(
            f"{folder}: {GOLDEN_FILE} has a tolerance of {golden.tolerance:.3g}, and "
            f"{max_tolerance:.3g} is the limit for this task."
        )
    num_values = manifest.task.num_values
    for image in golden.images:
        if not image.file.startswith("golden/") or image.file not in files:
            raise PackageError(
                f"{folder}: {GOLDEN_FILE} names {image.file[:100]!r}, which is missing."
            )
        for attribute in manifest.attributes:
            if attribute.name not in image.attributes:
                raise PackageError(
                    f"{folder}: {GOLDEN_FILE} has no {attribute.name!r} of {image.file}."
                )
        if len(image.outputs) != num_values:
            raise PackageError(
                f"{folder}: {GOLDEN_FILE} expects {len(image.outputs)} outputs of {image.file}, "
                f"the task gives {num_values}."
            )
