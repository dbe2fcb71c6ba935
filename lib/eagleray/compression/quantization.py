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

from eagleray.compression.calibration import SampleImages
from eagleray.compression.held_out import HeldOutComparison, HeldOutLoss
from eagleray.compression.layers import quantized_layers, restore_layers
from eagleray.compression.nncf_backend import import_nncf
from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import InputError
from eagleray.models.graph_export import export_graph
from eagleray.models.package import ModelPackage

__all__ = ["QuantizedGraph", "quantize_graph"]

_MAX_FLOAT_SHARE = 0.25  # of the layers; with more of them in float32 little speed is left
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_TRANSFORMER_OPERATORS = frozenset({"LayerNormalization", "Softmax"})


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
        max_difference: Largest difference of a summary of outputs from that of the float network.
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
    with reporter.status("Comparing with the float network"):
        compared = HeldOutComparison(package, held_out, content)
        found = _Restored((), static, compared.compare(static))
    static_drop = found.loss.drop
    if static_drop > max_drop:
        with reporter.progress("Finding the layers that lose most", len(layers)) as bar:
            ranked = _rank(compared, static, original, list(layers), bar.advance)
        with reporter.status("Restoring the layers that lose most"):
            found = _restore(
                compared, found, original, ranked, max_drop=max_drop, num_layers=len(layers)
            )
    return QuantizedGraph(
        content=found.graph.SerializeToString(),
        num_layers=len(layers),
        float_layers=tuple(layers[node] for node in layers if node in found.nodes),
        score=compared.score_name,
        num_held_out=len(held_out),
        image_share=compared.image_share,
        drop=found.loss.drop,
        static_drop=static_drop,
        max_difference=found.loss.max_difference,
    )


@dataclass(frozen=True, slots=True)
class _Restored:
    """A quantized graph with some layers in float32, and what it loses.

    Attributes:
        nodes: Names of the nodes of these layers.
        graph: The `onnx.ModelProto`.
        loss: What it loses on held-out images.
    """

    nodes: tuple[str, ...]
    graph: Any
    loss: HeldOutLoss


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


def _rank(
    compared: HeldOutComparison, static: Any, original: Any, nodes: Sequence[str], advance: Any
) -> list[str]:
    """Return the layers whose restoration brings the outputs nearer, the best first."""
    before = compared.error(static)
    gains = {}
    for node in nodes:
        gains[node] = before - compared.error(restore_layers(static, original, {node}))
        advance(1)
    return sorted((node for node in nodes if gains[node] > 0), key=lambda node: -gains[node])


def _restore(
    compared: HeldOutComparison,
    best: _Restored,
    original: Any,
    ranked: Sequence[str],
    *,
    max_drop: float,
    num_layers: int,
) -> _Restored:
    """Restore layers until the loss is small enough; return the graph with the smallest one.

    Args:
        compared: Compares graphs with the float network.
        best: The graph with all layers quantized.
        original: The `onnx.ModelProto` in float32.
        ranked: The layers in the order in which they are restored.
        max_drop: The loss that is small enough.
        num_layers: Number of layers of the network.
    """
    static = best.graph
    limit = min(len(ranked), max(1, int(num_layers * _MAX_FLOAT_SHARE)))
    for count in range(1, limit + 1):
        nodes = tuple(ranked[:count])
        graph = restore_layers(static, original, nodes)
        loss = compared.compare(graph)
        if loss.drop < best.loss.drop:
            best = _Restored(nodes, graph, loss)
        if loss.drop <= max_drop:
            break
    return best
