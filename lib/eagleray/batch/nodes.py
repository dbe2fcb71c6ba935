"""Refuses an engine or a precision that a node of a cluster lacks, before a job begins.

    require_nodes_able("openvino", "bfloat16", manifest, uses_gpu=False)

Every node with a core, or a GPU if the workers use them, is asked at the same time. A node that
does not answer is left to the workers, which check again when they start. What a node starts and
imports for its answer, its worker uses afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from eagleray.core.errors import UnsupportedError, UserError
from eagleray.core.types import Precision
from eagleray.models.package import ModelManifest

__all__ = ["describe_faults", "require_nodes_able"]

_SECONDS: Final = 60.0  # for a node to start a process and import PyTorch


def require_nodes_able(
    engine: str, precision: Precision, manifest: ModelManifest, *, uses_gpu: bool
) -> None:
    """Refuse an engine or a precision that a living node of this Ray cannot run a model with.

    Args:
        engine: Name of the engine, or `auto`.
        precision: Precision that is asked for.
        manifest: Manifest of the model package.
        uses_gpu: Whether the workers have a GPU each.

    Raises:
        UnsupportedError: If a node cannot; the message names it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    check = ray.remote(_fault)
    pending: dict[Any, str] = {}
    for node in ray.nodes():
        if not node["Alive"] or not node["Resources"].get("GPU" if uses_gpu else "CPU"):
            continue
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = check.options(num_cpus=0, scheduling_strategy=there, max_retries=0)
        reference = options.remote(engine, precision, manifest, uses_gpu)
        pending[reference] = str(node["NodeName"] or node["NodeManagerAddress"])
    done, _ = (
        ray.wait(list(pending), num_returns=len(pending), timeout=_SECONDS) if pending else ([], [])
    )
    faults = {pending[reference]: _collect(reference) for reference in done}
    if sentence := describe_faults(faults, len(pending)):
        raise UnsupportedError(sentence)


def describe_faults(faults: dict[str, str], num_nodes: int) -> str:
    """Return one sentence on the fault that most nodes have; "" if there is none.

    Args:
        faults: Sentence of each node; "" for none.
        num_nodes: Number of nodes that were asked.
    """
    nodes: defaultdict[str, list[str]] = defaultdict(list)
    for node, fault in faults.items():
        if fault:
            nodes[fault].append(node)
    if not nodes:
        return ""
    fault = max(nodes, key=lambda one: len(nodes[one]))
    names = sorted(nodes[fault])
    if len(names) == 1:
        return f"On node {names[0]} of {num_nodes}: {fault}"
    return f"On {len(names)} of {num_nodes} nodes, such as {names[0]}: {fault}"


def _collect(reference: Any) -> str:
    import ray

    try:
        return str(ray.get(reference))
    except ray.exceptions.RayError:  # the node ended, or starts no processes
        return ""


def _fault(engine: str, precision: Precision, manifest: ModelManifest, uses_gpu: bool) -> str:
    """Return why this node cannot run a model; "" if it can."""
    from eagleray.inference.choice import require_engine, require_precision_here

    device = "cuda" if uses_gpu else "cpu"
    try:
        require_engine(engine, manifest, device, precision)
        if not uses_gpu:
            require_precision_here(engine, precision)
    except UserError as error:
        return str(error)
    return ""
