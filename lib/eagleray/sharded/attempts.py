"""Runs shards again until each has its result, and counts how often each was begun."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from eagleray.core.errors import ContractError, JobFailedError, PackageError
from eagleray.core.ray_errors import read_failure
from eagleray.core.ray_private import delete_keys, put_key_if_absent
from eagleray.sharded.shard_results import FinishedShard

__all__ = ["ShardJournal", "run_until_done"]

S = TypeVar("S", bound=FinishedShard)

_NAMESPACE = b"eagleray"
_MAX_FRUITLESS_RUNS = 3


def run_until_done(
    pending: Iterable[int], run_once: Callable[[list[int]], Iterator[S]]
) -> Iterator[S]:
    """Run shards on Ray and yield each as it is finished, in any order.

    Workers and nodes may die: Ray starts others and gives them what was lost. If Ray gives up, the
    shards without a result are given to it again, as long as that yields further results.

    Args:
        pending: Numbers of the shards.
        run_once: Runs shards and yields each as it is finished.

    Raises:
        EaglerayError: If a worker raised one.
        JobFailedError: If runs yield nothing any more.
    """
    import ray

    remaining = dict.fromkeys(pending)  # a set that keeps the order
    num_fruitless = 0
    while remaining:
        num_before = len(remaining)
        reason: Exception = JobFailedError("Shards came back without a result.")
        try:
            for finished in run_once(list(remaining)):
                remaining.pop(finished.shard, None)
                yield finished
        except ray.exceptions.RayError as error:
            reason = error
        failure = read_failure(reason)
        if failure.error is not None and failure.error is not reason:
            raise failure.error from reason
        num_fruitless = 0 if len(remaining) < num_before else num_fruitless + 1
        hopeless = failure.is_a(PackageError, ContractError)  # it would end the same way again
        if num_fruitless == _MAX_FRUITLESS_RUNS or hopeless:
            raise JobFailedError(
                f"The workers stopped: {failure.sentence} What is done is kept: run the same "
                "command again to resume, with --verbose for the workers' output."
            ) from reason


@dataclass(frozen=True, slots=True)
class ShardJournal:
    """Counts how often shards were begun: one that is begun again has lost its worker.

    It lives in the key-value store of Ray's head, which outlives every worker. An actor could hold
    it as well, at the cost of a process of seventy megabytes.

    Attributes:
        run: Identifier that keeps this run's shards apart from those of others on the cluster.
    """

    run: str

    def begin(self, shard: int) -> int:
        """Note that a shard is begun, and return how often it was begun before."""
        times = 0
        while not put_key_if_absent(self._key(f"{shard}-{times}"), _NAMESPACE):
            times += 1
        return times

    def forget(self) -> None:
        """Remove the notes of this run."""
        delete_keys(self._key(""), _NAMESPACE)

    def _key(self, name: str) -> str:
        return f"shards-begun-{self.run}-{name}"
