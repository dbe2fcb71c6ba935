"""Reads a detector or segmenter that Hugging Face's transformers has saved; converts it to ONNX.

The folder has `config.json`, `model.safetensors` and `preprocessor_config.json`. Labels, image
contract and the number of queries are read from them; what has no counterpart is refused.
Code of the folder never runs, and no pickle is loaded. The network is built and converted in a
process with bounds; afterwards transformers is not needed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagleray.core.errors import InputError
from eagleray.core.json_limits import JsonLimits, parse_json
from eagleray.core.settings import Settings
from eagleray.exports.process import Limits, run_bounded
from eagleray.importing.image_processor import (
    PREPROCESSOR,
    listed,
    read_image_processor,
    whole_number,
)
from eagleray.importing.pixels import MASK_DECODERS
from eagleray.importing.spec import ImportSpec
from eagleray.importing.transformers_worker import GRAPH_FILE, REQUEST_FILE

__all__ = ["TransformersModel", "convert_folder", "read_folder"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class _Kind:
    """What is known of networks of one type.

    Attributes:
        tasks: What they can predict.
        model: The class of transformers that builds them.
        outputs: Their outputs that are read.
        processors: Classes of image processors that fit them.
        fields: Fields of the specification that say how the outputs are read.
    """

    tasks: tuple[str, ...]
    model: str
    outputs: tuple[str, ...]
    processors: tuple[str, ...]
    fields: Mapping[str, str | None]


def _detector(activation: str) -> _Kind:
    return _Kind(
        tasks=("detection",),
        model="AutoModelForObjectDetection",
        outputs=("pred_boxes", "logits"),
        processors=("RTDetrImageProcessor", "DetrImageProcessor", "DetrFeatureExtractor"),
        fields={"decoder": "detr", "scores": "logits", "activation": activation},
    )


def _mask_queries(name: str, decoder: str) -> _Kind:
    return _Kind(
        tasks=("semantic", "instance", "panoptic"),
        model=f"{name}For{'Universal' if name == 'Mask2Former' else 'Instance'}Segmentation",
        outputs=("class_queries_logits", "masks_queries_logits"),
        processors=(f"{name}ImageProcessor", f"{name}FeatureExtractor"),
        fields={"decoder": decoder, "scores": "logits"},
    )


_KINDS = {
    "rt_detr": _detector("sigmoid"),
    "rt_detr_v2": _detector("sigmoid"),
    "d_fine": _detector("sigmoid"),
    "detr": _detector("softmax"),
    "segformer": _Kind(
        tasks=("semantic",),
        model="SegformerForSemanticSegmentation",
        outputs=("logits",),
        processors=("SegformerImageProcessor", "SegformerFeatureExtractor"),
        fields={"scores": "logits"},
    ),
    "mask2former": _mask_queries("Mask2Former", "mask2former"),
    "maskformer": _mask_queries("MaskFormer", "maskformer"),
}
"""The types of models that are read, by `model_type`."""

_MAX_CONFIG_BYTES = 16_000_000
_JSON_LIMITS = JsonLimits(100_000, 200_000, 50_000, 50_000)
_MAX_QUERIES = 1000


@dataclass(frozen=True)
class TransformersModel:
    """A detector or segmenter in a folder of transformers.

    Attributes:
        folder: The folder.
        kind: Its `model_type`.
        labels: Its labels, in the order of the outputs.
        fields: Fields of the task: of a detector the largest number of objects, which is that of
            its queries, each of which finds at most one object of a label.
        producer: The program that wrote the folder, as it says.
        spec: The specification of the import, with what the folder says.
        difference: How its images differ from those of transformers, as a sentence; empty if they
            do not.
    """

    folder: Path
    kind: str
    labels: tuple[str, ...]
    fields: Mapping[str, Any]
    producer: str
    spec: ImportSpec
    difference: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        with (self.folder / WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_folder(spec: ImportSpec) -> TransformersModel:
    """Read what a folder says of its network.

    Raises:
        InputError: If the folder is refused; the message says why.
    """
    folder = Path(spec.file)
    _require_files(folder)
    config, images = (_read(folder / name) for name in (CONFIG, PREPROCESSOR))
    try:
        name = config.get("model_type")
        if name not in _KINDS:
            raise ValueError(f"{CONFIG} has the model_type {name!r}, not {listed(_KINDS)}")
        kind = _KINDS[name]
        if spec.task not in kind.tasks:
            raise ValueError(f"a {name} is of the task {listed(kind.tasks)}, not {spec.task}")
        if "auto_map" in config or "auto_map" in images:
            raise ValueError("it needs code of its own (auto_map), which is never run")
        fields: dict[str, Any] = {}
        if spec.task == "detection":
            fields["max_objects"] = whole_number(config, "num_queries", _MAX_QUERIES)
        if config.get("num_channels", 3) != 3:
            raise ValueError(f"{CONFIG} has num_channels {config['num_channels']!r}, not 3")
        labels = _labels(config)
        made = read_image_processor(images, kind.processors, spec)
        told = {**made.fields, **kind.fields}
        if told["letterbox"] and told.get("decoder") in MASK_DECODERS:
            raise ValueError(
                f"masks of a {name} show the whole input; leave {spec.name_of('letterbox')} out"
            )
    except ValueError as error:
        raise InputError(f"{folder} is refused: {error}.") from None
    producer = f"transformers {config.get('transformers_version', '')}".strip()[:100]
    own = spec.model_copy(update=told)
    return TransformersModel(folder, name, labels, fields, producer, own, made.difference)


def convert_folder(model: TransformersModel, settings: Settings) -> bytes:
    """Convert a network to ONNX, for one image at a time.

    Raises:
        InputError: If transformers is not installed, or the network cannot be built or converted.
        JobFailedError: If the process crashes, or takes too much time or memory.
    """
    if importlib.util.find_spec("transformers") is None:
        raise InputError(
            f"{model.folder} needs transformers, which is not installed: "
            "pip install eagleray[transformers]."
        )
    limits = Limits(model.spec.max_seconds, model.spec.max_memory_gb * 1e9)
    log = settings.home_folder / "logs" / "import.log"
    with tempfile.TemporaryDirectory(prefix="eagleray-import-") as name:
        folder = Path(name)
        side = model.spec.image_size
        kind = _KINDS[model.kind]
        request = {
            "folder": str(model.folder.resolve()),
            "size": [side, side],
            "model": kind.model,
            "outputs": kind.outputs,
        }
        (folder / REQUEST_FILE).write_text(json.dumps(request))
        worker = "eagleray.importing.transformers_worker"
        run_bounded("conversion", worker, [], folder, None, limits, log)
        return (folder / GRAPH_FILE).read_bytes()


def _require_files(folder: Path) -> None:
    if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file():
        if not (folder / PREPROCESSOR).is_file():
            raise InputError(
                f"{folder} has no {PREPROCESSOR}, which says what the network does to images; save "
                "its image processor there, too."
            )
        return
    if any(folder.glob("pytorch_model*.bin")):
        raise InputError(
            f"{folder} has its weights in a pickle (pytorch_model.bin), which may be any program; "
            f"save them as {WEIGHTS}."
        )
    raise InputError(
        f"{folder} is no model of transformers: it needs {CONFIG}, {WEIGHTS} and {PREPROCESSOR}."
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"{_MAX_CONFIG_BYTES:,} bytes is the limit")
        values = parse_json(file.read_bytes(), _JSON_LIMITS)
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {file}: {error}.") from None
    return values


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels; one that stands for several outputs gets a number.

    Raises:
        ValueError: If there is not one for each output.
    """
    named = config.get("id2label")
    if not isinstance(named, dict) or set(named) != {str(place) for place in range(len(named))}:
        raise ValueError(f"id2label of {CONFIG} does not name the outputs from 0 on")
    found: list[str] = []
    seen: dict[str, int] = {}
    for place in range(len(named)):
        label = str(named[str(place)]).strip()
        seen[label] = seen.get(label, 0) + 1
        found.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return tuple(found)
