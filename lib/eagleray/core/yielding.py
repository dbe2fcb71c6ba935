"""Asks a running job to give its workers to others for a while."""

from __future__ import annotations

import functools

__all__ = ["ADMISSION", "PERSON", "QUEUE", "Turn", "YieldSignal", "process_signal"]

ADMISSION = "it is prepared before its turn"
"""Reason of a command that a queue has started ahead of the job's admission."""
QUEUE = "a job that goes first waits for them"
"""Reason of a queue of jobs."""
PERSON = "`eagleray jobs pause` was called"
"""Reason of a person; a queue that has room does not undo it."""


class YieldSignal:
    """Whether a job is asked to yield its workers.

    A request is withdrawn by its reason, so that those who ask do not undo each other's requests.
    Any thread may call the methods.
    """

    def __init__(self) -> None:
        self._reasons: dict[str, None] = {}  # its methods are atomic, those of a set with |= not

    def request(self, reason: str = QUEUE) -> None:
        """Ask the job to yield.

        Args:
            reason: Why it is needed, as the end of a sentence.
        """
        self._reasons[reason] = None

    def clear(self, reason: str = QUEUE) -> None:
        """Withdraw the request that was made for this reason, if there is one."""
        self._reasons.pop(reason, None)

    @property
    def requested(self) -> bool:
        """Whether anybody asks the job to yield."""
        return bool(self._reasons)

    def requested_for(self, reason: str) -> bool:
        """Whether the job is asked to yield for this reason, perhaps among others."""
        return reason in self._reasons

    @property
    def reason(self) -> str:
        """The reasons of all requests, as the end of a sentence."""
        return ", and ".join(list(self._reasons))


class Turn:
    """The time in which a job may begin work: it is over at the first request to yield.

    Args:
        yield_signal: Where requests arrive.
    """

    def __init__(self, yield_signal: YieldSignal) -> None:
        self._signal = yield_signal
        self._over = False

    @property
    def over(self) -> bool:
        """Whether the turn is over; it stays so when the request is withdrawn."""
        self._over = self._over or self._signal.requested
        return self._over


@functools.cache
def process_signal() -> YieldSignal:
    """Return the signal of the job that this process runs."""
    return YieldSignal()
