"""Checkpoints: the full state of a run at one step, one file each.

    step-000001200.safetensors
        model/NAME, average/NAME, best/NAME    weights: the current ones, their moving average,
                                               those of the best epoch
        optimizer/PARAMETER/KEY                state of the optimizer
        losses                                 loss of every step so far
        seen/values, seen/targets              predictions of this epoch's steps, if it is not over
        metadata                               `Progress` as JSON

A file is written atomically and contains tensors only: no pickle. The learning rate and everything
random are functions of the position in the run, so they are not stored.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

import safetensors.torch
from torch import Tensor

from eagleray.core.errors import InputError
from eagleray.core.json_limits import JsonLimits, parse_json
from eagleray.io import storage
from eagleray.io.storage.untrusted import NotRegularFileError, UntrustedFile, open_untrusted_folder

__all__ = ["BestEpoch", "Checkpoint", "CheckpointStore", "Progress", "with_prefix"]

_NAME = re.compile(r"step-(\d{9})\.safetensors")
_INCOMPLETE = re.compile(
    r"\.step-\d{9}\.safetensors\.[0-9a-f]+\.tmp"
)  # as `storage.put_atomic` names it
_FORMAT = "2"
_MAX_HEADER_BYTES = 32 * 2**20
_HEADER_JSON = JsonLimits(
    max_values=2_000_000, max_strings=1_000_000, max_entries=200_000, max_containers=500_000
)
_DAMAGED = (AttributeError, KeyError, TypeError, ValueError, safetensors.SafetensorError)


@dataclass(frozen=True)
class BestEpoch:
    """The best epoch of a run so far.

    Attributes:
        epoch: Number of the epoch, from 1.
        metrics: Metrics of the epoch.
    """

    epoch: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """The position of a run.

    Attributes:
        epoch: Number of finished epochs.
        step: Number of finished steps of the current epoch.
        total_steps: Number of finished steps of the run.
        epochs: Metrics of the finished epochs.
        best: The best finished epoch.
        ended: Whether training is complete.
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
    """The state of a run at one step.

    Attributes:
        progress: Position of the run.
        tensors: Tensors by name, on the CPU.
    """

    progress: Progress
    tensors: Mapping[str, Tensor] = field(repr=False)

    def with_prefix(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a prefix, named without it."""
        start = f"{prefix}/"
        return {
            name.removeprefix(start): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(start)
        }

    @property
    def best_weights(self) -> dict[str, Tensor]:
        """Weights of the best epoch so far."""
        return self.with_prefix("best") or self.with_prefix("model")


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors named under a prefix, as a checkpoint contains them."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


class CheckpointStore:
    """The checkpoints of one run, in a folder or under a URI."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def put(self, checkpoint: Checkpoint, *, keep: int) -> str:
        """Write a checkpoint atomically, then delete all but the newest `keep`."""
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

    def remove_incomplete(self) -> None:
        """Delete the partial files of killed processes; called when a run starts."""
        for name in filter(_INCOMPLETE.fullmatch, self._all_names()):
            storage.delete(storage.join(self.folder, name))

    def _all_names(self) -> list[str]:
        if not storage.is_folder(self.folder):
            return []
        return [storage.name_of(file.uri) for file in storage.list_files(self.folder)]

    def latest(self) -> Checkpoint | None:
        """Read the newest checkpoint; None if there is none."""
        names = self.names()
        return self.read(names[0]) if names else None

    def progress(self) -> Progress | None:
        """Read the position of the newest checkpoint without its tensors; None if there is none.

        Raises:
            InputError: If it is damaged, or has the format of another version.
        """
        names = self.names()
        if not names:
            return None
        try:
            with self._open(names[0]) as file:
                metadata = _read_metadata(file)
                if metadata["format"] == _FORMAT:
                    return Progress.from_json(metadata["progress"])
        except _DAMAGED:
            pass
        return self.read(names[0]).progress  # which raises an error that explains the fault

    def read(self, name: str) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            InputError: If it is damaged, or has the format of another version.
        """
        location = storage.join(self.folder, name)
        try:
            with self._open(name) as file:
                metadata = _read_metadata(file)
                is_current = metadata.get("format") == _FORMAT
                progress = Progress.from_json(metadata["progress"]) if is_current else None
                tensors = safetensors.torch.load(file.read(0, file.size))
        except (*_DAMAGED, NotRegularFileError) as error:
            raise InputError(
                f"Checkpoint {location} is damaged ({error}); delete it to resume from the one "
                "before."
            ) from None
        if progress is None:
            raise InputError(
                f"Checkpoint {location} was written by another version of Eagleray; begin a new "
                "run with the same specification, by `eagleray train --from RUN`."
            )
        return Checkpoint(progress, tensors)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[UntrustedFile]:
        with open_untrusted_folder(self.folder) as folder, folder.open(name) as file:
            yield file


def _read_metadata(file: UntrustedFile) -> dict[str, str]:
    """Read the metadata of a checkpoint, whose size must match its header.

    Raises:
        KeyError, TypeError, ValueError: If it is damaged.
        OSError: If it cannot be read.
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
