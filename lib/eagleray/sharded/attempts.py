"""Runs shards again until each has its result, and counts how often each was begun."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import ContractError, JobFailedError, PackageError, UnsupportedError
from eagleray.core.ray_errors import read_failure
from eagleray.core.ray_private import (
    delete_keys,
    has_key,
    is_draining,
    put_key_if_absent,
)
from eagleray.core.yielding import Turn
from eagleray.sharded.shard_results import FinishedShard

__all__ = ["JournalNotes", "ShardJournal", "Shards", "run_until_done"]

S = TypeVar("S", bound=FinishedShard)
Shards = npt.NDArray[np.int64]
"""Numbers of shards, int64 (N,)."""

_NAMESPACE = b"eagleray"
_MAX_FRUITLESS_RUNS = 3
_FINAL = (PackageError, ContractError, UnsupportedError)  # would be raised again
_SECONDS_BETWEEN_LOOKS = 0.2  # whether the turn is over
_SECONDS_BETWEEN_RETURNS = 1.0
_SHARDS_PER_PREFIX = 64  # whose notes are removed together, by one call


def run_until_done(
    pending: Sequence[int] | Shards,
    run_once: Callable[[Shards], Iterator[S]],
    turn: Turn | None = None,
) -> Iterator[S]:
    """Run shards on Ray and yield each as it is finished, in any order.

    Workers and nodes may die: Ray starts others and gives them what was lost. If Ray gives up, the
    shards without a result are given to it again, as long as that yields further results.

    Args:
        pending: Numbers of the shards.
        run_once: Runs shards and yields each as it is finished; when the turn is over, it ends
            without those that were not begun.
        turn: When it is over, shards may be left.

    Raises:
        EaglerayError: If a worker raised one that Ray has carried.
        PackageError: If a worker refuses the model; so does ContractError.
        UnsupportedError: If a worker's machine cannot run the model as requested.
        JobFailedError: If runs yield nothing any more.
    """
    import ray

    remaining = np.asarray(pending, np.int64)  # of a million shards, a list would take 40 MB
    is_left = np.ones(remaining.max(initial=-1) + 1, np.bool_)
    num_fruitless = 0
    while len(remaining):
        num_before = len(remaining)
        reason: Exception = JobFailedError("Shards came back without a result.")
        try:
            for finished in run_once(remaining):
                is_left[finished.shard] = False
                yield finished
        except ray.exceptions.RayError as error:
            reason = error
        remaining = remaining[is_left[remaining]]
        failure = read_failure(reason)
        if failure.error is not None and failure.error is not reason:
            raise failure.error from reason
        if turn is not None and turn.over:
            return
        if failure.error_class is not None and failure.is_a(*_FINAL):
            raise failure.error_class(failure.sentence) from reason
        num_fruitless = 0 if len(remaining) < num_before else num_fruitless + 1
        if num_fruitless == _MAX_FRUITLESS_RUNS:
            raise JobFailedError(
                f"The workers stopped: {failure.sentence} What is done is kept: run the same "
                "command again to resume, with --verbose for the workers' output."
            ) from reason


@dataclass(frozen=True, slots=True)
class ShardJournal:
    """Counts how often shards were begun: one that is begun again has lost its worker.

    It also says when workers are to begin no more of them. It lives in the key-value store of Ray's
    head, which outlives every worker. An actor could hold it as well, at the cost of a process of
    seventy megabytes.

    Attributes:
        run: Identifier that keeps this run's shards apart from those of others on the cluster.
    """

    run: str

    def begin(self, shard: int) -> int:
        """Note that a shard is begun, and return how often it was begun before."""
        times = 0
        prefix = _prefix(shard // _SHARDS_PER_PREFIX)
        while not put_key_if_absent(self._key(f"{prefix}{shard}-{times}"), _NAMESPACE):
            times += 1
        return times

    def forget(self, group: int) -> None:
        """Remove the notes of 64 shards, from 64 times the number of the group on."""
        delete_keys(self._key(_prefix(group)), _NAMESPACE)

    @contextlib.contextmanager
    def kept(self, turn: Turn) -> Iterator[None]:
        """Keep the notes during the block; when the turn is over, have workers hand shards back."""
        ended = threading.Event()

        def close_in_time() -> None:
            while not ended.wait(_SECONDS_BETWEEN_LOOKS):
                if turn.over:
                    put_key_if_absent(self._key("closed"), _NAMESPACE)
                    return

        thread = threading.Thread(target=close_in_time, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            delete_keys(self._key(""), _NAMESPACE)

    @property
    def hands_back(self) -> bool:
        """Whether a worker is to hand back a shard that it has not begun.

        That is so when the workers are needed elsewhere, or this worker's node is about to end.
        """
        return has_key(self._key("closed"), _NAMESPACE) or is_draining()

    def hand_back_slowly(self) -> None:
        """Wait a second before shards are handed back on a node that is about to end.

        Ray goes on sending shards there as long as the node is up, as its worker is always free.
        One whose return the driver has seen, and Ray has not completed when the node ends, is done
        by two other workers; at one return a second there is hardly ever one.
        """
        if is_draining():
            time.sleep(_SECONDS_BETWEEN_RETURNS)

    def _key(self, name: str) -> str:
        return f"shards-begun-{self.run}-{name}"


def _prefix(group: int) -> str:
    return f"{group}:"


class JournalNotes:
    """Removes the notes of shards whose results the driver knows, so that Ray's head keeps few.

    Args:
        journal: The journal.
        pending: Numbers of the shards that are to be done.
    """

    def __init__(self, journal: ShardJournal, pending: Sequence[int] | Shards) -> None:
        groups = np.asarray(pending, np.int64) // _SHARDS_PER_PREFIX
        self._journal = journal
        self._num_left = np.bincount(groups)

    def end(self, shard: int) -> None:
        """Note that the driver knows a shard's result; a group's last one removes its notes."""
        group = shard // _SHARDS_PER_PREFIX
        self._num_left[group] -= 1
        if self._num_left[group] == 0:
            self._journal.forget(group)
