"""Finds which nodes an autoscaler may add to a Ray cluster: what the cluster could ever have."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagleray.core.errors import InputError
from eagleray.core.ray_private import autoscaling_config_file

__all__ = ["ClusterLimits", "find_limits"]


@dataclass(frozen=True, slots=True)
class ClusterLimits:
    """What a cluster could ever have, with all nodes that its autoscaler may add.

    Attributes:
        max_cpus: Number of CPU cores.
        max_gpus: Number of GPUs.
        cpus_per_node: Number of CPU cores of the largest node without a GPU, or else with some.
        gpus_per_node: Number of GPUs of the largest node that has some.
        cpus_per_gpu: Number of CPU cores for each GPU of the nodes that have some.
    """

    max_cpus: int
    max_gpus: int
    cpus_per_node: int
    gpus_per_node: int = 0
    cpus_per_gpu: int = 0


@dataclass(frozen=True, slots=True)
class _NodeType:
    cpus: int
    gpus: int
    max_count: int


def find_limits(node_types: str) -> ClusterLimits | None:
    """Return what the cluster that this process is connected to could ever have.

    Its autoscaler is told so in a file on the head, where commands of submitted jobs run. An
    autoscaler elsewhere, such as KubeRay's, is described by a setting.

    Args:
        node_types: The setting: JSON like `available_node_types` of Ray's configuration of
            clusters; "" to look for the file.

    Returns:
        None if it has no autoscaler that adds nodes, or none that is known.

    Raises:
        InputError: If the setting is not of that form.
    """
    if node_types:
        try:
            return _limits({"available_node_types": json.loads(node_types)})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"EAGLERAY_NODE_TYPES is not like available_node_types of Ray ({error}); write "
                'for example {"cpu": {"resources": {"CPU": 16}, "max_workers": 40}}.'
            ) from None
    import yaml  # which most commands need not wait for

    file = autoscaling_config_file()
    if file is not None:
        with contextlib.suppress(OSError, AttributeError, KeyError, TypeError, ValueError):
            return _limits(yaml.safe_load(Path(file).expanduser().read_text()))
    return None


def _limits(config: Mapping[str, Any]) -> ClusterLimits | None:
    """Return the limits of a cluster's configuration; None if it never grows."""
    limit = config.get("max_workers")
    types = [_node_type(entry, limit) for entry in config["available_node_types"].values()]
    types = [one for one in types if one.max_count and (one.cpus or one.gpus)]
    if not types:
        return None
    num_nodes = limit if limit is not None else sum(one.max_count for one in types)
    with_gpus = [one for one in types if one.gpus]
    without = [one for one in types if not one.gpus]
    return ClusterLimits(
        max_cpus=_most([(one.cpus, one.max_count) for one in types], num_nodes),
        max_gpus=_most([(one.gpus, one.max_count) for one in types], num_nodes),
        cpus_per_node=max(1, *(one.cpus for one in without or types)),
        gpus_per_node=max((one.gpus for one in with_gpus), default=0),
        cpus_per_gpu=max((one.cpus // one.gpus for one in with_gpus), default=0),
    )


def _node_type(entry: Mapping[str, Any], limit: int | None) -> _NodeType:
    resources = entry.get("resources") or {}
    max_count = entry.get("max_workers", limit or 0)
    return _NodeType(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)), int(max_count))


def _most(nodes: list[tuple[int, int]], num_nodes: int) -> int:
    """Return the most that so many nodes have, given what each kind has and how many there are."""
    total = 0
    for each, count in sorted(nodes, reverse=True):
        taken = min(count, num_nodes)
        total, num_nodes = total + taken * each, num_nodes - taken
    return total
