"""Workers killed at random moments of a running job, which is to finish by itself all the same."""

from __future__ import annotations

import random
import time

from tests.chaos.arena import Arena, tally_of
from tests.chaos.places import Place
from tests.chaos.predict import Predict
from tests.chaos.readers import polling
from tests.chaos.tally import Tally
from tests.chaos.verify import check, save_reference
from tests.support.processes import kill

NUM_IMAGES = 420
_OTHER_PROCESSES = 0.2  # the share of kills that hit a process of Ray that is no worker of ours


def kill_workers(arena: Arena, place: Place, *, num_kills: int = 24) -> Tally:
    """Run a job undisturbed, and others whose workers are killed.

    Args:
        arena: Where.
        place: Of the outputs.
        num_kills: At least; a job is finished once it is begun.
    """
    material = arena.large(NUM_IMAGES)
    chance = arena.chance("workers", place.name)

    def output_of(number: int) -> str:
        return place.output("workers", number)

    with tally_of("workers", place) as tally:
        started = time.monotonic()
        assert Predict(material, place, output_of(0)).wait().code == 0
        tally.notes.append(f"an undisturbed run takes {time.monotonic() - started:.0f} s")
        reference = arena.folder / f"workers-{place.name}.parquet"
        save_reference(place, output_of(0), reference)
        with polling(tally, place, output_of, material.num_images) as readers:
            while tally.kills < num_kills and tally.outputs < 5:
                number = tally.outputs + 1
                readers.watch(number)
                predict = Predict(material, place, output_of(number))
                _kill_some(tally, predict, chance, num_kills)
                finished = predict.wait()
                while finished.code and tally.resumes < 5:
                    tally.resumes += 1
                    tally.notes.append(f"a driver gave up with exit code {finished.code}")
                    finished = Predict(material, place, output_of(number)).wait()
                readers.settle()
                check(tally, place, output_of(number), reference)
    return tally


def _kill_some(tally: Tally, predict: Predict, chance: random.Random, num_kills: int) -> None:
    while predict.is_running and tally.kills < num_kills:
        time.sleep(min(chance.expovariate(1 / 3), 9))
        other = chance.random() < _OTHER_PROCESSES
        victims = predict.processes_of_ray() if other else predict.workers()
        if victims and kill(chance.choice(victims)):
            tally.kills += 1
            tally.counts["processes of Ray killed" if other else "workers killed"] += 1
