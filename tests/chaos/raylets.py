"""Three raylets on one machine; one is killed in the middle of a job, repeatedly.

The node of the driver is spared: with it the driver would die, which is another scenario.
"""

from __future__ import annotations

import mmap
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from eagleray.sharded.layout import OutputLayout
from tests.chaos.places import Place
from tests.chaos.predict import Predict
from tests.chaos.readers import polling
from tests.chaos.scenario_result import ScenarioResult
from tests.chaos.verify import check, save_reference
from tests.chaos.workspace import Workspace, recording
from tests.support.processes import Child, end_orphans, family

NUM_IMAGES = 420
_SECONDS_WITHOUT = 4.0
_SECONDS_TO_START = 120.0
_STOP, _KILLS, _MAY_KILL = range(3)


def kill_raylets(workspace: Workspace, place: Place, *, num_kills: int = 8) -> ScenarioResult:
    """Run jobs on three nodes, two of which are killed and added back.

    Args:
        workspace: Workspace of the run.
        place: Storage of the outputs, on disk.
        num_kills: Minimum number of kills; a started job is finished.
    """
    material = workspace.large(NUM_IMAGES)
    flags = np.frombuffer(mmap.mmap(-1, 24), np.int64)
    address = workspace.folder / f"address-{place.name}"
    rng = workspace.rng("raylets", place.name)
    keeper = Child(lambda: _keep_cluster(flags, address, rng))

    def output_of(number: int) -> str:
        return place.output("raylets", number)

    def predict(number: int) -> Predict:
        options = ["--cluster", _address(address)]
        return Predict(material, place, output_of(number), options=options)

    with recording("raylets", place) as result:
        try:
            assert predict(0).wait().code == 0
            reference = workspace.folder / f"raylets-{place.name}.parquet"
            save_reference(place, output_of(0), reference)
            with polling(result, place, output_of, material.num_images) as readers:
                while flags[_KILLS] < num_kills and result.outputs < 6:
                    number = result.outputs + 1
                    readers.watch(number)
                    running = predict(number)
                    _await_results(running, output_of(number))
                    flags[_MAY_KILL] = 1
                    code = running.wait().code
                    flags[_MAY_KILL] = 0
                    if code:
                        result.faults.append(f"the job ended with exit code {code}")
                    readers.wait_for_polls()
                    check(result, place, output_of(number), reference)
            result.kills = int(flags[_KILLS])
        finally:
            _end(keeper, flags)
    return result


def _await_results(running: Predict, output: str) -> None:
    """Wait until the first shards are done: a kill then interrupts its work."""
    shards = Path(OutputLayout(output).shards)
    while running.is_running and not any(shards.glob("*.parquet")):
        time.sleep(0.1)


def _end(keeper: Child, flags: Any) -> None:
    started = family(keeper.pid)
    flags[_STOP] = 1
    keeper.wait(30)
    end_orphans(started)


def _address(file: Path) -> str:
    """Wait for the address of the cluster."""
    deadline = time.monotonic() + _SECONDS_TO_START
    while not file.exists():
        assert time.monotonic() < deadline, "the cluster does not start"
        time.sleep(0.1)
    return file.read_text()


def _keep_cluster(flags: Any, address: Path, rng: random.Random) -> None:
    """Hold three nodes; while the flag is set, kill one of two at random times, and replace it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False},
    )
    others = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    ready = address.with_suffix(".new")
    ready.write_text(cluster.address)
    ready.rename(address)
    next_kill = 0.0
    while not flags[_STOP]:
        time.sleep(0.1)
        if not flags[_MAY_KILL]:
            next_kill = time.monotonic() + rng.uniform(0, 5)
        elif time.monotonic() > next_kill:
            victim = rng.randrange(len(others))
            others[victim].kill_raylet()  # SIGKILL
            flags[_KILLS] += 1
            time.sleep(_SECONDS_WITHOUT)
            cluster.remove_node(others[victim], allow_graceful=False)
            others[victim] = cluster.add_node(num_cpus=1)
            next_kill = time.monotonic() + rng.uniform(5, 15)
