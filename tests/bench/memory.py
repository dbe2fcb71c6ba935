"""A program's time, or its peak memory over all the processes that it starts.

Memory is the proportional set size (PSS) that Linux keeps for each process: a page that n processes
share counts 1/n in each of them, so that Ray's object store and shared libraries count once in the
sum. Elsewhere it is the unique set size (USS), which leaves shared pages out.

Adding up PSS makes the kernel walk every page table, which takes a fifth of a core from a program
of many processes. So a run is timed or watched, never both.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["MEMORY_KIND", "Peak", "Program", "peak_memory", "seconds_of"]

MEMORY_KIND = "PSS" if sys.platform == "linux" else "USS"
SAMPLE_SECONDS = 0.2
LIMIT_SECONDS = 3600.0

_SET_CHILD_SUBREAPER = 36  # of prctl(2)


@dataclass(frozen=True, slots=True)
class Program:
    """A program to run.

    Attributes:
        command: It and its arguments.
        cwd: Where it runs.
        env: All of its environment.
        log: File that gets its standard output and error.
    """

    command: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    log: Path


@dataclass(frozen=True, slots=True)
class Peak:
    """The memory of a program's processes at the time when they had most together.

    Attributes:
        num_bytes: All together.
        processes: Name and bytes of each, the largest first.
    """

    num_bytes: int
    processes: tuple[tuple[str, int], ...]


def seconds_of(program: Program) -> float:
    """Run a program and return the seconds from its start to its end.

    Raises:
        RuntimeError: It failed, or took longer than an hour; with the end of its log.
    """
    started = time.perf_counter()
    with _running(program) as process:
        process.wait(LIMIT_SECONDS)
        return time.perf_counter() - started


def peak_memory(program: Program) -> Peak:
    """Run a program and watch its memory.

    Raises:
        RuntimeError: It failed, or took longer than an hour; with the end of its log.
    """
    with _running(program) as process, _sampling() as sampler:
        process.wait(LIMIT_SECONDS)
    return sampler.peak


@contextlib.contextmanager
def _running(program: Program) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program, and leave nothing of it behind."""
    _adopt_orphans()
    command = " ".join(program.command)
    with program.log.open("wb") as sink:
        process = subprocess.Popen(
            program.command, cwd=program.cwd, env=program.env, stdout=sink, stderr=sink
        )
        try:
            yield process
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{command} took longer than an hour.\n{_end(program)}") from None
        finally:
            _end_descendants()
    if process.returncode != 0:
        code = process.returncode
        raise RuntimeError(f"{command} ended with code {code}.\n{_end(program)}")


def _end(program: Program) -> str:
    return "\n".join(program.log.read_text(errors="replace").strip().splitlines()[-15:])


class _Sampler(threading.Thread):
    """Adds up the memory of every descendant of this process, again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = Peak(0, ())
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, _memory_of_descendants(), key=lambda peak: peak.num_bytes)


@contextlib.contextmanager
def _sampling() -> Iterator[_Sampler]:
    sampler = _Sampler()
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.stopped.set()
        sampler.join()


def _memory_of_descendants() -> Peak:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended between the two looks
            info = process.memory_full_info()
            num_bytes = int(info.pss if MEMORY_KIND == "PSS" else info.uss)
            found.append((" ".join(process.cmdline())[:80], num_bytes))
    found.sort(key=lambda pair: -pair[1])
    return Peak(sum(num_bytes for _, num_bytes in found), tuple(found))


def _adopt_orphans() -> None:
    """Make processes whose parent has ended children of this one, so that none escapes the sum."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_descendants() -> None:
    """End what the program left running, so that the next one has the machine for itself."""
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=5)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
