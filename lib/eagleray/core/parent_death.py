"""Ends a process with the one that started it.

    python parent_death.py PARENT PROGRAM [WORD …]    become a program that ends with PARENT

It imports nothing of the package, so that it starts at once as a program of its own.
"""

import ctypes
import os
import signal
import sys

__all__ = ["exit_with_parent"]

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def exit_with_parent(parent: int) -> None:
    """Have Linux end this process with its parent; elsewhere only an end before this call counts.

    On Linux the parent is the thread that started this process.

    Args:
        parent: Number of the process that started this one.

    Raises:
        SystemExit: The parent has ended already.
    """
    if sys.platform == "linux":
        kill = int(signal.SIGKILL)
        ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, kill)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    exit_with_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 — words, not a line for a shell
