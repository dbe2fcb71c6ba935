"""The service on a cluster of others: its replicas run there, the command is its gateway."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc

from eagleray import Client
from eagleray.core.system import free_port
from tests.support.models import golden_png
from tests.support.service import running_service
from tests.support.serving import registry_with

IMAGE = golden_png(0)
APPLICATIONS = """
import ray
from ray import serve
ray.init(address={address!r}, logging_level="ERROR", log_to_driver=False)
print(list(serve.status().applications))
"""


@dataclass(frozen=True)
class Head:
    """The head of a cluster.

    Attributes:
        address: Of it.
        environment: Of whoever uses it.
    """

    address: str
    environment: dict[str, str]

    def applications(self) -> str:
        """Return what Ray Serve runs there."""
        command = [sys.executable, "-c", APPLICATIONS.format(address=self.address)]
        said = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            check=True,
            capture_output=True,
            text=True,
        )
        return said.stdout.strip()


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    address = f"127.0.0.1:{free_port()}"
    given = {
        "EAGLERAY_HOME": str(tmp_path / "home"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    environment = {**os.environ, **given}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        words = ["start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--num-cpus", "2"]
        words += ["--port", address.rpartition(":")[2], "--temp-dir", folder]
        words += ["--include-dashboard", "false", "--disable-usage-stats"]
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "ray"), *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert any("Ray runtime started" in line for line in process.stdout)
            yield Head(address, given)
        finally:
            for one in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.kill()
            process.wait()


def test_a_service_on_a_cluster_serves_and_leaves_nothing_there(head: Head, tmp_path: Path) -> None:
    registry_with(tmp_path, "digits")
    words = ["digits", "--cluster", head.address, "--replicas", "2", "--engine", "eager"]
    with running_service(tmp_path / "home", *words, **head.environment) as service:
        with Client(service.url) as client:
            assert client.predict("digits", IMAGE).status == "ok"
        with tritonclient.grpc.InferenceServerClient(service.grpc) as client:
            assert client.is_model_ready("digits")
        assert head.applications() == "['eagleray']"
    assert head.applications() == "[]"
