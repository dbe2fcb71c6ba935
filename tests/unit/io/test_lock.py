"""One process at a time is in the block, and none waits for a lock that cannot be had."""

from __future__ import annotations

import threading
from pathlib import Path

from eagleray.io.lock import lock_if_writable


def test_one_at_a_time_is_in_the_block(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with lock_if_writable(tmp_path / "new" / "it.lock"):
            inside.append(number)
            most.append(len(inside))
            threading.Event().wait(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_a_lock_that_cannot_be_written_or_is_held_too_long_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    entered = []
    with lock_if_writable(tmp_path / "file" / "it.lock"):
        entered.append("not writable")
    with (
        lock_if_writable(tmp_path / "it.lock"),
        lock_if_writable(tmp_path / "it.lock", max_seconds=0.05),
    ):
        entered.append("held")
    assert entered == ["not writable", "held"]
