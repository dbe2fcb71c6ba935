"""Ends a worker process in which a decode takes too long or too much memory.

    watchdog = Watchdog(seconds=60, memory_bytes=worker_memory_budget(num_workers_on_node))
    with watchdog.decoding(uri):
        image = decode(data, contract)

A decoder is native code: no exception reaches it, and a thread cannot be stopped. So the process
exits, Ray starts another, and the shard's images are decoded one by one in a sandbox, which finds
and names the image at fault.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from pathlib import Path
from typing import Self

import psutil

__all__ = [
    "EXIT_GIL_HELD",
    "EXIT_TOO_MUCH_MEMORY",
    "EXIT_TOO_SLOW",
    "Decoding",
    "Watchdog",
    "node_memory",
    "worker_memory_budget",
]

EXIT_GIL_HELD = 1  # faulthandler's own
EXIT_TOO_SLOW = 91
EXIT_TOO_MUCH_MEMORY = 92

SECONDS_BETWEEN_CHECKS = 0.25
MIN_GIL_SECONDS = 30.0  # large modules take seconds to import, and hold the GIL
MEMORY_SHARE_OF_WORKERS = 0.6
MEMORY_FOR_AN_IMAGE = 2**30

_STDERR = 2
_MAX_URIS_SHOWN = 4

_InFlight = dict[int, tuple[float, str]]


class Decoding:
    """One decode in flight, from `with` to its end. Made for each image, so it does little."""

    __slots__ = ("_in_flight", "_uri")

    def __init__(self, in_flight: _InFlight, uri: str) -> None:
        self._in_flight = in_flight
        self._uri = uri

    def __enter__(self) -> None:
        self._in_flight[id(self)] = (time.monotonic(), self._uri)

    def __exit__(self, *_: object) -> None:
        del self._in_flight[id(self)]


class Watchdog:
    """A thread that checks four times a second, and ends the process if a limit is exceeded.

    The process writes one line to standard error that says which image and why, and exits with
    `EXIT_TOO_SLOW` or `EXIT_TOO_MUCH_MEMORY`. A decoder that holds the GIL stops this thread too;
    then faulthandler's timer, which needs no GIL, writes the stack of every thread and exits with
    `EXIT_GIL_HELD`. There is one such timer in a process, so there can be one watchdog.

    Args:
        seconds: Maximum time of one decode.
        memory_bytes: Maximum private resident memory of this process, without what it shares with
            others, such as Ray's object store and mapped files.
        gil_seconds: Maximum time that the GIL may be held; by default 4 * `seconds`, at least
            `MIN_GIL_SECONDS`.
    """

    def __init__(
        self, seconds: float, memory_bytes: int, *, gil_seconds: float | None = None
    ) -> None:
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._gil_seconds = gil_seconds or max(4 * seconds, MIN_GIL_SECONDS)
        self._process = psutil.Process()
        self._in_flight: _InFlight = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def decoding(self, uri: str) -> Decoding:
        """Mark one decode, in any thread, for as long as the `with` block lasts."""
        return Decoding(self._in_flight, uri)

    def stop(self) -> None:
        """Stop the thread; the process continues without a watchdog."""
        self._stopping.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            faulthandler.dump_traceback_later(self._gil_seconds, exit=True, file=_STDERR)
            self._check_time()
            self._check_memory()
            self._stopping.wait(SECONDS_BETWEEN_CHECKS)

    def _check_time(self) -> None:
        started, uri = min(self._in_flight.copy().values(), default=(0.0, None))
        seconds = time.monotonic() - started
        if uri is not None and seconds > self._seconds:
            _end_process(
                EXIT_TOO_SLOW,
                f"decoding {uri!r} has taken {seconds:.1f} s, the limit is {self._seconds:g} s",
            )

    def _check_memory(self) -> None:
        used = _private_memory(self._process)
        if used > self._memory_bytes:
            uris = [uri for _, uri in self._in_flight.copy().values()]
            shown = ", ".join(map(repr, uris[:_MAX_URIS_SHOWN])) or "nothing"
            more = f" and {len(uris) - _MAX_URIS_SHOWN} more" * (len(uris) > _MAX_URIS_SHOWN)
            _end_process(
                EXIT_TOO_MUCH_MEMORY,
                f"this worker holds {used / 2**20:,.0f} MiB of memory, the limit is "
                f"{self._memory_bytes / 2**20:,.0f} MiB, while decoding {shown}{more}",
            )


def _end_process(code: int, why: str) -> None:
    """Exit at once: cleaning up could wait for the decode that never ends."""
    line = f"watchdog: process {os.getpid()} ends with exit code {code}: {why}\n"
    os.write(_STDERR, line.encode(errors="backslashreplace"))
    os._exit(code)


def _private_memory(process: psutil.Process) -> int:
    """Return the resident bytes that this process does not share with others."""
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


# --- how much memory there is -------------------------------------------------------------------


def worker_memory_budget(num_workers_on_node: int) -> int:
    """Return the private resident memory that one worker may use, in bytes.

        max(0.6 * node_memory() / num_workers_on_node, private memory now + 1 GiB)

    The other 0.4 are for Ray's object store, the raylet, the driver and the system. The second term
    lets a worker whose model alone exceeds its share decode an image; call this once the model is
    loaded.

    Args:
        num_workers_on_node: Number of workers that share the node, including this one.
    """
    share = int(MEMORY_SHARE_OF_WORKERS * node_memory() / num_workers_on_node)
    return max(share, _private_memory(psutil.Process()) + MEMORY_FOR_AN_IMAGE)


def node_memory(root: Path = Path("/")) -> int:
    """Return the memory of the machine or container in bytes.

    Args:
        root: Root of the file system with `proc` and `sys`.
    """
    return min([int(psutil.virtual_memory().total), *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> list[int]:
    """Return the memory limit of each control group around this process (cgroups, v1 and v2)."""
    limits = []
    for folder, file in _cgroup_folders(root):
        for group in (folder, *folder.parents):
            limit = group / file
            if limit.is_file() and (text := limit.read_text().strip()).isdigit():  # or it is "max"
                limits.append(int(text))
    return limits


def _cgroup_folders(root: Path) -> list[tuple[Path, str]]:
    """Return the folder of this process in each memory hierarchy, and the limit file's name."""
    mounted, membership = root / "sys/fs/cgroup", root / "proc/self/cgroup"
    folders = []
    for line in membership.read_text().splitlines() if membership.is_file() else []:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            folders.append((mounted / path.lstrip("/"), "memory.max"))
        elif "memory" in controllers.split(","):
            folders.append((mounted / "memory" / path.lstrip("/"), "memory.limit_in_bytes"))
    return folders
