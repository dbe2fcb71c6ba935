"""Runs shards again until each has its result, and counts how often each was begun."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from eagleray.core.errors import EaglerayError, JobFailedError
from eagleray.sharded.shard_results import FinishedShard

__all__ = ["ShardJournal", "run_until_done"]

S = TypeVar("S", bound=FinishedShard)

_NAMESPACE = b"eagleray"
_MAX_RUNS_WITHOUT_A_RESULT = 3
_RAISED = re.compile(r"([a-zA-Z_]\w*\.)*[A-Z]\w*(Error|Exception|Interrupt): .")


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
        JobFailedError: If runs yield nothing any more.
        EaglerayError: If a worker raised one that another attempt would raise again.
    """
    import ray

    remaining = dict.fromkeys(pending)  # a set that keeps the order
    num_fruitless = 0
    while remaining:
        num_before = len(remaining)
        reason: Exception = JobFailedError("shards came back without a result.")
        try:
            for finished in run_once(list(remaining)):
                remaining.pop(finished.shard, None)
                yield finished
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, EaglerayError):
                raise cause from error
            reason = error
        num_fruitless = 0 if len(remaining) < num_before else num_fruitless + 1
        if num_fruitless == _MAX_RUNS_WITHOUT_A_RESULT or _is_hopeless(reason):
            raise JobFailedError(
                f"The workers stopped: {_what_was_raised(reason)} What is done is kept: run the "
                "same command again to resume, with --verbose for the workers' output."
            ) from reason


def _is_hopeless(error: BaseException) -> bool:
    """Whether another attempt would end the same way: a worker refused the model or its device."""
    return "PackageError" in str(error) or "ContractError" in str(error)


def _what_was_raised(error: BaseException) -> str:
    """Return what a worker raised, which Ray quotes in the traceback that it sends."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line) and "UserCodeException" not in line]
    last = lines[-1] if lines else "no message"
    return (raised[-1] if raised else f"{type(error).__name__}: {last}").rstrip(".") + "."


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
        from ray.experimental.internal_kv import _internal_kv_put

        times = 0
        # The call returns whether the key was there, so two callers never get the same number.
        while _internal_kv_put(self._key(f"{shard}-{times}"), b"", False, namespace=_NAMESPACE):
            times += 1
        return times

    def forget(self) -> None:
        """Remove the notes of this run."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(self._key(""), del_by_prefix=True, namespace=_NAMESPACE)

    def _key(self, name: str) -> str:
        return f"shards-begun-{self.run}-{name}"
