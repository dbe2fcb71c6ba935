"""Eagleray: image models at scale, batch, training and serving on one model, on Ray.

The names below are the public surface. They load on first use, so that `import eagleray` and the
command line's help stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eagleray.batch.earlier import read_results
    from eagleray.client import AsyncClient, Client, RequestRefusedError
    from eagleray.core.errors import BadImageError, EaglerayError, Reason, UserError
    from eagleray.core.settings import Settings
    from eagleray.imaging import ImageContract, named_contract
    from eagleray.inference.predictor import Predictor
    from eagleray.models.package import ModelPackage, read_package, write_package
    from eagleray.registry.references import load_model
    from eagleray.registry.registry import Registry
    from eagleray.tasks.outcome import Failure, Outcome, Prediction
    from eagleray.training.api import train
    from eagleray.training.callback import StopTraining, TrainCallback
    from eagleray.training.spec import TrainSpec

_HOMES = {
    "AsyncClient": "client",
    "BadImageError": "core.errors",
    "Client": "client",
    "EaglerayError": "core.errors",
    "Failure": "tasks.outcome",
    "ImageContract": "imaging",
    "ModelPackage": "models.package",
    "Outcome": "tasks.outcome",
    "Prediction": "tasks.outcome",
    "Predictor": "inference.predictor",
    "Reason": "core.errors",
    "Registry": "registry.registry",
    "RequestRefusedError": "client",
    "Settings": "core.settings",
    "StopTraining": "training.callback",
    "TrainCallback": "training.callback",
    "TrainSpec": "training.spec",
    "UserError": "core.errors",
    "load_model": "registry.references",
    "named_contract": "imaging",
    "read_package": "models.package",
    "read_results": "batch.earlier",
    "train": "training.api",
    "write_package": "models.package",
}

__all__ = [
    "AsyncClient",
    "BadImageError",
    "Client",
    "EaglerayError",
    "Failure",
    "ImageContract",
    "ModelPackage",
    "Outcome",
    "Prediction",
    "Predictor",
    "Reason",
    "Registry",
    "RequestRefusedError",
    "Settings",
    "StopTraining",
    "TrainCallback",
    "TrainSpec",
    "UserError",
    "load_model",
    "named_contract",
    "read_package",
    "read_results",
    "train",
    "write_package",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'eagleray' has no attribute {name!r}")
    return getattr(importlib.import_module(f"eagleray.{_HOMES[name]}"), name)
