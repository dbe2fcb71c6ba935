"""Attacks the batch system in every way, and prints the lost, doubled and different rows.

    python -m tests.chaos
    python -m tests.chaos --only commit,race --storage disk --seed 7 --json chaos.json
    python -m tests.chaos --only commit --quick

Needs Linux. With everything it takes most of an hour on two cores. The exit status is 1 when a row
was lost, doubled or different, when a reader of `_manifest.json` saw a partial table, or when a
job could not be resumed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.chaos.broken_inputs import predict_broken_inputs
from tests.chaos.commit import crash_everywhere
from tests.chaos.drivers import kill_drivers
from tests.chaos.faults import fail_calls
from tests.chaos.places import Place
from tests.chaos.race import race
from tests.chaos.ray_checkpoint import attack_ray_data
from tests.chaos.raylets import kill_raylets
from tests.chaos.scenario_result import ScenarioResult, render
from tests.chaos.workers import kill_workers
from tests.chaos.workspace import Workspace, open_workspace

_Run = Callable[[Workspace, Place], ScenarioResult]

SCENARIOS: dict[str, tuple[tuple[str, ...], tuple[_Run, ...]]] = {
    "commit": (
        ("disk", "S3"),
        (crash_everywhere, lambda *at: crash_everywhere(*at, one_file=True)),
    ),
    "race": (("disk", "S3"), (race,)),
    "faults": (("S3",), (fail_calls,)),
    "broken-inputs": (("disk",), (predict_broken_inputs,)),
    "workers": (("disk", "S3"), (kill_workers,)),
    "raylets": (("disk",), (kill_raylets,)),
    "drivers": (("disk", "S3"), (kill_drivers,)),
    "ray-checkpoint": (("disk", "S3"), (attack_ray_data,)),
}
"""Storages and functions of each scenario."""

QUICK: dict[str, tuple[tuple[str, ...], tuple[_Run, ...]]] = {
    "commit": (("disk", "S3"), (partial(crash_everywhere, quick=True),)),
    "race": (("disk", "S3"), (partial(race, num_races=5),)),
}
"""A shorter version for tests."""


def main() -> None:
    options = _parse()
    results: list[ScenarioResult] = []
    with open_workspace(options.seed, options.storage) as workspace:
        for scenario in options.only:
            storages, runs = (QUICK if options.quick else SCENARIOS)[scenario]
            places = [workspace.places[name] for name in storages if name in workspace.places]
            results += [_run(run, workspace, place, scenario) for place in places for run in runs]
    print(render(results))
    if options.json is not None:
        counts = [result.as_json() for result in results]
        options.json.write_text(json.dumps(counts, indent=2))
    sys.exit(0 if all(result.holds for result in results if result.ours) else 1)


def _run(run: _Run, workspace: Workspace, place: Place, scenario: str) -> ScenarioResult:
    """Run one scenario; one that cannot be run is a fault, and the others still run."""
    started = time.monotonic()
    try:
        result = run(workspace, place)
    except (AssertionError, OSError, RuntimeError) as error:
        result = ScenarioResult(scenario, place.name, seconds=time.monotonic() - started)
        result.faults.append(f"the scenario failed: {type(error).__name__}: {error}")
    words = "holds" if result.holds else "DOES NOT HOLD"
    print(f"{result.scenario} on {place.name} {words}, {result.seconds:.0f} s", flush=True)
    return result


def _parse() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = set(chosen) - set(SCENARIOS)
        if unknown:
            raise argparse.ArgumentTypeError(f"no scenario is named {', '.join(sorted(unknown))}")
        return chosen

    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--only", type=names, default=list(SCENARIOS), help=f"of {','.join(SCENARIOS)}"
    )
    parser.add_argument("--storage", choices=("disk", "S3"), nargs="+", default=["disk", "S3"])
    parser.add_argument("--quick", action="store_true", help="commit and race only, and less")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for all counts")
    options = parser.parse_args()
    if options.quick:
        options.only = [name for name in options.only if name in QUICK]
    return options


if __name__ == "__main__":
    main()
