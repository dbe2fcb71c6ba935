"""What a cluster could ever have, by the configuration of its autoscaler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from eagleray.core import node_types
from eagleray.core.errors import InputError
from eagleray.core.node_types import ClusterLimits, find_limits

ROOT = Path(__file__).parents[3]


def test_the_limits_of_our_cluster_on_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(ROOT / "ray-cluster.yaml")
    monkeypatch.setattr(node_types, "autoscaling_config_file", lambda: file)
    assert find_limits("") == ClusterLimits(
        max_cpus=640, max_gpus=8, cpus_per_node=16, gpus_per_node=1, cpus_per_gpu=16
    )


def test_the_number_of_all_nodes_limits_those_of_each_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    types = {
        "large": {"resources": {"CPU": 16}, "max_workers": 3},
        "small": {"resources": {"CPU": 4, "GPU": 2}},
        "unknown": {"resources": {}, "max_workers": 9},
    }
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({"max_workers": 5, "available_node_types": types}))
    monkeypatch.setattr(node_types, "autoscaling_config_file", lambda: str(file))
    found = find_limits("")
    assert found is not None
    assert (found.max_cpus, found.max_gpus) == (3 * 16 + 2 * 4, 10)
    assert (found.cpus_per_node, found.gpus_per_node, found.cpus_per_gpu) == (16, 2, 2)


@pytest.mark.parametrize(
    "types",
    [{}, {"head": {"resources": {"CPU": 8}, "max_workers": 0}}, {"local": {"resources": {}}}],
)
def test_a_cluster_without_nodes_to_add_does_not_grow(types: dict[str, object]) -> None:
    assert find_limits(json.dumps(types)) is None


@pytest.mark.parametrize(
    "setting", ["{", "[]", '{"cpu": 3}', '{"cpu": {"resources": {"CPU": "x"}}}']
)
def test_a_setting_of_another_form_is_one_sentence(setting: str) -> None:
    with pytest.raises(InputError, match=r"^EAGLERAY_NODE_TYPES is not like [^\n]+$"):
        find_limits(setting)
