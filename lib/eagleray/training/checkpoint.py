"""A checkpoint: all that a worker needs to go on as if it had never stopped.

weights.safetensors    the network
state.pt               optimizer and schedule, tensors and plain values only
progress.json          epoch and best metric so far
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

__all__ = ["Progress", "load_training_state", "load_weights", "save_checkpoint"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        epoch: Epochs finished.
    """

    epoch: int


def save_checkpoint(
    folder: Path, module: nn.Module, optimizer: Any, schedule: Any, progress: Progress
) -> None:
    """Write a checkpoint into an empty folder."""
    weights = {key: value.contiguous().cpu() for key, value in module.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    torch.save(
        {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()},
        folder / "state.pt",
    )
    (folder / "progress.json").write_text(json.dumps(asdict(progress)))


def load_weights(folder: Path, module: nn.Module) -> None:
    """Load a checkpoint's weights into a network."""
    module.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))


def load_training_state(folder: Path, module: nn.Module, optimizer: Any, schedule: Any) -> Progress:
    """Load a checkpoint into all that takes part in training."""
    load_weights(folder, module)
    state = torch.load(folder / "state.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return Progress(**json.loads((folder / "progress.json").read_text()))
