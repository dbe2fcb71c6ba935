"""The training command in a session of its own, its workers, and the files of its run.

train = Train(home, new_run_args(data))
train = Train(home, ["--resume", run])
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from tests.chaos.command import Command
from tests.support.processes import titled

WORKERS = ("ray::RayTrainWorker",)
EPOCHS = 8
BATCH_SIZE = 32
CHECKPOINT_STEPS = 4
MODEL = "bands"

_LABELS = 4
_PER_LABEL = 160  # train 104, validation 32, test 24
_STEP = re.compile(r"step-(\d{9})\.safetensors")


def write_bands(folder: Path) -> Path:
    """Write four classes of colour images of 32 pixels, a band in noise, hard enough to take time.

    They make 13 steps an epoch: validation follows a step after the last checkpoint of an epoch.
    """
    generator = np.random.default_rng(0)
    for label in range(_LABELS):
        (folder / str(label)).mkdir(parents=True)
        for index in range(_PER_LABEL):
            pixels = generator.integers(0, 180, (32, 32, 3), dtype=np.uint8)
            top = generator.integers(1, 25)
            pixels[top : top + 6, :, label % 3] += 50
            turned = pixels.transpose(1, 0, 2) if label == _LABELS - 1 else pixels
            file = folder / str(label) / f"{index:03d}.png"
            Image.fromarray(np.ascontiguousarray(turned)).save(file)
    return folder


def new_run_args(data: Path, *, workers: str = "2") -> list[str]:
    """Return the arguments of a new run in which everything that can be random is."""
    args = [str(data), "--name", MODEL, "--architecture", "resnet20", "--device", "cpu"]
    args += ["--workers", workers, "--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE)]
    args += ["--checkpoint-steps", str(CHECKPOINT_STEPS), "--validation-fraction", "0.2"]
    args += [
        "--test-fraction",
        "0.15",
        "--random-translation",
        "0.1",
        "--horizontal-flip",
        "--random-resized-crop",
        "0.6",
    ]
    args += ["--randaugment", "5", "--random-erasing", "0.3", "--mixup", "0.2", "--dropout", "0.2"]
    return [*args, "--ema-decay", "0.9", "--max-grad-norm", "1", "--learning-rate", "0.01"]


class Train(Command):
    """A running training job.

    Args:
        home: Folder of everything that it writes.
        args: Arguments of its command line.
    """

    def __init__(self, home: Path, args: Sequence[str]) -> None:
        super().__init__(["eagleray.jobs.train", *args, "--json"], {"EAGLERAY_HOME": str(home)})

    def workers(self) -> list[psutil.Process]:
        """Return the processes that train."""
        return titled(self.family(), *WORKERS)


class RunFolder:
    """A run as its files show it, while other processes write them.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"

    @property
    def name(self) -> str:
        return self.folder.name

    def record(self) -> dict[str, Any]:
        """Return the content of `run.json`; empty before it exists."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "run.json").read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def step(self) -> int:
        """Return the step of the newest checkpoint; 0 before the first."""
        names = [file.name for file in self.checkpoints.glob("step-*.safetensors")]
        return max((int(found[1]) for name in names if (found := _STEP.fullmatch(name))), default=0)

    def is_beyond(self, step: int) -> bool:
        """Whether there is a checkpoint of a later step."""
        return self.step() > step

    def is_writing(self) -> bool:
        """Whether there is a partial checkpoint: being written, or left by a dead writer."""
        return any(self.checkpoints.glob(".step-*.tmp"))

    def has_package(self) -> bool:
        """Whether its package is an artifact of its MLflow run."""
        run = self.record().get("mlflow_run")
        artifacts = self.folder.parents[1] / "artifacts"
        return run is not None and (artifacts / run / "artifacts" / "package").exists()


def run_folders(home: Path) -> list[RunFolder]:
    """Return the runs that can be resumed."""
    return [RunFolder(file.parent) for file in sorted(home.glob("runs/*/run.json"))]
