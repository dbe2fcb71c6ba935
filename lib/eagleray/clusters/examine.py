"""Runs the checks of `checks` on every node of the Ray that this process is connected to."""

from __future__ import annotations

import time
from typing import Any, Final

from eagleray.clusters.checks import CheckContext, Finding, check_clock, check_node
from eagleray.core.settings import read_settings

__all__ = ["examine_nodes"]

_SECONDS: Final = 60.0  # for a node to start a process and check what it reaches


def examine_nodes(context: CheckContext) -> list[Finding]:
    """Check all living nodes at the same time; one that does not answer is a finding.

    Args:
        context: What the driver has.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    examine = ray.remote(_examine)
    asked: dict[Any, tuple[str, float]] = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        name = str(node["NodeName"] or node["NodeManagerAddress"])
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = examine.options(num_cpus=0, scheduling_strategy=there, max_retries=0)
        reference = options.remote(context, name, node["Resources"].get("GPU", 0.0))
        asked[reference] = (name, time.time())
    findings: list[Finding] = []
    waiting = list(asked)
    deadline = time.monotonic() + _SECONDS
    while waiting and (left := deadline - time.monotonic()) > 0:
        done, waiting = ray.wait(waiting, timeout=left)
        for reference in done:
            findings += _collect(reference, *asked[reference])
    fault = f"It runs no tasks within {_SECONDS:.0f} s; see its memory, its disk and Ray's logs."
    return findings + [Finding(asked[each][0], "tasks", fault) for each in waiting]


def _collect(reference: Any, name: str, before: float) -> list[Finding]:
    import ray

    try:
        found, there = ray.get(reference)
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[-1]
        fault = f"Tasks fail there ({first}); install the driver's environment on the node."
        return [Finding(name, "tasks", fault)]
    return [*found, check_clock(name, before=before, there=there, after=time.time())]


def _examine(context: CheckContext, name: str, num_gpus: float) -> tuple[list[Finding], float]:
    return check_node(context, read_settings(), name, num_gpus=num_gpus), time.time()
