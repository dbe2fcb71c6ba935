"""The journal of shards on a real Ray: what one worker notes, the next one knows."""

from __future__ import annotations

import time

import pytest

from eagleray.core.ray_session import Cluster
from eagleray.core.yielding import Turn, YieldSignal
from eagleray.sharded.attempts import JournalNotes, ShardJournal
from eagleray.sharded.plan import new_id

pytestmark = pytest.mark.usefixtures("cluster")


def begin_elsewhere(journal: ShardJournal, *shards: int) -> list[int]:
    """Begin shards in a process that ends with it."""
    import ray

    task = ray.remote(num_cpus=0.1, max_calls=1)(lambda: [journal.begin(shard) for shard in shards])
    found: list[int] = ray.get(task.remote())
    return found


def test_beginnings_are_counted_over_processes_and_runs_are_apart(cluster: Cluster) -> None:
    journal, other = ShardJournal(new_id()), ShardJournal(new_id())
    with journal.kept(Turn(YieldSignal())):
        assert begin_elsewhere(journal, 0, 1, 0) == [0, 0, 1]
        assert begin_elsewhere(journal, 0, 1, 2, 10) == [2, 1, 0, 0]
        assert begin_elsewhere(other, 0) == [0]
        assert begin_elsewhere(journal, 64, 640) == [0, 0]
        notes = JournalNotes(journal, [0, 1, 2, 10, 64])
        notes.end(64)
        assert begin_elsewhere(journal, 64, 640) == [0, 1]
        for shard in (0, 1, 2):
            notes.end(shard)
        assert begin_elsewhere(journal, 10, 1) == [1, 2]  # one of the group is not done
        notes.end(10)
        assert begin_elsewhere(journal, 10, 2) == [0, 0]
    assert begin_elsewhere(journal, 0) == [0]
    assert begin_elsewhere(other, 0) == [1]


def test_of_workers_that_begin_a_shard_together_each_hears_another_number(
    cluster: Cluster,
) -> None:
    import ray

    journal = ShardJournal(new_id())
    task = ray.remote(num_cpus=0.1)(lambda: journal.begin(7))
    with journal.kept(Turn(YieldSignal())):
        assert sorted(ray.get([task.remote() for _ in range(12)])) == list(range(12))


def test_shards_are_handed_back_when_the_turn_is_over(cluster: Cluster) -> None:
    import ray

    asked, journal = YieldSignal(), ShardJournal(new_id())
    task = ray.remote(num_cpus=0.1)(lambda: journal.hands_back)
    with journal.kept(Turn(asked)):
        assert ray.get(task.remote()) is False
        asked.request()
        deadline = time.monotonic() + 20
        while not ray.get(task.remote()):
            assert time.monotonic() < deadline
