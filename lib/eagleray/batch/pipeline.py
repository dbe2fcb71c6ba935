"""Shards through Ray Data, until every one has its result.

On a node without a GPU an actor for each core reads, decodes, predicts and writes: a decoded image
that moves between processes costs more than it saves. Beside GPUs decoding has actors of its own,
on all cores, and each GPU's actor gets shards that are ready. The driver sees one line of summary
for each shard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from eagleray.batch.journal import ShardJournal
from eagleray.batch.worker import (
    SHARD_COLUMN,
    DecodeWorker,
    JobContext,
    PredictWorker,
    ShardSummary,
    ShardWorker,
)
from eagleray.cluster import Cluster
from eagleray.errors import JobFailedError

__all__ = ["Crew", "run_shards"]

_RAISED = re.compile(r"([a-zA-Z_]\w*\.)*[A-Z]\w*(Error|Exception|Interrupt): .")
_MOST_RUNS_WITHOUT_A_RESULT = 3
_SHARDS_WAITING_FOR_A_WORKER = 2  # the next one is there when the last one is done


@dataclass(frozen=True, slots=True)
class Crew:
    """Who does the work.

    Attributes:
        num_workers: Actors that predict: the fewest that the job starts with.
        most_workers: As many as it may grow to where the cluster grows.
        num_decoders: Actors that only decode; 0 where the others do it themselves.
        threads: Of each actor that predicts on a CPU, or decodes.
        per_node: Actors that share a node's memory.
        uses_gpu: Whether predicting takes a GPU each.
    """

    num_workers: int
    most_workers: int
    num_decoders: int
    threads: int
    per_node: int
    uses_gpu: bool

    @classmethod
    def choose(
        cls,
        cluster: Cluster,
        num_shards: int,
        *,
        wanted: tuple[int, int] | None = None,
        split: bool | None = None,
    ) -> Crew:
        """Take what the cluster has, or as many workers as wanted; never more than shards.

        Args:
            cluster: Where.
            num_shards: That are to be worked on.
            wanted: Fewest and most workers; None for one on each GPU, or on each core.
            split: Decode in actors of their own; None does so beside GPUs.
        """
        fewest, most = wanted or (cluster.num_gpus or cluster.num_cpus,) * 2
        num_workers = max(1, min(fewest, num_shards))
        split = bool(cluster.num_gpus) if split is None else split
        num_nodes = max(1, cluster.num_nodes)
        # A GPU's own process wants a core; what is left decodes.
        cores_left = cluster.num_cpus - (num_workers if cluster.num_gpus else 0)
        num_decoders = max(1, min(cores_left, num_shards)) if split else 0
        return cls(
            num_workers=num_workers,
            most_workers=max(num_workers, min(most, num_shards)),
            num_decoders=num_decoders,
            threads=1,
            per_node=max(1, -(-max(num_workers, num_decoders) // num_nodes)),
            uses_gpu=bool(cluster.num_gpus),
        )


def run_shards(pending: Iterable[int], context: JobContext, crew: Crew) -> Iterator[ShardSummary]:
    """Work on shards and yield a summary of each as it is finished, in any order.

    Workers and nodes may die: Ray starts others and gives them what was lost. Should Ray give up,
    what has no result yet is given to it again, as long as that gets the job any further.

    Raises:
        JobFailedError: It does not.
    """
    import ray

    remaining = dict.fromkeys(pending)  # a set that keeps the order
    journal = _start_journal()
    shared = ray.put(context)
    num_fruitless = 0
    while remaining:
        num_before = len(remaining)
        why: Exception = JobFailedError("shards came back without a result.")
        try:
            for summary in _run_once(list(remaining), shared, journal, crew):
                remaining.pop(summary.shard, None)
                yield summary
        except ray.exceptions.RayError as error:
            why = error
        num_fruitless = 0 if len(remaining) < num_before else num_fruitless + 1
        if num_fruitless == _MOST_RUNS_WITHOUT_A_RESULT or _is_hopeless(why):
            raise JobFailedError(
                f"The workers stopped: {_what_was_raised(why)} What is done is kept: run the same "
                "command again to go on, with --verbose for the workers' output."
            ) from why


def _start_journal() -> Any:
    """Start the journal beside the driver, where it outlives the other nodes."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # Whoever asks while it is being started again waits for it.
    as_actor = ray.remote(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
    )
    return as_actor(ShardJournal).remote()


def _run_once(shards: list[int], context: Any, journal: Any, crew: Crew) -> Iterator[ShardSummary]:
    import ray.data

    # A block is one shard, from end to end: it is neither cut nor merged on its way.
    ray.data.DataContext.get_current().target_max_block_size = None
    # `from_arrow` would start a task for each table, in processes that have nothing else to do.
    dataset = ray.data.from_blocks(
        [pa.table({SHARD_COLUMN: pa.array([number], pa.int64())}) for number in shards]
    )
    pool = ray.data.ActorPoolStrategy(
        min_size=crew.num_workers,
        max_size=crew.most_workers,
        max_tasks_in_flight_per_actor=_SHARDS_WAITING_FOR_A_WORKER,
    )
    # Half a core is what an actor claims of Ray. It occupies a whole one, but were all of them
    # claimed, the tasks that feed it would find no room, and the job would wait for ever.
    claim = (
        {"num_gpus": 1} if crew.uses_gpu else {"num_cpus": 0.5 if not crew.num_decoders else 0.25}
    )
    whole_blocks = {"batch_size": None, "batch_format": "pyarrow"}
    if crew.num_decoders:
        dataset = dataset.map_batches(
            DecodeWorker,
            fn_constructor_args=(context, journal),
            compute=ray.data.ActorPoolStrategy(size=crew.num_decoders),
            num_cpus=0.5,
            **whole_blocks,
        )
        dataset = dataset.map_batches(
            PredictWorker, fn_constructor_args=(context,), compute=pool, **claim, **whole_blocks
        )
    else:
        dataset = dataset.map_batches(
            ShardWorker,
            fn_constructor_args=(context, journal),
            compute=pool,
            **claim,
            **whole_blocks,
        )
    # Batches would come by way of four threads; blocks cost the cores of the workers less.
    for bundle in dataset.iter_internal_ref_bundles():
        for block in ray.get(bundle.block_refs):
            for record in block.to_pylist():
                yield ShardSummary(**record)


def _is_hopeless(error: BaseException) -> bool:
    """Whether trying again would end the same way: a worker refused the model or its device."""
    return "PackageError" in str(error) or "ContractError" in str(error)


def _what_was_raised(error: BaseException) -> str:
    """Return what a worker raised, which Ray quotes in the traceback that it sends."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line) and "UserCodeException" not in line]
    last = lines[-1] if lines else "no message"
    return (raised[-1] if raised else f"{type(error).__name__}: {last}").rstrip(".") + "."
