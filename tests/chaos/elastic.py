"""Trains elastically on two nodes, kills one of them, and checks that the other one finishes."""

from __future__ import annotations

import mmap
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.chaos.curves import Curve, read_curve
from tests.chaos.scenario_result import ScenarioResult
from tests.chaos.train import EPOCHS, WORKERS, Train, new_run_args, run_folders
from tests.chaos.workspace import Workspace, recording
from tests.support.numerics import SAME_LOSS
from tests.support.processes import Child, end_orphans, family, titled

_SECONDS_TO_START = 120.0
_SECONDS_TO_FINISH = 1200.0
_STOP, _KILL, _KILLED = range(3)
_NOISE = 0.15  # of an epoch's mean loss: dropout and normalisation depend on the workers


def lose_node(workspace: Workspace, home: Path, data: Path, undisturbed: Curve) -> ScenarioResult:
    """Train with `--workers 1..2` on two nodes, and kill the one without the driver.

    Args:
        workspace: Workspace of the test.
        home: Home of the runs.
        data: Folder of images.
        undisturbed: Result of an undisturbed run with two workers.
    """
    flags = np.frombuffer(mmap.mmap(-1, 24), np.int64)
    address = workspace.folder / "address-training"
    cluster = Child(lambda: _run_cluster(flags, address))
    known = {run.name for run in run_folders(home)}
    with recording("train-node", workspace.places["disk"]) as result:
        try:
            _await(address.exists, _SECONDS_TO_START)
            args = [*new_run_args(data, workers="1..2"), "--cluster", address.read_text()]
            train = Train(home, args)
            _await(lambda: len(_new_runs(home, known)) == 1 or not train.is_running)
            run = _new_runs(home, known)[0]
            quarter = len(undisturbed.losses) // 4
            _await(lambda: run.step() >= quarter or not train.is_running)
            result.counts["workers at first"] = _num_workers(cluster)
            reached, began = run.step(), time.monotonic()
            flags[_KILL] = 1
            _await(lambda: bool(flags[_KILLED]))
            result.kills += 1
            _await(lambda: run.step() > reached + 4 or not train.is_running)
            result.notes.append(
                f"{time.monotonic() - began:.0f} s from the node's death at step {reached} to a "
                "later checkpoint"
            )
            result.counts["workers afterwards"] = _num_workers(cluster)
            code = train.wait(_SECONDS_TO_FINISH).code
            if code:
                result.faults.append(f"the run ended with exit code {code}")
            else:
                found = read_curve(home, run, workspace.folder / "curve")
                _check(result, found, undisturbed, reached)
        finally:
            started = family(cluster.pid)
            flags[_STOP] = 1
            cluster.wait(30)
            end_orphans(started)
    return result


def _check(result: ScenarioResult, found: Curve, undisturbed: Curve, reached: int) -> None:
    result.outputs += 1
    result.rows += len(found.losses)
    result.lost += max(0, len(undisturbed.losses) - len(found.losses))
    result.doubled += max(0, found.versions - 1)
    step_differences = np.abs(found.losses[:reached] - undisturbed.losses[:reached])
    result.different += int((step_differences > SAME_LOSS * undisturbed.losses[:reached]).sum())
    means = [curve.losses.reshape(EPOCHS, -1).mean(axis=1) for curve in (found, undisturbed)]
    difference = float(np.abs(means[0] - means[1]).max())
    result.notes.append(
        f"largest difference of an epoch's mean loss {difference:.3f}; they fall from "
        f"{means[1][0]:.3f} to {means[1][-1]:.3f}"
    )
    if difference > _NOISE:
        result.faults.append(f"the curve is {difference:.3f} off, and {_NOISE} is noise")
    if (result.counts["workers at first"], result.counts["workers afterwards"]) != (2, 1):
        result.faults.append("the number of workers did not fall from two to one")


def _new_runs(home: Path, known: set[str]) -> list[Any]:
    return [run for run in run_folders(home) if run.name not in known]


def _num_workers(cluster: Child) -> int:
    return len(titled(family(cluster.pid), *WORKERS))


def _await(what: Any, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def _run_cluster(flags: Any, address: Path) -> None:
    """Run two nodes, and kill the second one when the flag is set."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False},
    )
    other = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ready = address.with_suffix(".new")
    ready.write_text(cluster.address)
    ready.rename(address)
    while not flags[_STOP]:
        time.sleep(0.05)
        if flags[_KILL] and not flags[_KILLED]:
            other.kill_raylet()  # SIGKILL
            flags[_KILLED] = 1
