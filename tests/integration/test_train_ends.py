"""Training on a Ray of its own that is interrupted or killed: what is said, and what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from eagleray.core.errors import ExitCode
from eagleray.core.settings import Settings
from eagleray.registry.registry import Registry
from tests.support.processes import heed_interrupts
from tests.support.training import small_spec, write_stripes

SECONDS = 120.0
SECONDS_AFTER_A_KILL = 10.0


def test_an_interrupted_run_is_resumed_and_a_killed_one_leaves_no_process(tmp_path: Path) -> None:
    home = Settings().home_folder
    file = tmp_path / "spec.yaml"
    data = write_stripes(tmp_path / "stripes", count=30)
    file.write_text(small_spec(data, epochs=100_000).to_yaml())

    interrupted = start("--spec", str(file))
    wait_for(lambda: newest_step(home) > 0)
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does
    _, shown = interrupted.communicate(timeout=SECONDS)
    assert interrupted.returncode == ExitCode.INTERRUPTED, shown
    (folder,) = home.glob("runs/*")
    resume = f"eagleray train --resume {folder.name}"
    assert shown.splitlines()[-2:] == ["interrupted", f"resume with: {resume}"]
    assert "epoch 1/100000: train loss " in shown
    assert statuses() == ["KILLED"]
    assert family(home) == []

    reached = newest_step(home)
    killed = start(*resume.split()[2:])
    wait_for(lambda: newest_step(home) > reached)
    assert any("ray::" in " ".join(process.cmdline()) for process in family(home))
    killed.kill()
    killed.wait()
    wait_for(lambda: not family(home), SECONDS_AFTER_A_KILL)
    assert killed.stderr is not None
    killed.stderr.close()


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "eagleray.jobs.train", *words]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509 - it sets a signal and nothing else
    )


def newest_step(home: Path) -> int:
    names = [file.stem for file in home.glob("runs/*/checkpoints/step-*.safetensors")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def statuses() -> list[str]:
    client = Registry().client
    experiments = [one.experiment_id for one in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


def family(home: Path) -> list[psutil.Process]:
    """Return the running processes that work for a home folder."""
    found = []
    for process in psutil.process_iter():
        try:
            is_own = process.environ().get("EAGLERAY_HOME") == str(home)
            if is_own and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(what: Callable[[], bool], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)
