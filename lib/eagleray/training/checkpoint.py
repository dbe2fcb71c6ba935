"""Checkpoints: all that is needed to go on as if training had never stopped, one file each.

    step-000001200.safetensors
        model/NAME, average/NAME, best/NAME    weights: as they are, their average, the best epoch's
        optimizer/PARAMETER/KEY                what the optimizer remembers
        losses                                 of every step so far
        metadata                               `Progress` as JSON

A file is put in one step, so it is whole or not there, and holds numbers only: no pickle. The
learning rate and all that is random are functions of the position, so they need no room in it.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from eagleray.core.errors import InputError
from eagleray.core.json_limits import JsonLimits, parse_json
from eagleray.io import storage
from eagleray.io.storage.untrusted import NotRegularFileError, UntrustedFile, open_untrusted_folder
from eagleray.training.fsdp import placed_like

__all__ = [
    "BestEpoch",
    "Checkpoint",
    "CheckpointStore",
    "CheckpointWriter",
    "Progress",
    "optimizer_tensors",
    "restore_optimizer",
    "with_prefix",
    "without_prefix",
]

_NAME = re.compile(r"step-(\d{9})\.safetensors")
_BEGUN = re.compile(
    r"\.step-\d{9}\.safetensors\.[0-9a-f]+\.tmp"
)  # as `storage.put_atomic` names it
_FORMAT = "1"
_MAX_HEADER_BYTES = 32 * 2**20
_HEADER_JSON = JsonLimits(
    max_values=2_000_000, max_strings=1_000_000, max_entries=200_000, max_containers=500_000
)
_DAMAGED = (AttributeError, KeyError, TypeError, ValueError, safetensors.SafetensorError)


@dataclass(frozen=True)
class BestEpoch:
    """The epoch whose weights are kept.

    Attributes:
        epoch: Counts from 1.
        metrics: Of that epoch.
    """

    epoch: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        epoch: Epochs finished.
        step: Steps of the next epoch that are finished.
        total_steps: Steps finished since the run began.
        epochs: Metrics of the finished epochs.
        best: The best of them.
        ended: Whether there is nothing left to do.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    epochs: tuple[dict[str, float], ...] = ()
    best: BestEpoch | None = None
    ended: bool = False

    def to_json(self) -> str:
        """Return the JSON form."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Progress:
        """Read the JSON form."""
        fields = json.loads(text)
        best = fields.pop("best")
        return cls(
            **{**fields, "epochs": tuple(fields["epochs"])},
            best=None if best is None else BestEpoch(**best),
        )


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a run.

    Attributes:
        progress: Where the run stands.
        tensors: By name, on the CPU.
    """

    progress: Progress
    tensors: Mapping[str, Tensor] = field(repr=False)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a prefix, without it."""
        return without_prefix(self.tensors, prefix)


class CheckpointStore:
    """The checkpoints of one run, in a folder or under a URI."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def put(self, checkpoint: Checkpoint, *, keep: int) -> str:
        """Write a checkpoint in one step, then delete all but the newest `keep`."""
        name = f"step-{checkpoint.progress.total_steps:09d}.safetensors"
        metadata = {"format": _FORMAT, "progress": checkpoint.progress.to_json()}
        content = safetensors.torch.save(dict(checkpoint.tensors), metadata)
        location = storage.join(self.folder, name)
        storage.put_atomic(location, content)
        for old in self.names()[keep:]:
            storage.delete(storage.join(self.folder, old))
        return location

    def names(self) -> list[str]:
        """Return the names of the checkpoints, newest first."""
        return sorted(filter(_NAME.fullmatch, self._all_names()), reverse=True)

    def sweep(self) -> None:
        """Delete what processes that were killed had begun to write; for a run that starts."""
        for name in filter(_BEGUN.fullmatch, self._all_names()):
            storage.delete(storage.join(self.folder, name))

    def _all_names(self) -> list[str]:
        if not storage.is_folder(self.folder):
            return []
        return [storage.name_of(file.uri) for file in storage.list_files(self.folder)]

    def latest(self) -> Checkpoint | None:
        """Read the newest checkpoint; None where there is none."""
        names = self.names()
        return self.read(names[0]) if names else None

    def progress(self) -> Progress | None:
        """Read how far the newest checkpoint is, without its tensors; None where there is none."""
        names = self.names()
        if not names:
            return None
        try:
            with self._open(names[0]) as file:
                return Progress.from_json(_read_metadata(file)["progress"])
        except _DAMAGED:
            return self.read(names[0]).progress  # which says what is wrong with it

    def read(self, name: str) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            InputError: It is damaged, or of another version's format.
        """
        location = storage.join(self.folder, name)
        try:
            with self._open(name) as file:
                metadata = _read_metadata(file)
                is_ours = metadata.get("format") == _FORMAT
                progress = Progress.from_json(metadata["progress"]) if is_ours else None
                tensors = safetensors.torch.load(file.read(0, file.size))
        except (*_DAMAGED, NotRegularFileError) as error:
            raise InputError(
                f"Checkpoint {location} is damaged ({error}); delete it to go on from the one "
                "before."
            ) from None
        if progress is None:
            raise InputError(f"Checkpoint {location} was written by another version of Eagleray.")
        return Checkpoint(progress, tensors)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[UntrustedFile]:
        with open_untrusted_folder(self.folder) as folder, folder.open(name) as file:
            yield file


def _read_metadata(file: UntrustedFile) -> dict[str, str]:
    """Read the metadata of a checkpoint, which must have the bytes that its header describes.

    Raises:
        KeyError, TypeError, ValueError: It is damaged.
        OSError: It cannot be read.
    """
    if file.size < 8:
        raise ValueError("it has no header")
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > min(_MAX_HEADER_BYTES, file.size - 8):
        raise ValueError(f"its header claims {length:,} bytes")
    header = parse_json(file.read(8, length), _HEADER_JSON)
    metadata: dict[str, str] = dict(header.pop("__metadata__"))
    size = 8 + length + max((info["data_offsets"][1] for info in header.values()), default=0)
    if file.size != size:
        raise ValueError(f"it has {file.size:,} bytes, its header describes {size:,}")
    return metadata


class CheckpointWriter:
    """Writes checkpoints beside the training that goes on; one at a time.

    Attributes:
        stalled: Seconds that training stood still for checkpoints so far.
    """

    def __init__(self, store: CheckpointStore, *, keep: int) -> None:
        self._store, self._keep = store, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None
        self.stalled = 0.0

    def save(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Take a copy of the tensors and write it while training goes on.

        Raises:
            OSError: The checkpoint before this one could not be written.
        """
        began = time.perf_counter()
        self.wait()
        copies = {
            # A tensor that is new on the CPU anyway needs no second copy.
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in tensors.items()
        }
        self._last = self._thread.submit(self._write, Checkpoint(progress, copies))
        self.stalled += time.perf_counter() - began

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: The last checkpoint could not be written.
        """
        self.wait()
        self._thread.shutdown()

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OSError: It could not be.
        """
        if self._last is not None:
            self._last.result()
            self._last = None

    def _write(self, checkpoint: Checkpoint) -> None:
        self._store.put(checkpoint, keep=self._keep)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put names under a prefix."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return what is under a prefix, without it."""
    start = f"{prefix}/"
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return what an optimizer remembers of each parameter, as `PARAMETER/KEY`."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, memory in optimizer.state.items()
        for key, value in memory.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Give an optimizer back what it remembered."""
    memories: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        memories.setdefault(name, {})[key] = tensor
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    state: dict[str, Any] = optimizer.state_dict()
    parameters = [item for group in optimizer.param_groups for item in group["params"]]
    state["state"] = {
        index: {
            key: placed_like(tensor, parameter)
            for key, tensor in memories[names[id(parameter)]].items()
        }
        for index, parameter in enumerate(parameters)
        if names[id(parameter)] in memories
    }
    optimizer.load_state_dict(state)
