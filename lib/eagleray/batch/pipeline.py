"""Shards through Ray Data, until every one has its result.

On a node without a GPU each core reads, decodes, predicts and writes a shard: a decoded image that
moves between processes costs more than it saves. A few cores share a process, and with it PyTorch
and the network; all cores of a large node would wait for each other's Python there. Beside GPUs
decoding has actors of its own, on all cores, and each GPU's actor gets shards that are ready. The
driver sees one line of summary for each shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from eagleray.batch.plan import new_id
from eagleray.batch.worker import (
    SHARD_COLUMN,
    DecodeWorker,
    JobContext,
    PredictWorker,
    ShardSummary,
    ShardWorker,
)
from eagleray.core.errors import ContractError, JobFailedError, PackageError
from eagleray.core.ray_errors import read_failure
from eagleray.core.ray_private import iterate_blocks, map_blocks, use_whole_blocks
from eagleray.core.ray_session import Cluster
from eagleray.sharded.attempts import ShardJournal

__all__ = ["WorkerPool", "run_shards"]

_MAX_RUNS_WITHOUT_A_RESULT = 3
_SHARDS_FOR_A_WORKER = 2  # the next one is there when the last one is done
_MAX_PER_PROCESS = 4


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """Who does the work.

    Attributes:
        num_workers: Shards that are predicted at a time: the fewest that the job starts with.
        max_workers: As many as it may grow to where the cluster grows.
        per_process: Workers that are threads of one process, where they share PyTorch and the
            network's weights.
        num_decoders: Processes that only decode; 0 where the workers do it themselves.
        threads: Of each worker on a CPU, and of each that decodes.
        per_node: Processes that share a node's memory.
        uses_gpu: Whether predicting takes a GPU each.
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
        """Processes that predict, when the job starts."""
        return -(-self.num_workers // self.per_process)

    @property
    def max_processes(self) -> int:
        """Processes that predict, when the cluster has grown."""
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
            cluster: Where.
            num_shards: That are to be worked on.
            wanted: Fewest and most workers; None for one on each GPU, or on each core.
            split: Decode in processes of their own; None does so beside GPUs.
        """
        fewest, most = wanted or (cluster.num_gpus or cluster.num_cpus,) * 2
        num_workers = max(1, min(fewest, num_shards))
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
            max_workers=max(num_workers, min(most, num_shards)),
            per_process=per_process,
            num_decoders=num_decoders,
            threads=1,
            per_node=max(1, -(-max(num_processes, num_decoders) // num_nodes)),
            uses_gpu=bool(cluster.num_gpus),
        )


def _share_evenly(num_workers: int, max_per_process: int) -> int:
    """Return how many workers a process gets when all get about the same: 3 and 3, not 4 and 2."""
    num_processes = -(-num_workers // max_per_process)
    return -(-num_workers // num_processes)


def run_shards(
    pending: Iterable[int], context: JobContext, worker_pool: WorkerPool
) -> Iterator[ShardSummary]:
    """Work on shards and yield a summary of each as it is finished, in any order.

    Workers and nodes may die: Ray starts others and gives them what was lost. Should Ray give up,
    what has no result yet is given to it again, as long as that gets the job any further.

    Raises:
        JobFailedError: It does not.
    """
    import ray

    journal = ShardJournal(new_id())
    try:
        yield from _run_until_done(list(pending), ray.put(context), journal, worker_pool)
    finally:
        journal.forget()


def _run_until_done(
    pending: list[int], context: Any, journal: ShardJournal, worker_pool: WorkerPool
) -> Iterator[ShardSummary]:
    import ray

    remaining = dict.fromkeys(pending)  # a set that keeps the order
    num_fruitless = 0
    while remaining:
        num_before = len(remaining)
        why: Exception = JobFailedError("shards came back without a result.")
        try:
            for summary in _run_once(list(remaining), context, journal, worker_pool):
                remaining.pop(summary.shard, None)
                yield summary
        except ray.exceptions.RayError as error:
            why = error
        num_fruitless = 0 if len(remaining) < num_before else num_fruitless + 1
        failure = read_failure(why)
        hopeless = failure.is_a(PackageError, ContractError)  # it would end the same way again
        if num_fruitless == _MAX_RUNS_WITHOUT_A_RESULT or hopeless:
            raise JobFailedError(
                f"The workers stopped: {failure.sentence} What is done is kept: run the same "
                "command again to go on, with --verbose for the workers' output."
            ) from why


def _run_once(
    shards: list[int], context: Any, journal: ShardJournal, worker_pool: WorkerPool
) -> Iterator[ShardSummary]:
    for block in iterate_blocks(_dataset(shards, context, journal, worker_pool)):
        for record in block.to_pylist():
            yield ShardSummary(**record)


def _dataset(
    shards: list[int], context: Any, journal: ShardJournal, worker_pool: WorkerPool
) -> Any:
    """Return the dataset whose blocks are the summaries; nothing runs until they are asked for."""
    import ray.data

    use_whole_blocks()  # a block is one shard, from end to end
    # `from_arrow` would start a task for each table, in processes that have nothing else to do.
    dataset = ray.data.from_blocks(
        [pa.table({SHARD_COLUMN: pa.array([number], pa.int64())}) for number in shards]
    )
    pool = ray.data.ActorPoolStrategy(
        min_size=worker_pool.num_processes,
        max_size=worker_pool.max_processes,
        max_tasks_in_flight_per_actor=_SHARDS_FOR_A_WORKER * worker_pool.per_process,
        max_concurrent_calls_per_actor=worker_pool.per_process,
        enable_true_multi_threading=worker_pool.per_process > 1,
    )
    # Half a core is what a worker claims of Ray. It occupies a whole one, but were all of them
    # claimed, the tasks that feed it would find no room, and the job would wait for ever.
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
        dataset, ShardWorker, fn_constructor_args=(context, journal), compute=pool, **claim
    )
