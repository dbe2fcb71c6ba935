"""Whole commands killed at random moments, from their first second to their last, and given again.

Half of the kills hit the driver alone, as a user's `kill -9` does: its Ray must end by itself. Half
hit everything at once, as a machine that loses power does.
"""

from __future__ import annotations

import random
import time

from tests.chaos.arena import Arena, tally_of
from tests.chaos.places import Place
from tests.chaos.predict import Predict
from tests.chaos.readers import Readers, polling
from tests.chaos.tally import Tally
from tests.chaos.verify import check, save_reference

NUM_IMAGES = 120
_MAX_KILLS_OF_AN_OUTPUT = 4


def kill_drivers(arena: Arena, place: Place, *, num_kills: int = 12) -> Tally:
    """Kill commands, and give them again until they end by themselves.

    Args:
        arena: Where.
        place: Of the outputs.
        num_kills: In all.
    """
    material = arena.large(NUM_IMAGES)
    chance = arena.chance("drivers", place.name)

    def output_of(number: int) -> str:
        return place.output("drivers", number)

    with tally_of("drivers", place) as tally:
        started = time.monotonic()
        assert Predict(material, place, output_of(0)).wait().code == 0
        seconds = time.monotonic() - started
        tally.notes.append(f"an undisturbed run takes {seconds:.0f} s")
        reference = arena.folder / f"drivers-{place.name}.parquet"
        save_reference(place, output_of(0), reference)
        with polling(tally, place, output_of, material.num_images) as readers:
            while tally.kills < num_kills and tally.outputs < num_kills:
                number = tally.outputs + 1
                readers.watch(number)
                for attempt in range(min(_MAX_KILLS_OF_AN_OUTPUT, num_kills - tally.kills)):
                    tally.resumes += attempt > 0
                    predict = Predict(material, place, output_of(number))
                    if not _kill_it(tally, readers, predict, chance, seconds):
                        break
                tally.resumes += 1
                finished = Predict(material, place, output_of(number)).wait()
                if finished.code:
                    tally.faults.append(f"the last run ended with exit code {finished.code}")
                readers.settle()
                check(tally, place, output_of(number), reference)
    return tally


def _kill_it(
    tally: Tally, readers: Readers, predict: Predict, chance: random.Random, seconds: float
) -> bool:
    """Kill a command at a random moment; False when it ended before."""
    deadline = time.monotonic() + chance.uniform(0.02, 1) * seconds
    while predict.is_running and time.monotonic() < deadline:
        time.sleep(0.05)
    if not predict.is_running:
        predict.wait()
        tally.counts["commands that ended before their moment"] += 1
        return False
    at_once = chance.random() < 0.5
    tally.counts["processes that outlived their driver"] += predict.kill(with_family=at_once)
    tally.kills += 1
    tally.counts["drivers killed with all they had started" if at_once else "drivers killed"] += 1
    readers.settle()
    return True
