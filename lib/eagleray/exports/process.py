"""Runs a step of an export in a process of its own, with bounds on its time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from eagleray.core.errors import InputError, JobFailedError

__all__ = ["CONVERT", "ERROR_FILE", "RUN", "Limits", "run_bounded", "run_step"]

CONVERT, RUN = "convert", "run"
ERROR_FILE = "error.json"

_POLL_SECONDS = 0.1
_QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",  # models are compared on the CPU
}


@dataclass(frozen=True)
class Limits:
    """Bounds of one step.

    Attributes:
        seconds: Time.
        memory_bytes: Resident memory of its processes.
    """

    seconds: float
    memory_bytes: float


def run_step(step: str, folder: Path, packages: Path | None, limits: Limits, log: Path) -> None:
    """Run a step of `worker.py` in a folder, and return when it is done.

    Args:
        step: `convert` or `run`.
        folder: Working folder of the export.
        packages: Folder of packages that the step sees before Eagleray's; None for no others.
        limits: Bounds.
        log: File for what the step prints.

    Raises:
        InputError: If the format cannot carry the model.
        JobFailedError: If the step crashes, or needs more time or memory than allowed.
    """
    what = "conversion" if step == CONVERT else "comparison"
    run_bounded(what, "eagleray.exports.worker", [step], folder, packages, limits, log)


def run_bounded(
    what: str,
    module: str,
    words: Sequence[str],
    folder: Path,
    packages: Path | None,
    limits: Limits,
    log: Path,
) -> None:
    """Run `module WORDS FOLDER PARENT_PID` in a process of its own, and return when it is done.

    Args:
        what: What the process does, for messages.
        module: The module.
        words: Its first arguments.
        folder: Working folder, in which it may leave an error for the user in `error.json`.
        packages: Folder of packages that it sees before Eagleray's; None for no others.
        limits: Bounds.
        log: File for what it prints.

    Raises:
        InputError: If it leaves an error.
        JobFailedError: If it crashes, or needs more time or memory than allowed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", module, *words, str(folder), str(os.getpid())]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(packages),
            start_new_session=True,
        )
    try:
        fault = _watch(process, limits)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        process.wait()
    if fault is None and process.returncode == 0:
        return
    _raise(what, folder, fault or _describe_exit(process.returncode), log)


def _raise(what: str, folder: Path, fault: str, log: Path) -> None:
    told = folder / ERROR_FILE
    if told.exists():
        raise InputError(json.loads(told.read_text())["message"])
    raise JobFailedError(
        f"The process of the {what} {fault}; nothing is written, and its output is in {log}."
    )


def _watch(process: subprocess.Popen[bytes], limits: Limits) -> str | None:
    """Wait for a process, and return why it must end, as a predicate; None if it has ended."""
    deadline = time.monotonic() + limits.seconds
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
            return None
        if time.monotonic() > deadline:
            return f"took longer than {limits.seconds:g} s (--max-seconds)"
        if _memory_of(process.pid) > limits.memory_bytes:
            return f"took more than {limits.memory_bytes / 1e9:g} GB (--max-memory-gb)"


def _memory_of(pid: int) -> int:
    """Return the resident memory of a process and those that it has started."""
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for one in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += one.memory_info().rss
    return total


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"died of {signal.Signals(-code).name}"
    return f"died of signal {-code}"


def _environment(packages: Path | None) -> dict[str, str]:
    """Return an environment in which the process finds the packages, and then this one."""
    source_root = Path(__file__).parents[2]
    path = [*filter(None, [packages, os.environ.get("PYTHONPATH"), source_root])]
    return {**os.environ, **_QUIET, "PYTHONPATH": os.pathsep.join(map(str, path))}
