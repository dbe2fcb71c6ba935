"""Imports a model that another server hosts: asks what it takes, and tries it.

import_hosted(spec, settings)       # spec.file: https://models.example.com/v2/models/products
"""

from __future__ import annotations

import hashlib
import re
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.core.validation import first_validation_error
from eagleray.importing.graft import NetworkInput
from eagleray.importing.options import (
    activation_of,
    make_contract,
    make_task,
    read_golden,
    read_labels,
)
from eagleray.importing.probabilities import (
    require_exclusive_probabilities,
    require_probabilities,
)
from eagleray.importing.spec import ImportSpec
from eagleray.models.architectures import Architecture
from eagleray.models.golden import golden_files
from eagleray.models.hosted import TINY, HostedNetwork, HostedServer
from eagleray.models.manifest import Hosted, Lineage, ModelManifest
from eagleray.models.network import ImageNetwork
from eagleray.models.package import ModelPackage
from eagleray.models.package_files import WEIGHTS_FILE
from eagleray.tasks import Task

__all__ = ["import_hosted", "is_hosted"]

ARCHITECTURE = "hosted"
"""Name of the architecture of hosted networks: nothing is known of theirs."""

_URL = re.compile(r"https?://[^?#]+/v2/models/[^/?#]+(/versions/[^/?#]+)?/?")
_DIFFERENCE = 1e-3  # of an output of an image alone and in a batch, as a share of the largest
_NUM_RANDOM = 2  # images that the model is tried on beside those that are given


def is_hosted(file: str) -> bool:
    """Whether what is imported is the URL of a model on a server."""
    return _URL.fullmatch(file) is not None


def import_hosted(spec: ImportSpec, settings: Settings) -> ModelPackage:
    """Make the package of a model that another server hosts, by the Open Inference Protocol.

    Raises:
        UserError: If the server or the model does not fit, or does not answer; the message says
            why.
    """
    if spec.decoder is not None or spec.task == "semantic":
        raise InputError(
            f"A model on a server is a classifier or a regression, not of the task {spec.task}; "
            "import its ONNX file."
        )
    task = make_task(spec, read_labels(spec.labels))
    server = HostedServer(spec.file, timeout_seconds=spec.timeout_s, settings=settings)
    said = server.describe()
    try:
        datatype, network_input = _input(said, spec.layout)
        output = _output(said, task)
    except (ValueError, TypeError, KeyError) as error:
        reason = f"{error}" if isinstance(error, ValueError) else "it does not describe them"
        raise InputError(f"{spec.file} is refused: {reason}.") from None
    contract = make_contract(spec, network_input)
    if datatype == "UINT8" and (set(contract.mean), set(contract.std)) != ({0.0}, {1 / 255}):
        raise InputError(
            f"{spec.file} takes the values of pixels, from 0 to 255; write --mean 0 --std 1."
        )
    try:
        hosted = Hosted(
            url=spec.file.rstrip("/"),
            server=_server(said),
            input=network_input.name,
            datatype=datatype,
            layout=network_input.layout,
            reverses_channels=spec.colors == "bgr",
            one_image=network_input.fixed_batch == 1,
            binary=server.takes_binary(),
            output=output,
            scores=_scores(spec, task),
            timeout_seconds=spec.timeout_s,
            max_images_per_second=spec.max_images_per_s,
        )
    except ValidationError as error:
        raise InputError(f"{spec.file} is refused: {first_validation_error(error)}.") from None
    network = ImageNetwork(
        HostedNetwork(hosted, num_outputs=task.num_outputs, settings=settings), contract
    ).eval()
    golden = read_golden(spec, contract)
    noise = np.random.default_rng(0).integers(0, 256, (_NUM_RANDOM, *contract.shape), np.uint8)
    outputs = _try(spec, task, hosted, network, np.stack([*golden.pixels, *noise]))
    files = {WEIGHTS_FILE: _no_weights()}
    if golden.contents:
        files |= golden_files(
            golden.contents, outputs=outputs[: len(golden.contents)].tolist(), task=task
        )
    manifest = ModelManifest(
        name=spec.name,
        task=task,
        architecture=Architecture(
            name=ARCHITECTURE, in_channels=contract.channels, num_outputs=task.num_outputs
        ),
        contract=contract,
        contract_digest=contract.digest,
        lineage=Lineage.now(note=f"hosted at {hosted.url}"),
        hosted=hosted,
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )
    return ModelPackage(manifest, MappingProxyType(files))


def _no_weights() -> bytes:
    from safetensors.torch import save

    return save({})


def _server(said: dict[str, Any]) -> str:
    versions = said.get("versions")
    newest = versions[-1] if isinstance(versions, list) and versions else ""
    parts = (said.get("name"), newest and f"version {newest}", said.get("platform"))
    return " ".join(str(part)[:60] for part in parts if part)


def _input(
    said: dict[str, Any], layout: Literal["auto", "nchw", "nhwc"]
) -> tuple[Literal["FP32", "UINT8"], NetworkInput]:
    """Return the type and the form of a model's input.

    Raises:
        ValueError: If it is not one of images.
    """
    inputs = said["inputs"]
    if len(inputs) != 1:
        raise ValueError(f"it has {len(inputs)} inputs, where one of images is taken")
    name, datatype, shape = inputs[0]["name"], inputs[0]["datatype"], inputs[0]["shape"]
    if datatype not in ("FP32", "UINT8"):
        raise ValueError(f"its input is of the type {str(datatype)[:40]}, not FP32 or UINT8")
    if len(shape) != 4 or not all(isinstance(length, int) for length in shape):
        raise ValueError("its input has not four dimensions: images, channels, height and width")
    batch, *others = (length if length > 0 else None for length in shape)
    if batch not in (None, 1):
        raise ValueError(f"it takes {batch} images at a time, not one or any number")
    if layout == "auto":
        channels_first, channels_last = others[0] in (1, 3), others[2] in (1, 3)
        if channels_first == channels_last:
            raise ValueError(
                f"its input {tuple(shape)} does not say which dimension is that of the channels; "
                "name --layout nchw or nhwc"
            )
        layout = "nchw" if channels_first else "nhwc"
    channels, height, width = others if layout == "nchw" else (others[2], *others[:2])
    return datatype, NetworkInput(str(name), layout, channels, (height, width), batch)


def _output(said: dict[str, Any], task: Task) -> str:
    """Return the name of a model's only output.

    Raises:
        ValueError: If it has several, or another number of values for an image.
    """
    outputs = said["outputs"]
    if len(outputs) != 1:
        names = ", ".join(repr(str(one["name"])[:40]) for one in outputs)
        raise ValueError(f"it has the outputs {names}, where one of scores is taken")
    shape = outputs[0]["shape"]
    lengths = [int(length) for length in shape[1:]]
    if lengths and min(lengths) > 0 and int(np.prod(lengths)) != task.num_outputs:
        raise ValueError(
            f"its output has {int(np.prod(lengths)):,} values for an image, and the task needs "
            f"{task.num_outputs:,}; name as many labels"
        )
    return str(outputs[0]["name"])


def _scores(spec: ImportSpec, task: Task) -> Literal["logits", "softmax", "sigmoid", "values"]:
    """Return what the model gives, which its server does not say.

    Raises:
        InputError: If it has to be told.
    """
    if not task.labels:
        return "values"
    if spec.scores == "auto":
        raise InputError(
            f"{spec.file} does not say what it gives; name --scores logits or probabilities."
        )
    return "logits" if spec.scores == "logits" else activation_of(task)


def _try(
    spec: ImportSpec,
    task: Task,
    hosted: Hosted,
    network: ImageNetwork,
    pixels: np.ndarray[Any, Any],
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the activated outputs of images, after comparing those alone and in a batch.

    Raises:
        InputError: If they differ, or are not what the task takes.
        OutageError: If the server does not answer.
    """
    images = torch.from_numpy(pixels)
    with torch.inference_mode():
        together = network(images)
        alone = together if hosted.one_image else torch.cat([network(one[None]) for one in images])
    assert isinstance(together, torch.Tensor)
    assert isinstance(alone, torch.Tensor)
    if not together.isfinite().all():
        raise InputError(
            f"{spec.file} gives outputs that are not finite; check --mean, --std and --scores."
        )
    if hosted.scores == "softmax":
        require_exclusive_probabilities(spec.file, alone.numpy())
    elif hosted.scores == "sigmoid":
        require_probabilities(spec.file, alone.numpy(), tiny=TINY)
    outputs = task.activate(alone)
    apart = float((outputs - task.activate(together)).abs().max())
    if not apart <= _DIFFERENCE * max(task.unit, float(outputs.abs().max())):
        raise InputError(
            f"{spec.file} gives another output for an image in a batch than for the image alone "
            f"(they differ by {apart:.3g})."
        )
    found: np.ndarray[Any, np.dtype[np.float32]] = outputs.flatten(1).numpy()
    return found
