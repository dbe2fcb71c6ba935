"""Queries the machine: usable cores, processor model and free ports; sets priorities."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import socket
from pathlib import Path

__all__ = ["cpu_model", "free_port", "give_way", "num_usable_cores", "set_niceness"]


_LISTENING_PORTS = range(20_000, 32_768)
_returned_ports: set[int] = set()
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def num_usable_cores(quota: Path = _CGROUP_QUOTA) -> int:
    """Return the number of cores that this process may use, at least 1.

    Args:
        quota: File with the CPU time of the container, as control groups (version 2) write it; a
            pod with a limit of four CPUs may run on every core of its node, but not all the time.
    """
    # Schedulers of jobs pin their processes to cores; containers have a quota.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(OSError, ValueError):  # no quota is "max 100000"
        microseconds, period = map(int, quota.read_text().split())
        cores = min(cores or 1, max(1, microseconds // period))
    return cores or 1


@functools.cache
def cpu_model() -> str:
    """Return the processor's name and family on Linux; "" elsewhere."""
    fields = ("model name", "cpu family", "model")
    values: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in fields:
                values.setdefault(name.strip(), value.strip())
    known = [f"{name} {values[name]}" for name in fields if name in values]
    return ", ".join(known).removeprefix("model name ")


def set_niceness(niceness: int) -> None:
    """Raise the niceness of this process to at least a value.

    Args:
        niceness: Niceness from 0 to 19.
    """
    if niceness <= os.nice(0):
        return
    threads = Path("/proc/self/task")  # on Linux niceness is an attribute of threads
    for thread in threads.iterdir() if threads.is_dir() else ():
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)
    os.setpriority(os.PRIO_PROCESS, 0, niceness)


def give_way() -> None:
    """Have this process run only while no other one wants its core; on Linux.

    Niceness does less: Ray's workers, of the service too, are nice already, and the little that is
    left between them and the nicest is a third of a core.
    """
    if hasattr(os, "SCHED_IDLE"):
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that ended, or a container without it
                os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def free_port() -> int:
    """Return a free port of loopback; another process could take it before it is used.

    It lies below the ports that Linux gives to outgoing connections, which are taken all the time.
    A process gets each port once: two that it wants at the same time differ.
    """
    for port in random.sample(_LISTENING_PORTS, len(_LISTENING_PORTS)):
        if port in _returned_ports:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _returned_ports.add(port)
            return port
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
