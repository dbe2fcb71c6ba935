"""Kills whole commands at random moments, from their first second to their last, and restarts them.

Half of the kills hit the driver alone, as a user's `kill -9` does: its Ray must end by itself. Half
hit everything at once, as a machine that loses power does.
"""

from __future__ import annotations

import random
import time

from tests.chaos.places import Place
from tests.chaos.predict import Predict
from tests.chaos.readers import Readers, polling
from tests.chaos.scenario_result import ScenarioResult
from tests.chaos.verify import check, save_reference
from tests.chaos.workspace import Workspace, recording

NUM_IMAGES = 120
_MAX_KILLS_OF_AN_OUTPUT = 4


def kill_drivers(workspace: Workspace, place: Place, *, num_kills: int = 12) -> ScenarioResult:
    """Kill commands, and start them again until they finish.

    Args:
        workspace: Workspace of the run.
        place: Storage of the outputs.
        num_kills: Number of kills.
    """
    material = workspace.large(NUM_IMAGES)
    rng = workspace.rng("drivers", place.name)

    def output_of(number: int) -> str:
        return place.output("drivers", number)

    with recording("drivers", place) as result:
        started = time.monotonic()
        assert Predict(material, place, output_of(0)).wait().code == 0
        seconds = time.monotonic() - started
        result.notes.append(f"an undisturbed run takes {seconds:.0f} s")
        reference = workspace.folder / f"drivers-{place.name}.parquet"
        save_reference(place, output_of(0), reference)
        with polling(result, place, output_of, material.num_images) as readers:
            while result.kills < num_kills and result.outputs < num_kills:
                number = result.outputs + 1
                readers.watch(number)
                for attempt in range(min(_MAX_KILLS_OF_AN_OUTPUT, num_kills - result.kills)):
                    result.resumes += attempt > 0
                    predict = Predict(material, place, output_of(number))
                    if not _kill_it(result, readers, predict, rng, seconds):
                        break
                result.resumes += 1
                finished = Predict(material, place, output_of(number)).wait()
                if finished.code:
                    result.faults.append(f"the last run ended with exit code {finished.code}")
                readers.wait_for_polls()
                check(result, place, output_of(number), reference)
    return result


def _kill_it(
    result: ScenarioResult, readers: Readers, predict: Predict, rng: random.Random, seconds: float
) -> bool:
    """Kill a command at a random moment; return False if it ended before."""
    deadline = time.monotonic() + rng.uniform(0.02, 1) * seconds
    while predict.is_running and time.monotonic() < deadline:
        time.sleep(0.05)
    if not predict.is_running:
        predict.wait()
        result.counts["commands that ended before their moment"] += 1
        return False
    at_once = rng.random() < 0.5
    result.counts["processes that outlived their driver"] += predict.kill(with_family=at_once)
    result.kills += 1
    result.counts["drivers killed with all they had started" if at_once else "drivers killed"] += 1
    readers.wait_for_polls()
    return True
