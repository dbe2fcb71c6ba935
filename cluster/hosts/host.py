"""A host: a network, processes, a /tmp, a HOME and a name of its own, on this machine.

Its first process waits for the harness. When the harness ends, also by SIGKILL, this process sees
the end of its input, and Linux ends every process of the host with it. Nothing else is to clean up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

__all__ = ["Host", "HostProcess", "Listener", "last_lines", "wait_until"]

_FIRST_PROCESS = """
set -e
hostname "$1"
mount --bind "$2/tmp" /tmp
mount --bind "$2/home" /home
mount --bind "$3" /etc/hosts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
ip link set lo up
echo ready
while read -r _; do :; done
"""
_SECONDS_TO_END = 30.0


@dataclass(frozen=True)
class Listener:
    """A TCP port that a process of a host listens on.

    Attributes:
        address: Address that it is bound to.
        port: Its number.
        process: Command line of the process.
    """

    address: str
    port: int
    process: str

    @property
    def on_loopback(self) -> bool:
        """Whether other hosts cannot reach it."""
        return self.address.startswith(("127.", "::1", "::ffff:127."))


class HostProcess:
    """A process on a host.

    Args:
        popen: Process that has entered the host and waits for it.
        log: File of its standard output and standard error.
    """

    def __init__(self, popen: subprocess.Popen[str], log: Path) -> None:
        self.popen = popen
        self.log = log

    @property
    def pid(self) -> int:
        """Number of the process on this machine; 0 if it has not started or has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.popen.pid).children():
                return int(child.pid)
        return 0

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.popen.poll() is None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process; nothing if it has ended."""
        if pid := self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, seconds: float = 120.0) -> int:
        """Wait for its end and return its exit code, which is -N after signal N.

        Raises:
            subprocess.TimeoutExpired: If it is still running.
        """
        return self.popen.wait(seconds)

    def text(self) -> str:
        """Return what it has printed."""
        return self.log.read_text(errors="replace")


class Host:
    """A host at the switch; `Hosts.add` makes one.

    Args:
        name: Its name, which the other hosts know.
        address: Its IPv4 address.
        folder: Folder of its disks on this machine.
        hosts_file: File with the names and addresses of all hosts.
        plug: Connects the network of a process to the switch; returns the name of the socket there.
        switch: Runs a command of the switch.
        environment: Variables of its commands.
    """

    def __init__(
        self,
        name: str,
        address: str,
        folder: Path,
        hosts_file: Path,
        *,
        plug: Callable[[int, str], str],
        switch: Callable[..., None],
        environment: Mapping[str, str],
    ) -> None:
        self.name, self.address, self.folder = name, address, folder
        self.environment = dict(environment)
        self._hosts_file, self._plug, self._switch = hosts_file, plug, switch
        self._first: subprocess.Popen[str] | None = None
        self._pid = 0
        self._socket = ""
        self._num_started = 0
        (folder / "home").mkdir(parents=True)
        (folder / "logs").mkdir()

    @property
    def home(self) -> Path:
        """Its HOME, as a folder of this machine; it outlives a boot."""
        return self.folder / "home"

    @property
    def is_up(self) -> bool:
        """Whether it has been booted and not killed since."""
        return self._first is not None and self._first.poll() is None

    def boot(self) -> None:
        """Start it, with an empty /tmp."""
        assert not self.is_up, f"{self.name} is up"
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        (self.folder / "tmp").mkdir()
        (self.folder / "tmp").chmod(0o1777)
        words = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork"]
        words += ["--kill-child", "--mount-proc", "bash", "-c", _FIRST_PROCESS, "host"]
        self._first = subprocess.Popen(
            [*words, self.name, str(self.folder), str(self._hosts_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._first.stdout is not None
        if self._first.stdout.readline() != "ready\n":
            raise RuntimeError(f"host {self.name} does not start; see the messages above")
        (self._pid,) = (child.pid for child in psutil.Process(self._first.pid).children())
        self._socket = self._plug(self._pid, self.address)

    def kill(self) -> None:
        """End it as if its power were cut: no process says goodbye, nor does a connection."""
        if self._first is None:
            return
        if self.is_up:
            self.disconnect()
        family = self.processes()
        self._first.kill()
        self._first.wait()
        assert self._first.stdin is not None
        assert self._first.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._first.stdin.close()
        self._first.stdout.close()
        self._first = None
        psutil.wait_procs(family, timeout=_SECONDS_TO_END)

    def disconnect(self) -> None:
        """Pull its cable: packets in both directions are lost without a message."""
        self._switch("ip", "link", "set", self._socket, "nomaster")

    def connect(self) -> None:
        """Put the cable back."""
        self._switch("ip", "link", "set", self._socket, "master", "switch")

    def cut(self, seconds: float) -> threading.Timer:
        """Pull its cable for a time, and return at once; the timer can be joined."""
        self.disconnect()
        timer = threading.Timer(seconds, self.connect)
        timer.daemon = True
        timer.start()
        return timer

    def run(
        self,
        *words: str,
        check: bool = True,
        seconds: float = 120.0,
        stdin: str | None = None,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in HOME.

        Args:
            words: Its command line.
            check: Whether another exit code than 0 is an error.
            seconds: Time that it may take.
            stdin: Its standard input.
            environment: More variables.

        Raises:
            RuntimeError: If it fails; with the end of what it printed.
            subprocess.TimeoutExpired: If it takes too long; it is ended.
        """
        pipes = (subprocess.PIPE,) * 3
        popen = self._popen(words, environment, *pipes)
        try:
            output, errors = popen.communicate(stdin, timeout=seconds)
        except subprocess.TimeoutExpired:
            HostProcess(popen, Path()).send_signal(signal.SIGKILL)
            popen.communicate()
            raise
        if check and popen.returncode:
            raise RuntimeError(
                f"{' '.join(words[:3])} on {self.name} ended with exit code {popen.returncode}: "
                f"{last_lines(output + errors)}"
            )
        return subprocess.CompletedProcess(words, popen.returncode, output, errors)

    def start(self, *words: str, **environment: str) -> HostProcess:
        """Start a command in HOME, with its output in a file of this machine."""
        self._num_started += 1
        log = self.folder / f"logs/{self._num_started:03d}-{Path(words[0]).name}.log"
        with log.open("w") as file:
            popen = self._popen(words, environment, subprocess.DEVNULL, file, subprocess.STDOUT)
        return HostProcess(popen, log)

    def shell(self) -> list[str]:
        """Return the command line of a shell on it."""
        variables = [f"{name}={value}" for name, value in self._variables().items()]
        return [*self._enter(), "env", *variables, "bash", "--norc"]

    def processes(self) -> list[psutil.Process]:
        """Return its processes, by their numbers on this machine."""
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self._pid)
            inside = _pid_namespace(first)
            entered = [found for found in psutil.process_iter() if _pid_namespace(found) == inside]
            return [first, *(found for found in entered if found != first)]
        return []

    def listening(self) -> list[Listener]:
        """Return the TCP ports that its processes listen on."""
        words = ["nsenter", "--target", str(self._pid), "--net", "ss", "-ltnpH"]
        lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        return sorted({_listener(line) for line in lines.splitlines()}, key=lambda one: one.port)

    def _popen(
        self,
        words: tuple[str, ...],
        environment: Mapping[str, str],
        stdin: int,
        stdout: int | IO[str],
        stderr: int,
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._enter(), *words],
            env={**self._variables(), **environment},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )

    def _enter(self) -> list[str]:
        words = ["nsenter", "--target", str(self._pid), "--net", "--mount", "--uts", "--ipc"]
        return [*words, "--pid", "--wdns=/home", "--"]

    def _variables(self) -> dict[str, str]:
        return _own_variables() | self.environment


def last_lines(text: str, count: int = 8) -> str:
    """Return the end of a command's output, for an error message."""
    return " / ".join(text.strip().splitlines()[-count:])[-2000:]


def _own_variables() -> dict[str, str]:
    """Return what commands on every host have of the harness's own environment: its Python."""
    kept = {name: os.environ[name] for name in ("LANG", "PYTHONPATH") if name in os.environ}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "HOME": "/home", "USER": "root"}


def _pid_namespace(process: psutil.Process) -> int:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/ns/pid").stat().st_ino
    return 0


def _listener(line: str) -> Listener:
    """Read a line of `ss -ltnpH`."""
    words = line.split()
    address, _, port = words[3].rpartition(":")
    pids = [part.partition("=")[2] for part in words[-1].split(",") if part.startswith("pid=")]
    names = []
    for pid in sorted(set(pids)):
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(" ".join(psutil.Process(int(pid)).cmdline()))
    return Listener(address.strip("[]").partition("%")[0], int(port), "; ".join(names))


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: If it is not so in time; names what was waited for.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} within {seconds:g} s")
        time.sleep(0.1)
