"""What this machine has to give: cores that may be used, ports that nobody listens on."""

from __future__ import annotations

import os
import socket

__all__ = ["free_port", "num_usable_cores"]


def num_usable_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # knows of a container's or a job's share
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_port() -> int:
    """Return a port of loopback; somebody may take it before it is used, which is unlikely."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
