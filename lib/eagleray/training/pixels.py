"""Decoded images, once per node: a memory-mapped uint8 array that all its workers share.

Every worker decodes a part of the data by the image contract; from then on a batch is a memory
copy, in every epoch and in every later run on the same data. Images that cannot be decoded are
left out by everybody alike and reported with their reasons.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eagleray.datasets.labelled import LabelledImages
from eagleray.errors import BadImageError
from eagleray.fetch import fetch_image
from eagleray.imaging import ImageContract, decode
from eagleray.tables import digest_table

__all__ = ["DecodedPixels", "open_pixels"]

Barrier = Callable[[], None]

_MOST_AT_ONCE = 256


@dataclass(frozen=True)
class DecodedPixels:
    """The decoded part of a data set.

    Attributes:
        pixels: uint8 array (N, H, W, C), memory-mapped; rows of bad images are zero.
        good: Indices of the rows that could be decoded, ascending.
        bad: (location, reason, message) of the others.
    """

    pixels: npt.NDArray[np.uint8]
    good: npt.NDArray[np.int64]
    bad: tuple[tuple[str, str, str], ...]


def open_pixels(
    images: LabelledImages,
    contract: ImageContract,
    folder: Path,
    *,
    run: str,
    rank: int = 0,
    num_ranks: int = 1,
    barrier: Barrier = lambda: None,
) -> DecodedPixels:
    """Decode what is not decoded yet, together with the node's other workers, and map it.

    Args:
        images: The rows.
        contract: How they are decoded.
        folder: Cache folder of this node.
        run: Names the run, so that two that decode the same data do not meet.
        rank: Of this worker on its node.
        num_ranks: Workers on this node.
        barrier: Waits until every worker has reached it.
    """
    key = digest_table([(images.digest,), (contract.digest,)])[:32]
    target = folder / f"{key}.npy"
    building = folder / f"{key}.{run}.npy"
    shape = (len(images), *contract.shape)
    # Without versions a changed image could go unseen, so such a cache serves one run only.
    known = target.exists() and all(images.versions)
    barrier()  # everyone has looked before anyone builds
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
    return DecodedPixels(pixels, good, bad)


def _faults_file(building: Path, rank: int) -> Path:
    return building.with_suffix(f".{rank}.json")


def _complete(building: Path, target: Path, num_ranks: int) -> None:
    """Join the workers' faults and give the array its name, which makes it known."""
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
    """Decode some rows into the array and return the faults of those that cannot be."""
    pixels = np.load(array, mmap_mode="r+")
    faults = {}
    with ThreadPoolExecutor(max_workers=4) as readers:
        for start in range(0, len(rows), _MOST_AT_ONCE):
            part = rows[start : start + _MOST_AT_ONCE]
            uris = [images.uris[row] for row in part]
            for row, decoded in zip(
                part, readers.map(lambda uri: _read(uri, contract), uris), strict=True
            ):
                if isinstance(decoded, BadImageError):
                    faults[str(row)] = (decoded.reason.value, decoded.message)
                else:
                    pixels[row] = decoded
    pixels.flush()
    return faults


def _read(uri: str, contract: ImageContract) -> npt.NDArray[np.uint8] | BadImageError:
    try:
        return decode(fetch_image(uri, contract), contract).pixels
    except BadImageError as error:
        return error
