"""Who does the work of a batch job, on machines of every size."""

from __future__ import annotations

from typing import Any

import pytest

from eagleray.batch.pipeline import WorkerPool, shards_per_block
from eagleray.core.errors import InputError
from eagleray.core.node_types import ClusterLimits
from eagleray.core.ray_session import Cluster
from eagleray.core.types import DeviceChoice

GROWS = ClusterLimits(max_cpus=64, max_gpus=4, cpus_per_node=8, gpus_per_node=1, cpus_per_gpu=16)


def worker_pool(
    *,
    cpus: int = 2,
    gpus: int = 0,
    nodes: int = 1,
    shards: int = 1000,
    wanted: tuple[int, int] | None = None,
    split: bool | None = None,
    device: DeviceChoice = "auto",
    limits: ClusterLimits | None = None,
) -> WorkerPool:
    cluster = Cluster(cpus, gpus, embedded=limits is None, num_nodes=nodes, limits=limits)
    return WorkerPool.choose(cluster, shards, wanted=wanted, split=split, device=device)


@pytest.mark.parametrize(
    ("cpus", "nodes", "processes", "per_process", "per_node"),
    [
        (1, 1, 1, 1, 1),
        (2, 1, 1, 2, 1),
        (4, 1, 1, 4, 1),
        (6, 1, 2, 3, 2),
        (16, 1, 4, 4, 4),
        (3, 3, 3, 1, 1),
        (24, 3, 6, 4, 2),
    ],
)
def test_every_core_gets_a_worker_and_a_few_share_a_process(
    cpus: int, nodes: int, processes: int, per_process: int, per_node: int
) -> None:
    chosen = worker_pool(cpus=cpus, nodes=nodes)
    assert chosen.num_workers == cpus
    assert chosen.num_processes == processes
    assert chosen.per_process == per_process
    assert chosen.per_node == per_node
    assert (chosen.num_decoders, chosen.uses_gpu) == (0, False)


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_there_are_no_more_workers_than_shards(shards: int) -> None:
    chosen = worker_pool(cpus=16, shards=shards)
    assert chosen.num_workers == chosen.max_workers == shards
    assert chosen.num_processes * chosen.per_process >= shards


def test_a_wish_counts_workers_not_processes() -> None:
    chosen = worker_pool(cpus=8, wanted=(4, 16))
    assert (chosen.num_workers, chosen.max_workers) == (4, 16)
    assert (chosen.num_processes, chosen.max_processes) == (1, 4)


def test_beside_gpus_each_has_a_process_and_the_other_cores_decode() -> None:
    chosen = worker_pool(cpus=16, gpus=2)
    assert chosen.uses_gpu
    assert (chosen.num_workers, chosen.num_processes, chosen.per_process) == (2, 2, 1)
    assert chosen.num_decoders == 14


@pytest.mark.parametrize("cpus", [1, 2, 8])
def test_claimed_cores_leave_room_for_the_tasks_that_read(cpus: int) -> None:
    chosen = worker_pool(cpus=cpus)
    assert 0.5 * chosen.num_processes * chosen.per_process <= cpus / 2


def test_split_on_request_where_there_is_no_gpu() -> None:
    chosen = worker_pool(cpus=4, split=True)
    assert not chosen.uses_gpu
    assert (chosen.num_processes, chosen.per_process, chosen.num_decoders) == (4, 1, 4)


def test_a_cluster_at_zero_is_asked_for_all_that_it_could_have() -> None:
    chosen = worker_pool(cpus=0, device="cpu", limits=GROWS)
    assert (chosen.num_workers, chosen.max_workers, chosen.per_process) == (64, 64, 4)
    assert chosen.claim == {"num_cpus": 4.0}  # nodes that are added have a core for each worker
    assert chosen.per_node == 2


@pytest.mark.parametrize(
    ("wanted", "shards", "workers"),
    [((2, 16), 1000, 16), ((2, 100), 1000, 64), ((2, 16), 5, 5)],
)
def test_a_cluster_that_grows_is_asked_for_the_most_that_is_wanted(
    wanted: tuple[int, int], shards: int, workers: int
) -> None:
    chosen = worker_pool(cpus=0, device="cpu", wanted=wanted, shards=shards, limits=GROWS)
    assert (chosen.num_workers, chosen.max_workers) == (workers, workers)


def test_a_cluster_at_zero_is_asked_for_gpus_and_the_cores_beside_them() -> None:
    chosen = worker_pool(cpus=0, limits=GROWS)  # nothing is there, and GPUs are fastest
    assert (chosen.uses_gpu, chosen.num_workers, chosen.num_decoders) == (True, 4, 60)
    assert (chosen.per_node, chosen.claim) == (15, {"num_gpus": 1})


def test_cores_that_are_there_are_taken_before_gpus_are_added() -> None:
    assert not worker_pool(cpus=8, limits=GROWS).uses_gpu
    assert worker_pool(cpus=8, device="gpu", limits=GROWS).uses_gpu


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"wanted": (5, 9), "device": "gpu", "limits": GROWS}, "has 4 GPUs and does not grow"),
        ({"wanted": (129, 200), "device": "cpu", "limits": GROWS}, "64 CPU cores and does not"),
        ({"cpus": 2, "wanted": (5, 5)}, "the cluster has 2 CPU cores, which take 4 workers"),
        ({"device": "gpu"}, "--device gpu: the cluster has no GPU;"),
    ],
)
def test_what_a_cluster_never_has_is_refused(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        worker_pool(**asked)


@pytest.mark.parametrize(
    ("workers", "shards", "per_block"),
    [(2, 10, 1), (2, 255, 1), (2, 256, 2), (2, 6000, 16), (64, 6000, 1), (64, 2_000_000, 16)],
)
def test_a_block_names_several_shards_where_each_worker_has_many(
    workers: int, shards: int, per_block: int
) -> None:
    assert shards_per_block(worker_pool(cpus=workers), shards) == per_block


def test_a_block_names_one_shard_where_it_will_hold_its_pixels() -> None:
    assert shards_per_block(worker_pool(cpus=16, gpus=1), 2_000_000) == 1
