"""Shards through Ray, a task for each, until every one has its receipt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from eagleray.core.errors import EaglerayError, JobFailedError
from eagleray.core.ray_errors import read_failure
from eagleray.core.ray_session import Cluster
from eagleray.packing.receipt import PackedShard
from eagleray.packing.worker import PackContext, pack_shard

__all__ = ["pack_on"]

# Two tasks share a core: while one waits for storage the other one hashes and writes.
_CORES_PER_TASK = 0.5
_TASKS_PER_CORE = 4  # two at work and two that follow, also on nodes that are still to come
_MIN_TASKS = 64
_RETRIES = 3
_BASE_MEMORY = 256 * 2**20
_PARTS_IN_MEMORY = 2  # object stores are given a part in pieces, which are copies


def pack_on(cluster: Cluster, shards: Sequence[int], context: PackContext) -> Iterator[PackedShard]:
    """Pack shards and yield each as it is done, in any order.

    Workers and nodes may die: Ray gives what was lost to others.

    Raises:
        JobFailedError: A shard cannot be packed; what is done is kept.
    """
    import ray

    task = ray.remote(
        num_cpus=_CORES_PER_TASK, memory=_memory(context.part_bytes), max_retries=_RETRIES
    )(pack_shard)
    shared = ray.put(context)
    waiting = iter(shards)
    most = max(_MIN_TASKS, _TASKS_PER_CORE * cluster.num_cpus)
    running = [task.remote(shared, shard) for shard in islice(waiting, most)]
    try:
        while running:
            (done,), running = ray.wait(running, num_returns=1)
            running += [task.remote(shared, shard) for shard in islice(waiting, 1)]
            yield ray.get(done)
    except ray.exceptions.RayError as error:
        raise _as_ours(error) from error
    finally:
        for left in running:
            ray.cancel(left)


def _memory(part_bytes: int) -> int:
    """Return what a task claims, so that a node has no more of them than fit; some always do."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    smallest = min((int(node.get("memory", 0)) for node in nodes if node.get("CPU")), default=0)
    return min(_BASE_MEMORY + _PARTS_IN_MEMORY * part_bytes, smallest)


def _as_ours(error: Exception) -> EaglerayError:
    failure = read_failure(error)
    return failure.error or JobFailedError(
        f"The workers stopped ({failure.message}); what is done is kept: run the same command "
        "again to go on, with --verbose for the workers' output."
    )
