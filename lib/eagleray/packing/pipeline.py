"""Packs shards on Ray, a task for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from eagleray.core.ray_session import Cluster
from eagleray.packing.receipt import PackedShard
from eagleray.packing.worker import PackContext, pack_shard
from eagleray.sharded.attempts import run_until_done

__all__ = ["pack_shards"]

# Two tasks share a core: while one waits for storage the other one hashes and writes.
_CORES_PER_TASK = 0.5
_TASKS_PER_CORE = 4  # two that run and two that follow, also on nodes that are still to come
_MIN_TASKS = 64
_RETRIES = 3
_BASE_MEMORY = 256 * 2**20
_FILES_IN_MEMORY = 2  # a file is sent to an object store in pieces, which are copies


def pack_shards(
    pending: Sequence[int], context: PackContext, cluster: Cluster
) -> Iterator[PackedShard]:
    """Pack shards and yield each as it is done, in any order.

    Args:
        pending: Numbers of the shards.
        context: What the workers need to know.
        cluster: The cluster.

    Raises:
        JobFailedError: If a shard cannot be packed; what is done is kept.
    """
    import ray

    memory = _memory(context.file_bytes)
    task = ray.remote(num_cpus=_CORES_PER_TASK, memory=memory, max_retries=_RETRIES)(pack_shard)
    shared = ray.put(context)
    max_tasks = max(_MIN_TASKS, _TASKS_PER_CORE * cluster.num_cpus)

    def run_once(shards: list[int]) -> Iterator[PackedShard]:
        waiting = iter(shards)
        running = [task.remote(shared, shard) for shard in islice(waiting, max_tasks)]
        try:
            while running:
                (done,), running = ray.wait(running, num_returns=1)
                running += [task.remote(shared, shard) for shard in islice(waiting, 1)]
                yield ray.get(done)
        finally:
            for left in running:
                ray.cancel(left)

    yield from run_until_done(pending, run_once)


def _memory(file_bytes: int) -> int:
    """Return what a task claims, so that a node has no more of them than fit; some always do."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    smallest = min((int(node.get("memory", 0)) for node in nodes if node.get("CPU")), default=0)
    return min(_BASE_MEMORY + _FILES_IN_MEMORY * file_bytes, smallest)
