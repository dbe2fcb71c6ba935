"""A Ray cluster's head, as an operator starts one: with a token, on loopback."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from eagleray.core.system import free_port
from tests.support.s3_server import moto_server

_SECONDS_TO_START = 120


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        address: Address of its job server, as `--cluster` takes it.
        token_file: File of its token.
        storage: Environment of the S3 server that it and its callers reach.
        pid: Process ID of its first process.
    """

    address: str
    token_file: Path
    storage: dict[str, str]
    pid: int


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Start a head and the S3 server that it reaches; stop both and all that they started."""
    with moto_server() as endpoint, running_head(tmp_path_factory.mktemp("head"), endpoint) as head:
        yield head


@contextlib.contextmanager
def running_head(
    folder: Path, endpoint: str, settings: Mapping[str, str] | None = None
) -> Iterator[Head]:
    """Start a head for the time of the block.

    Args:
        folder: An empty folder for its home, its token and its log.
        endpoint: URL of the S3 server that it reaches.
        settings: Further variables of its environment.
    """
    storage = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    token = secrets.token_hex(32)
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    port = free_port()
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        **storage,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "EAGLERAY_HOME": str(folder / "home"),
        "RAY_metrics_report_interval_ms": "1000",  # jobs of tests are short
        **(settings or {}),
    }
    command = [str(programs / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address", "127.0.0.1", "--port", str(free_port())]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(port)]
    command += ["--dashboard-agent-listen-port", str(free_port()), "--num-cpus", "2"]
    command += ["--temp-dir", f"/tmp/ray-{secrets.token_hex(3)}"]  # sockets have short paths
    with (
        (folder / "head.log").open("w") as log,
        subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}", token, process)
            yield Head(f"ray-jobs+http://127.0.0.1:{port}", token_file, storage, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)


def _wait_until_ready(url: str, token: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    headers = {"Authorization": f"Bearer {token}"}
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head ended while it started"
        try:
            if httpx.get(f"{url}/api/jobs/", headers=headers).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise TimeoutError("the head does not answer")
