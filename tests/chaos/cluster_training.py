"""Training runs on a cluster of hosts whose head is killed."""

from __future__ import annotations

import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.chaos.scenario_result import ScenarioResult
from tests.support.hosted import PROFILE, Hosted
from tests.support.numerics import SAME_LOSS

__all__ = ["kill_heads_of_training"]

_OPTIONS = ["--name", "stripes", "--architecture", "lenet5", "--seed", "1", "--epochs", "12"]
_MORE = ["--batch-size", "8", "--checkpoint-steps", "4", "--workers", "1", "--cluster", PROFILE]
_SECONDS_TO_END = 300.0
_MAX_KILLS_OF_A_RUN = 3


def kill_heads_of_training(hosted: Hosted, result: ScenarioResult, num_kills: int) -> None:
    """Kill the head at random moments of training runs, and resume the runs."""
    rng = random.Random(num_kills)
    with tempfile.TemporaryDirectory() as folder:
        data = hosted.put_stripes(Path(folder))
    first = _submit(hosted, data)
    _wait_until_running(hosted, first)
    started = time.monotonic()
    reference = _weights(hosted, _finish(hosted, first))
    seconds = time.monotonic() - started
    result.add_note(f"an undisturbed run takes {seconds:.0f} s")
    while result.kills < num_kills:
        job, run = _submit(hosted, data), ""
        for _ in range(min(_MAX_KILLS_OF_A_RUN, num_kills - result.kills)):
            _wait_until_running(hosted, job)
            time.sleep(rng.uniform(0.1, 0.9) * seconds)
            if _info(hosted, job)["status"] != "RUNNING":
                break
            run = run or _run_of(_log(hosted, job))
            hosted.cluster.head.kill()
            result.add_kill("the head")
            hosted.cluster.start_head()
            hosted.cluster.wait_for_nodes(1 + len(hosted.cluster.workers))
            job = _submit(hosted, data, run)
            result.resumes += 1
            result.print_progress(f"{job} resumes {run}" if run else f"{job} begins again")
        result.outputs += 1
        result.print_progress(f"waiting for {job}")
        largest = _largest_difference(_weights(hosted, _finish(hosted, job)), reference)
        result.add_note(f"largest difference of a weight: {largest:.3g}")
        result.different += largest > SAME_LOSS


def _submit(hosted: Hosted, data: str, run: str = "") -> str:
    """Start a run, or resume it; return the name of the job."""
    if run:
        words = ["train", "--resume", run, "--json", "--cluster", PROFILE, "--detach"]
    else:
        words = ["train", data, *_OPTIONS, *_MORE, "--json", "--detach"]
    return hosted.eagleray(*words).stderr.split("Job ")[1].split()[0]


def _wait_until_running(hosted: Hosted, job: str) -> None:
    deadline = time.monotonic() + _SECONDS_TO_END
    while _info(hosted, job)["status"] == "PENDING" and time.monotonic() < deadline:
        time.sleep(0.2)


def _finish(hosted: Hosted, job: str) -> str:
    """Wait for the end of a job and return the version that its run registered."""
    deadline = time.monotonic() + _SECONDS_TO_END
    while _info(hosted, job)["status"] in ("PENDING", "RUNNING"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{job} still runs: {_log(hosted, job)[-500:]}")
        time.sleep(0.5)
    log = _log(hosted, job)
    # A run that was killed after it had registered its version is not resumed.
    found = re.search(r"is complete: it registered (\S+) after|\"model\": \"([^\"]+)\"", log)
    if found is None:
        raise RuntimeError(f"{job} has not registered a version: {log[-1000:]}")
    return found[1] or found[2]


def _weights(hosted: Hosted, version: str) -> dict[str, Any]:
    """Return the weights of a registered version."""
    name, _, number = version.partition("/")
    with hosted.registry() as registry:
        return registry.load(registry.get(name, version=int(number))).build_module().state_dict()


def _largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def _info(hosted: Hosted, job: str) -> Any:
    return hosted.cluster.get(f"/api/jobs/{job}")


def _log(hosted: Hosted, job: str) -> str:
    return str(hosted.cluster.get(f"/api/jobs/{job}/logs")["logs"])


def _run_of(log: str) -> str:
    """Return the name of the run; empty if it was killed before it had one."""
    found = re.search(r"run (\S+), in ", log)
    return "" if found is None else found[1]
