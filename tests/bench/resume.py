"""What it costs to be able to resume, and what a resume costs.

    python -m tests.bench.resume --photos FOLDER --images 5000

Runs a job whole, runs it again and kills it at nine tenths, and times the command that ends it.
Then puts the shards' results once more, alone, and compares with the time that the work took.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from eagleray.batch.earlier import read_results
from eagleray.batch.shard_summary import ShardSummary, encode_shard
from eagleray.core.settings import read_settings
from eagleray.io import storage
from eagleray.models.package import write_package
from eagleray.registry.references import load_model
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.progress import read_progress
from tests.bench.folders import fill_folder, photos_of

KILL_AT = 0.9
NUM_WARM_UP = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--images", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill_folder(folder / "images", photos_of(options.photos), options.images)
        # A package, as in real work; to draw random weights would take each run several seconds.
        model = str(folder / "model")
        write_package(load_model("random:resnet18", read_settings()).package, model)
        # The network is converted, and its cache filled, by a job that is none of those measured.
        fill_folder(folder / "few", photos_of(options.photos), NUM_WARM_UP)
        warm_up = [str(folder / "few"), "--model", model, "--engine", "openvino"]
        run_job([*warm_up, "--output", str(folder / "warm-up")])
        job = [str(folder / "images"), "--model", model, "--engine", "openvino", "--output"]
        whole = run_job([*job, str(folder / "whole")])
        print(f"whole job          {whole:7.1f} s")
        reached = kill([*job, str(folder / "stopped")], OutputLayout(str(folder / "stopped")))
        resumed = run_job([*job, str(folder / "stopped")])
        print(f"resumed at {reached:.0%}     {resumed:7.1f} s   {resumed / whole:.1%} of the whole")
        assert read_labels(folder / "whole") == read_labels(folder / "stopped")
        show_cost_of_putting(OutputLayout(str(folder / "whole")), folder / "again")


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "eagleray.jobs.predict", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run_job(arguments: list[str]) -> float:
    """Return the seconds of a whole process."""
    began = time.perf_counter()
    assert start(arguments).wait() == 0
    return time.perf_counter() - began


def kill(arguments: list[str], layout: OutputLayout) -> float:
    """Kill a job in the middle; return the share of its images that were done."""
    process = start(arguments)
    while process.poll() is None:
        progress = read_progress(layout)
        if progress and progress.num_done >= KILL_AT * progress.num_rows:
            process.kill()
            process.wait()
        time.sleep(0.2)
    stopped = read_progress(layout)
    assert stopped is not None
    return stopped.num_done / stopped.num_rows


def read_labels(output: Path) -> list[tuple[int, str]]:
    rows = (table.select(["row", "label"]) for table in read_results(str(output)))
    return [(one["row"], one["label"]) for table in rows for one in table.to_pylist()]


def show_cost_of_putting(layout: OutputLayout, folder: Path) -> None:
    timeline = pq.read_table(layout.timeline).to_pylist()
    rows = next(iter(read_results(layout.location)))
    worked, put = [], []
    for record in timeline:
        summary = ShardSummary(**record)
        began = time.perf_counter()
        content = encode_shard(rows.slice(0, summary.num_rows), summary)
        storage.put_atomic(os.path.join(folder, str(summary.shard)), content)  # noqa: PTH118
        put.append(time.perf_counter() - began)
        worked.append(summary.finished - summary.started)
    print(
        f"putting results    {sum(put) / sum(worked):7.2%} of the workers' time "
        f"({1000 * statistics.median(put):.1f} ms of {1000 * statistics.median(worked):,.0f} ms)"
    )


if __name__ == "__main__":
    main()
