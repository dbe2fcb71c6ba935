"""The training program in a session of its own, its workers, and its run's folder from outside.

train = Train(home, begin(data))
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
from tests.chaos.processes import titled

WORKERS = ("ray::RayTrainWorker",)
EPOCHS = 8
BATCH_SIZE = 32
CHECKPOINT_STEPS = 4
MODEL = "bands"

_LABELS = 4
_PER_LABEL = 160  # 104 to learn, 32 to choose by, 24 to test on
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


def begin(data: Path, *, workers: str = "2") -> list[str]:
    """Return the words that begin a run in which everything that can be random is."""
    words = [str(data), "--name", MODEL, "--architecture", "resnet20", "--device", "cpu"]
    words += ["--workers", workers, "--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE)]
    words += ["--checkpoint-steps", str(CHECKPOINT_STEPS), "--validation-fraction", "0.2"]
    words += [
        "--test-fraction",
        "0.15",
        "--random-translation",
        "0.1",
        "--horizontal-flip",
        "--random-resized-crop",
        "0.6",
    ]
    words += ["--randaugment", "5", "--random-erasing", "0.3", "--mixup", "0.2", "--dropout", "0.2"]
    return [*words, "--ema-decay", "0.9", "--max-grad-norm", "1", "--learning-rate", "0.01"]


class Train(Command):
    """A running training job.

    Args:
        home: Of everything that it keeps.
        words: Of its command line.
    """

    def __init__(self, home: Path, words: Sequence[str]) -> None:
        super().__init__(["eagleray.jobs.train", *words, "--json"], {"EAGLERAY_HOME": str(home)})

    def workers(self) -> list[psutil.Process]:
        """Processes that train."""
        return titled(self.family(), *WORKERS)


class RunFolder:
    """A run as its files show it, while others write them.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"

    @property
    def name(self) -> str:
        return self.folder.name

    def record(self) -> dict[str, Any]:
        """What `run.json` says; empty before it is there."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "run.json").read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def step(self) -> int:
        """The newest checkpoint's; 0 before the first."""
        names = [file.name for file in self.checkpoints.glob("step-*.safetensors")]
        return max((int(found[1]) for name in names if (found := _STEP.fullmatch(name))), default=0)

    def is_beyond(self, step: int) -> bool:
        """Whether there is a checkpoint of a later step."""
        return self.step() > step

    def is_writing(self) -> bool:
        """Whether a checkpoint is being written, or was when its writer died."""
        return any(self.checkpoints.glob(".step-*.tmp"))

    def has_package(self) -> bool:
        """Whether its model is on its way into the registry, or there."""
        run = self.record().get("mlflow_run")
        artifacts = self.folder.parents[1] / "artifacts"
        return run is not None and (artifacts / run / "artifacts" / "package").exists()


def run_folders(home: Path) -> list[RunFolder]:
    """The runs that have been begun, and can be gone on with."""
    return [RunFolder(file.parent) for file in sorted(home.glob("runs/*/run.json"))]
