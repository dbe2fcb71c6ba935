"""What this machine has to give: cores that may be used, ports that nobody listens on."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from pathlib import Path

__all__ = ["cpu_model", "free_port", "num_usable_cores", "set_niceness"]


def num_usable_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # knows of a container's or a job's share
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def cpu_model() -> str:
    """Return the processor's name and family as Linux tells them; "" elsewhere."""
    wanted = ("model name", "cpu family", "model")
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in wanted:
                facts.setdefault(name.strip(), value.strip())
    known = [f"{name} {facts[name]}" for name in wanted if name in facts]
    return ", ".join(known).removeprefix("model name ")


def set_niceness(niceness: int) -> None:
    """Let this process go after others, at least as far as a niceness says.

    Args:
        niceness: 0 to 19; a process that is nicer already stays so.
    """
    if niceness <= os.nice(0):
        return
    threads = Path("/proc/self/task")  # Linux knows the niceness of threads, not of processes
    for thread in threads.iterdir() if threads.is_dir() else ():
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)
    os.setpriority(os.PRIO_PROCESS, 0, niceness)


def free_port() -> int:
    """Return a port of loopback; somebody may take it before it is used, which is unlikely."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
