"""A small labelled folder and what a worker is given to learn it, with overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from PIL import Image

from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.training.distributed import single_process
from eagleray.training.events import TrainEvent
from eagleray.training.launch import TrainResult, load_best_checkpoint
from eagleray.training.plan import TrainPlan, make_plan
from eagleray.training.spec import TrainSpec
from eagleray.training.spec_file import make_spec
from eagleray.training.trainer import Trainer, WorkerInput


def write_stripes(folder: Path, count: int = 24, *, seed: int = 0) -> Path:
    """Write two classes of gray 32-pixel images: a bright band that lies, or stands, in noise."""
    generator = np.random.default_rng(seed)
    for label in ("horizontal", "vertical"):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 80, (32, 32), dtype=np.uint8)
            top = generator.integers(1, 25)
            pixels[top : top + 6] += 150
            turned = pixels if label == "horizontal" else pixels.T
            Image.fromarray(np.ascontiguousarray(turned)).save(folder / label / f"{index:03d}.png")
    return folder


def small_spec(data: Path | str, **changes: Any) -> TrainSpec:
    """Return a specification that takes a second."""
    fields = {
        "data": str(data),
        "name": "stripes",
        "architecture": "lenet5",
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 5e-3,
    }
    return make_spec({**fields, **changes})


def plan_for(spec: TrainSpec, home: Path) -> tuple[TrainPlan, WorkerInput]:
    """Plan a run with its checkpoints and caches under a folder."""
    plan = make_plan(spec, Settings(home=home))
    weights = {key: value.contiguous() for key, value in plan.module.state_dict().items()}
    given = WorkerInput(
        spec=spec,
        task=plan.task,
        architecture=plan.architecture,
        contract=plan.contract,
        train=plan.split.train,
        validation=plan.split.validation,
        initial_weights=safetensors.torch.save(weights),
        cache_folder=str(home / "cache"),
        checkpoint_folder=str(home / "checkpoints"),
        run="run",
        s3=storage.S3Options(),
        attributes=plan.attributes,
    )
    return plan, given


def train_in_process(
    spec: TrainSpec, home: Path, *, plan: TrainPlan | None = None
) -> tuple[TrainResult, list[TrainEvent]]:
    """Train in this process, as a trial of a tuning does; the weights go into a plan's network."""
    mine, given = plan_for(spec, home)
    plan = plan or mine
    reports: list[TrainEvent] = []
    Trainer(given, single_process(spec), reports.append).run()
    return load_best_checkpoint(given, plan.module), reports
