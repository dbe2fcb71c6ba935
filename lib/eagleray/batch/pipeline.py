"""Runs shards through Ray Data.

On a node without a GPU each core reads, decodes, predicts and writes a shard: moving a decoded
image between processes costs more than it saves. A few cores share a process, and with it PyTorch
and the network; all cores of a large node would wait for each other's Python there. Beside GPUs
decoding has actors of its own, on all cores, and each GPU's actor gets decoded shards. The driver
receives one line of summary for each shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from eagleray.batch.context import JobContext
from eagleray.batch.shard_summary import ShardSummary
from eagleray.batch.worker import SHARD_COLUMN, DecodeWorker, PredictWorker, ShardWorker
from eagleray.core.ray_private import iterate_blocks, map_blocks, use_whole_blocks
from eagleray.core.ray_session import Cluster
from eagleray.sharded.attempts import ShardJournal, run_until_done
from eagleray.sharded.plan import new_id

__all__ = ["WorkerPool", "run_shards", "shard_dataset"]

_SHARDS_PER_WORKER = 2  # the next one is there when the last one is done
_MAX_PER_PROCESS = 4


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """The workers of a job.

    Attributes:
        num_workers: Number of shards predicted at a time when the job starts.
        max_workers: Number that the job may grow to if the cluster grows.
        per_process: Number of workers that are threads of one process, and share PyTorch and the
            network's weights.
        num_decoders: Number of processes that only decode; 0 if the workers decode themselves.
        threads: Number of threads of each worker on a CPU, and of each that decodes.
        per_node: Number of processes that share a node's memory.
        uses_gpu: Whether each worker has a GPU.
    """

    num_workers: int
    max_workers: int
    per_process: int
    num_decoders: int
    threads: int
    per_node: int
    uses_gpu: bool

    @property
    def num_processes(self) -> int:
        """Number of processes that predict when the job starts."""
        return -(-self.num_workers // self.per_process)

    @property
    def max_processes(self) -> int:
        """Number of processes that predict when the cluster has grown."""
        return -(-self.max_workers // self.per_process)

    @classmethod
    def choose(
        cls,
        cluster: Cluster,
        num_shards: int,
        *,
        wanted: tuple[int, int] | None = None,
        split: bool | None = None,
    ) -> WorkerPool:
        """Take what the cluster has, or as many workers as wanted; never more than shards.

        Args:
            cluster: The cluster.
            num_shards: Number of shards to do.
            wanted: Minimum and maximum number of workers; None for one on each GPU, or each core.
            split: Whether to decode in separate processes; None does so beside GPUs.
        """
        min_workers, max_workers = wanted or (cluster.num_gpus or cluster.num_cpus,) * 2
        num_workers = max(1, min(min_workers, num_shards))
        split = bool(cluster.num_gpus) if split is None else split
        num_nodes = max(1, cluster.num_nodes)
        per_process = 1
        if not split and not cluster.num_gpus:
            per_process = _share_evenly(num_workers, min(_MAX_PER_PROCESS, cluster.cpus_per_node))
        # A GPU's own process wants a core; what is left decodes.
        cores_left = cluster.num_cpus - (num_workers if cluster.num_gpus else 0)
        num_decoders = max(1, min(cores_left, num_shards)) if split else 0
        num_processes = -(-num_workers // per_process)
        return cls(
            num_workers=num_workers,
            max_workers=max(num_workers, min(max_workers, num_shards)),
            per_process=per_process,
            num_decoders=num_decoders,
            threads=1,
            per_node=max(1, -(-max(num_processes, num_decoders) // num_nodes)),
            uses_gpu=bool(cluster.num_gpus),
        )


def _share_evenly(num_workers: int, max_per_process: int) -> int:
    """Return the workers per process if all have about as many: 3 and 3, not 4 and 2."""
    num_processes = -(-num_workers // max_per_process)
    return -(-num_workers // num_processes)


def run_shards(
    pending: Iterable[int],
    context: JobContext,
    worker_pool: WorkerPool,
    *,
    worker: type[ShardWorker] = ShardWorker,
) -> Iterator[ShardSummary]:
    """Predict shards and yield a summary of each as it is finished, in any order.

    Args:
        pending: Numbers of the shards.
        context: What the workers need to know.
        worker_pool: The workers.
        worker: Class of the workers where there is no GPU.

    Raises:
        JobFailedError: If the workers do not get any further.
    """
    import ray

    journal = ShardJournal(new_id())
    shared = ray.put(context)

    def run_once(shards: list[int]) -> Iterator[ShardSummary]:
        dataset = shard_dataset(shards, shared, journal, worker_pool, worker=worker)
        for block in iterate_blocks(dataset):
            for record in block.to_pylist():
                yield ShardSummary(**record)

    try:
        yield from run_until_done(pending, run_once)
    finally:
        journal.forget()


def shard_dataset(
    shards: list[int],
    context: Any,
    journal: ShardJournal,
    worker_pool: WorkerPool,
    *,
    worker: type[ShardWorker] = ShardWorker,
) -> Any:
    """Return the dataset whose blocks are the summaries; nothing runs until they are read."""
    import ray.data

    use_whole_blocks()  # a block is one shard, from end to end
    # `from_arrow` would start a task for each table.
    dataset = ray.data.from_blocks(
        [pa.table({SHARD_COLUMN: pa.array([number], pa.int64())}) for number in shards]
    )
    pool = ray.data.ActorPoolStrategy(
        min_size=worker_pool.num_processes,
        max_size=worker_pool.max_processes,
        max_tasks_in_flight_per_actor=_SHARDS_PER_WORKER * worker_pool.per_process,
        max_concurrent_calls_per_actor=worker_pool.per_process,
        enable_true_multi_threading=worker_pool.per_process > 1,
    )
    # A worker claims half a core of Ray and uses a whole one. If all cores were claimed, the tasks
    # that supply its shards would never be scheduled.
    share = 0.25 if worker_pool.num_decoders else 0.5 * worker_pool.per_process
    claim = {"num_gpus": 1} if worker_pool.uses_gpu else {"num_cpus": share}
    if worker_pool.num_decoders:
        dataset = map_blocks(
            dataset,
            DecodeWorker,
            fn_constructor_args=(context, journal),
            compute=ray.data.ActorPoolStrategy(size=worker_pool.num_decoders),
            num_cpus=0.5,
        )
        return map_blocks(
            dataset, PredictWorker, fn_constructor_args=(context,), compute=pool, **claim
        )
    return map_blocks(
        dataset, worker, fn_constructor_args=(context, journal), compute=pool, **claim
    )
