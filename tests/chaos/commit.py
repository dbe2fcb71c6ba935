"""A driver killed at every call of the storage, from the first to the last.

For each moment of each call: a new output, a run that dies there, a run that resumes. Then some
outputs whose runs die at random calls, until one of them finishes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from eagleray.batch.spec import PredictSpec
from eagleray.io import storage
from tests.chaos.crash_points import Call, Point, die_at, points_of, record_calls
from tests.chaos.drive import ROWS_PER_FILE, Ending, drive
from tests.chaos.places import Place
from tests.chaos.readers import Readers, polling
from tests.chaos.scenario_result import ScenarioResult
from tests.chaos.verify import Difference, compare, count, save_reference
from tests.chaos.workspace import Workspace, recording
from tests.support.processes import Child, in_child

CHAINS = 6  # outputs whose runs die many times
MAX_DEATHS = 12  # of one output
OUTPUTS_PER_LINE = 20

_FROM_THE_FIRST_FILE_ON = ("file", "report", "timeline", "commit", "success", "shards")


def crash_everywhere(
    workspace: Workspace, place: Place, *, one_file: bool = False, quick: bool = False
) -> ScenarioResult:
    """Kill a driver at every moment.

    Args:
        workspace: Workspace of the run.
        place: Storage of inputs and outputs.
        one_file: Make one file of all results, and attack nothing before that.
        quick: Attack nothing before the first file, and no output many times.
    """
    scenario = "commit, one file" if one_file else "commit"
    rows_per_file = None if one_file else ROWS_PER_FILE
    material = workspace.small(place)
    rng = workspace.rng(scenario, place.name)

    def output_of(number: int) -> str:
        return place.output(scenario.replace(", ", "-").replace(" ", "-"), number)

    with recording(scenario, place) as result:
        reference, calls = _undisturbed(workspace, place, output_of(0), rows_per_file)
        points = points_of(place, calls, during=not quick)
        if one_file or quick:
            points = [point for point in points if point.call.target in _FROM_THE_FIRST_FILE_ON]
        result.notes.append(f"{len(calls)} calls of the storage in a run, {len(points)} moments")
        deaths = [[point] for point in points]
        deaths += [rng.choices(points, k=MAX_DEATHS) for _ in range(0 if quick else CHAINS)]
        with polling(result, place, output_of, material.num_images) as readers:
            for number, plan in enumerate(deaths, start=1):
                request = material.request(place, output_of(number))
                work = functools.partial(drive, request, rows_per_file=rows_per_file)
                readers.watch(number)
                _forget(place, output_of(number - 1))
                for point in plan:
                    if not _die(result, readers, point, rng.random(), request, work):
                        break
                compare_it = functools.partial(compare, place, request.output, reference)
                _finish(result, readers, request.output, work, compare_it)
                if number % OUTPUTS_PER_LINE == 0:
                    result.print_progress(f"{number} of {len(deaths)} outputs")
    return result


def _undisturbed(
    workspace: Workspace, place: Place, output: str, rows_per_file: int | None
) -> tuple[Path, list[Call]]:
    """Run a job without an attack; return the file of its table, and its calls."""
    request = workspace.small(place).request(place, output)
    ending, calls = in_child(
        lambda: record_calls(output, lambda: drive(request, rows_per_file=rows_per_file))
    )
    assert ending.committed_here
    reference = workspace.folder / f"reference-{place.name}.parquet"
    save_reference(place, output, reference)
    return reference, calls


def _die(
    result: ScenarioResult,
    readers: Readers,
    point: Point,
    fraction: float,
    request: PredictSpec,
    work: Callable[[], Ending],
) -> bool:
    """Let a run die at a point; return False if it ended without reaching the point."""
    ended = Child(lambda: die_at(point, fraction, request.output, work)).wait()
    if ended.was_killed:
        result.kills += 1
        result.counts[f"killed {point.moment}"] += 1
        readers.wait_for_polls()
        return True
    result.counts["moments that did not come"] += 1
    if ended.error:
        result.faults.append(f"{point}: {ended.error}")
    return False


def _finish(
    result: ScenarioResult,
    readers: Readers,
    output: str,
    work: Callable[[], Ending],
    compare_it: Callable[[], Difference],
) -> None:
    """Let a run finish, and compare its output."""
    ended = Child(lambda: (work(), compare_it())[1]).wait()
    result.resumes += 1
    if ended.error or ended.signal:
        result.faults.append(f"{output} could not be resumed: {ended.error or ended.signal}")
    else:
        count(result, output, ended.value)
    readers.wait_for_polls()


def _forget(place: Place, output: str) -> None:
    """Remove an output that was compared, so that the disk does not fill."""
    if place.on_disk:
        storage.remove_tree(output)
