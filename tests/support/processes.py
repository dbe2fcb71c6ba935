"""Starts and ends processes of a test harness, and never any other. Linux only.

    child = Child(lambda: drive(request))    # a fork: what is imported here is imported there
    ended = child.wait(seconds=60)           # its value, or the signal that killed it

The harness itself starts no thread, no Ray and no storage client: a fork of a process that has
them would inherit their locks without the threads that hold them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import psutil

SECONDS_TO_END = 15.0
_SET_PARENT_DEATH_SIGNAL = 1
_LIBC = ctypes.CDLL(None)
_MAX_BYTES = 60_000  # of a returned value: it must fit into a pipe


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        value: Value that its work returned; None if it did not return.
        signal: Signal that killed it; 0 for none.
        error: Error that its work raised, in a line.
    """

    value: Any = None
    signal: int = 0
    error: str = ""

    @property
    def was_killed(self) -> bool:
        return self.signal == signal.SIGKILL


class Child:
    """A fork of this process that does one piece of work; it dies with its parent."""

    def __init__(self, work: Callable[[], Any]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._receive, send = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._receive)
            _live(work, send, parent)
        os.close(send)
        self._descriptor = os.pidfd_open(self.pid)

    def wait(self, seconds: float = 120.0) -> Ended:
        """Wait for its end, and kill it if it takes too long."""
        in_time, _, _ = select.select([self._descriptor], [], [], seconds)
        if not in_time:
            self.kill()
        _, status = os.waitpid(self.pid, 0)
        os.set_blocking(self._receive, False)
        with contextlib.suppress(BlockingIOError), os.fdopen(self._receive, "rb") as pipe:
            returned = pipe.read() or b""
        os.close(self._descriptor)
        if not in_time:
            return Ended(error=f"it was still running after {seconds:g} s")
        if os.WIFSIGNALED(status):
            return Ended(signal=os.WTERMSIG(status))
        if not returned:
            return Ended(error=f"it ended with exit code {os.waitstatus_to_exitcode(status)}")
        value, error = pickle.loads(returned)
        return Ended(value=value, error=error)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def in_child(work: Callable[[], Any], seconds: float = 300.0) -> Any:
    """Do some work in a child process and return its value.

    Raises:
        RuntimeError: If the child ended in any other way.
    """
    ended = Child(work).wait(seconds)
    if ended.signal or ended.error:
        raise RuntimeError(ended.error or f"a child died of signal {ended.signal}")
    return ended.value


def _live(work: Callable[[], Any], send: int, parent: int) -> NoReturn:
    exit_with_parent(parent)
    os.dup2(2, 1)  # standard output is the harness's own
    try:
        returned: tuple[Any, str] = (work(), "")
    except BaseException as error:  # noqa: BLE001 - the parent gets every error
        traceback.print_exc()
        returned = (None, f"{type(error).__name__}: {error}")
    content = pickle.dumps(returned)
    assert len(content) < _MAX_BYTES, "write a value of this size to a file"
    os.write(send, content)
    os._exit(0)


def exit_with_parent(parent: int) -> None:
    """Have Linux kill this process when its parent ends."""
    _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


# --- families of processes ----------------------------------------------------------------------


def family(pid: int) -> list[psutil.Process]:
    """Return all descendants of a process that this harness has started."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def titled(processes: Iterable[psutil.Process], *words: str) -> list[psutil.Process]:
    """Return those whose command line holds one of the words."""
    return [process for process in processes if any(word in _title(process) for word in words)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def kill(process: psutil.Process) -> bool:
    """Kill one process by its id, unless its id has been reused."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def end_orphans(processes: Iterable[psutil.Process], seconds: float = SECONDS_TO_END) -> int:
    """Wait until all have ended, kill the others, and return their number."""
    _, alive = psutil.wait_procs(list(processes), timeout=seconds)
    left = [process for process in alive if kill(process)]
    psutil.wait_procs(left, timeout=seconds)
    return len(left)


@contextlib.contextmanager
def stderr_to(path: str) -> Iterator[None]:
    """Send what this process and its children write to standard error into a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(path, "ab") as file:  # noqa: PTH123 - only the descriptor is needed
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def heed_interrupts() -> None:
    """Undo, in a new process, what a shell does to jobs in its background: ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
