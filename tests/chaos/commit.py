"""A driver killed at every call of the storage, from the first look at its output to the last.

For each moment of each call: a new output, a run that dies there, a run that goes on. Then some
outputs whose runs die at random calls, again and again, until one gets through.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from eagleray.batch.spec import PredictSpec
from eagleray.io import storage
from tests.chaos.arena import Arena, tally_of
from tests.chaos.crash_points import Call, Point, die_at, points_of, record_calls
from tests.chaos.drive import ROWS_PER_FILE, Ending, drive
from tests.chaos.places import Place
from tests.chaos.readers import Readers, polling
from tests.chaos.tally import Tally
from tests.chaos.verify import Difference, compare, count, save_reference
from tests.support.processes import Child, in_child

CHAINS = 6  # outputs whose runs die many times
MAX_DEATHS = 12  # of one output
OUTPUTS_PER_LINE = 20

_FROM_THE_FIRST_FILE_ON = ("file", "report", "timeline", "commit", "success", "shards")


def crash_everywhere(
    arena: Arena, place: Place, *, one_file: bool = False, quick: bool = False
) -> Tally:
    """Kill a driver at every moment.

    Args:
        arena: Where.
        place: Of inputs and outputs.
        one_file: Make one file of all results, and attack nothing before that.
        quick: Attack nothing before the first file, and no output many times.
    """
    scenario = "commit, one file" if one_file else "commit"
    rows_per_file = None if one_file else ROWS_PER_FILE
    material = arena.small(place)
    chance = arena.chance(scenario, place.name)

    def output_of(number: int) -> str:
        return place.output(scenario.replace(", ", "-").replace(" ", "-"), number)

    with tally_of(scenario, place) as tally:
        reference, calls = _undisturbed(arena, place, output_of(0), rows_per_file)
        points = points_of(place, calls, during=not quick)
        if one_file or quick:
            points = [point for point in points if point.call.target in _FROM_THE_FIRST_FILE_ON]
        tally.notes.append(f"{len(calls)} calls of the storage in a run, {len(points)} moments")
        deaths = [[point] for point in points]
        deaths += [chance.choices(points, k=MAX_DEATHS) for _ in range(0 if quick else CHAINS)]
        with polling(tally, place, output_of, material.num_images) as readers:
            for number, plan in enumerate(deaths, start=1):
                request = material.request(place, output_of(number))
                work = functools.partial(drive, request, rows_per_file=rows_per_file)
                readers.watch(number)
                _forget(place, output_of(number - 1))
                for point in plan:
                    if not _die(tally, readers, point, chance.random(), request, work):
                        break
                compare_it = functools.partial(compare, place, request.output, reference)
                _finish(tally, readers, request.output, work, compare_it)
                if number % OUTPUTS_PER_LINE == 0:
                    tally.tell(f"{number} of {len(deaths)} outputs")
    return tally


def _undisturbed(
    arena: Arena, place: Place, output: str, rows_per_file: int | None
) -> tuple[Path, list[Call]]:
    """Run a job that nobody attacks; gives the file of its table, and its calls."""
    request = arena.small(place).request(place, output)
    ending, calls = in_child(
        lambda: record_calls(output, lambda: drive(request, rows_per_file=rows_per_file))
    )
    assert ending.committed_here
    reference = arena.folder / f"reference-{place.name}.parquet"
    save_reference(place, output, reference)
    return reference, calls


def _die(
    tally: Tally,
    readers: Readers,
    point: Point,
    fraction: float,
    request: PredictSpec,
    work: Callable[[], Ending],
) -> bool:
    """Let a run die at a point; False when it did not come there, and ended by itself."""
    ended = Child(lambda: die_at(point, fraction, request.output, work)).wait()
    if ended.was_killed:
        tally.kills += 1
        tally.counts[f"killed {point.moment}"] += 1
        readers.settle()
        return True
    tally.counts["moments that did not come"] += 1
    if ended.error:
        tally.faults.append(f"{point}: {ended.error}")
    return False


def _finish(
    tally: Tally,
    readers: Readers,
    output: str,
    work: Callable[[], Ending],
    compare_it: Callable[[], Difference],
) -> None:
    """Let a run go on to the end, and compare what it has made."""
    ended = Child(lambda: (work(), compare_it())[1]).wait()
    tally.resumes += 1
    if ended.error or ended.signal:
        tally.faults.append(f"{output} could not go on: {ended.error or ended.signal}")
    else:
        count(tally, output, ended.value)
    readers.settle()


def _forget(place: Place, output: str) -> None:
    """Remove an output that was looked at, so that the disk does not fill."""
    if place.on_disk:
        storage.remove_tree(output)
