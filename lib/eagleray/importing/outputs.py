"""Decides how the outputs of an imported network become those of its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from eagleray.importing.decoders import DECODERS, DetectorOutputs, require_readable
from eagleray.importing.decoders.base import TINY as DETECTOR_TINY
from eagleray.importing.decoders.detr import num_exclusive_labels
from eagleray.importing.graft import TINY as SCORE_TINY
from eagleray.importing.graft import (
    Behind,
    NetworkInput,
    behind_detector,
    behind_scores,
    find_output,
    find_scores,
    output_shapes,
)
from eagleray.importing.options import activation_of, make_task
from eagleray.importing.pixels import (
    MASK_DECODERS,
    behind_map,
    behind_queries,
    find_map,
    find_queries,
)
from eagleray.importing.probabilities import Promise
from eagleray.importing.spec import ImportSpec

__all__ = ["ReadOutputs", "read_outputs"]

Scores = Literal["logits", "probabilities", "values"]


@dataclass(frozen=True)
class ReadOutputs:
    """How outputs are read.

    Attributes:
        behind: Makes the task's outputs of the network's.
        scores: What the network gives.
        promise: What the scores are to be, as far as their values can show it.
        fields: Fields of the task that say so.
    """

    behind: Behind
    scores: Scores
    promise: Promise | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def read_outputs(
    spec: ImportSpec,
    labels: Sequence[str],
    model: Any,
    network_input: NetworkInput,
    size: tuple[int, int],
) -> ReadOutputs:
    """Return how the outputs of a network are read.

    Args:
        spec: The specification.
        labels: The labels, in the order of the outputs.
        model: The ONNX model.
        network_input: Its input.
        size: Height and width of its images.

    Raises:
        ValueError: If the outputs do not fit the task.
    """
    if spec.decoder is None and spec.task != "semantic":
        return _of_vector(spec, labels, model)
    shapes = output_shapes(model, network_input, size)
    if spec.decoder is not None and spec.decoder in MASK_DECODERS:
        queries, names = find_queries(shapes, len(labels), spec.decoder)
        behind = behind_queries(queries, names, len(labels))
        fields: dict[str, Any] = {"queries": queries.model_dump()}
        if spec.task == "instance":
            fields["max_objects"] = queries.count
        return ReadOutputs(behind, "logits", fields=fields)
    if spec.decoder is None:
        return _of_map(spec, labels, model, shapes, size)
    source = DetectorOutputs(shapes, size, len(labels), spec.scores, spec.activation)
    require_readable(source, spec.decoder)
    behind = behind_detector(source, DECODERS[spec.decoder])
    if spec.scores == "logits" or (spec.scores, spec.decoder) == ("auto", "detr"):
        if spec.is_folder:  # the network's class says what it gives
            return ReadOutputs(behind, "logits")
        num_exclusive = num_exclusive_labels(source) if spec.decoder == "detr" else None
        return ReadOutputs(behind, "logits", Promise("logits", num_exclusive=num_exclusive))
    return ReadOutputs(behind, "probabilities", Promise("probabilities", DETECTOR_TINY))


def _of_vector(spec: ImportSpec, labels: Sequence[str], model: Any) -> ReadOutputs:
    """Read one row of values for each image."""
    task = make_task(spec, labels)
    output = find_output(model, task.num_outputs, fits_labels=task.num_outputs == len(task.labels))
    scores = find_scores(model, output) if spec.scores == "auto" else spec.scores
    if not task.labels:
        return ReadOutputs(behind_scores(output, "logits", task.num_outputs), "values")
    if scores == "logits":
        return ReadOutputs(behind_scores(output, scores, task.num_outputs), scores)
    kind = activation_of(task)
    is_exclusive = kind == "softmax"
    promise = Promise("exclusive") if is_exclusive else Promise("probabilities", SCORE_TINY)
    return ReadOutputs(behind_scores(output, kind, task.num_outputs), scores, promise)


def _of_map(
    spec: ImportSpec,
    labels: Sequence[str],
    model: Any,
    shapes: Mapping[str, tuple[int, ...]],
    size: tuple[int, int],
) -> ReadOutputs:
    """Read a map of scores; one of another size than the input is enlarged unless it shows all."""
    output, layout = find_map(shapes, len(labels))
    scores = find_scores(model, output) if spec.scores == "auto" else spec.scores
    behind = behind_map(output, layout, shapes[output], scores, size=None if spec.stretch else size)
    promise = Promise("shares") if scores == "probabilities" else None
    return ReadOutputs(behind, scores, promise, {"enlarges": "scores", "shows_all": spec.stretch})
