"""The service on a cluster of others: its replicas run there, a command is its gateway."""

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

from eagleray import Client, RequestRefusedError
from eagleray.core.settings import Settings
from eagleray.core.system import free_port
from eagleray.database.store import open_database
from eagleray.serving.callers.applications import Applications
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


DECLARED = """
import ray
from ray import serve
from eagleray.serve.declared import build
ray.init(address={address!r}, logging_level="ERROR", log_to_driver=False)
serve.start(proxy_location="Disabled")
serve.run(build({arguments!r}), name="eagleray", route_prefix=None)
"""


@dataclass(frozen=True)
class Head:
    """The head of a cluster.

    Attributes:
        address: Of it.
        environment: Of whoever uses it.
        folder: With the home folder in it.
    """

    address: str
    environment: dict[str, str]
    folder: Path

    def applications(self) -> str:
        """Return what Ray Serve runs there."""
        return self.run(APPLICATIONS.format(address=self.address))

    def run(self, program: str) -> str:
        """Run a program as a user of the cluster, and return what it prints."""
        said = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **self.environment},
            check=False,
            capture_output=True,
            text=True,
        )
        assert said.returncode == 0, said.stderr[-2000:]
        return said.stdout.strip()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    address = f"127.0.0.1:{free_port()}"
    home = tmp_path_factory.mktemp("cluster")
    registry_with(home, "digits")
    given = {
        "EAGLERAY_HOME": str(home / "home"),
        "EAGLERAY_GATEWAY_SECRET": secrets.token_hex(32),
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
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
            yield Head(address, given, home)
        finally:
            for one in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.kill()
            process.wait()


def test_a_service_on_a_cluster_serves_and_leaves_nothing_there(head: Head) -> None:
    words = ["digits", "--cluster", head.address, "--replicas", "2", "--engine", "eager"]
    with running_service(head.folder / "home", *words, **head.environment) as service:
        with Client(service.url) as client:
            assert client.predict("digits", IMAGE).status == "ok"
        with tritonclient.grpc.InferenceServerClient(service.grpc) as client:
            assert client.is_model_ready("digits")
        assert head.applications() == "['eagleray']"
    assert head.applications() == "[]"


def test_declared_replicas_join_a_gateway_that_needs_no_ray(head: Head) -> None:
    port, join_port = free_port(), free_port()
    command = [sys.executable, "-P", "-m", "eagleray.serve.gateway.run", "--grpc-port", "0"]
    command += ["--port", str(port), "--join-port", str(join_port)]
    arguments = {
        "gateway": f"127.0.0.1:{join_port}",
        "service": {"models": ["digits"], "engine": "eager"},
    }
    settings = Settings(home=head.folder / "home")
    key = Applications(open_database(settings), actor="test").create("shop").key
    gateway = subprocess.Popen(command, env={**os.environ, **head.environment})
    try:
        head.run(DECLARED.format(address=head.address, arguments=arguments))
        url = f"http://127.0.0.1:{port}"
        with Client(url, key=key) as client:
            assert client.predict("digits", IMAGE).status == "ok"
        with Client(url) as client, pytest.raises(RequestRefusedError, match="key"):
            client.predict("digits", IMAGE)
    finally:
        gateway.terminate()
        assert gateway.wait(20) == 0
