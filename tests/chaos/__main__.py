"""Attack the batch system in every way, and print what it has lost; nothing is what is wanted.

    python -m tests.chaos
    python -m tests.chaos --only commit,race --storage disk --seed 7 --json chaos.json
    python -m tests.chaos --only commit --quick

Needs Linux. With everything it takes most of an hour on two cores. The exit status is 1 when a row
was lost, doubled or different, when a reader of `_manifest.json` saw a part of a table, or when a
job could not go on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.chaos.arena import Arena, open_arena
from tests.chaos.commit import crash_everywhere
from tests.chaos.drivers import kill_drivers
from tests.chaos.faults import fail_calls
from tests.chaos.places import Place
from tests.chaos.race import race
from tests.chaos.ray_checkpoint import attack_ray_data
from tests.chaos.raylets import kill_raylets
from tests.chaos.rot import decay
from tests.chaos.tally import Tally, render
from tests.chaos.workers import kill_workers

_Run = Callable[[Arena, Place], Tally]

SCENARIOS: dict[str, tuple[tuple[str, ...], tuple[_Run, ...]]] = {
    "commit": (
        ("disk", "S3"),
        (crash_everywhere, lambda *at: crash_everywhere(*at, one_file=True)),
    ),
    "race": (("disk", "S3"), (race,)),
    "faults": (("S3",), (fail_calls,)),
    "rot": (("disk",), (decay,)),
    "workers": (("disk", "S3"), (kill_workers,)),
    "raylets": (("disk",), (kill_raylets,)),
    "drivers": (("disk", "S3"), (kill_drivers,)),
    "ray-checkpoint": (("disk", "S3"), (attack_ray_data,)),
}
"""Where each runs, and what it does."""

QUICK: dict[str, tuple[tuple[str, ...], tuple[_Run, ...]]] = {
    "commit": (("disk", "S3"), (partial(crash_everywhere, quick=True),)),
    "race": (("disk", "S3"), (partial(race, num_races=5),)),
}
"""The same for tests, which have less time."""


def main() -> None:
    options = _parse()
    tallies: list[Tally] = []
    with open_arena(options.seed, options.storage) as arena:
        for scenario in options.only:
            storages, runs = (QUICK if options.quick else SCENARIOS)[scenario]
            places = [arena.places[name] for name in storages if name in arena.places]
            tallies += [_run(run, arena, place, scenario) for place in places for run in runs]
    print(render(tallies))
    if options.json is not None:
        answers = [tally.as_json() for tally in tallies]
        options.json.write_text(json.dumps(answers, indent=2))
    sys.exit(0 if all(tally.holds for tally in tallies if tally.ours) else 1)


def _run(run: _Run, arena: Arena, place: Place, scenario: str) -> Tally:
    """Run one scenario; one that cannot be run is a fault, and the others go on."""
    started = time.monotonic()
    try:
        tally = run(arena, place)
    except (AssertionError, OSError, RuntimeError) as error:
        tally = Tally(scenario, place.name, seconds=time.monotonic() - started)
        tally.faults.append(f"it broke off: {type(error).__name__}: {error}")
    words = "holds" if tally.holds else "DOES NOT HOLD"
    print(f"{tally.scenario} on {place.name} {words}, {tally.seconds:.0f} s", flush=True)
    return tally


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
