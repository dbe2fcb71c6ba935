"""The watch over a Ray of the command's own, with another process under the name of its raylet."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagleray.serve.ray_watch import RayProcesses, watch_ray

_SECONDS = 20


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    program = shutil.copy(shutil.which("sleep") or "/bin/sleep", tmp_path / "raylet")
    with subprocess.Popen([program, "600"]) as process:
        yield process
        process.kill()


def test_a_block_that_waits_for_an_ended_ray_is_reported_as_stuck(
    raylet: subprocess.Popen[bytes],
) -> None:
    heard: list[str] = []
    stuck = threading.Event()

    def ended(_: RayProcesses, what: str) -> None:
        heard.append(what)

    with watch_ray(ended, stuck.set, seconds_to_leave=0.1) as own:
        assert own.ended() is None
        raylet.kill()
        assert stuck.wait(_SECONDS)
        assert own.ended() == "Ray's node manager"
    assert heard == ["Ray's node manager"]


def test_a_block_that_is_left_in_time_is_not_reported(raylet: subprocess.Popen[bytes]) -> None:
    ended, stuck = threading.Event(), threading.Event()
    with watch_ray(lambda *_: ended.set(), stuck.set, seconds_to_leave=600):
        raylet.kill()
        assert ended.wait(_SECONDS)
    assert not stuck.is_set()
