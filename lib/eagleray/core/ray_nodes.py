"""Launches the nodes of a Ray cluster on AWS: spot instances, and on-demand ones if there are none.

Ray's own launcher asks for a spot instance again and again while AWS has none: a failed launch does
not make it try another node type, with either of its autoscalers (2.60). `ray-cluster.yaml` names
this class. It needs boto3, which the wheel does not install, so it is a module of its own.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

__all__ = ["NO_SPOT_CAPACITY", "SpotFirstNodes"]

NO_SPOT_CAPACITY = frozenset(
    {
        "InsufficientInstanceCapacity",
        "MaxSpotInstanceCountExceeded",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
    }
)
"""Codes with which EC2 refuses spot instances that it may have on demand."""

_logger = logging.getLogger(__name__)


class SpotFirstNodes(AWSNodeProvider):  # type: ignore[misc]  # Ray has no types
    """Ray's nodes on AWS, which fall back from spot to on-demand instances."""

    def create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        """Launch up to `count` instances; return them by ID.

        Raises:
            NodeLaunchException: If AWS refuses for another reason than spot capacity, or has no
                on-demand capacity either.
        """
        try:
            return dict(super().create_node(node_config, tags, count))
        except NodeLaunchException as error:
            if "InstanceMarketOptions" not in node_config or error.category not in NO_SPOT_CAPACITY:
                raise
            _logger.warning(
                "AWS has no spot instances of %s (%s); launching on demand.",
                node_config.get("InstanceType", "this type"),
                error.category,
            )
        on_demand = {name: x for name, x in node_config.items() if name != "InstanceMarketOptions"}
        return dict(super().create_node(on_demand, tags, count))
