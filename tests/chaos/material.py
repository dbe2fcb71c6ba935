"""Good and bad images and a small model, the inputs of the jobs under attack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eagleray.batch.spec import PredictSpec
from eagleray.io import storage
from eagleray.models.package import write_package
from tests.chaos.places import Place
from tests.support.batch import s3_fields
from tests.support.images import encode, photo
from tests.support.models import CONTRACT, small_package

MAX_PIXELS = 30_000_000


@dataclass(frozen=True)
class Material:
    """The inputs of a job.

    Attributes:
        images: Location of the folder of images.
        num_images: Number of images.
        model: Folder of the model package.
    """

    images: str
    num_images: int
    model: str

    def request(self, place: Place, output: str, **overrides: Any) -> PredictSpec:
        request = PredictSpec(
            inputs=(self.images,),
            model=self.model,
            output=output,
            precision="float32",
            engine="eager",
            **s3_fields(place.s3),
        )
        return request.model_copy(update=overrides)


def write_model(folder: Path, **limits: Any) -> str:
    """Write a LeNet-5 for small gray images.

    Args:
        folder: Folder of the package.
        limits: Fields of its contract, such as `max_bytes`.
    """
    contract = CONTRACT.model_copy(update={"max_pixels": MAX_PIXELS, **limits})
    write_package(small_package(contract=contract), str(folder))
    return str(folder)


def write_small(place: Place, folder: Path, *, num_images: int) -> Material:
    """Write small images, one in fifteen of them broken."""
    images = storage.join(place.root, f"small-{num_images}")
    broken = (b"", b"no image", encode(_gray(0))[:100], b"%PDF-1.7\n")
    for number in range(num_images):
        bad = number % 15 == 7
        content = broken[number // 15 % len(broken)] if bad else encode(_gray(number))
        storage.put_atomic(storage.join(images, f"{number:04d} é%20.png"), content)
    return Material(images, num_images, write_model(folder / "model"))


def write_large(folder: Path, *, num_images: int, num_different: int = 6) -> Material:
    """Write photographs that take a core a tenth of a second each, and small images among them.

    The large ones are hard links of a few; local only.
    """
    images = folder / "large"
    images.mkdir()
    jpegs = [
        encode(photo(4000, 3000, seed=seed, noise=20), "jpeg", quality=80)
        for seed in range(num_different)
    ]
    for number in range(num_images):
        file = images / f"{number:05d}.jpg"
        if number < num_different:
            file.write_bytes(jpegs[number])
        elif number % 3 == 0:
            file.write_bytes(encode(_gray(number)))
        else:
            file.hardlink_to(images / f"{number % num_different:05d}.jpg")
    return Material(str(images), num_images, write_model(folder / "model-large"))


def _gray(seed: int, side: int = 24) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
