"""Workers killed at random moments of a running job, which has to finish by itself."""

from __future__ import annotations

import random
import time

from tests.chaos.places import Place
from tests.chaos.predict import Predict
from tests.chaos.readers import polling
from tests.chaos.scenario_result import ScenarioResult
from tests.chaos.verify import check, save_reference
from tests.chaos.workspace import Workspace, recording
from tests.support.processes import kill

NUM_IMAGES = 420
_OTHER_PROCESSES = 0.2  # the share of kills that hit a process of Ray that is no worker of ours


def kill_workers(workspace: Workspace, place: Place, *, num_kills: int = 24) -> ScenarioResult:
    """Run a job undisturbed, and others whose workers are killed.

    Args:
        workspace: Workspace of the run.
        place: Storage of the outputs.
        num_kills: Minimum number of kills; a started job is finished.
    """
    material = workspace.large(NUM_IMAGES)
    rng = workspace.rng("workers", place.name)

    def output_of(number: int) -> str:
        return place.output("workers", number)

    with recording("workers", place) as result:
        started = time.monotonic()
        assert Predict(material, place, output_of(0)).wait().code == 0
        result.notes.append(f"an undisturbed run takes {time.monotonic() - started:.0f} s")
        reference = workspace.folder / f"workers-{place.name}.parquet"
        save_reference(place, output_of(0), reference)
        with polling(result, place, output_of, material.num_images) as readers:
            while result.kills < num_kills and result.outputs < 5:
                number = result.outputs + 1
                readers.watch(number)
                predict = Predict(material, place, output_of(number))
                _kill_some(result, predict, rng, num_kills)
                finished = predict.wait()
                while finished.code and result.resumes < 5:
                    result.resumes += 1
                    result.notes.append(f"a driver gave up with exit code {finished.code}")
                    finished = Predict(material, place, output_of(number)).wait()
                readers.wait_for_polls()
                check(result, place, output_of(number), reference)
    return result


def _kill_some(
    result: ScenarioResult, predict: Predict, rng: random.Random, num_kills: int
) -> None:
    while predict.is_running and result.kills < num_kills:
        time.sleep(min(rng.expovariate(1 / 3), 9))
        other = rng.random() < _OTHER_PROCESSES
        victims = predict.ray_processes() if other else predict.workers()
        if victims and kill(rng.choice(victims)):
            result.kills += 1
            result.counts["processes of Ray killed" if other else "workers killed"] += 1
