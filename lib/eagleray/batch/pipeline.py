"""Shards through Ray Data: one actor for each core (or GPU) fetches, decodes, predicts, writes.

On a node without a GPU the three steps are fused into one actor, because a decoded image that
moves between processes costs more than it saves. The driver only sees a summary of each shard.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pyarrow as pa

from eagleray.batch.worker import ShardSummary, ShardWorker, WorkerOptions
from eagleray.cluster import Cluster
from eagleray.errors import JobFailedError
from eagleray.models.sources import LoadedModel

__all__ = ["num_workers_for", "run_shards", "threads_per_worker"]


def num_workers_for(cluster: Cluster, num_shards: int | None = None) -> int:
    """One worker for each GPU, or for each core where there is none; never more than shards."""
    workers = cluster.num_gpus or cluster.num_cpus
    return workers if num_shards is None else max(1, min(workers, num_shards))


def threads_per_worker(cluster: Cluster) -> int:
    """CPU threads of a worker: its core, or its share of the node's cores beside a GPU."""
    if cluster.num_gpus == 0:
        return 1
    return max(1, (os.cpu_count() or 1) // cluster.num_gpus)


def run_shards(
    shards: Sequence[pa.Table], model: LoadedModel, options: WorkerOptions, cluster: Cluster
) -> Iterator[ShardSummary]:
    """Work on all shards and yield a summary of each as it is finished, in any order.

    Raises:
        JobFailedError: Workers died more often than Ray retries.
    """
    import ray
    import ray.data

    # A ray.data block is one shard: the whole block is one call of an actor.
    dataset = ray.data.from_arrow(list(shards))
    # Half a core is what Ray reserves for an actor. It occupies a whole one, but claiming all of
    # them would leave no room for the tasks that feed it, and the job would wait for ever.
    claim = {"num_gpus": 1} if cluster.num_gpus else {"num_cpus": 0.5}
    summaries = dataset.map_batches(
        ShardWorker,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_args=(ray.put(model), options),
        compute=ray.data.ActorPoolStrategy(size=num_workers_for(cluster, len(shards))),
        **claim,
    )
    try:
        for batch in summaries.iter_batches(batch_size=None, batch_format="pyarrow"):
            for record in batch.to_pylist():
                yield ShardSummary(**record)
    except ray.exceptions.RayError as error:
        raise JobFailedError(
            f"The workers stopped: {_innermost(error)} Run again with --verbose for their output."
        ) from error


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}."
