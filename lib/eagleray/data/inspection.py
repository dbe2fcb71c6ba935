"""Fetches and decodes every image of a data set once, and records its properties or its failure.

Ray tasks take the images in chunks. A chunk that loses its worker is repeated with every decode in
a child process, so that the image at fault is named and the others are read.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import BadImageError, EaglerayError, InputError, JobFailedError, Reason
from eagleray.core.ray_errors import WorkerFailure, read_failure
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.data.labelled import LabelledImages
from eagleray.imaging import DecodedImage, ImageContract, decode, probe
from eagleray.imaging.sandbox import DecodeSandbox
from eagleray.imaging.watchdog import Watchdog, worker_memory_budget
from eagleray.io import storage
from eagleray.io.fetch import fetch_image
from eagleray.io.read_ahead import read_ahead
from eagleray.io.tables import digest_table

__all__ = [
    "INSPECTION_SCHEMA",
    "THUMBNAIL_SIDE",
    "Fault",
    "Inspection",
    "gray_thumbnail",
    "inspect_images",
    "is_inspected",
    "require_readable",
    "scan_images",
]

THUMBNAIL_SIDE = 16
"""Rows and columns of the gray thumbnails that images are compared by."""

INSPECTION_SCHEMA = pa.schema(
    [
        ("reason", pa.string()),  # null for an image that can be read
        ("message", pa.string()),
        ("width", pa.int32()),  # upright; null, as all columns below, for unreadable images
        ("height", pa.int32()),
        ("format", pa.string()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("thumbnail", pa.binary(THUMBNAIL_SIDE**2)),  # null for a flat image too
    ]
)
"""Columns of an inspection, which has a row for each image in the order of the data."""

_SECONDS_PER_IMAGE = 60.0
_LARGEST_CHUNK = 256
_CHUNKS_PER_CORE = 8  # or smaller ones, so that cores finish together
_MIN_CHUNK = 8
_TASKS_PER_CORE = 2
_RETRIES = 3
_IMAGES_IN_MEMORY = 4  # an image may take this fraction of a worker's memory, inverted

_FLAT = 2.0  # standard deviation in gray levels below which rounding and noise dominate

# Reasons that need not hold at the next attempt.
_PASSING = {Reason.MISSING, Reason.UNREADABLE, Reason.TIMEOUT, Reason.OUT_OF_MEMORY}

Progress = Callable[[int, int], None]
"""Called with the number of images read since the last call, and how many of them failed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An image that cannot be read.

    Attributes:
        uri: Location of the image.
        reason: Reason code.
        message: Sentence for people.
    """

    uri: str
    reason: Reason
    message: str

    def __str__(self) -> str:
        return f"{self.uri}: {self.reason}: {self.message}"

    def as_json(self) -> dict[str, str]:
        """Return the fault as JSON values."""
        return {"uri": self.uri, "reason": self.reason.value, "message": self.message}


@dataclass(frozen=True, slots=True)
class Inspection:
    """The properties of the images of a data set.

    Attributes:
        uris: Locations of the images.
        table: Table of `INSPECTION_SCHEMA` with a row for each image.
    """

    uris: tuple[str, ...]
    table: pa.Table

    def __len__(self) -> int:
        return len(self.uris)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Images that cannot be read, in the order of the data."""
        reasons, messages = (self.table.column(name).to_pylist() for name in ("reason", "message"))
        return tuple(
            Fault(uri, Reason(reason), message)
            for uri, reason, message in zip(self.uris, reasons, messages, strict=True)
            if reason is not None
        )


def require_readable(inspection: Inspection, max_share: float) -> None:
    """Refuse data of which too many images cannot be read.

    Args:
        inspection: Inspection of all images.
        max_share: Share of unreadable images that is allowed, from 0 to 1.

    Raises:
        InputError: If there are more; the message names the first.
    """
    faults = inspection.faults
    if len(faults) > max_share * len(inspection):
        share = len(faults) / len(inspection)
        raise InputError(
            f"{len(faults):,} of {len(inspection):,} images cannot be read, a fraction of "
            f"{share:.3g}, and the limit is {max_share:g}; the first is {faults[0]}. Fix them or "
            "remove them from the data, or allow more with --max-unreadable."
        )


# --- inspect ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Context:
    """Arguments of every task.

    Attributes:
        contract: Image contract by which images are decoded.
        s3: Options for S3.
        workers_on_node: Number of workers that share a node's memory.
        seconds_per_image: Time limit of one decode.
    """

    contract: ImageContract
    s3: storage.S3Options
    workers_on_node: int
    seconds_per_image: float


def scan_images(
    images: LabelledImages,
    contract: ImageContract,
    cluster: Cluster,
    reporter: ProgressReporter,
    *,
    settings: Settings,
    s3: storage.S3Options,
) -> Inspection:
    """Inspect images as a job does: with a progress bar, and the cache of the home folder.

    Raises:
        JobFailedError: If the workers stopped.
    """
    with reporter.progress("Scanning images", len(images)) as bar:
        return inspect_images(
            images,
            contract,
            cluster=cluster,
            cache_folder=settings.cache_folder,
            s3=s3,
            progress=lambda count, failed: bar.advance(count, failed=failed),
        )


def inspect_images(
    images: LabelledImages,
    contract: ImageContract,
    *,
    cluster: Cluster,
    cache_folder: Path | None = None,
    s3: storage.S3Options | None = None,
    seconds_per_image: float = _SECONDS_PER_IMAGE,
    progress: Progress = lambda _count, _failed: None,
) -> Inspection:
    """Fetch and decode every image once.

    The inspection is cached if the versions of all images are known and no failure is one that may
    pass.

    Args:
        images: Images to inspect; labels are not used.
        contract: Image contract by which images are decoded.
        cluster: Ray cluster that does the work.
        cache_folder: Folder of cached inspections; None caches nothing.
        s3: Options for S3; None leaves them to the environment of the workers.
        seconds_per_image: Time limit of one decode.
        progress: Called after every chunk.

    Raises:
        JobFailedError: If the workers stopped.
    """
    cache = None if cache_folder is None else _cache_file(images, contract, cache_folder)
    if cache is not None and (known := _read_cache(cache, len(images))) is not None:
        progress(len(images), known.num_rows - known.column("reason").null_count)
        return Inspection(images.uris, known)
    workers = cluster.cpus_per_node
    context = _Context(contract, s3 or storage.S3Options(), workers, seconds_per_image)
    size = len(images) // (_CHUNKS_PER_CORE * cluster.max_cpus)
    size = min(max(size, _MIN_CHUNK), _LARGEST_CHUNK)
    chunks = [images.uris[start : start + size] for start in range(0, len(images), size)]
    tables: list[pa.Table] = [INSPECTION_SCHEMA.empty_table()] * len(chunks)
    for index, table in _inspect_on(cluster, chunks, context):
        tables[index] = table
        progress(table.num_rows, table.num_rows - table.column("reason").null_count)
    inspection = Inspection(images.uris, pa.concat_tables(tables).combine_chunks())
    if cache is not None and _is_lasting(inspection):
        _write_cache(cache, inspection.table)
    return inspection


def is_inspected(images: LabelledImages, contract: ImageContract, cache_folder: Path) -> bool:
    """Whether the inspection of some images is cached."""
    cache = _cache_file(images, contract, cache_folder)
    return cache is not None and cache.exists()


def _inspect_on(
    cluster: Cluster, chunks: Sequence[Sequence[str]], context: _Context
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the number and the rows of every chunk, in any order."""
    import ray

    # The death of a worker is reported at once; its chunk is repeated in a sandbox, with retries.
    quick = ray.remote(num_cpus=1, max_retries=0)(_inspect_chunk)
    sandboxed = quick.options(max_retries=_RETRIES)
    shared = ray.put(context)
    waiting = iter(range(len(chunks)))
    max_running = _TASKS_PER_CORE * cluster.max_cpus
    running: dict[Any, tuple[int, bool]] = {}

    def start(indices: Iterator[int]) -> None:
        for index in indices:
            running[quick.remote(shared, chunks[index], sandboxed=False)] = (index, False)

    start(islice(waiting, max_running))
    try:
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            index, was_sandboxed = running.pop(done)
            try:
                table = ray.get(done)
            except ray.exceptions.RayError as error:
                failure = read_failure(error)
                if was_sandboxed or not failure.killed:
                    raise _as_error(failure) from error
                running[sandboxed.remote(shared, chunks[index], sandboxed=True)] = (index, True)
                continue
            start(islice(waiting, 1))
            yield index, table
    finally:
        for left in running:
            ray.cancel(left)


def _as_error(failure: WorkerFailure) -> EaglerayError:
    return failure.error or JobFailedError(
        f"The workers that inspect images stopped ({failure.message}); run the command again, with "
        "--verbose for the workers' output."
    )


# --- on a worker ------------------------------------------------------------------------------

_Decoder = Callable[[str, bytes], DecodedImage]


def _inspect_chunk(context: _Context, uris: Sequence[str], *, sandboxed: bool) -> pa.Table:
    """Read some images, a few ahead of the decoder."""
    storage.use_s3(context.s3)
    cv2.setNumThreads(1)
    memory = worker_memory_budget(context.workers_on_node)
    if sandboxed:
        with DecodeSandbox(
            context.contract,
            seconds=context.seconds_per_image,
            memory_bytes=memory // _IMAGES_IN_MEMORY,
        ) as sandbox:
            return _rows(uris, context.contract, lambda _, data: sandbox.decode(data))
    with Watchdog(context.seconds_per_image, memory) as watchdog:

        def decode_watched(uri: str, data: bytes) -> DecodedImage:
            with watchdog.decoding(uri):
                return decode(data, context.contract)

        return _rows(uris, context.contract, decode_watched)


def _rows(uris: Sequence[str], contract: ImageContract, decoder: _Decoder) -> pa.Table:
    def read(uri: str) -> bytes | BadImageError:
        try:
            return fetch_image(uri, contract)
        except BadImageError as error:
            return error

    contents = read_ahead(read, uris)
    rows = [_row(uri, data, contract, decoder) for uri, data in zip(uris, contents, strict=True)]
    return pa.Table.from_pylist(rows, INSPECTION_SCHEMA)


def _row(
    uri: str, data: bytes | BadImageError, contract: ImageContract, decoder: _Decoder
) -> dict[str, Any]:
    if isinstance(data, BadImageError):
        return {"reason": data.reason, "message": data.message}
    row: dict[str, Any] = {}
    if len(data) <= contract.max_bytes:  # or it is not all of them
        row |= {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        image = decoder(uri, data)
    except BadImageError as error:
        return {**row, "reason": error.reason, "message": error.message}
    return {
        **row,
        "format": probe(data).format,
        "width": image.width,
        "height": image.height,
        "thumbnail": gray_thumbnail(image.pixels),
    }


def gray_thumbnail(pixels: npt.NDArray[np.uint8]) -> bytes | None:
    """Return a picture's means over 16 x 16 cells, row by row; None for a flat one.

    Args:
        pixels: uint8 array (H, W, 3), RGB, or (H, W, 1).
    """
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.shape[2] == 3 else pixels
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    small = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    return None if small.std() < _FLAT else small.tobytes()


# --- cache ------------------------------------------------------------------------------------


def _cache_file(images: LabelledImages, contract: ImageContract, folder: Path) -> Path | None:
    """Return the cache file of the inspection; None if a version is unknown."""
    if not all(images.versions):
        return None
    same_images = digest_table([images.uris, images.versions])
    key = digest_table([(same_images,), (contract.digest,)])[:32]
    return folder / "inspections" / f"{key}.parquet"


def _is_lasting(inspection: Inspection) -> bool:
    """Whether no failure is one of storage or of a busy machine, which may pass."""
    reasons = inspection.table.column("reason").to_pylist()
    digests = inspection.table.column("sha256").to_pylist()
    return not any(
        reason in _PASSING and (digest is None or reason != Reason.UNREADABLE)
        for reason, digest in zip(reasons, digests, strict=True)
    )


def _read_cache(file: Path, num_rows: int) -> pa.Table | None:
    """Return the cached table; None if there is none, or a damaged one."""
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException):
        return None
    fits = table.num_rows == num_rows and table.schema.equals(INSPECTION_SCHEMA)
    return table if fits else None


def _write_cache(file: Path, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.put_atomic(str(file), buffer.getvalue())
