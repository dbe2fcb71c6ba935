"""Builders for tests of quantization: digits as files, and a version that has learned them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eagleray.core.callbacks import ProgressBar
from eagleray.data.digits import write_digits
from eagleray.data.labelled import LabelledImages, read_labelled
from eagleray.data.split import Split
from eagleray.data.split_file import write_split
from eagleray.imaging import decode, named_contract
from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.models.network import ImageNetwork
from eagleray.models.package import Lineage, ModelPackage, create_package
from eagleray.registry.registry import ModelVersion, Registry
from eagleray.tasks import Multiclass, Task

__all__ = ["SilentReporter", "digit_split", "digits_package", "register_with_split"]

CONTRACT = named_contract("whole-image", size=32, color="gray")
DIGITS = Multiclass(labels=tuple("0123456789"))
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 400, 100, 200


class SilentReporter:
    """Receives progress, and keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def note(self, text: str) -> None: ...

    def announce(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def status(self, text: str) -> AbstractContextManager[None]:
        return nullcontext()

    def progress(self, description: str, total: int) -> AbstractContextManager[ProgressBar]:
        return nullcontext(_Bar())


class _Bar:
    def advance(self, count: int, *, failed: int = 0, note: str | None = None) -> None: ...

    def line(self, text: str) -> None: ...


def digit_split(folder: Path, labels: Sequence[str] | None = None) -> Split:
    """Write the digits as files once, and divide them; other labels may be given in turns."""
    table = folder / "labels.csv"
    if not table.exists():
        write_digits(folder)
    images = read_labelled(str(table))
    if labels is not None:
        images = replace(
            images, labels=tuple(labels[row % len(labels)] for row in range(len(images)))
        )
    ends = np.cumsum([0, NUM_TRAIN, NUM_VALIDATION, NUM_TEST]).tolist()
    parts = [images.take(range(start, end)) for start, end in itertools.pairwise(ends)]
    return Split(*parts)


def _pixels(images: LabelledImages) -> torch.Tensor:
    decoded = [decode(Path(uri).read_bytes(), CONTRACT).pixels for uri in images.uris]
    return torch.from_numpy(np.stack(decoded))


@cache
def _trained(folder: Path) -> nn.Module:
    """Train a LeNet-5 for a second, to about 90 %."""
    train = digit_split(folder).train
    pixels, targets = _pixels(train), torch.tensor([int(label) for label in train.labels])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(_architecture(10))
        network = ImageNetwork(module, CONTRACT).train()
        optimizer = torch.optim.Adam(network.parameters(), 0.003)
        for _ in range(12):
            for rows in torch.split(torch.randperm(len(targets)), 50):
                loss = nn.functional.cross_entropy(network(pixels[rows]), targets[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return module.eval()


def _architecture(num_outputs: int) -> Architecture:
    return Architecture(name="lenet5", in_channels=1, num_outputs=num_outputs)


def digits_package(folder: Path, name: str = "digits", task: Task = DIGITS) -> ModelPackage:
    """Make a package of a network that knows digits, or of a random one for another task."""
    split = digit_split(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = (
            _trained(folder) if task == DIGITS else build(_architecture(task.num_outputs)).eval()
        )
    return create_package(
        name=name,
        task=task,
        architecture=_architecture(task.num_outputs),
        contract=CONTRACT,
        module=module,
        lineage=Lineage.now(data_digest="d" * 64, test_digest=split.test.digest),
        golden_images=[Path(uri).read_bytes() for uri in split.validation.uris[:4]],
    )


def register_with_split(
    registry: Registry, package: ModelPackage, split: Split | None
) -> ModelVersion:
    """Register a package, and keep a table of its images as a training run does."""
    version = registry.register(package)
    if split is not None:
        assert version.run_folder is not None
        write_split(split, f"{version.run_folder}/split.parquet")
    return version
