"""Quantizes the network of a package to int8, and keeps the layers in float32 that lose most.

Weights are quantized per output channel, activations per tensor, both by ranges that calibration
images give. If the network then loses more on held-out images than is allowed, its layers are
ranked by how much nearer the outputs come to those of the float network when that layer alone is
restored, and layers are restored in that order until the loss is small enough.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagleray.compression.calibration import SampleImages
from eagleray.compression.layers import quantized_layers, restore_layers
from eagleray.compression.nncf_backend import GraphRunner, import_nncf
from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import InputError
from eagleray.models.graph_export import export_graph
from eagleray.models.package import ModelPackage
from eagleray.tasks import NetworkOutput, Task

__all__ = ["QuantizedGraph", "quantize_graph"]

_MAX_RANKED = 64  # held-out images by which layers are ranked
_MAX_FLOAT_SHARE = 0.25  # of the layers; with more of them in float32 little speed is left
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_TRANSFORMER_OPERATORS = frozenset({"LayerNormalization", "Softmax"})

Logits = dict[str, npt.NDArray[np.float32]]
"""Outputs of a network (N, …) by name."""


@dataclass(frozen=True)
class QuantizedGraph:
    """A quantized network, and what quantization changed on held-out images.

    Attributes:
        content: The ONNX file.
        num_layers: Number of layers with weights that can be quantized.
        float_layers: Names of those that stay in float32.
        score: Name of what is compared on held-out images.
        num_held_out: Number of held-out images.
        image_share: What one of them is of the score; None if that depends on the image.
        drop: By how much it is lower than that of the float network.
        static_drop: The same while all layers were quantized.
        max_difference: Largest difference of an output from that of the float network.
    """

    content: bytes
    num_layers: int
    float_layers: tuple[str, ...]
    score: str
    num_held_out: int
    image_share: float | None
    drop: float
    static_drop: float
    max_difference: float


def quantize_graph(
    package: ModelPackage,
    calibration: SampleImages,
    held_out: SampleImages,
    *,
    max_drop: float,
    reporter: ProgressReporter,
) -> QuantizedGraph:
    """Quantize a package's network.

    Args:
        package: The package of the float network.
        calibration: Images that give the ranges of activations.
        held_out: Other images, on which the loss is measured.
        max_drop: Largest loss for which no layer is kept in float32.
        reporter: Shows the progress.

    Raises:
        InputError: If the network cannot be exported or quantized.
        PackageError: If the weights do not fit the network.
    """
    import onnx

    with reporter.status("Exporting the network"):
        content = export_graph(package, with_outlier_score=True)
    original = onnx.ModelProto.FromString(content)
    with reporter.status(f"Calibrating on {len(calibration):,} images"):
        static = _quantize(package, original, calibration)
    layers = quantized_layers(static, original)
    if not layers:
        name = package.manifest.architecture.name
        raise InputError(f"No layer of {name} can be quantized; use the float model.")
    search = _Search(package.task, held_out, content, static, original)
    with reporter.status("Comparing with the float network"):
        drop = static_drop = search.drop(static)
    graph = static
    nodes: tuple[str, ...] = ()
    if drop > max_drop:
        with reporter.progress("Finding the layers that lose most", len(layers)) as bar:
            ranked = search.rank(list(layers), bar.advance)
        with reporter.status("Restoring the layers that lose most"):
            nodes, graph, drop = search.restore(ranked, static_drop, max_drop, len(layers))
    return QuantizedGraph(
        content=graph.SerializeToString(),
        num_layers=len(layers),
        float_layers=tuple(layers[node] for node in layers if node in nodes),
        score=search.score_name,
        num_held_out=len(held_out),
        image_share=search.image_share,
        drop=drop,
        static_drop=static_drop,
        max_difference=search.max_difference(graph),
    )


def _quantize(package: ModelPackage, original: Any, calibration: SampleImages) -> Any:
    """Quantize all layers of a graph.

    Without VNNI, sums of two products of a full-range weight overflow 16 bits, and what a CPU
    answers then differs from others. Weights of half the range (7 bits) cannot overflow.

    Raises:
        InputError: If NNCF cannot quantize the graph.
    """
    import onnx

    nncf = import_nncf()
    operators = {node.op_type for node in original.graph.node}
    is_transformer = operators >= _TRANSFORMER_OPERATORS
    items = [calibration.inputs(row, row + 1) for row in range(len(calibration))]
    model = onnx.ModelProto()
    model.CopyFrom(original)  # NNCF changes its argument
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # NNCF draws progress bars
            return nncf.quantize(
                model,
                nncf.Dataset(items),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(items),
                model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
                ignored_scope=nncf.IgnoredScope(names=_left_alone(package, original)),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=nncf.OverflowFix.ENABLE
                ),
            )
    except Exception as error:  # NNCF and OpenVINO raise errors of many kinds
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        name = package.manifest.architecture.name
        raise InputError(f"{name} cannot be quantized ({text}); use the float model.") from error


def _left_alone(package: ModelPackage, graph: Any) -> list[str]:
    """Return the names of the operators that are not quantized."""
    return _decoding(package, graph) + _scoring(graph)


def _scoring(graph: Any) -> list[str]:
    """Return the names of the operators of an outlier score; none for a network without.

    A residual is the small difference of large numbers, which 8 bits cannot hold.
    """
    held = [tensor.name for tensor in graph.graph.initializer]
    prefixes = [name.removesuffix("directions") for name in held if name.endswith(".directions")]
    reached, names = {f"{prefix}mean" for prefix in prefixes}, []
    for node in graph.graph.node:  # each stands behind those whose outputs it takes
        if not reached.isdisjoint(node.input):
            names.append(node.name)
            reached.update(node.output)
    return names


def _decoding(package: ModelPackage, graph: Any) -> list[str]:
    """Return the names of the operators behind the last layers of a network with several outputs.

    They compute places in pixels, which 8 bits cannot hold.
    """
    if len(package.task.network_outputs) == 1:
        return []
    made_by = {name: node for node in graph.graph.node for name in node.output}
    names, waiting = set(), [one.name for one in graph.graph.output]
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.name not in names and node.op_type not in _LAYERS:
            names.add(node.name)
            waiting += node.input
    return sorted(names)


class _Search:
    """Compares quantized graphs with the float network on held-out images."""

    def __init__(
        self, task: Task, held_out: SampleImages, content: bytes, static: Any, original: Any
    ) -> None:
        self._task, self._images = task, held_out
        self._static, self._original = static, original
        self._names = tuple(task.network_outputs)
        self._logits = GraphRunner(content).run(held_out.inputs(), self._names)
        self._outputs = self._activated(self._logits)
        self._score = self._score_of(self._outputs)

    @property
    def score_name(self) -> str:
        """What is compared: a metric if the labels are known, else equal predictions."""
        if self._images.targets is None:
            return "share of predictions like the float model's"
        return self._task.metric_names[0]

    @property
    def image_share(self) -> float | None:
        """What one image is of the score; None if that depends on the image."""
        counts_images = self._images.targets is None or self.score_name == "accuracy"
        return 1 / len(self._images) if counts_images else None

    def drop(self, graph: Any) -> float:
        """Return by how much the score of a graph is lower than the float network's."""
        drop = self._score - self._score_of(self._activated(self._run(graph)))
        return round(drop, 9)  # one image of a hundred is 0.01, and no more than that

    def max_difference(self, graph: Any) -> float:
        """Return the largest difference of an output from the float network's."""
        outputs = self._activated(self._run(graph))
        return self._task.max_difference(outputs.numpy(), self._outputs.numpy())

    def rank(self, nodes: Sequence[str], advance: Any) -> list[str]:
        """Return the layers whose restoration brings the outputs nearer, the best first."""
        before = self._error(self._static)
        gains = {}
        for node in nodes:
            restored = restore_layers(self._static, self._original, {node})
            gains[node] = before - self._error(restored)
            advance(1)
        return sorted((node for node in nodes if gains[node] > 0), key=lambda node: -gains[node])

    def restore(
        self, ranked: Sequence[str], static_drop: float, max_drop: float, num_layers: int
    ) -> tuple[tuple[str, ...], Any, float]:
        """Restore layers until the loss is small enough.

        Returns:
            The restored layers, the graph, and its loss: the smallest one if it stays too large.
        """
        best: tuple[tuple[str, ...], Any, float] = ((), self._static, static_drop)
        limit = min(len(ranked), max(1, int(num_layers * _MAX_FLOAT_SHARE)))
        for count in range(1, limit + 1):
            nodes = tuple(ranked[:count])
            graph = restore_layers(self._static, self._original, nodes)
            drop = self.drop(graph)
            if drop < best[2]:
                best = nodes, graph, drop
            if drop <= max_drop:
                break
        return best

    def _run(self, graph: Any, count: int | None = None) -> Logits:
        runner = GraphRunner(graph.SerializeToString())
        return runner.run(self._images.inputs(0, count), self._names)

    def _error(self, graph: Any) -> float:
        """Return the mean squared difference of the outputs from the float network's.

        Several outputs, which have units of their own, count in those of their variance.
        """
        logits = self._run(graph, _MAX_RANKED)
        total = 0.0
        for name, own in logits.items():
            expected = self._logits[name][:_MAX_RANKED]
            error = float(np.square(own - expected).mean())
            total += error if len(logits) == 1 else error / max(float(expected.var()), 1e-12)
        return total

    def _activated(self, logits: Logits) -> Tensor:
        tensors = {name: torch.from_numpy(array) for name, array in logits.items()}
        several: NetworkOutput = tensors
        outputs = self._task.activate(tensors[self._names[0]] if len(tensors) == 1 else several)
        return self._task.drop_outlier_score(outputs)

    def _score_of(self, outputs: Tensor) -> float:
        task, targets = self._task, self._images.targets
        if targets is not None:
            return task.training_metrics(task.decide(outputs), targets)[task.metric_names[0]]
        pairs = zip(outputs.numpy(), self._outputs.numpy(), self._images.frames, strict=True)
        same = [
            task.same_answer(task.postprocess(own, frame), task.postprocess(other, frame))
            for own, other, frame in pairs
        ]
        return float(np.mean(same))
