"""List a million keys of a fake S3 server: ours, s3fs's `find`, and Ray's `read_binary_files`.

    make bench-listing
    python -m tests.bench.listing --keys 1000000 --layout tree --latency 0.02

Each lister is a process of its own: seconds from the first request to the last row, and the peak
resident memory of that process at the end (Ray's listing runs in its driver). Ours runs three
times, and the median is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from tests.support.s3_listing import LAYOUTS, listing_server

ROUNDS_OF_OURS = 3
PREFIX = "bucket/photos"


def list_with_ours(endpoint: str) -> tuple[int, float]:
    from eagleray.io import storage

    storage.use_s3(storage.S3Options(endpoint=endpoint))
    started = time.perf_counter()
    count = sum(table.num_rows for table in storage.list_tables(f"s3://{PREFIX}"))
    return count, time.perf_counter() - started


def list_with_s3fs(endpoint: str) -> tuple[int, float]:
    import s3fs

    filesystem = s3fs.S3FileSystem(endpoint_url=endpoint)
    started = time.perf_counter()
    count = len(filesystem.find(PREFIX, detail=True))
    return count, time.perf_counter() - started


def list_with_ray(endpoint: str) -> tuple[int, float]:
    import pyarrow.fs
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    filesystem = pyarrow.fs.S3FileSystem(
        endpoint_override=endpoint.removeprefix("http://"), scheme="http"
    )
    started = time.perf_counter()
    dataset = ray.data.read_binary_files(PREFIX, filesystem=filesystem, include_paths=True)
    seconds = time.perf_counter() - started
    return len(dataset.input_files()), seconds


LISTERS: dict[str, Callable[[str], tuple[int, float]]] = {
    "ours": list_with_ours,
    "s3fs": list_with_s3fs,
    "ray": list_with_ray,
}
TITLES = {
    "ours": "`storage.list_tables`",
    "s3fs": "s3fs `find`",
    "ray": "Ray `read_binary_files`",
}


def run_lister(name: str, endpoint: str, num_keys: int) -> tuple[float, float]:
    """Run a lister in its own process, and return its seconds and megabytes."""
    environment = os.environ | {
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    completed = subprocess.run(
        [sys.executable, "-m", "tests.bench.listing", "--lister", name, "--endpoint", endpoint],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if completed.returncode:
        raise SystemExit(f"{name} failed:\n{completed.stderr}")
    result = json.loads(completed.stdout.splitlines()[-1])
    assert result["count"] == num_keys, result
    return result["seconds"], result["megabytes"]


def be_lister(name: str, endpoint: str) -> None:
    count, seconds = LISTERS[name](endpoint)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"count": count, "seconds": seconds, "megabytes": megabytes}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--layout", choices=LAYOUTS, default="tree")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds for every page")
    parser.add_argument("--only", nargs="*", choices=LISTERS, default=list(LISTERS))
    parser.add_argument("--lister", choices=LISTERS, help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lister:
        be_lister(options.lister, options.endpoint)
        return
    print(
        f"{options.keys:,} keys, layout {options.layout}, {options.latency * 1000:.0f} ms a page\n"
    )
    print("| lister | keys/s | seconds | peak MB | speed-up of ours |")
    print("|---|---|---|---|---|")
    ours = 0.0
    with listing_server(options.keys, layout=options.layout, latency=options.latency) as endpoint:
        for name in options.only:
            rounds = [
                run_lister(name, endpoint, options.keys)
                for _ in range(ROUNDS_OF_OURS if name == "ours" else 1)
            ]
            seconds = statistics.median(pair[0] for pair in rounds)
            megabytes = max(pair[1] for pair in rounds)
            ours = ours or seconds
            print(
                f"| {TITLES[name]} | {options.keys / seconds:,.0f} | {seconds:.1f} "
                f"| {megabytes:.0f} | {seconds / ours:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
