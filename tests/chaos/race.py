"""Two drivers that start at the same time on one output: one commits, and the other says so.

Half of the races begin with every shard finished, so that they are about the commit; half begin
with nothing, so that they are also about the plan and about who tidies up after whom.
"""

from __future__ import annotations

import random
import time

from eagleray.batch.spec import PredictSpec
from tests.chaos.arena import Arena, tally_of
from tests.chaos.drive import Ending, copy_shards, drive, keep_shards
from tests.chaos.places import Place
from tests.chaos.readers import polling
from tests.chaos.tally import Tally
from tests.chaos.verify import check, save_reference
from tests.support.processes import Child, Ended, in_child

_SECONDS_TO_FORK = 0.1


def race(arena: Arena, place: Place, *, num_races: int = 50) -> Tally:
    """Let two drivers race again and again.

    Args:
        arena: Where.
        place: Of inputs and outputs.
        num_races: Of each kind.
    """
    material = arena.small(place)
    chance = arena.chance("race", place.name)

    def output_of(number: int) -> str:
        return place.output("race", number)

    with tally_of("race", place) as tally:
        shards = arena.folder / f"shards-{place.name}"
        in_child(lambda: keep_shards(material.request(place, output_of(0)), shards))
        reference = arena.folder / f"race-{place.name}.parquet"
        save_reference(place, output_of(0), reference)
        with polling(tally, place, output_of, material.num_images) as readers:
            for number in range(1, 2 * num_races + 1):
                request = material.request(place, output_of(number))
                kind = "shards finished" if number % 2 else "from nothing"
                if number % 2:
                    in_child(lambda request=request: copy_shards(shards, request))  # type: ignore[misc]
                readers.watch(number)
                _judge(tally, kind, _run_both(request, chance))
                readers.settle()
                check(tally, place, request.output, reference)
    return tally


def _run_both(request: PredictSpec, chance: random.Random) -> list[Ended]:
    start = time.time() + _SECONDS_TO_FORK

    def run(delay: float) -> Ending:
        time.sleep(max(0.0, start + delay - time.time()))
        return drive(request)

    latest = chance.choice([0.0, 0.05, 0.5])  # seconds; a run takes about half of one
    delays = [0.0, chance.uniform(0, latest)]
    children = [Child(lambda delay=delay: run(delay)) for delay in delays]  # type: ignore[misc]
    return [child.wait() for child in children]


def _judge(tally: Tally, kind: str, ended: list[Ended]) -> None:
    """Expect one that commits, and another that knows."""
    faults = [one.error or f"signal {one.signal}" for one in ended if one.error or one.signal]
    tally.faults += [f"a driver failed, {kind}: {fault}" for fault in faults]
    endings: list[Ending] = [one.value for one in ended if one.value is not None]
    num_winners = sum(ending.committed_here for ending in endings)
    if num_winners != 1:
        tally.faults.append(f"{num_winners} drivers say that they committed, {kind}")
    if len({ending.job_id for ending in endings}) != 1:
        tally.faults.append(f"they worked on different jobs, {kind}")
    tally.counts[f"races, {kind}"] += 1
    for ending in endings:
        if ending.committed_here:
            tally.counts["winners"] += 1
        elif ending.was_complete:
            tally.counts["losers that found it complete when they opened it"] += 1
        else:
            tally.counts["losers that learned it on the way"] += 1
