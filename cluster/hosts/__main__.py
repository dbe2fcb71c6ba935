"""Start a Ray cluster on hosts of this machine, to try the commands of a cluster.

    make hosts
    python -m cluster.hosts --workers 2 --storage redis --postgres

It says how to run commands as a client, and ends with Ctrl-C; then nothing of it is left.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys

from cluster.hosts.network import Hosts, missing_requirement
from cluster.hosts.ray_cluster import RayCluster
from cluster.hosts.store import Store

_BUCKET = "data"


def main() -> int:
    """Run the hosts until a signal comes; return the exit code."""
    options = _parse()
    if reason := missing_requirement():
        sys.stderr.write(f"error: {reason}\n")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with Hosts(keep=options.keep) as hosts:
            _run(hosts, options)
    except KeyboardInterrupt:
        return 0
    except (RuntimeError, TimeoutError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _run(hosts: Hosts, options: argparse.Namespace) -> None:
    store = Store(hosts)
    hosts.environment |= store.start_s3(_BUCKET)
    if options.storage == "redis":
        store.start_redis()
    settings = {"EAGLERAY_RUNS_ROOT": f"s3://{_BUCKET}/runs"}
    if options.postgres:
        settings |= {**store.start_postgres(), "EAGLERAY_ARTIFACT_ROOT": f"s3://{_BUCKET}/models"}
    cluster = RayCluster(
        hosts,
        store,
        num_workers=options.workers,
        storage=options.storage,
        cpus_per_worker=options.cpus,
        environment=settings,
    )
    cluster.start()
    cluster.add_profile("hosts")
    shell = shlex.join(cluster.client.shell())
    sys.stdout.write(
        f"A head and {options.workers} workers run; Ray's control store is on "
        f"{options.storage}, object storage is s3://{_BUCKET}.\n\n"
        f"A shell of the client:\n    {shell}\n"
        "and there:\n"
        f"    eagleray doctor --cluster hosts --output s3://{_BUCKET}/checked\n"
        f"    eagleray predict PHOTOS --model random:lenet5 --output s3://{_BUCKET}/1 "
        "--cluster hosts\n\n"
        f"Disks and logs are below {hosts.folder}. Ctrl-C ends all of it.\n"
    )
    sys.stdout.flush()
    signal.pause()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cluster.hosts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workers", type=int, default=2, help="number of workers")
    parser.add_argument("--cpus", type=int, default=1, help="cores that a worker offers")
    parser.add_argument(
        "--storage",
        choices=("memory", "redis", "rocksdb"),
        default="memory",
        help="where Ray's control store keeps its state",
    )
    parser.add_argument("--postgres", action="store_true", help="a database on PostgreSQL")
    parser.add_argument("--keep", action="store_true", help="keep the disks and logs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
