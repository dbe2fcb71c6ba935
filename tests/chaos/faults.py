"""Jobs on an S3 that fails one call in ten and delays all of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from eagleray.io.storage import S3Options
from tests.chaos.command import Finished
from tests.chaos.places import Place
from tests.chaos.predict import Predict
from tests.chaos.readers import polling
from tests.chaos.scenario_result import ScenarioResult
from tests.chaos.verify import check, save_reference
from tests.chaos.workspace import Workspace, recording
from tests.support.processes import in_child
from tests.support.s3_faults import FaultProxy, Faults

NUM_IMAGES = 600
TEN_PERCENT = Faults(slow_down=0.05, reset=0.03, hang=0.005, truncate=0.015, latency=0.02)


def fail_calls(workspace: Workspace, place: Place, *, num_jobs: int = 2) -> ScenarioResult:
    """Run whole jobs, listing and commit included, through a storage that fails.

    Args:
        workspace: Workspace of the run.
        place: Storage on S3.
        num_jobs: Number of jobs.
    """
    material = workspace.small(place, NUM_IMAGES)

    def output_of(number: int) -> str:
        return place.output("faults", number)

    def run_job(number: int) -> tuple[Finished, dict[str, int], int]:
        endpoint = str(place.s3.endpoint)
        with FaultProxy(endpoint, TEN_PERCENT, seed=workspace.seed + number) as proxy:
            behind = dataclasses.replace(place, s3=S3Options(endpoint=proxy.endpoint))
            finished = Predict(material, behind, output_of(number)).wait()
            return finished, dict(proxy.counts), proxy.num_calls

    with recording("faults", place) as result:
        assert Predict(material, place, output_of(0)).wait().code == 0
        reference = workspace.folder / "faults.parquet"
        save_reference(place, output_of(0), reference)
        with polling(result, place, output_of, material.num_images) as readers:
            for number in range(1, num_jobs + 1):
                readers.watch(number)
                returned: Any = in_child(lambda number=number: run_job(number), seconds=900)  # type: ignore[misc]
                finished, counts, num_calls = returned
                readers.wait_for_polls()
                _count_faults(result, finished, counts, num_calls)
                check(result, place, output_of(number), reference)
    return result


def _count_faults(
    result: ScenarioResult, finished: Finished, counts: dict[str, int], num_calls: int
) -> None:
    if finished.code:
        result.faults.append(f"the job ended with exit code {finished.code}")
    result.counts["calls"] += num_calls
    result.counts["calls that failed"] += sum(counts.values())
    result.counts.update({f"failed by {kind.replace('_', ' ')}": n for kind, n in counts.items()})
