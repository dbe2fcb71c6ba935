"""Ends a process when its parent process ends.

    python parent_death.py PARENT_PID PROGRAM [ARGUMENT …]    run a program that ends with its
    parent

It imports nothing of the package, so that it starts quickly as a program.
"""

import ctypes
import os
import signal
import sys

__all__ = ["exit_with_parent"]

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def exit_with_parent(parent: int) -> None:
    """Make Linux end this process with its parent; other systems only check that it is alive.

    On Linux the parent is the thread that started this process.

    Args:
        parent: Process ID of the parent.

    Raises:
        SystemExit: If the parent has already ended.
    """
    if sys.platform == "linux":
        kill = int(signal.SIGKILL)
        ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, kill)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    exit_with_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 — an argument list, not a shell command
