"""A real S3 protocol server (moto's) in a process of its own, on a free loopback port."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """Start a server; gives its endpoint. Any credentials will do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    log = iter(server.stdout)
    try:
        if not any("Running on" in line for line in log):
            raise RuntimeError("moto's server does not start")
        # It writes a line for every call, and stops when nobody reads them and the pipe is full.
        threading.Thread(target=lambda: [None for _ in log], daemon=True).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
