"""Packs shards on Ray, a task for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from eagleray.core.ray_session import Cluster
from eagleray.core.yielding import Turn
from eagleray.packing.receipt import PackedShard
from eagleray.packing.worker import PackContext, pack_shard
from eagleray.sharded.attempts import ShardJournal, Shards, run_until_done
from eagleray.sharded.plan import new_id

__all__ = ["pack_shards"]

# Two tasks share a core: while one waits for storage the other one hashes and writes.
_CORES_PER_TASK = 0.5
_TASKS_PER_CORE = 4  # two that run and two that follow, also on nodes that are still to come
_MIN_TASKS = 64
_RETRIES = 3
_BASE_MEMORY = 256 * 2**20
_SECONDS_BETWEEN_LOOKS = 0.5  # whether the job is asked to yield
_FILES_IN_MEMORY = 2  # a file is sent to an object store in pieces, which are copies


def pack_shards(
    pending: Sequence[int] | Shards,
    context: PackContext,
    cluster: Cluster,
    turn: Turn | None = None,
) -> Iterator[PackedShard]:
    """Pack shards and yield each as it is done, in any order.

    Args:
        pending: Numbers of the shards.
        context: What the workers need to know.
        cluster: The cluster.
        turn: When it is over, no further shard is begun, and those left are not yielded.

    Raises:
        JobFailedError: If a shard cannot be packed; what is done is kept.
    """
    import ray

    memory = _memory(context.file_bytes)
    task = ray.remote(num_cpus=_CORES_PER_TASK, memory=memory, max_retries=_RETRIES)(_pack_shard)
    shared = ray.put(context)
    journal = ShardJournal(new_id())
    max_tasks = max(_MIN_TASKS, _TASKS_PER_CORE * cluster.max_cpus)

    def run_once(shards: Shards) -> Iterator[PackedShard]:
        waiting = iter(shards)
        running = [task.remote(shared, journal, shard) for shard in islice(waiting, max_tasks)]
        try:
            while running:
                done, running = ray.wait(running, num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)
                if turn is not None and turn.over:
                    journal.close()
                else:
                    following = islice(waiting, len(done))
                    running += [task.remote(shared, journal, shard) for shard in following]
                yield from filter(None, ray.get(done))
        finally:
            for left in running:
                ray.cancel(left)

    try:
        yield from run_until_done(pending, run_once, turn)
    finally:
        journal.forget()


def _pack_shard(context: PackContext, journal: ShardJournal, shard: int) -> PackedShard | None:
    """Pack a shard on a worker, unless shards are handed back."""
    return None if journal.is_closed else pack_shard(context, int(shard))


def _memory(file_bytes: int) -> int:
    """Return what a task claims, so that a node has no more of them than fit; some always do."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    smallest = min((int(node.get("memory", 0)) for node in nodes if node.get("CPU")), default=0)
    return min(_BASE_MEMORY + _FILES_IN_MEMORY * file_bytes, smallest)
