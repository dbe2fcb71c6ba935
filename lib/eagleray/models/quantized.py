"""Makes the package of a quantized network from that of the float network.

The quantized package keeps the task with its temperature and thresholds, the contract, the labels
and the golden images. Their expected outputs are those of the quantized network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from eagleray.core.types import HEALTH_TOLERANCE
from eagleray.imaging.contract import canonical_json
from eagleray.models.golden import GoldenSet
from eagleray.models.graph import check_graph
from eagleray.models.manifest import Lineage, ModelManifest, Quantization
from eagleray.models.package import ModelPackage
from eagleray.models.package_files import GOLDEN_FILE, GRAPH_FILE
from eagleray.tasks import Task

__all__ = ["create_quantized_package", "fit_tolerance"]

MIN_TOLERANCE = 0.01
"""Smallest tolerance of the golden images of a quantized package, in the task's unit."""


def fit_tolerance(task: Task, max_difference: float) -> float:
    """Return the tolerance of golden images for a difference that quantization makes.

    Kernels of other CPUs round sums at other places, which changes outputs by as much as
    quantization itself does at most.

    Args:
        task: The task.
        max_difference: Largest difference of an output from that of the float network.
    """
    limit = HEALTH_TOLERANCE["int8"]
    return min(max(max_difference / task.unit, MIN_TOLERANCE), limit) * task.unit


def create_quantized_package(
    parent: ModelPackage,
    graph: bytes,
    *,
    quantization: Quantization,
    lineage: Lineage,
    tolerance: float,
    golden_outputs: Sequence[Sequence[float]] = (),
    metrics: Mapping[str, float] = MappingProxyType({}),
) -> ModelPackage:
    """Make a package from a quantized graph.

    Args:
        parent: The package of the float network.
        graph: The ONNX file.
        quantization: How the graph was made.
        lineage: The origin of the package, with the parent's digest.
        tolerance: Largest difference of an output of a golden image from the expected one.
        golden_outputs: Outputs of the quantized network for the parent's golden images; none leaves
            these out.
        metrics: Metrics of its evaluation.

    Raises:
        PackageError: If the graph is refused.
    """
    files = {GRAPH_FILE: graph, **_golden_files(parent, golden_outputs, tolerance)}
    manifest = ModelManifest(
        **{
            **{name: getattr(parent.manifest, name) for name in ModelManifest.model_fields},
            "metrics": dict(metrics),
            "lineage": lineage,
            "quantization": quantization,
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        }
    )
    check_graph(GRAPH_FILE, graph, manifest)
    return ModelPackage(manifest, MappingProxyType(files))


def _golden_files(
    parent: ModelPackage, outputs: Sequence[Sequence[float]], tolerance: float
) -> dict[str, bytes]:
    if not outputs:
        return {}
    images = tuple(
        image.model_copy(update={"outputs": tuple(row)})
        for image, row in zip(parent.golden.images, outputs, strict=True)
    )
    golden = GoldenSet(tolerance=tolerance, images=images)
    text = canonical_json(golden.model_dump(mode="json"))
    return {GOLDEN_FILE: text.encode(), **{one.file: parent.files[one.file] for one in images}}
