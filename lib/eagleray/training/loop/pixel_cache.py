"""Caches decoded images in a memory-mapped uint8 array that all workers of a node share.

Every worker decodes a share of the images by the image contract; from then on a batch is a memory
copy, in every epoch and in every later run on the same data. Images that cannot be decoded are
skipped by all workers and reported with their reason codes. Data that would take more than half of
the free disk are decoded in every epoch instead.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eagleray.core.errors import BadImageError, JobFailedError
from eagleray.data.labelled import LabelledImages
from eagleray.imaging import ImageContract, ShortestSide, decode
from eagleray.io.fetch import fetch_image
from eagleray.io.read_ahead import read_ahead
from eagleray.io.tables import digest_table

__all__ = ["MAX_DISK_FRACTION", "DecodedPixels", "centre", "open_pixels", "with_margin"]

Barrier = Callable[[], None]

_MAX_AHEAD = 16
MAX_DISK_FRACTION = 0.5
"""Largest fraction of the free disk that decoded images take; else every epoch decodes."""


@dataclass(frozen=True)
class DecodedPixels:
    """The decoded images of one split.

    Attributes:
        images: Images of the split, a row each.
        contract: Image contract by which they are decoded.
        pixels: Memory-mapped uint8 array (N, H, W, C); rows of failed images are zero. None if
            every read decodes.
        good: Indices of the rows that could be decoded, ascending.
        bad: Location, reason code and message of the other rows.
    """

    images: LabelledImages
    contract: ImageContract
    pixels: npt.NDArray[np.uint8] | None
    good: npt.NDArray[np.int64]
    bad: tuple[tuple[str, str, str], ...]

    def read_one(self, row: int) -> npt.NDArray[np.uint8]:
        """Return the pixels of a row: uint8 array (H, W, C).

        Raises:
            JobFailedError: If it could be decoded before and cannot be any more.
        """
        if self.pixels is not None:
            pixels: npt.NDArray[np.uint8] = self.pixels[row]
            return pixels
        uri = self.images.uris[row]
        decoded = _read(uri, self.contract)
        if isinstance(decoded, BadImageError):
            raise JobFailedError(
                f"{uri} could be decoded when training began and cannot be any more "
                f"({decoded.reason.value}: {decoded.message}); restore it and resume."
            )
        return decoded

    def read(self, rows: npt.NDArray[np.int64], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Return the centre crops of some rows: uint8 array (N, *size, C)."""
        if self.pixels is not None and self.contract.size == size:
            return self.pixels[rows]
        return np.stack([centre(self.read_one(int(row)), size) for row in rows])


def centre(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return the centre crop of an image (H, W, C), as a contract's own crop takes it."""
    top, left = (round((have - want) / 2) for have, want in zip(pixels.shape, size, strict=False))
    return pixels[top : top + size[0], left : left + size[1]]


def with_margin(contract: ImageContract) -> ImageContract:
    """Return a contract with a larger centre crop, from which random crops are taken.

    Its centre crop is what the original contract gives.
    """
    if not isinstance(contract.resize, ShortestSide) or contract.crop is None:
        return contract
    side = contract.resize.size
    if side <= max(contract.crop):
        return contract
    return ImageContract.model_validate({**contract.model_dump(), "crop": (side, side)})


def open_pixels(
    images: LabelledImages,
    contract: ImageContract,
    folder: Path,
    *,
    run: str,
    rank: int = 0,
    num_ranks: int = 1,
    barrier: Barrier = lambda: None,
    max_disk_fraction: float = MAX_DISK_FRACTION,
) -> DecodedPixels:
    """Decode what is not cached yet, together with the node's other workers, and map the array.

    Args:
        images: Images of the split.
        contract: Image contract by which they are decoded.
        folder: Cache folder of the node.
        run: Name of the run, so that concurrent runs on the same data write different files.
        rank: Rank of this worker on its node.
        num_ranks: Number of workers on the node.
        barrier: Waits until every worker has reached it.
        max_disk_fraction: Fraction of the free disk that the array may take.
    """
    key = digest_table([(images.digest,), (contract.digest,)])[:32]
    target = folder / f"{key}.npy"
    building = folder / f"{key}.{run}.npy"
    shape = (len(images), *contract.shape)
    if not target.exists() and not _fits(folder, shape, max_disk_fraction):
        return DecodedPixels(images, contract, None, np.arange(len(images)), ())
    # Without versions a changed image could go unseen, so such a cache serves one run only.
    known = target.exists() and all(images.versions)
    barrier()  # all workers have checked before one of them builds
    if not known:
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(building, mode="w+", dtype=np.uint8, shape=shape)
        barrier()
        mine = range(rank, len(images), num_ranks)
        faults = _decode_rows(images, contract, building, mine)
        _faults_file(building, rank).write_text(json.dumps(faults))
        barrier()
        if rank == 0:
            _complete(building, target, num_ranks)
        barrier()
    pixels = np.load(target, mmap_mode="r")
    faults = json.loads(target.with_suffix(".json").read_text())
    rows = {int(row) for row in faults}
    good = np.asarray([row for row in range(len(images)) if row not in rows], np.int64)
    bad = tuple((images.uris[row], *faults[str(row)]) for row in sorted(rows))
    return DecodedPixels(images, contract, pixels, good, bad)


def _fits(folder: Path, shape: tuple[int, ...], max_disk_fraction: float) -> bool:
    """Whether decoded images take at most a fraction of the free disk."""
    present = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return math.prod(shape) <= shutil.disk_usage(present).free * max_disk_fraction


def _faults_file(building: Path, rank: int) -> Path:
    return building.with_suffix(f".{rank}.json")


def _complete(building: Path, target: Path, num_ranks: int) -> None:
    """Merge the workers' faults and rename the array, which makes it visible."""
    faults: dict[str, tuple[str, str]] = {}
    for rank in range(num_ranks):
        part = _faults_file(building, rank)
        faults |= json.loads(part.read_text())
        part.unlink()
    target.with_suffix(".json").write_text(json.dumps(faults))
    building.replace(target)


def _decode_rows(
    images: LabelledImages, contract: ImageContract, array: Path, rows: range
) -> dict[str, tuple[str, str]]:
    """Decode some rows into the array, and return the faults by row."""
    pixels = np.load(array, mmap_mode="r+")
    faults = {}
    decoded = read_ahead(
        lambda row: _read(images.uris[row], contract), rows, threads=4, max_ahead=_MAX_AHEAD
    )
    for row, result in zip(rows, decoded, strict=True):
        if isinstance(result, BadImageError):
            faults[str(row)] = (result.reason.value, result.message)
        else:
            pixels[row] = result
    pixels.flush()
    return faults


def _read(uri: str, contract: ImageContract) -> npt.NDArray[np.uint8] | BadImageError:
    try:
        return decode(fetch_image(uri, contract), contract).pixels
    except BadImageError as error:
        return error
