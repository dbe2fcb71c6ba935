"""Decode photographs by each contract and by Pillow with torchvision's transforms.

    make bench-imaging PHOTOS=folder
    python -m tests.bench.imaging folder

Prints the time of one photograph on one core (median of interleaved rounds), how far the tensors
are from torchvision's, and how often a random-weights ResNet-18 gives the same label. Random
weights prefer a few classes for every image, so the label is also compared after the mean logits
over all photographs are taken off, which leaves what distinguishes one photograph from another.
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torchvision
from PIL import Image

from eagleray.imaging import ImageContract, decode, named_contract
from eagleray.registry.references import load_model

ROUNDS = 7
Tensors = npt.NDArray[np.float32]


TRANSFORM = torchvision.models.ResNet18_Weights.DEFAULT.transforms()


def pillow_with_transforms(data: bytes) -> torch.Tensor:
    """What most training and serving code does."""
    tensor: torch.Tensor = TRANSFORM(Image.open(io.BytesIO(data)).convert("RGB"))
    return tensor


def normalized(data: bytes, contract: ImageContract) -> torch.Tensor:
    """The contract's image as the tensor that torchvision would hand to a model."""
    pixels = torch.from_numpy(decode(data, contract).pixels).permute(2, 0, 1)
    mean = torch.tensor(contract.mean).view(-1, 1, 1)
    std = torch.tensor(contract.std).view(-1, 1, 1)
    return (pixels.float() / 255 - mean) / std


def milliseconds(
    decoders: dict[str, Callable[[bytes], object]], photos: list[bytes]
) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for round_number in range(ROUNDS + 1):
        for name, decoder in decoders.items():
            started = time.perf_counter()
            for photo in photos:
                decoder(photo)
            if round_number:  # the first round warms caches
                times[name].append(1000 * (time.perf_counter() - started) / len(photos))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: make bench-imaging PHOTOS=folder-of-photographs")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    photos = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir()) if path.is_file()]
    contracts = {name: named_contract(name) for name in ("torchvision-reference", "fast")}
    decoders: dict[str, Callable[[bytes], object]] = {}
    decoders["Pillow with transforms"] = pillow_with_transforms
    for name, contract in contracts.items():
        decoders[name] = lambda data, contract=contract: decode(data, contract)  # type: ignore[misc]
    times = milliseconds(decoders, photos)

    module = load_model("random:resnet18").package.build_module()
    reference = torch.stack([pillow_with_transforms(photo) for photo in photos])
    with torch.inference_mode():
        expected = torch.cat([module(batch) for batch in torch.split(reference, 20)])
    print(f"{len(photos)} photographs, one core, median of {ROUNDS} rounds\n")
    print("| decoder | ms | speed-up | largest | mean | same top-1 | same, centred | probability |")
    print("|---|---|---|---|---|---|---|---|")
    baseline = times["Pillow with transforms"]
    print(f"| Pillow with transforms | {baseline:.2f} | 1.00 | | | | | |")
    for name, contract in contracts.items():
        tensors = torch.stack([normalized(photo, contract) for photo in photos])
        difference = (tensors - reference).abs()
        with torch.inference_mode():
            logits = torch.cat([module(batch) for batch in torch.split(tensors, 20)])
        same = (logits.argmax(1) == expected.argmax(1)).float().mean()
        centre = expected.mean(0)
        alike = ((logits - centre).argmax(1) == (expected - centre).argmax(1)).float().mean()
        moved = (logits.softmax(1) - expected.softmax(1)).abs().max()
        print(
            f"| {name} | {times[name]:.2f} | {baseline / times[name]:.2f} | "
            f"{difference.max():.3f} | {difference.mean():.4f} | {same:.1%} | {alike:.1%} | "
            f"{moved:.1e} |"
        )


if __name__ == "__main__":
    main()
