"""Processes of a Ray whose driver was killed are ended, and no others."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time

import pytest

from eagleray.core import orphans

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


def sleeper(**variables: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"], env=os.environ | variables, start_new_session=True)


def test_marked_processes_end_when_the_pipe_to_their_owner_closes() -> None:
    value = secrets.token_hex(8)
    command = [sys.executable, "-I", "-S", orphans.__file__, "TEST_OWNER", value]
    with (
        sleeper(TEST_OWNER=value) as marked,
        sleeper(TEST_OWNER=f"{value}0") as other,
        subprocess.Popen(command, stdin=subprocess.PIPE) as watcher,
    ):
        time.sleep(0.5)
        assert marked.poll() is None
        assert watcher.stdin is not None
        watcher.stdin.close()
        marked.wait(10)
        watcher.wait(10)
        assert other.poll() is None
        other.kill()
