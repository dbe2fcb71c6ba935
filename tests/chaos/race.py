"""Two drivers that start at the same time on one output: one commits, and the other reports it.

Half of the races begin with every shard finished, so that they are about the commit; half begin
with nothing, so that they are also about the plan and the removal of leftovers.
"""

from __future__ import annotations

import random
import time

from eagleray.batch.spec import PredictSpec
from tests.chaos.drive import Ending, copy_shards, drive, keep_shards
from tests.chaos.places import Place
from tests.chaos.readers import polling
from tests.chaos.scenario_result import ScenarioResult
from tests.chaos.verify import check, save_reference
from tests.chaos.workspace import Workspace, recording
from tests.support.processes import Child, Ended, in_child

_SECONDS_TO_FORK = 0.1


def race(workspace: Workspace, place: Place, *, num_races: int = 50) -> ScenarioResult:
    """Let two drivers race repeatedly.

    Args:
        workspace: Workspace of the run.
        place: Storage of inputs and outputs.
        num_races: Number of races of each kind.
    """
    material = workspace.small(place)
    rng = workspace.rng("race", place.name)

    def output_of(number: int) -> str:
        return place.output("race", number)

    with recording("race", place) as result:
        shards = workspace.folder / f"shards-{place.name}"
        in_child(lambda: keep_shards(material.request(place, output_of(0)), shards))
        reference = workspace.folder / f"race-{place.name}.parquet"
        save_reference(place, output_of(0), reference)
        with polling(result, place, output_of, material.num_images) as readers:
            for number in range(1, 2 * num_races + 1):
                request = material.request(place, output_of(number))
                kind = "shards finished" if number % 2 else "from nothing"
                if number % 2:
                    in_child(lambda request=request: copy_shards(shards, request))  # type: ignore[misc]
                readers.watch(number)
                _check_endings(result, kind, _run_both(request, rng))
                readers.wait_for_polls()
                check(result, place, request.output, reference)
    return result


def _run_both(request: PredictSpec, rng: random.Random) -> list[Ended]:
    start = time.time() + _SECONDS_TO_FORK

    def run(delay: float) -> Ending:
        time.sleep(max(0.0, start + delay - time.time()))
        return drive(request)

    latest = rng.choice([0.0, 0.05, 0.5])  # seconds; a run takes about half of one
    delays = [0.0, rng.uniform(0, latest)]
    children = [Child(lambda delay=delay: run(delay)) for delay in delays]  # type: ignore[misc]
    return [child.wait() for child in children]


def _check_endings(result: ScenarioResult, kind: str, ended: list[Ended]) -> None:
    """Check that one driver commits, and the other reports it."""
    faults = [one.error or f"signal {one.signal}" for one in ended if one.error or one.signal]
    result.faults += [f"a driver failed, {kind}: {fault}" for fault in faults]
    endings: list[Ending] = [one.value for one in ended if one.value is not None]
    num_winners = sum(ending.committed_here for ending in endings)
    if num_winners != 1:
        result.faults.append(f"{num_winners} drivers report a commit of their own, {kind}")
    if len({ending.job_id for ending in endings}) != 1:
        result.faults.append(f"they worked on different jobs, {kind}")
    result.counts[f"races, {kind}"] += 1
    for ending in endings:
        if ending.committed_here:
            result.counts["winners"] += 1
        elif ending.was_complete:
            result.counts["losers that found it complete when they opened it"] += 1
        else:
            result.counts["losers that noticed it during the job"] += 1
