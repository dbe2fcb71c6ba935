"""Runs shards through Ray Data.

On a node without a GPU each core reads, decodes, predicts and writes a shard: moving a decoded
image between processes costs more than it saves. A few cores share a process, and with it PyTorch
and the network; all cores of a large node would wait for each other's Python there. Beside GPUs
decoding has actors of its own, on all cores, and each GPU's actor gets decoded shards. The driver
receives one line of summary for each shard.

Ray Data costs the driver milliseconds for each block, whatever is in it. In a job of many shards a
block therefore names several of them, which its worker does one after the other.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from eagleray.batch.context import JobContext
from eagleray.batch.shard_summary import ShardSummary
from eagleray.batch.worker import SHARD_COLUMN, DecodeWorker, PredictWorker, ShardWorker
from eagleray.core.errors import InputError
from eagleray.core.ray_private import (
    iterate_blocks,
    map_blocks,
    stream_blocks,
    use_whole_blocks,
)
from eagleray.core.ray_session import Cluster
from eagleray.core.types import DeviceChoice
from eagleray.core.yielding import Turn, YieldSignal
from eagleray.sharded.attempts import JournalNotes, ShardJournal, Shards, run_until_done
from eagleray.sharded.plan import new_id

__all__ = ["WorkerPool", "require_workers", "run_shards", "shard_dataset", "shards_per_block"]

_BLOCKS_PER_WORKER = 2  # the next one is there when the last one is done
_MAX_SHARDS_PER_BLOCK = 16  # the driver learns of them together, after a minute or two
_MIN_BLOCKS_PER_WORKER = 64  # so that workers finish together
_MAX_PER_PROCESS = 4
_MAX_WORKERS_PER_CORE = 2  # as each claims half a core


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
        is_shared: Whether others use the nodes too, such as the service.
        is_asked: Whether an autoscaler adds the nodes that the workers need.
    """

    num_workers: int
    max_workers: int
    per_process: int
    num_decoders: int
    threads: int
    per_node: int
    uses_gpu: bool
    is_shared: bool = False
    is_asked: bool = False

    @property
    def num_processes(self) -> int:
        """Number of processes that predict when the job starts."""
        return -(-self.num_workers // self.per_process)

    @property
    def max_processes(self) -> int:
        """Number of processes that predict when the cluster has grown."""
        return -(-self.max_workers // self.per_process)

    @property
    def claim(self) -> dict[str, float]:
        """Ray resources of each process that predicts.

        On a fixed cluster a worker claims half a core and uses a whole one, so that what else runs
        there finds room. Nodes that are added must have a core for each.
        """
        if self.uses_gpu:
            return {"num_gpus": 1}
        if self.num_decoders:
            return {"num_cpus": 0.25}
        return {"num_cpus": (1.0 if self.is_asked else 0.5) * self.per_process}

    @classmethod
    def choose(
        cls,
        cluster: Cluster,
        num_shards: int,
        *,
        wanted: tuple[int, int] | None = None,
        split: bool | None = None,
        device: DeviceChoice = "auto",
    ) -> WorkerPool:
        """Take what the cluster has, or as many workers as wanted; never more than shards.

        A cluster that grows is asked for the most that is wanted, or that it could have.

        Args:
            cluster: The cluster.
            num_shards: Number of shards to do.
            wanted: Minimum and maximum number of workers; None for one on each GPU, or each core.
            split: Whether to decode in separate processes; None does so beside GPUs.
            device: Device of the network.

        Raises:
            InputError: If the cluster never has what is wanted.
        """
        uses_gpu = cluster.uses_gpus(device)
        available = cluster.max_gpus if uses_gpu else cluster.max_cpus
        require_workers(cluster, wanted, device)
        min_workers, max_workers = wanted or (available, available)
        if cluster.limits is not None:
            min_workers = max_workers = min(max_workers, available)
        num_workers = max(1, min(min_workers, num_shards))
        split = uses_gpu if split is None else split
        per_process = 1
        if not split and not uses_gpu:
            per_process = _share_evenly(num_workers, min(_MAX_PER_PROCESS, cluster.cpus_per_node))
        num_decoders = max(1, min(_cores_left(cluster, num_workers, uses_gpu=uses_gpu), num_shards))
        num_processes = -(-num_workers // per_process)
        num_nodes = max(1, _max_nodes(cluster, num_workers, uses_gpu=uses_gpu))
        return cls(
            num_workers=num_workers,
            max_workers=max(num_workers, min(max_workers, num_shards)),
            per_process=per_process,
            num_decoders=num_decoders if split else 0,
            threads=1,
            per_node=max(1, -(-max(num_processes, num_decoders if split else 0) // num_nodes)),
            uses_gpu=uses_gpu,
            is_shared=not cluster.embedded,
            is_asked=cluster.limits is not None,
        )


def require_workers(cluster: Cluster, wanted: tuple[int, int] | None, device: DeviceChoice) -> None:
    """Refuse workers that the cluster never has.

    Args:
        cluster: The cluster.
        wanted: Minimum and maximum number of workers; None for as many as there are.
        device: Device of the network.

    Raises:
        InputError: If it never has the minimum.
    """
    uses_gpu = cluster.uses_gpus(device)
    grows = "" if cluster.limits is None else " and does not grow to more"
    if uses_gpu and not cluster.max_gpus:
        raise InputError(f"--device gpu: the cluster has no GPU{grows}; leave it out, or use cpu.")
    most = cluster.max_gpus if uses_gpu else cluster.max_cpus * _MAX_WORKERS_PER_CORE
    if wanted is not None and wanted[0] > most:
        has = f"{cluster.max_gpus} GPUs" if uses_gpu else f"{cluster.max_cpus} CPU cores"
        raise InputError(
            f"--workers {wanted[0]}: the cluster has {has}{grows}, which take {most} workers; ask "
            "for fewer."
        )


def _cores_left(cluster: Cluster, num_workers: int, *, uses_gpu: bool) -> int:
    """Return the number of cores that decode; a GPU's own process wants one."""
    if cluster.limits is not None and uses_gpu:
        return num_workers * (cluster.limits.cpus_per_gpu - 1)
    return cluster.max_cpus - (num_workers if uses_gpu else 0)


def _share_evenly(num_workers: int, max_per_process: int) -> int:
    """Return the workers per process if all have about as many: 3 and 3, not 4 and 2."""
    num_processes = -(-num_workers // max_per_process)
    return -(-num_workers // num_processes)


def _max_nodes(cluster: Cluster, num_workers: int, *, uses_gpu: bool) -> int:
    """Return the number of nodes that the workers are on, as far as it is known."""
    if cluster.limits is None:
        return cluster.num_nodes
    per_node = cluster.limits.gpus_per_node if uses_gpu else cluster.limits.cpus_per_node
    return -(-num_workers // max(1, per_node))


def run_shards(
    pending: Sequence[int] | Shards,
    context: JobContext,
    worker_pool: WorkerPool,
    *,
    turn: Turn | None = None,
    worker: type[ShardWorker] = ShardWorker,
) -> Iterator[ShardSummary]:
    """Predict shards and yield a summary of each as it is finished, in any order.

    Args:
        pending: Numbers of the shards.
        context: What the workers need to know.
        worker_pool: The workers.
        turn: When it is over, no further shard is begun, and those left are not yielded.
        worker: Class of the workers where there is no GPU.

    Raises:
        JobFailedError: If the workers do not get any further.
    """
    import ray

    journal, turn = ShardJournal(new_id()), turn or Turn(YieldSignal())
    notes = JournalNotes(journal, pending)
    shared = ray.put(context)

    def run_once(shards: Shards) -> Iterator[ShardSummary]:
        handed_back: deque[int] = deque()
        fed = _until_over(shards, handed_back, turn)
        dataset = shard_dataset(
            fed, shared, journal, worker_pool, num_shards=len(shards), worker=worker
        )
        for block in iterate_blocks(dataset):
            for record in block.to_pylist():
                if record.get("num_ok") is None:
                    handed_back.append(record[SHARD_COLUMN])
                    continue
                notes.end(record[SHARD_COLUMN])
                yield ShardSummary(**record)

    with journal.kept(turn):
        yield from run_until_done(pending, run_once, turn)


def _until_over(shards: Shards, handed_back: deque[int], turn: Turn) -> Iterator[int]:
    """Yield shards until the turn is over, and between them those that come back unbegun."""
    for shard in shards:
        while handed_back and not turn.over:
            yield handed_back.popleft()
        if turn.over:
            return
        yield int(shard)


def shards_per_block(worker_pool: WorkerPool, num_shards: int) -> int:
    """Return the number of shards that a worker is given at a time.

    It is one where shards are decoded apart, whose pixels a block holds, and in a job so small that
    workers would have few blocks each.
    """
    if worker_pool.num_decoders:
        return 1
    blocks = num_shards // (_MIN_BLOCKS_PER_WORKER * worker_pool.max_workers)
    return max(1, min(_MAX_SHARDS_PER_BLOCK, blocks))


def _in_blocks(shards: Iterable[int], size: int, *, num_alone: int) -> Iterator[list[int]]:
    """Yield shards in lists of a size; the first ones alone, so that results appear at once."""
    numbers = iter(shards)
    for number in itertools.islice(numbers, num_alone):
        yield [number]
    while several := list(itertools.islice(numbers, size)):
        yield several


def shard_dataset(
    shards: Iterable[int],
    context: Any,
    journal: ShardJournal,
    worker_pool: WorkerPool,
    *,
    num_shards: int,
    worker: type[ShardWorker] = ShardWorker,
) -> Any:
    """Return the dataset whose blocks are the summaries; nothing runs until they are read.

    Args:
        shards: Numbers of the shards; taken one by one as workers become free.
        context: Object-store reference of the `JobContext`.
        journal: Counts how often shards are begun.
        worker_pool: The workers.
        num_shards: Number of the shards.
        worker: Class of the workers where there is no GPU.
    """
    import ray.data

    use_whole_blocks()  # a block is whole from end to end
    num_takers = worker_pool.num_decoders or worker_pool.max_workers
    per_block = shards_per_block(worker_pool, num_shards)
    dataset = stream_blocks(
        (
            pa.table({SHARD_COLUMN: pa.array(numbers, pa.int64())})
            for numbers in _in_blocks(shards, per_block, num_alone=num_takers)
        ),
        num_blocks=-(-num_shards // per_block),
        max_waiting=_BLOCKS_PER_WORKER * num_takers,
    )
    pool = ray.data.ActorPoolStrategy(
        min_size=worker_pool.num_processes,
        max_size=worker_pool.max_processes,
        max_tasks_in_flight_per_actor=_BLOCKS_PER_WORKER * worker_pool.per_process,
        max_concurrent_calls_per_actor=worker_pool.per_process,
        enable_true_multi_threading=worker_pool.per_process > 1,
    )
    claim = worker_pool.claim
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
