"""The Ray that a job runs on: it leaves nothing behind, and one that does not start is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from eagleray.errors import ExitCode
from tests.unit.images import encode, photo


def test_a_ray_that_cannot_start_ends_a_job_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(encode(photo()))
    (tmp_path / "a-file").touch()
    run = subprocess.run(
        [Path(sys.executable).with_name("eagleray"), "pack", "image.jpg", "--output", "packed"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"RAY_TMPDIR": str(tmp_path / "a-file" / "folder")},
    )
    assert run.returncode == ExitCode.JOB_FAILED, run.stderr
    told = " ".join(run.stderr.split())
    assert "Ray does not start on this machine (" in told
    assert "run the command again" in told
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "packed" / "COMPLETE").exists()


OUTLIVED = """
import subprocess
from pathlib import Path
from eagleray.cluster import ray_session
from eagleray.settings import Settings

def start():
    return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

with ray_session(Settings(home=Path("home"))):
    import ray
    print(ray.get(ray.remote(start).remote()))
"""


def test_what_outlives_a_ray_of_ones_own_is_ended(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", OUTLIVED], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert not is_running(int(run.stdout))


def is_running(number: int) -> bool:
    try:  # one that has ended is there until the system's first process takes note
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
