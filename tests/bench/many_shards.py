"""What jobs of very many shards cost their driver and Ray's head, with prediction left out.

    python -m tests.bench.many_shards 10000 100000
    python -m tests.bench.many_shards 10000 --workers 4

For each number of shards a process of its own runs them through the real pipeline, with workers
that begin a shard and return its summary at once. Then it does what a driver does with that many
shards before and after: finds which have results, and draws their timeline. Memory is what belongs
to a process alone (USS), in 10**6 bytes; a job of shards of 512 images has N x 512 images.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil

from eagleray.batch.context import JobContext
from eagleray.batch.pipeline import WorkerPool, run_shards
from eagleray.batch.shard_summary import ShardSummary
from eagleray.batch.timeline import put_timeline, read_timeline, seconds_of_work, throughput
from eagleray.core.ray_session import ray_session
from eagleray.core.settings import Settings
from eagleray.sharded.failure_limit import FailureLimit
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import DEFAULT_LIMITS, ShardLimits, write_manifest
from eagleray.sharded.plan import Plan, Work
from eagleray.sharded.run import JobRun
from tests.support.batch import NO_COLUMNS, listing
from tests.support.noting_worker import IdleWorker
from tests.support.processes import family, titled
from tests.support.reporting import RecordingReporter

_MEGABYTE = 1e6
_SAMPLE_SECONDS = 0.5
_ROWS_A_TABLE = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=int, nargs="+")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--here", action="store_true", help="Measure in this process.")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.shards[0], options.workers)))
        return
    for count in options.shards:
        command = [sys.executable, "-m", "tests.bench.many_shards", str(count), "--here"]
        command += ["--workers", str(options.workers)]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        print(f"{count:,} shards")
        for name, value in json.loads(answer.splitlines()[-1]).items():
            print(f"  {name:32} {value:12,.2f}")
        sys.stdout.flush()


def measure(count: int, num_workers: int) -> dict[str, float]:
    """Run so many shards, and return names with values."""
    with tempfile.TemporaryDirectory() as name:
        found = run_job(count, num_workers, Path(name))
        found |= list_results(count, Path(name))
        found |= draw(count, Path(name))
        # Peak of the whole process, with what the libraries take.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MEGABYTE
        return found | {"driver, peak of all, RSS, MB": peak}


def run_job(count: int, num_workers: int, folder: Path) -> dict[str, float]:
    """Run the shards of a job through Ray."""
    layout = OutputLayout(str(folder / "out"))
    one_row = ShardLimits(max_rows=1, max_bytes=DEFAULT_LIMITS.max_bytes, next_rows=lambda _: 1)
    tables = (listing(min(_ROWS_A_TABLE, count - n)) for n in range(0, count, _ROWS_A_TABLE))
    started = time.monotonic()
    manifest = write_manifest(tables, NO_COLUMNS, layout.manifest("manifest-a"), limits=one_row)
    listed = time.monotonic() - started
    plan = Plan[Work](
        kind="predict",
        job_id="many",
        created="",
        work=Work(),
        manifest="manifest-a",
        manifest_digest=manifest.digest,
        num_rows=manifest.num_rows,
        num_shards=manifest.num_shards,
    )
    pool = WorkerPool(num_workers, num_workers, num_workers, 0, 1, 1, uses_gpu=False)
    run = JobRun(layout, plan, FailureLimit.parse("100%"), RecordingReporter())
    work = functools.partial(run_shards, worker=IdleWorker)
    ends = np.full(count, np.nan)  # seconds at which each shard ended, in order
    with ray_session(Settings(home=folder / "home")), memory() as peaks:
        started = time.monotonic()
        with run.monitored() as monitor:
            begin = time.process_time()
            shards = run.finish_shards(
                "Working",
                lambda pending, turn: work(pending, cast("JobContext", None), pool, turn=turn),
                monitor,
            )
            for number, _ in enumerate(shards):
                ends[number] = time.monotonic() - started
            cores = time.process_time() - begin
        assert monitor.num_done == count
    tenth = max(1, count // 10)
    return {
        "listing, s": listed,
        "first shard after, s": ends[0],
        "all, s": ends[-1],
        "a shard, ms": 1000 * (ends[-1] - ends[0]) / count,
        "of the first tenth, ms": 1000 * (ends[tenth] - ends[0]) / tenth,
        "of the last tenth, ms": 1000 * (ends[-1] - ends[-1 - tenth]) / tenth,
        "driver's core a shard, ms": 1000 * cores / count,
        **peaks,
    }


@contextmanager
def memory() -> Iterator[dict[str, float]]:
    """Measure the growth of the driver's memory, and of the processes of Ray's head, to its peak.

    The manifest and the libraries are there before; Ray Data is imported within.
    """
    peaks: dict[str, float] = {}
    me = psutil.Process()
    watched: dict[str, Callable[[], list[psutil.Process]]] = {
        "driver grew by, MB": lambda: [me],
        "GCS server grew by, MB": lambda: titled(family(os.getpid()), "gcs_server"),
        "raylet grew by, MB": lambda: titled(family(os.getpid()), "raylet/raylet"),
    }
    found = {name: find() for name, find in watched.items()}
    before = {name: _uss(processes) for name, processes in found.items()}
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            for name, processes in found.items():
                grown = (_uss(processes) - before[name]) / _MEGABYTE
                peaks[name] = max(peaks.get(name, 0.0), grown)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def _uss(processes: list[psutil.Process]) -> int:
    return sum(process.memory_full_info().uss for process in processes)


def list_results(count: int, folder: Path) -> dict[str, float]:
    """Find which shards have results, as a driver does that resumes a job of which half is done."""
    layout = OutputLayout(str(folder / "out"))
    Path(layout.shards).mkdir(parents=True)
    for shard in range(0, count, 2):
        Path(layout.shard(shard)).touch()
    before = _uss([psutil.Process()])
    with memory() as peaks:
        started = time.monotonic()
        done = np.zeros(count, np.bool_)
        done[np.fromiter(layout.finished_shards(), np.int64)] = True
        seconds = time.monotonic() - started
    assert done.sum() == -(-count // 2)
    grown = max(peaks.get("driver grew by, MB", 0.0), (_uss([psutil.Process()]) - before) / 1e6)
    return {"finding results, s": seconds, "finding results, MB": grown}


def draw(count: int, folder: Path) -> dict[str, float]:
    """Keep the timeline of all shards and compute what the page shows of it."""
    layout = OutputLayout(str(folder / "timeline"))
    summaries: Any = [ShardSummary(n, 500, 12, 1e9 + n, 1e9 + n + 30) for n in range(count)]
    with memory() as peaks:
        started = time.monotonic()
        put_timeline(layout, summaries)
        throughput(summaries)
        seconds_of_work(summaries)
        seconds = time.monotonic() - started
        assert len(read_timeline(layout)) == count
    return {"timeline, s": seconds, "timeline, MB": peaks.get("driver grew by, MB", 0.0)}


if __name__ == "__main__":
    main()
