"""The service as its command starts it, in a process of its own, on free ports of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from eagleray.core.system import free_port

__all__ = ["RunningService", "running_service", "until"]

_SECONDS_TO_END = 120


@dataclass(frozen=True)
class RunningService:
    """A service that is ready.

    Attributes:
        url: Of HTTP.
        grpc: Address of gRPC.
        process: Of the command.
        log: What it says besides.
    """

    url: str
    grpc: str
    process: subprocess.Popen[str]
    log: Path

    def replicas(self) -> list[psutil.Process]:
        """Return the processes that answer."""
        return self._named("ServeReplica")

    def memory(self) -> int:
        """Return the resident bytes of the replicas and of the proxies before them."""
        total = 0
        for process in (*self.replicas(), *self._named("haproxy")):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def _named(self, word: str) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if word in " ".join(child.cmdline()[:1]):
                    found.append(child)
        return found


@contextlib.contextmanager
def running_service(home: Path, *words: str, **variables: str) -> Iterator[RunningService]:
    """Run `eagleray serve` until the end of the block.

    A block that ends the command itself sees how, by `process.wait` or `process.poll`.

    Args:
        home: Folder with its registry and database.
        words: Of its command line: models and flags.
        variables: Of its environment.

    Raises:
        RuntimeError: It does not start; with what it said.
    """
    http, grpc = free_port(), free_port()
    command = [sys.executable, "-P", "-m", "eagleray.serve.run"]
    environment = {**os.environ, "EAGLERAY_HOME": str(home), **variables}
    log_file = home / "serve.log"
    with log_file.open("a+") as log:
        process = subprocess.Popen(
            [*command, "--port", str(http), "--grpc-port", str(grpc), "--json", *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            if not said:
                log.seek(0)
                raise RuntimeError(f"The service does not start: {log.read()[-2000:]}")
            yield RunningService(json.loads(said)["url"], f"127.0.0.1:{grpc}", process, log_file)
        finally:
            seen = process.returncode is not None
            process.send_signal(signal.SIGTERM)
            ended = process.wait(_SECONDS_TO_END)
    if ended != 0 and not seen:
        raise RuntimeError(f"The service ended with {ended}: {log_file.read_text()[-2000:]}")


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
