"""Packs shards on Ray, a task for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from eagleray.core.ray_session import Cluster
from eagleray.core.yielding import Turn, YieldSignal
from eagleray.packing.receipt import PackedShard
from eagleray.packing.worker import PackContext, pack_shard
from eagleray.sharded.attempts import ShardJournal, Shards, run_until_done
from eagleray.sharded.plan import new_id

__all__ = ["PackOne", "pack_or_hand_back", "pack_shards"]

PackOne = Callable[[PackContext, ShardJournal, int], PackedShard | None]
"""Packs a shard on a worker; returns None for one that is handed back."""

# Two tasks share a core: while one waits for storage the other one hashes and writes.
_CORES_PER_TASK = 0.5
_TASKS_PER_CORE = 4  # two that run and two that follow, also on nodes that are still to come
_MIN_TASKS = 64
_RETRIES = 3
_BASE_MEMORY = 256 * 2**20
_FILES_IN_MEMORY = 2  # a file is sent to an object store in pieces, which are copies


def pack_shards(
    pending: Sequence[int] | Shards,
    context: PackContext,
    cluster: Cluster,
    turn: Turn | None = None,
    *,
    pack: PackOne | None = None,
) -> Iterator[PackedShard]:
    """Pack shards and yield each as it is done, in any order.

    Args:
        pending: Numbers of the shards.
        context: What the workers need to know.
        cluster: The cluster.
        turn: When it is over, no further shard is begun, and those left are not yielded.
        pack: Packs a shard on a worker; None for `pack_or_hand_back`.

    Raises:
        JobFailedError: If a shard cannot be packed; what is done is kept.
    """
    import ray

    memory = _memory(context.file_bytes)
    task = ray.remote(num_cpus=_CORES_PER_TASK, memory=memory, max_retries=_RETRIES)(
        pack or pack_or_hand_back
    )
    shared = ray.put(context)
    journal, turn = ShardJournal(new_id()), turn or Turn(YieldSignal())
    max_tasks = max(_MIN_TASKS, _TASKS_PER_CORE * cluster.max_cpus)

    def run_once(shards: Shards) -> Iterator[PackedShard]:
        waiting = iter(shards)
        running = [task.remote(shared, journal, shard) for shard in islice(waiting, max_tasks)]
        try:
            while running:
                (done,), running = ray.wait(running, num_returns=1)
                following = islice(waiting, 0 if turn.over else 1)
                running += [task.remote(shared, journal, shard) for shard in following]
                packed = ray.get(done)
                if packed is not None:
                    yield packed
        finally:
            for left in running:
                ray.cancel(left)

    with journal.kept(turn):
        yield from run_until_done(pending, run_once, turn)


def pack_or_hand_back(
    context: PackContext, journal: ShardJournal, shard: int
) -> PackedShard | None:
    """Pack a shard on a worker, unless shards are handed back."""
    return None if journal.hands_back else pack_shard(context, int(shard))


def _memory(file_bytes: int) -> int:
    """Return what a task claims, so that a node has no more of them than fit; some always do."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    smallest = min((int(node.get("memory", 0)) for node in nodes if node.get("CPU")), default=0)
    return min(_BASE_MEMORY + _FILES_IN_MEMORY * file_bytes, smallest)
