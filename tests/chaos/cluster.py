"""Kills clients, heads, workers and links of a cluster of hosts, and compares what jobs return.

    make chaos-cluster
    python -m tests.chaos.cluster --only heads,service --storage redis --kills 5 --seed 7

Needs Linux and root. Each host is a namespace of this machine with a network, processes and disks
of its own (`cluster/hosts`). The exit status is 1 if a row was lost, doubled or different, if
finished work was repeated, or if a job could not be resumed. Requests of the service that failed
are counted and printed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cluster.hosts import missing_requirement
from cluster.hosts.ray_cluster import Storage
from tests.chaos.cluster_batch import (
    Batches,
    cut_links,
    end_workers,
    kill_clients,
    kill_heads,
)
from tests.chaos.cluster_service import SERVICE_VARIABLES, kill_heads_of_service
from tests.chaos.cluster_training import kill_heads_of_training
from tests.chaos.scenario_result import ScenarioResult, render
from tests.support.hosted import Hosted, hosted_cluster

_Run = Callable[[Batches, ScenarioResult, int], None]

SCENARIOS: dict[str, _Run] = {
    "clients": kill_clients,
    "heads": kill_heads,
    "training": lambda batches, *rest: kill_heads_of_training(batches.hosted, *rest),
    "workers": partial(end_workers, drain=False),
    "drain": partial(end_workers, drain=True),
    "links": cut_links,
    "service": lambda batches, *rest: kill_heads_of_service(batches.hosted, *rest),
}


def main() -> None:
    options = _parse()
    if reason := missing_requirement():
        raise SystemExit(reason)
    results: list[ScenarioResult] = []
    for storage in options.storage:
        with hosted_cluster(
            num_workers=options.workers,
            storage=storage,
            environment=SERVICE_VARIABLES,
            keep=options.keep,
        ) as hosted:
            results += _run_on(hosted, storage, options)
    print(render(results))
    if options.json is not None:
        options.json.write_text(json.dumps([result.as_json() for result in results], indent=2))
    sys.exit(0 if all(result.holds for result in results) else 1)


def _run_on(hosted: Hosted, storage: Storage, options: argparse.Namespace) -> list[ScenarioResult]:
    results = []
    batches = Batches(hosted, random.Random(options.seed), options.images)
    for name in options.only:
        result = ScenarioResult(name, storage)
        result.print_progress("begins")
        started = time.monotonic()
        try:
            SCENARIOS[name](batches, result, options.kills)
        except (AssertionError, OSError, RuntimeError) as error:
            result.faults.append(f"the scenario failed: {type(error).__name__}: {error}")
        result.seconds = time.monotonic() - started
        result.print_progress("done")
        print(render([result]), flush=True)
        results.append(result)
    return results


def _parse() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(SCENARIOS):
            raise argparse.ArgumentTypeError(f"no scenario is named {', '.join(sorted(unknown))}")
        return chosen

    parser = argparse.ArgumentParser(prog="python -m tests.chaos.cluster", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--only", type=names, default=list(SCENARIOS), help=f"of {','.join(SCENARIOS)}"
    )
    parser.add_argument(
        "--storage", nargs="+", choices=("memory", "redis", "rocksdb"), default=["redis", "rocksdb"]
    )
    parser.add_argument("--kills", type=int, default=10, help="of each scenario")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--images", type=int, default=240, help="images of each batch job")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for all counts")
    parser.add_argument("--keep", action="store_true", help="keep the disks and logs of the hosts")
    return parser.parse_args()


if __name__ == "__main__":
    main()
