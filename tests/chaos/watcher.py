"""Reads every checkpoint that becomes visible, in a process of its own, and counts torn ones."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from eagleray.core.errors import InputError
from eagleray.training.loop.checkpoint import CheckpointStore
from tests.chaos.scenario_result import ScenarioResult
from tests.support.processes import Child

_SECONDS_BETWEEN_POLLS = 0.02


class Seen(IntEnum):
    """What became of a file that was listed."""

    WHOLE = 0
    TORN = 1
    DELETED = 2


@contextlib.contextmanager
def watching(result: ScenarioResult, home: Path) -> Iterator[None]:
    """Look at the checkpoints of all runs during the block, and count what is seen."""
    shared = np.frombuffer(mmap.mmap(-1, 8 * len(Seen)), np.int64)
    child = Child(lambda: _watch(home, shared))
    try:
        yield
    finally:
        child.kill()
        child.wait()
        result.reads += int(shared.sum())
        result.partial += int(shared[Seen.TORN])
        result.counts["checkpoints read"] += int(shared[Seen.WHOLE])
        result.counts["checkpoints torn"] += int(shared[Seen.TORN])
        result.counts["checkpoints deleted while they were read"] += int(shared[Seen.DELETED])


def _watch(home: Path, shared: Any) -> None:
    known: set[tuple[str, int, int]] = set()
    while True:
        for file in home.glob("runs/*/checkpoints/step-*.safetensors"):
            try:
                found = file.stat()
            except FileNotFoundError:
                continue
            # One that is written again, by a resumed run, is another file.
            key = (str(file), found.st_ino, found.st_mtime_ns)
            if key not in known:
                known.add(key)
                shared[_read(file)] += 1
        time.sleep(_SECONDS_BETWEEN_POLLS)


def _read(file: Path) -> Seen:
    try:
        checkpoint = CheckpointStore(str(file.parent)).read(file.name)
    except FileNotFoundError:
        return Seen.DELETED
    except InputError:
        return Seen.TORN
    steps = checkpoint.progress.total_steps
    named = file.name == f"step-{steps:09d}.safetensors"
    return Seen.WHOLE if named and len(checkpoint.tensors["losses"]) == steps else Seen.TORN
