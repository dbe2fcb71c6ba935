"""Kills workers, drivers and a node of training runs, and compares every step with a baseline.

    python -m tests.chaos.training
    python -m tests.chaos.training --only workers --kills 5 --seed 7 --json training.json
    python -m tests.chaos.training --data flowers/

Needs Linux. Two workers train a ResNet-20 with augmentation, dropout and an EMA of weights, with a
checkpoint every four steps. With everything it takes about half an hour on two cores. The exit
status is 1 if a loss, a metric or a weight of a finished run differs, if a visible checkpoint could
not be read, if a run registered other than one version, or if one could not be resumed.
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
from tests.chaos.curves import Curve, LargestDifferences, compare, read_curve
from tests.chaos.elastic import lose_node
from tests.chaos.scenario_result import ScenarioResult, render
from tests.chaos.train import (
    CHECKPOINT_STEPS,
    EPOCHS,
    MODEL,
    RunFolder,
    Train,
    new_run_args,
    run_folders,
    write_bands,
)
from tests.chaos.watcher import watching
from tests.chaos.workspace import Workspace, open_workspace, recording
from tests.support.processes import end_orphans, in_child, kill

_POLL_SECONDS = 0.002
_SECONDS_TO_FINISH = 1200.0
_MAX_SECONDS_BETWEEN_KILLS = 6.0
_AGAIN_AT_START = 0.25  # fraction of kills that are followed by a kill of a restarted worker
_PHASES = {
    "starting": 10.0,
    "before the next checkpoint": 3.0,
    "writing a checkpoint": 0.0,
    "training": 3.0,
    "validating": 0.6,
    "testing": 4.0,
    "registering": 1.5,
    "registering again": 5.0,
}
"""Phases in which drivers are killed, in the order of a run, and the maximum delay in seconds."""


@dataclass(frozen=True)
class Baseline:
    """The baseline of all runs.

    Attributes:
        home: Home of all runs.
        data: Folder of images.
        seconds: Duration of an undisturbed run.
        curve: Result of the undisturbed run.
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
        """Step of an epoch after which the last checkpoint before validation is written."""
        return (self.num_steps // EPOCHS - 1) // CHECKPOINT_STEPS * CHECKPOINT_STEPS


def run_undisturbed(workspace: Workspace, data: Path | None) -> Baseline:
    """Train once without a kill."""
    home = workspace.folder / "home"
    folder = data or write_bands(workspace.folder / "bands")
    started = time.monotonic()
    assert Train(home, new_run_args(folder)).wait(_SECONDS_TO_FINISH).code == 0
    seconds = time.monotonic() - started
    curve = read_curve(home, run_folders(home)[-1], workspace.folder / "curve")
    _log(f"an undisturbed run of {len(curve.losses)} steps takes {seconds:.0f} s")
    return Baseline(home, folder, seconds, curve)


# --- workers ------------------------------------------------------------------------------------


def kill_workers(workspace: Workspace, baseline: Baseline, num_kills: int) -> ScenarioResult:
    """Kill single workers at random moments; the runs have to finish without a resume."""
    rng, largest = workspace.rng("train-workers"), LargestDifferences()
    pauses: list[tuple[float, float]] = []
    place = workspace.places["disk"]
    with recording("train-workers", place) as result, watching(result, baseline.home):
        while result.kills < num_kills and len(result.faults) < 3:
            known = {run.name for run in run_folders(baseline.home)}
            train = _start(baseline)
            run = _await_run(train, baseline.home, known)
            if run is not None:
                _kill_workers_of(result, train, run, rng, num_kills, pauses)
            _finish(workspace, baseline, result, largest, train, run)
    result.notes.append(str(largest))
    if pauses:
        noticed = statistics.median(pause for pause, _ in pauses)
        recovered = [pause for _, pause in pauses]
        result.notes.append(
            f"seconds from a kill to new workers {noticed:.1f}, to a later "
            f"checkpoint {statistics.median(recovered):.1f} (medians), {max(recovered):.1f} at most"
        )
    return result


def _kill_workers_of(
    result: ScenarioResult,
    train: Train,
    run: RunFolder,
    rng: random.Random,
    num_kills: int,
    pauses: list[tuple[float, float]],
) -> None:
    while result.kills < num_kills:
        if not _wait(train, lambda: bool(train.workers()), every=0.1):
            return
        while_writing = rng.random() < 0.3
        if not while_writing:
            time.sleep(rng.uniform(0, _MAX_SECONDS_BETWEEN_KILLS))
        victims = train.workers()
        if while_writing and not _wait(train, run.is_writing):
            return
        reached, began = run.step(), time.monotonic()
        if victims and kill(rng.choice(victims)):
            _count_kill(
                result, "workers killed" + " while a checkpoint was written" * while_writing
            )
            result.counts["checkpoints broken off"] += run.is_writing()
            again = rng.random() < _AGAIN_AT_START and result.kills < num_kills
            noticed = _await_replacements(result, train, victims, rng if again else None)
            if _wait(train, partial(run.is_beyond, reached)):
                pauses.append((noticed - began, time.monotonic() - began))


def _await_replacements(
    result: ScenarioResult, train: Train, victims: list[Any], rng: random.Random | None
) -> float:
    """Return when new workers had started; if `rng` is given, one of them is killed as well."""
    old = {victim.pid for victim in victims}
    _wait(train, lambda: any(worker.pid not in old for worker in train.workers()), every=0.1)
    noticed = time.monotonic()
    if rng is not None:
        time.sleep(rng.uniform(0, 3))
        if (found := train.workers()) and kill(rng.choice(found)):
            _count_kill(result, "workers killed that had just been started")
    return noticed


# --- drivers ------------------------------------------------------------------------------------


def kill_drivers(workspace: Workspace, baseline: Baseline, num_kills: int) -> ScenarioResult:
    """Kill commands in every phase, and resume their runs.

    Half of the kills hit all processes of the command, like a power failure; half hit the driver
    alone, and the next command starts while orphans may still run.
    """
    rng, largest = workspace.rng("train-drivers"), LargestDifferences()
    began = time.monotonic()
    with (
        recording("train-drivers", workspace.places["disk"]) as result,
        watching(result, baseline.home),
    ):
        while result.kills < num_kills and len(result.faults) < 3:
            _kill_through_a_run(workspace, baseline, result, largest, rng, num_kills)
        lost = (time.monotonic() - began - result.outputs * baseline.seconds) / max(1, result.kills)
    result.notes += [str(largest), f"a kill and its resume cost {lost:.0f} s on average"]
    return result


def _kill_through_a_run(
    workspace: Workspace,
    baseline: Baseline,
    result: ScenarioResult,
    largest: LargestDifferences,
    rng: random.Random,
    num_kills: int,
) -> None:
    known = {run.name for run in run_folders(baseline.home)}
    run: RunFolder | None = None
    left: list[Any] = []
    for phase, max_seconds in _PHASES.items():
        if result.kills >= num_kills:
            break
        train = _resume(baseline, result, run)
        run = run or _await_run(train, baseline.home, known, give_up=phase == "starting")
        if run is None and phase != "starting":
            break
        if not _await_phase(baseline, train, run, phase):
            break
        time.sleep(rng.uniform(0, max_seconds))
        if not train.is_running:
            break
        at_once = rng.random() < 0.5
        left += train.leave(with_family=at_once)
        _count_kill(result, f"drivers killed {phase}")
        result.counts["drivers killed with all that they had started"] += at_once
        run = run or _newest(baseline.home, known)
        if run is not None:
            result.counts["checkpoints broken off"] += run.is_writing()
            if run.record().get("version"):
                break
    else:
        train = _resume(baseline, result, run)
    if run is not None and run.record().get("version") and not train.is_running:
        train.wait()
        _check(workspace, baseline, result, largest, run)
    else:
        if not train.is_running and train.wait().code < 0:
            train = _resume(baseline, result, run)
        run = run or _await_run(train, baseline.home, known)
        _finish(workspace, baseline, result, largest, train, run)
    result.counts["processes that outlived their driver"] += end_orphans(left)


def _resume(baseline: Baseline, result: ScenarioResult, run: RunFolder | None) -> Train:
    if run is None:
        return _start(baseline)
    result.resumes += 1
    return Train(baseline.home, ["--resume", run.name])


def _await_phase(baseline: Baseline, train: Train, run: RunFolder | None, phase: str) -> bool:
    """Wait for a phase of a run; return False if the command ended before."""
    if phase == "starting":
        return train.is_running
    assert run is not None
    begun_at, first = time.time(), run.step()

    def is_tested() -> bool:
        page = run.folder / "training.html"
        return page.exists() and page.stat().st_mtime > begun_at

    def has_progressed() -> bool:
        return run.step() > first

    reached: dict[str, Callable[[], bool]] = {
        "before the next checkpoint": lambda: bool(train.workers()),
        "writing a checkpoint": lambda: has_progressed() and run.is_writing(),
        "training": has_progressed,
        "validating": lambda: (
            has_progressed() and run.step() % (baseline.num_steps // EPOCHS) == baseline.last_due
        ),
        "testing": is_tested,
        "registering": lambda: is_tested() and run.has_package(),
        "registering again": is_tested,
    }
    return _wait(train, reached[phase], every=0.1 if "next" in phase else None)


# --- both ---------------------------------------------------------------------------------------


def _start(baseline: Baseline) -> Train:
    decoded = baseline.home / "cache/decoded"
    if decoded.exists():
        shutil.rmtree(decoded)  # a kill may hit while it is made
    return Train(baseline.home, new_run_args(baseline.data))


def _await_run(
    train: Train, home: Path, known: set[str], *, give_up: bool = False
) -> RunFolder | None:
    """Wait until a new run can be resumed; return None if the command ended before."""
    if not give_up:
        _wait(train, lambda: _newest(home, known) is not None)
    return _newest(home, known)


def _newest(home: Path, known: set[str]) -> RunFolder | None:
    return next((run for run in run_folders(home) if run.name not in known), None)


def _wait(train: Train, what: Callable[[], bool], *, every: float | None = None) -> bool:
    """Wait for a condition; return False if the command ended before."""
    while train.is_running:
        if what():
            return True
        time.sleep(every or _POLL_SECONDS)
    return False


def _finish(
    workspace: Workspace,
    baseline: Baseline,
    result: ScenarioResult,
    largest: LargestDifferences,
    train: Train,
    run: RunFolder | None,
) -> None:
    code = train.wait(_SECONDS_TO_FINISH).code
    if code or run is None:
        result.faults.append(f"run {run.name if run else '?'} ended with exit code {code}")
        return
    _check(workspace, baseline, result, largest, run)


def _check(
    workspace: Workspace,
    baseline: Baseline,
    result: ScenarioResult,
    largest: LargestDifferences,
    run: RunFolder,
) -> None:
    compare(
        result, largest, read_curve(baseline.home, run, workspace.folder / "curve"), baseline.curve
    )
    _log(f"{result.scenario}: run {result.outputs} is finished; {largest}")


def _count_kill(result: ScenarioResult, what: str) -> None:
    result.kills += 1
    result.counts[what] += 1
    _log(f"{result.scenario}: kill {result.kills}: {what}")


def _check_versions(baseline: Baseline, results: list[ScenarioResult], others: int) -> None:
    """Check that every finished run has one version, and no other run has any."""
    found = in_child(lambda: len(Registry(Settings(home=baseline.home)).versions(MODEL)))
    expected = others + sum(result.outputs for result in results)
    if found != expected:
        results[-1].faults.append(f"{found} versions are registered by {expected} finished runs")


def _log(text: str) -> None:
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
    with open_workspace(options.seed, ["disk"]) as workspace:
        baseline = run_undisturbed(workspace, options.data)
        results = [
            scenarios[name](workspace, baseline, options.kills)
            for name in options.only
            if name in scenarios
        ]
        if results:
            _check_versions(baseline, results, others=1)
        if "node" in options.only:
            results.append(lose_node(workspace, baseline.home, baseline.data, baseline.curve))
    print(render(results))
    if options.json is not None:
        options.json.write_text(json.dumps([result.as_json() for result in results], indent=2))
    sys.exit(0 if all(result.holds for result in results) else 1)


if __name__ == "__main__":
    main()
