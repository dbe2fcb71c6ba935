"""Small packages of pets, predictors of them, and the network inside a predictor."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eagleray.imaging import named_contract
from eagleray.inference.engine import Run
from eagleray.inference.predictor import Predictor
from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.models.package import Lineage, ModelPackage, create_package
from eagleray.tasks import Multiclass, Task

__all__ = ["LABELS", "eager", "first_run", "package", "png", "replace_run"]

LABELS = ("cat", "dog", "owl")


def png(seed: int, side: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def package(architecture: str = "resnet20", task: Task | None = None) -> ModelPackage:
    torch.manual_seed(3)
    task = task or Multiclass(labels=LABELS)
    spec = Architecture(name=architecture, num_outputs=task.num_outputs)
    return create_package(
        name="pets",
        task=task,
        architecture=spec,
        contract=named_contract("whole-image", size=32),
        module=build(spec).eval(),
        lineage=Lineage.now(),
        golden_images=[png(100), png(101)],
    )


def eager(pets: ModelPackage, **options: object) -> Predictor:
    defaults: dict[str, object] = {
        "engine": "eager",
        "precision": "float32",
        "num_threads": 1,
        "cache_folder": Path("/nonexistent"),
    }
    return Predictor(pets, **{**defaults, **options})  # type: ignore[arg-type]


def first_run(predictor: Predictor) -> Run:
    return predictor.passes.run


def replace_run(monkeypatch: pytest.MonkeyPatch, predictor: Predictor, run: Run) -> None:
    monkeypatch.setattr(predictor.passes, "run", run)
