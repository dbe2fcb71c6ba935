"""The clusters of `ray up`: their files, and what Ray's own autoscaler does with that of AWS."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from ray.autoscaler._private.aws.node_provider import make_ec2_resource
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.autoscaler import Autoscaler
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.core.generated import autoscaler_pb2 as wire

from eagleray.core.ray_nodes import SpotFirstNodes

ROOT = Path(__file__).parents[2]
AWS = ROOT / "ray-cluster.yaml"
FILES = [AWS, ROOT / "cluster/gcp.yaml", ROOT / "cluster/on-premises.yaml"]
CLOUDS = FILES[:2]
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
each_cloud = pytest.mark.parametrize("file", CLOUDS, ids=lambda file: file.name)


def read(file: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    return config


@each_file
def test_ray_accepts_the_file(file: Path) -> None:
    validate_config(prepare_config(read(file)))


@each_file
def test_the_head_has_no_cpus_and_its_dashboard_is_on_loopback(file: Path) -> None:
    config = read(file)
    (start,) = (line for line in config["head_start_ray_commands"] if "ray start" in line)
    assert "--head " in start
    assert "--num-cpus=0 --num-gpus=0 --dashboard-host=127.0.0.1" in start
    if "available_node_types" in config:
        head = config["available_node_types"][config["head_node_type"]]
        assert head["resources"] == {"CPU": 0, "GPU": 0}
        assert head["max_workers"] == 0


@each_file
def test_the_token_is_required_and_is_a_file_of_the_operator(file: Path) -> None:
    config = read(file)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    (line,) = (line for line in config["setup_commands"] if "export" in line)
    assert "RAY_AUTH_MODE=token" in line
    assert line.endswith("> ~/eagleray-node/environment.sh")
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert command.startswith(". ~/eagleray-node/environment.sh; ")


@each_file
def test_no_setting_is_in_the_file(file: Path) -> None:
    config = read(file)
    assert config["file_mounts"]["~/eagleray-node/cluster.env"] == "~/.config/eagleray/cluster.env"
    assert not any("EAGLERAY_" in line or "AUTH_TOKEN=" in line for line in str(config).split())


@each_file
def test_all_files_set_nodes_up_in_the_same_way(file: Path) -> None:
    ours, aws = read(file), read(AWS)
    for part in ("file_mounts", "setup_commands", "worker_start_ray_commands"):
        assert ours[part] == aws[part]


@each_cloud
def test_nodes_start_from_zero_and_go_when_they_are_idle(file: Path) -> None:
    config = read(file)
    workers = {k: v for k, v in config["available_node_types"].items() if k != "head"}
    assert all(node["min_workers"] == 0 and node["max_workers"] > 0 for node in workers.values())
    assert any(node["resources"].get("GPU") for node in workers.values())
    assert any("GPU" not in node["resources"] for node in workers.values())
    assert config["idle_timeout_minutes"] == 5


HEAD = {"node:__internal_head__": 1.0}  # by this the autoscaler knows the head's node


class ControlStore:
    """What Ray's control store tells its autoscaler: EC2's nodes are Ray's, and tasks wait.

    `cpus` and `gpus` are what tasks of one CPU or one GPU need in all; a node takes 16, or one.
    """

    address = "127.0.0.1:6379"

    def __init__(self, ec2: Any, cluster: str) -> None:
        self.ec2 = ec2
        self.cluster = cluster
        self.cpus = 0
        self.gpus = 0
        self.drained: set[str] = set()
        self.version = 0

    def get_cluster_resource_state(self) -> bytes:
        self.version += 1
        state = wire.ClusterResourceState(
            cluster_resource_state_version=self.version, cluster_session_name="session"
        )
        nodes = [self._node(node) for node in instances(self.ec2, self.cluster)]
        state.node_states.extend(nodes)
        kinds = Counter(node.ray_node_type_name for node in nodes)
        for resource, missing in (
            ("CPU", self.cpus - 16 * kinds["cpu"]),
            ("GPU", self.gpus - kinds["gpu"]),
        ):
            request = wire.ResourceRequest(resources_bundle={resource: 1})
            state.pending_resource_requests.append(
                wire.ResourceRequestByCount(request=request, count=max(missing, 0))
            )
        reply = wire.GetClusterResourceStateReply(cluster_resource_state=state)
        return bytes(reply.SerializeToString())

    def _node(self, node: Any) -> Any:
        kind = tags_of(node)[TAG_RAY_USER_NODE_TYPE]
        idle = not self.cpus and not self.gpus and kind != "head"
        status = wire.NodeStatus.IDLE if idle else wire.NodeStatus.RUNNING
        return wire.NodeState(
            node_id=node.id.encode(),
            instance_id=node.id,
            ray_node_type_name=kind,
            total_resources=HEAD if kind == "head" else {},
            idle_duration_ms=6 * 60 * 1000 if idle else 0,
            status=wire.NodeStatus.DEAD if node.id in self.drained else status,
        )

    def drain_node(self, node_id: str, **reasons: object) -> tuple[bool, str]:
        self.drained.add(bytes.fromhex(node_id).decode())
        return True, ""


def tags_of(node: Any) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in node.tags}


def instances(ec2: Any, cluster: str) -> list[Any]:
    """Return the instances of a cluster that run, or are about to."""
    wanted = {"tag:ray-cluster-name": [cluster], "instance-state-name": ["pending", "running"]}
    return list(ec2.instances.filter(Filters=[{"Name": k, "Values": v} for k, v in wanted.items()]))


class Cluster:
    """The cluster of `ray-cluster.yaml` on moto's EC2: Ray's autoscaler, without its SSH."""

    def __init__(self, folder: Path, session: boto3.Session, name: str) -> None:
        config = read(AWS)
        config["cluster_name"] = name  # the launch templates stay those of the file's environment
        config["provider"] |= {"region": "us-east-1", "disable_node_updaters": True}
        config["auth"]["ssh_private_key"] = str(folder / "key.pem")
        for node in config["available_node_types"].values():
            node["node_config"]["KeyName"] = "operator"
        config = SpotFirstNodes.fillout_available_node_types_resources(prepare_config(config))
        self.config = SpotFirstNodes.bootstrap_config(config)
        self.config.pop("head_node")
        validate_config(self.config)
        self.name = name
        self.ec2 = session.resource("ec2")
        self.nodes = SpotFirstNodes(self.config["provider"], name)
        head = copy.deepcopy(self.config["available_node_types"]["head"]["node_config"])
        self.nodes.create_node(head, {TAG_RAY_NODE_KIND: "head", TAG_RAY_USER_NODE_TYPE: "head"}, 1)
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(self.config))
        self.store = ControlStore(self.ec2, name)
        self.autoscaler = Autoscaler("session", FileConfigReader(str(file)), self.store)

    def workers(self) -> dict[str, int]:
        """Count the nodes by type and by how they were bought, as in `cpu spot`."""
        nodes = [(tags_of(node), node) for node in instances(self.ec2, self.name)]
        return Counter(
            f"{tags[TAG_RAY_USER_NODE_TYPE]} {node.instance_lifecycle or 'on-demand'}"
            for tags, node in nodes
            if tags[TAG_RAY_NODE_KIND] == "worker"
        )

    def settle(self, expected: dict[str, int]) -> dict[str, int]:
        """Run the autoscaler until there are these nodes, and a while longer; return what is."""
        deadline = time.monotonic() + 30
        while self.workers() != expected and time.monotonic() < deadline:
            self._update()
        for _ in range(3):
            self._update()
        return self.workers()

    def _update(self) -> None:
        assert self.autoscaler.update_autoscaling_state() is not None
        time.sleep(0.3)


class Refusals:
    """EC2's refusals of spot instances: `code` is why, or nothing."""

    code = ""

    def __call__(self, params: dict[str, Any], **_: object) -> None:
        if self.code and "InstanceMarketOptions" in params:
            raise ClientError({"Error": {"Code": self.code, "Message": "no"}}, "RunInstances")
        params["MinCount"] = params["MaxCount"]  # moto launches the least, EC2 the most


@pytest.fixture
def refusals(aws: boto3.Session) -> Iterator[Refusals]:
    # Ray keeps one client for all clusters.
    events = make_ec2_resource("us-east-1", 0).meta.client.meta.events
    refusals = Refusals()
    events.register("before-parameter-build.ec2.RunInstances", refusals)
    yield refusals
    events.unregister("before-parameter-build.ec2.RunInstances", refusals)


@pytest.fixture
def start(aws: boto3.Session, refusals: Refusals, tmp_path: Path) -> Callable[[str], Cluster]:
    (tmp_path / "key.pem").touch()
    return lambda name: Cluster(tmp_path, aws, name)


def test_nodes_have_the_roles_the_group_and_the_disks_of_their_template(
    start: Callable[[str], Cluster], aws: boto3.Session
) -> None:
    cluster = start("as-written")
    cluster.store.cpus, cluster.store.gpus = 16, 1
    expected = {"cpu spot": 1, "gpu spot": 1}
    assert cluster.settle(expected) == expected
    for node in instances(cluster.ec2, "as-written"):
        role = tags_of(node)[TAG_RAY_NODE_KIND]
        assert node.iam_instance_profile["Arn"].endswith(f"/eagleray-ray-{role}")
        assert [group["GroupName"] for group in node.security_groups] == ["eagleray-ray"]
        assert node.metadata_options["HttpTokens"] == "required"
        assert all(volume.encrypted for volume in node.volumes.all())
    groups = aws.client("ec2").describe_security_groups()["SecurityGroups"]
    assert not [one for one in groups if one["GroupName"].startswith("ray-autoscaler")]


def test_a_cluster_grows_from_zero_and_shrinks_to_it(start: Callable[[str], Cluster]) -> None:
    cluster = start("grows")
    assert cluster.settle({}) == {}
    cluster.store.cpus = 40
    assert cluster.settle({"cpu spot": 3}) == {"cpu spot": 3}
    cluster.store.cpus = 0
    assert cluster.settle({}) == {}


def test_a_spot_instance_that_aws_takes_back_is_replaced(start: Callable[[str], Cluster]) -> None:
    cluster = start("refilled")
    cluster.store.cpus = 32
    assert cluster.settle({"cpu spot": 2}) == {"cpu spot": 2}
    lost = next(x for x in instances(cluster.ec2, "refilled") if x.instance_lifecycle == "spot")
    lost.terminate()
    assert cluster.workers() == {"cpu spot": 1}
    assert cluster.settle({"cpu spot": 2}) == {"cpu spot": 2}


def test_without_spot_capacity_nodes_are_on_demand(
    start: Callable[[str], Cluster], refusals: Refusals, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = start("falls-back")
    refusals.code = "InsufficientInstanceCapacity"
    cluster.store.cpus = 32
    assert cluster.settle({"cpu on-demand": 2}) == {"cpu on-demand": 2}
    assert "no spot instances of c7i.4xlarge (InsufficientInstanceCapacity)" in caplog.text
    refusals.code = ""  # there is capacity again
    cluster.store.cpus = 48
    expected = {"cpu on-demand": 2, "cpu spot": 1}
    assert cluster.settle(expected) == expected


def test_a_refusal_for_another_reason_does_not_cost_more(
    start: Callable[[str], Cluster], refusals: Refusals
) -> None:
    cluster = start("refused")
    refusals.code = "UnauthorizedOperation"
    config = copy.deepcopy(cluster.config["available_node_types"]["cpu"]["node_config"])
    with pytest.raises(NodeLaunchException, match="UnauthorizedOperation"):
        cluster.nodes.create_node(config, {TAG_RAY_NODE_KIND: "worker"}, 1)
    assert cluster.workers() == {}
