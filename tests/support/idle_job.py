"""Runs shards that take a while and do nothing, on the workers that a job would have.

    python -m tests.support.idle_job --cluster 127.0.0.1:6379 --device gpu --shards 20

Prints the worker pool, and how many shards were done.
"""

from __future__ import annotations

import argparse
import time
from typing import cast

from eagleray.batch.context import JobContext
from eagleray.batch.pipeline import WorkerPool, run_shards
from eagleray.batch.shard_summary import ShardSummary
from eagleray.core.ray_session import ray_session
from eagleray.core.settings import read_settings
from tests.support.noting_worker import IdleWorker

_SECONDS_A_SHARD = 0.5


class SlowIdleWorker(IdleWorker):
    """A worker that takes half a second for a shard."""

    def work(self, shard: int) -> ShardSummary:
        time.sleep(_SECONDS_A_SHARD)
        return super().work(shard)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--device", choices=["auto", "cpu", "gpu"], default="auto")
    parser.add_argument("--shards", type=int, default=20)
    options = parser.parse_args()
    with ray_session(read_settings(), address=options.cluster) as cluster:
        pool = WorkerPool.choose(cluster, options.shards, split=False, device=options.device)
        print(pool, flush=True)
        context = cast("JobContext", None)
        done = list(run_shards(range(options.shards), context, pool, worker=SlowIdleWorker))
        print(f"{len({shard.shard for shard in done})} shards done", flush=True)


if __name__ == "__main__":
    main()
