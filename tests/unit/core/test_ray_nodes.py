from __future__ import annotations

from typing import Any

import pytest
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

from eagleray.core.ray_nodes import NO_SPOT_CAPACITY, SpotFirstNodes

SPOT = {"InstanceType": "c7i.4xlarge", "InstanceMarketOptions": {"MarketType": "spot"}}
ON_DEMAND = {"InstanceType": "c7i.4xlarge"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What AWS is asked for; it has no spot instances, for the reason that a tag names."""
    asked = []

    def create_node(
        self: object, config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, int]:
        asked.append(config)
        if "InstanceMarketOptions" in config or tags["reason"] == "Everything":
            raise NodeLaunchException(tags["reason"], "refused", None)
        return {"i-1": count}

    monkeypatch.setattr(AWSNodeProvider, "create_node", create_node)
    return asked


def nodes() -> SpotFirstNodes:
    return SpotFirstNodes.__new__(SpotFirstNodes)  # without a client of AWS


@pytest.mark.parametrize("code", sorted(NO_SPOT_CAPACITY))
def test_what_is_not_had_as_spot_is_bought_on_demand(
    asked: list[dict[str, Any]], code: str
) -> None:
    assert nodes().create_node(SPOT, {"reason": code}, 2) == {"i-1": 2}
    assert asked == [SPOT, ON_DEMAND]


def test_other_refusals_are_reported(asked: list[dict[str, Any]]) -> None:
    with pytest.raises(NodeLaunchException, match="UnauthorizedOperation"):
        nodes().create_node(SPOT, {"reason": "UnauthorizedOperation"}, 1)
    assert asked == [SPOT]


def test_on_demand_nodes_are_asked_for_once(asked: list[dict[str, Any]]) -> None:
    with pytest.raises(NodeLaunchException):
        nodes().create_node(ON_DEMAND, {"reason": "Everything"}, 1)
    assert asked == [ON_DEMAND]
