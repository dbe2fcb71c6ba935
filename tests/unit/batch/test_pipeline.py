"""Who does the work of a batch job, on machines of every size."""

from __future__ import annotations

import pytest

from eagleray.batch.pipeline import WorkerPool
from eagleray.core.ray_session import Cluster


def worker_pool(
    *,
    cpus: int = 2,
    gpus: int = 0,
    nodes: int = 1,
    shards: int = 1000,
    wanted: tuple[int, int] | None = None,
    split: bool | None = None,
) -> WorkerPool:
    cluster = Cluster(num_cpus=cpus, num_gpus=gpus, embedded=True, num_nodes=nodes)
    return WorkerPool.choose(cluster, shards, wanted=wanted, split=split)


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
