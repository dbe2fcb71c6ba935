"""A node that is drained before it ends, against one that is killed: what is done twice."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from eagleray.batch.context import JobContext
from eagleray.batch.pipeline import WorkerPool, run_shards
from eagleray.batch.shard_summary import ShardSummary
from eagleray.core.ray_session import ray_session
from eagleray.core.settings import Settings
from tests.support.noting_worker import IdleWorker, note, notes
from tests.support.processes import Child, end_orphans, family

ROOT = Path(__file__).parents[2]
NUM_SHARDS = 24
_SECONDS_A_SHARD = 1.0
_NOTICE_SECONDS = 6.0  # from the notice that a node ends to its end


class NotesBeginnings(IdleWorker):
    """Notes the node and number of each shard that it begins, and takes a second for it."""

    def __init__(self, context: Any, journal: Any) -> None:
        import ray

        super().__init__(context, journal)
        self._node = ray.get_runtime_context().get_node_id()
        self._notes: Path = ray.get(context)

    def work(self, shard: int) -> ShardSummary:
        note(self._notes, f"{self._node} {shard}")
        time.sleep(_SECONDS_A_SHARD)
        return super().work(shard)


@dataclass(frozen=True)
class Outcome:
    """What became of a job of which one node ended.

    Attributes:
        done: Number of shards that came to their end, and are different.
        repeated: Number of shards that were begun more than once.
        begun_after_notice: Number that were begun on the node more than a second after the notice.
    """

    done: int
    repeated: int
    begun_after_notice: int


def run_on_two_nodes(folder: Path, end_node: Callable[[Any, Any], None]) -> Outcome:
    """Run shards on two nodes, one of which ends in the middle.

    Args:
        folder: Folder for the notes.
        end_node: Ends a node; receives the cluster and the node.
    """
    from ray.cluster_utils import Cluster

    file = folder / "notes"
    # The nodes' workers import these tests.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "lib"), str(ROOT)])
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    cluster.wait_for_nodes()
    with ray_session(Settings(home=folder / "home"), address=cluster.address):
        pool = WorkerPool(2, 2, 1, 0, 1, 1, uses_gpu=False)
        context = cast("JobContext", file)
        done = []
        noted: list[str] = []
        for summary in run_shards(range(NUM_SHARDS), context, pool, worker=NotesBeginnings):
            done.append(summary.shard)
            if len(done) == 6:
                threading.Thread(target=end_node, args=(cluster, nodes[0])).start()
                threading.Timer(1.0, lambda: noted.extend(notes(file))).start()
    lines = notes(file)
    times = Counter(line.split()[1] for line in lines)
    later = [line for line in lines[len(noted) :] if line.startswith(nodes[0].node_id)]
    repeated = sum(count > 1 for count in times.values())
    return Outcome(len(set(done)), repeated, len(later))


def kill(_: Any, node: Any) -> None:
    node.kill_raylet()


def drain_and_kill(cluster: Any, node: Any) -> None:
    """Do what a cloud does: give notice, and end the node when its time is up."""
    from ray import _raylet
    from ray.core.generated import autoscaler_pb2

    compiled: Any = _raylet  # a module without types
    deadline = int(1000 * (time.time() + _NOTICE_SECONDS))
    accepted, why = compiled.GcsClient(address=cluster.address).drain_node(
        node.node_id,
        autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
        "a spot node is taken back",
        deadline,
    )
    assert accepted, why
    time.sleep(_NOTICE_SECONDS)
    node.kill_raylet()


@pytest.mark.long
def test_a_drained_node_begins_nothing(tmp_path: Path) -> None:
    outcomes = {}
    for name, end_node in (("kill", kill), ("drain", drain_and_kill)):
        folder = tmp_path / name
        folder.mkdir()
        child = Child(functools.partial(run_on_two_nodes, folder, end_node))
        try:
            ended = child.wait(270)
        finally:
            end_orphans(family(child.pid))
        assert not ended.error, ended.error
        outcomes[name] = ended.value
    print(outcomes)
    assert outcomes["kill"].done == outcomes["drain"].done == NUM_SHARDS
    assert outcomes["kill"].repeated >= 1  # what the worker had in progress
    assert (outcomes["drain"].begun_after_notice, outcomes["drain"].repeated) == (0, 0)
