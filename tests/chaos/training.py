"""Kill workers, drivers and a node of training runs, and compare every step with a run in peace.

    python -m tests.chaos.training
    python -m tests.chaos.training --only workers --kills 5 --seed 7 --json training.json
    python -m tests.chaos.training --data flowers/

Needs Linux. Two workers train a ResNet-20 with augmentation, dropout and an average of weights, a
checkpoint every four steps. With everything it takes about half an hour on two cores. The exit
status is 1 when a loss, a metric or a weight of a finished run differs, when a checkpoint that was
visible could not be read, when a run registered other than one version, or when one could not go
on.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eagleray.core.settings import Settings
from eagleray.registry.registry import Registry
from tests.chaos.arena import Arena, open_arena, tally_of
from tests.chaos.curves import Curve, Worst, compare, read_curve
from tests.chaos.elastic import lose_node
from tests.chaos.processes import end_orphans, in_child, kill
from tests.chaos.tally import Tally, render
from tests.chaos.train import (
    CHECKPOINT_STEPS,
    EPOCHS,
    MODEL,
    RunFolder,
    Train,
    begin,
    run_folders,
    write_bands,
)
from tests.chaos.watcher import watching

_SECONDS_BETWEEN_LOOKS = 0.002
_SECONDS_TO_FINISH = 1200.0
_MAX_SECONDS_BETWEEN_KILLS = 6.0
_AGAIN_AT_START = 0.25  # the share of kills that is followed by one of the workers that come next
_MOMENTS = {
    "starting": 10.0,
    "before the next checkpoint": 3.0,
    "writing a checkpoint": 0.0,
    "training": 3.0,
    "validating": 0.6,
    "testing": 4.0,
    "registering": 1.5,
    "registering again": 5.0,
}
"""When drivers are killed, in the order of a run, and the most seconds after it begins."""


@dataclass(frozen=True)
class Subject:
    """What is attacked.

    Attributes:
        home: Of all runs.
        data: Folder of images.
        seconds: That an undisturbed run takes.
        curve: Of the undisturbed run.
    """

    home: Path
    data: Path
    seconds: float
    curve: Curve

    @property
    def num_steps(self) -> int:
        return len(self.curve.losses)

    @property
    def last_due(self) -> int:
        """The step of an epoch that the last checkpoint before validation comes after."""
        return (self.num_steps // EPOCHS - 1) // CHECKPOINT_STEPS * CHECKPOINT_STEPS


def run_undisturbed(arena: Arena, data: Path | None) -> Subject:
    """Train once, in peace."""
    home = arena.folder / "home"
    folder = data or write_bands(arena.folder / "bands")
    started = time.monotonic()
    assert Train(home, begin(folder)).wait(_SECONDS_TO_FINISH).code == 0
    seconds = time.monotonic() - started
    curve = read_curve(home, run_folders(home)[-1], arena.folder / "curve")
    _say(f"an undisturbed run of {len(curve.losses)} steps takes {seconds:.0f} s")
    return Subject(home, folder, seconds, curve)


# --- workers ------------------------------------------------------------------------------------


def kill_workers(arena: Arena, subject: Subject, num_kills: int) -> Tally:
    """Kill single workers at random moments of runs that are to finish by themselves."""
    chance, worst = arena.chance("train-workers"), Worst()
    pauses: list[tuple[float, float]] = []
    place = arena.places["disk"]
    with tally_of("train-workers", place) as tally, watching(tally, subject.home):
        while tally.kills < num_kills and len(tally.faults) < 3:
            known = {run.name for run in run_folders(subject.home)}
            train = _begin(subject)
            run = _await_run(train, subject.home, known)
            if run is not None:
                _kill_some(tally, train, run, chance, num_kills, pauses)
            _finish(arena, subject, tally, worst, train, run)
    tally.notes.append(str(worst))
    if pauses:
        noticed = statistics.median(pause for pause, _ in pauses)
        recovered = [pause for _, pause in pauses]
        tally.notes.append(
            f"seconds from a kill to new workers {noticed:.1f}, to a checkpoint farther than "
            f"before {statistics.median(recovered):.1f} (medians), {max(recovered):.1f} at most"
        )
    return tally


def _kill_some(
    tally: Tally,
    train: Train,
    run: RunFolder,
    chance: random.Random,
    num_kills: int,
    pauses: list[tuple[float, float]],
) -> None:
    while tally.kills < num_kills:
        if not _wait(train, lambda: bool(train.workers()), every=0.1):
            return
        while_writing = chance.random() < 0.3
        if not while_writing:
            time.sleep(chance.uniform(0, _MAX_SECONDS_BETWEEN_KILLS))
        victims = train.workers()
        if while_writing and not _wait(train, run.is_writing):
            return
        reached, began = run.step(), time.monotonic()
        if victims and kill(chance.choice(victims)):
            _count(tally, "workers killed" + " while a checkpoint was written" * while_writing)
            tally.counts["checkpoints broken off"] += run.is_writing()
            again = chance.random() < _AGAIN_AT_START and tally.kills < num_kills
            noticed = _await_others(tally, train, victims, chance if again else None)
            if _wait(train, partial(run.is_beyond, reached)):
                pauses.append((noticed - began, time.monotonic() - began))


def _await_others(
    tally: Tally, train: Train, victims: list[Any], chance: random.Random | None
) -> float:
    """Return when new workers were there; with a chance, one of them is killed as well."""
    old = {victim.pid for victim in victims}
    _wait(train, lambda: any(worker.pid not in old for worker in train.workers()), every=0.1)
    noticed = time.monotonic()
    if chance is not None:
        time.sleep(chance.uniform(0, 3))
        if (found := train.workers()) and kill(chance.choice(found)):
            _count(tally, "workers killed that had just been started")
    return noticed


# --- drivers ------------------------------------------------------------------------------------


def kill_drivers(arena: Arena, subject: Subject, num_kills: int) -> Tally:
    """Kill whole commands at moments of every kind, and go on with their runs.

    Half of the kills hit everything that the command has started, as a loss of power does; half
    hit the driver alone, and the next command begins while what it left may still be there.
    """
    chance, worst = arena.chance("train-drivers"), Worst()
    began = time.monotonic()
    with tally_of("train-drivers", arena.places["disk"]) as tally, watching(tally, subject.home):
        while tally.kills < num_kills and len(tally.faults) < 3:
            _kill_through_a_run(arena, subject, tally, worst, chance, num_kills)
        lost = (time.monotonic() - began - tally.outputs * subject.seconds) / max(1, tally.kills)
    tally.notes += [str(worst), f"a kill and its resume cost {lost:.0f} s on average"]
    return tally


def _kill_through_a_run(
    arena: Arena,
    subject: Subject,
    tally: Tally,
    worst: Worst,
    chance: random.Random,
    num_kills: int,
) -> None:
    known = {run.name for run in run_folders(subject.home)}
    run: RunFolder | None = None
    left: list[Any] = []
    for moment, max_seconds in _MOMENTS.items():
        if tally.kills >= num_kills:
            break
        train = _go_on(subject, tally, run)
        run = run or _await_run(train, subject.home, known, give_up=moment == "starting")
        if run is None and moment != "starting":
            break
        if not _await_moment(subject, train, run, moment):
            break
        time.sleep(chance.uniform(0, max_seconds))
        if not train.is_running:
            break
        at_once = chance.random() < 0.5
        left += train.leave(with_family=at_once)
        _count(tally, f"drivers killed {moment}")
        tally.counts["drivers killed with all that they had started"] += at_once
        run = run or _newest(subject.home, known)
        if run is not None:
            tally.counts["checkpoints broken off"] += run.is_writing()
            if run.record().get("version"):
                break
    else:
        train = _go_on(subject, tally, run)
    if run is not None and run.record().get("version") and not train.is_running:
        train.wait()
        _judge(arena, subject, tally, worst, run)
    else:
        if not train.is_running and train.wait().code < 0:
            train = _go_on(subject, tally, run)
        run = run or _await_run(train, subject.home, known)
        _finish(arena, subject, tally, worst, train, run)
    tally.counts["processes that outlived their driver"] += end_orphans(left)


def _go_on(subject: Subject, tally: Tally, run: RunFolder | None) -> Train:
    if run is None:
        return _begin(subject)
    tally.resumes += 1
    return Train(subject.home, ["--resume", run.name])


def _await_moment(subject: Subject, train: Train, run: RunFolder | None, moment: str) -> bool:
    """Wait for a moment of a run; False when the command ended before."""
    if moment == "starting":
        return train.is_running
    assert run is not None
    begun_at, first = time.time(), run.step()

    def is_tested() -> bool:
        page = run.folder / "training.html"
        return page.exists() and page.stat().st_mtime > begun_at

    def farther() -> bool:
        return run.step() > first

    reached: dict[str, Callable[[], bool]] = {
        "before the next checkpoint": lambda: bool(train.workers()),
        "writing a checkpoint": lambda: farther() and run.is_writing(),
        "training": farther,
        "validating": lambda: (
            farther() and run.step() % (subject.num_steps // EPOCHS) == subject.last_due
        ),
        "testing": is_tested,
        "registering": lambda: is_tested() and run.has_package(),
        "registering again": is_tested,
    }
    return _wait(train, reached[moment], every=0.1 if "next" in moment else None)


# --- both ---------------------------------------------------------------------------------------


def _begin(subject: Subject) -> Train:
    decoded = subject.home / "cache/decoded"
    if decoded.exists():
        shutil.rmtree(decoded)  # a kill may hit while it is made
    return Train(subject.home, begin(subject.data))


def _await_run(
    train: Train, home: Path, known: set[str], *, give_up: bool = False
) -> RunFolder | None:
    """Wait until a new run can be gone on with; None when the command ended before."""
    if not give_up:
        _wait(train, lambda: _newest(home, known) is not None)
    return _newest(home, known)


def _newest(home: Path, known: set[str]) -> RunFolder | None:
    return next((run for run in run_folders(home) if run.name not in known), None)


def _wait(train: Train, what: Callable[[], bool], *, every: float | None = None) -> bool:
    """Wait for something to happen; False when the command ended before."""
    while train.is_running:
        if what():
            return True
        time.sleep(every or _SECONDS_BETWEEN_LOOKS)
    return False


def _finish(
    arena: Arena,
    subject: Subject,
    tally: Tally,
    worst: Worst,
    train: Train,
    run: RunFolder | None,
) -> None:
    code = train.wait(_SECONDS_TO_FINISH).code
    if code or run is None:
        tally.faults.append(f"run {run.name if run else '?'} ended with exit code {code}")
        return
    _judge(arena, subject, tally, worst, run)


def _judge(arena: Arena, subject: Subject, tally: Tally, worst: Worst, run: RunFolder) -> None:
    compare(tally, worst, read_curve(subject.home, run, arena.folder / "curve"), subject.curve)
    _say(f"{tally.scenario}: run {tally.outputs} is finished; {worst}")


def _count(tally: Tally, what: str) -> None:
    tally.kills += 1
    tally.counts[what] += 1
    _say(f"{tally.scenario}: kill {tally.kills}: {what}")


def _check_versions(subject: Subject, tallies: list[Tally], others: int) -> None:
    """Every finished run has one version, and nobody else has any."""
    found = in_child(lambda: len(Registry(Settings(home=subject.home)).versions(MODEL)))
    expected = others + sum(tally.outputs for tally in tallies)
    if found != expected:
        tallies[-1].faults.append(f"{found} versions are registered by {expected} finished runs")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    scenarios = {"workers": kill_workers, "drivers": kill_drivers}
    names = [*scenarios, "node"]
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.training", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--kills", type=int, default=20, help="of workers, and of drivers")
    parser.add_argument("--data", type=Path, help="folder of images; default: generated ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for all counts")
    options = parser.parse_args()
    with open_arena(options.seed, ["disk"]) as arena:
        subject = run_undisturbed(arena, options.data)
        tallies = [
            scenarios[name](arena, subject, options.kills)
            for name in options.only
            if name in scenarios
        ]
        if tallies:
            _check_versions(subject, tallies, others=1)
        if "node" in options.only:
            tallies.append(lose_node(arena, subject.home, subject.data, subject.curve))
    print(render(tallies))
    if options.json is not None:
        options.json.write_text(json.dumps([tally.as_json() for tally in tallies], indent=2))
    sys.exit(0 if all(tally.holds for tally in tallies) else 1)


if __name__ == "__main__":
    main()
