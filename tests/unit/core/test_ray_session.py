"""An embedded Ray leaves nothing behind, and a failure to start is one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from eagleray.core.errors import ExitCode
from tests.support.images import encode, photo


def test_a_ray_that_cannot_start_ends_a_job_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(encode(photo()))
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        (Path(folder) / "ray").touch()  # where Ray makes its own folder
        run = subprocess.run(
            [Path(sys.executable).with_name("eagleray"), "pack", "image.jpg", "--output", "packed"],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"RAY_TMPDIR": folder},
        )
    assert run.returncode == ExitCode.JOB_FAILED, run.stderr
    told = " ".join(run.stderr.split())
    assert "Ray does not start on this machine (" in told
    assert f"its own logs are in {folder}/ray/session_latest/logs." in told
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "packed" / "COMPLETE").exists()


def test_an_address_of_ray_client_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(encode(photo()))
    command = ["pack", "image.jpg", "--output", "packed", "--cluster", "ray://head:10001"]
    run = subprocess.run(
        [Path(sys.executable).with_name("eagleray"), *command],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == ExitCode.USER, run.stderr
    assert "is ray://head:10001, and Ray Client does not carry Ray Data" in " ".join(
        run.stderr.split()
    )
    assert not (tmp_path / "packed").exists()


SESSION = """
import json
import subprocess
from pathlib import Path
from eagleray.core.ray_session import ray_session
from eagleray.core.settings import Settings

def start():
    import sys
    return subprocess.Popen(["sleep", "600"], start_new_session=True).pid, sys.path

with ray_session(Settings(home=Path("home"))):
    import ray
    print(json.dumps(ray.get(ray.remote(start).remote(), timeout=120)))
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, list[str]]:
    """A Ray that has ended: its folder, a process that a task started, the path of its workers."""
    folder = tmp_path_factory.mktemp("session")
    (folder / "random.py").write_text("raise SystemExit('not this one')")
    run = subprocess.run(
        [sys.executable, "-P", "-c", SESSION],
        check=True,
        capture_output=True,
        text=True,
        cwd=folder,
        # As long as it may be: the paths of Ray's sockets just fit.
        env=os.environ | {"RAY_TMPDIR": f"/tmp/{'x' * 34}"},
    )
    shutil.rmtree(f"/tmp/{'x' * 34}")
    number, path = json.loads(run.stdout)
    return folder, number, path


def test_what_outlives_a_ray_of_ones_own_is_ended(session: tuple[Path, int, list[str]]) -> None:
    assert not is_running(session[1])


def test_workers_import_nothing_from_the_folder_of_the_command(
    session: tuple[Path, int, list[str]],
) -> None:
    assert not {"", ".", str(session[0])} & set(session[2])


def is_running(number: int) -> bool:
    try:  # one that has ended is there until the system's first process takes note
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
