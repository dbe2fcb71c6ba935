"""Three raylets on one machine; one is killed in the middle of a job, again and again.

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
from tests.chaos.arena import Arena, tally_of
from tests.chaos.places import Place
from tests.chaos.predict import Predict
from tests.chaos.readers import polling
from tests.chaos.tally import Tally
from tests.chaos.verify import check, save_reference
from tests.support.processes import Child, end_orphans, family

NUM_IMAGES = 420
_SECONDS_WITHOUT = 4.0
_SECONDS_TO_START = 120.0
_STOP, _KILLS, _MAY_KILL = range(3)


def kill_raylets(arena: Arena, place: Place, *, num_kills: int = 8) -> Tally:
    """Run jobs on three nodes, two of which are killed and added back.

    Args:
        arena: Where.
        place: Of the outputs, on disk.
        num_kills: At least; a job is finished once it is begun.
    """
    material = arena.large(NUM_IMAGES)
    board = np.frombuffer(mmap.mmap(-1, 24), np.int64)
    address = arena.folder / f"address-{place.name}"
    chance = arena.chance("raylets", place.name)
    keeper = Child(lambda: _keep_cluster(board, address, chance))

    def output_of(number: int) -> str:
        return place.output("raylets", number)

    def predict(number: int) -> Predict:
        options = ["--cluster", _address(address)]
        return Predict(material, place, output_of(number), options=options)

    with tally_of("raylets", place) as tally:
        try:
            assert predict(0).wait().code == 0
            reference = arena.folder / f"raylets-{place.name}.parquet"
            save_reference(place, output_of(0), reference)
            with polling(tally, place, output_of, material.num_images) as readers:
                while board[_KILLS] < num_kills and tally.outputs < 6:
                    number = tally.outputs + 1
                    readers.watch(number)
                    running = predict(number)
                    _await_results(running, output_of(number))
                    board[_MAY_KILL] = 1
                    code = running.wait().code
                    board[_MAY_KILL] = 0
                    if code:
                        tally.faults.append(f"the job ended with exit code {code}")
                    readers.settle()
                    check(tally, place, output_of(number), reference)
            tally.kills = int(board[_KILLS])
        finally:
            _end(keeper, board)
    return tally


def _await_results(running: Predict, output: str) -> None:
    """Wait until the first shards are done: what is killed then is in the middle of its work."""
    shards = Path(OutputLayout(output).shards)
    while running.is_running and not any(shards.glob("*.parquet")):
        time.sleep(0.1)


def _end(keeper: Child, board: Any) -> None:
    started = family(keeper.pid)
    board[_STOP] = 1
    keeper.wait(30)
    end_orphans(started)


def _address(file: Path) -> str:
    """Wait until the cluster says where it is."""
    deadline = time.monotonic() + _SECONDS_TO_START
    while not file.exists():
        assert time.monotonic() < deadline, "the cluster does not start"
        time.sleep(0.1)
    return file.read_text()


def _keep_cluster(board: Any, address: Path, chance: random.Random) -> None:
    """Hold three nodes; while that is wanted, kill one of two now and then, and add another."""
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
    while not board[_STOP]:
        time.sleep(0.1)
        if not board[_MAY_KILL]:
            next_kill = time.monotonic() + chance.uniform(0, 5)
        elif time.monotonic() > next_kill:
            victim = chance.randrange(len(others))
            others[victim].kill_raylet()  # SIGKILL
            board[_KILLS] += 1
            time.sleep(_SECONDS_WITHOUT)
            cluster.remove_node(others[victim], allow_graceful=False)
            others[victim] = cluster.add_node(num_cpus=1)
            next_kill = time.monotonic() + chance.uniform(5, 15)
