"""The registry on a real MLflow server, which keeps the artifacts itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from eagleray.models.registry import Registry
from eagleray.models.sources import load_model
from eagleray.settings import Settings
from tests.unit.models_kit import small_package

START_SECONDS = 90


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)  # the server and its workers: the session that we started
        process.wait()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(0.2)  # nobody to tell us: the port is not open yet


def test_versions_live_on_the_server(server: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", tracking_uri=server)
    package = small_package(name="digits", metrics={"test_accuracy": 0.5})
    version = Registry(settings).register(package, alias="candidate")
    assert version.reference == "digits/1"
    assert version.source.startswith("mlflow-artifacts:")

    elsewhere = Settings(home=tmp_path / "another", tracking_uri=server)
    loaded = load_model("digits@candidate", elsewhere)
    assert loaded.package.digest == package.digest
    assert loaded.version == "1"
    assert Registry(elsewhere).versions("digits")[0].metrics == {"test_accuracy": 0.5}
    assert not (tmp_path / "home" / "mlflow.db").exists()
