"""Builders that tests of models share: a real, tiny package and settings of its own."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from eagleray.core.settings import Settings
from eagleray.imaging import named_contract
from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.models.package import Lineage, ModelPackage, create_package
from eagleray.registry.registry import Registry
from eagleray.tasks import Multiclass
from tests.support.mlflow_database import prepare_home

DIGITS = Multiclass(labels=("zero", "one", "two"))
CONTRACT = named_contract("whole-image", size=32, color="gray")
LINEAGE = Lineage(created="2026-01-01T00:00:00+00:00", eagleray="0.1.0", torch="2.11.0")


def lenet(num_outputs: int = 3) -> Architecture:
    return Architecture(name="lenet5", in_channels=1, num_outputs=num_outputs)


@cache
def lenet_module(num_outputs: int = 3, seed: int = 0) -> nn.Module:
    """Build once for each seed; callers do not train it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(lenet(num_outputs)).eval()


@cache
def golden_png(seed: int, side: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def small_package(**overrides: Any) -> ModelPackage:
    """Make a LeNet-5 for three digits; the overrides are `create_package`'s arguments."""
    task = overrides.get("task", DIGITS)
    parts: dict[str, Any] = {
        "name": "digits",
        "task": task,
        "architecture": lenet(task.num_outputs),
        "contract": CONTRACT,
        "module": lenet_module(task.num_outputs),
        "lineage": LINEAGE,
        "metrics": {"accuracy": 0.5},
        "golden_images": [golden_png(seed) for seed in range(3)],
    }
    return create_package(**{**parts, **overrides})


def settings_in(tmp_path: Path, home: str = "home") -> Settings:
    return Settings(home=tmp_path / home)


def registry_in(tmp_path: Path) -> Registry:
    """Open a registry of its own, empty and without the seconds that its first use takes."""
    settings = settings_in(tmp_path)
    prepare_home(settings.home)
    return Registry(settings)
