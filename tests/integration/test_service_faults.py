"""The processes of a running service die: what callers see, and what the command says of it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.models import golden_png
from tests.support.service import RunningService, running_service, until
from tests.support.serving import PREDICT, registry_with

IMAGE = golden_png(0)


def test_haproxy_is_replaced_and_a_ray_that_dies_ends_the_command(tmp_path: Path) -> None:
    registry_with(tmp_path, "digits")
    home = tmp_path / "home"
    with running_service(home, "digits", "--engine", "eager") as service:
        assert httpx.post(service.url + PREDICT, content=IMAGE).status_code == 200
        find(service, "haproxy").kill()
        began = time.monotonic()
        # Whoever comes now waits in the sockets of the command.
        assert httpx.post(service.url + PREDICT, content=IMAGE, timeout=20).status_code == 200
        assert time.monotonic() - began < 10
        until(lambda: "HAProxy ended (killed by SIGKILL)" in service.log.read_text(), seconds=20)
        until(lambda: bool(faults(home)))  # an event is written after the line on the terminal
        assert ["HAProxy ended" in fault for fault in faults(home)] == [True]

        members = psutil.Process(service.process.pid).children(recursive=True)
        find(service, "raylet").kill()
        assert service.process.wait(60) == 3
        said = service.log.read_text().rpartition("error: ")[2]
        assert "Ray's node manager ended, and with it the service" in said
        assert "Start the command again" in said
        assert "A replica ended" not in service.log.read_text()  # it is not the fault of one
        _, left = psutil.wait_procs(members, timeout=10)
        assert left == []
        with pytest.raises(httpx.ConnectError):  # nobody listens any more
            httpx.get(service.url + "/live", timeout=5)


def test_a_ray_that_dies_while_the_service_starts_ends_the_command_too(tmp_path: Path) -> None:
    registry_with(tmp_path, "digits")
    killed = threading.Event()

    def kill_control_store() -> None:
        until(lambda: "ray::ServeController" in of_the_command(), seconds=100)
        of_the_command()["gcs_server"].kill()
        killed.set()

    killer = threading.Thread(target=kill_control_store)
    killer.start()
    began = time.monotonic()
    with (
        pytest.raises(RuntimeError, match="Ray's control store ended, and with it the service"),
        running_service(tmp_path / "home", "digits", "--engine", "eager"),
    ):
        raise AssertionError("the service is ready")
    killer.join()
    assert killed.is_set()
    assert time.monotonic() - began < 55  # Ray itself would give up after a minute
    assert of_the_command() == {}


def of_the_command() -> dict[str, psutil.Process]:
    """Return the processes of a service that has not said yet which it is, by their names."""
    found: dict[str, psutil.Process] = {}
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "eagleray.serve.run" in child.cmdline():
                found |= {one.name(): one for one in child.children(recursive=True)}
    return found


def find(service: RunningService, name: str) -> psutil.Process:
    children = psutil.Process(service.process.pid).children(recursive=True)
    (found,) = (child for child in children if child.name() == name)
    return found


def events(home: Path) -> list[dict[str, Any]]:
    lines = (home / "logs/serve/gateway.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "event"]


def faults(home: Path) -> list[str]:
    return [event["detail"] for event in events(home) if event["event"] == "fault"]
