"""The request of a packing job, what decides its files, and its plan."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from eagleray.core.errors import InputError
from eagleray.imaging.contract import DEFAULT_MAX_BYTES
from eagleray.io import storage
from eagleray.io.http import UrlPolicy
from eagleray.packing.files import PackFormat
from eagleray.sharded.failure_limit import FailureLimit
from eagleray.sharded.plan import Plan, Work

__all__ = ["PackPlan", "PackRequest", "PackWork", "parse_part_size"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_MIN_PART_BYTES, _MAX_PART_BYTES = 10**6, 4 * 10**9  # a worker holds a part in its memory


def parse_part_size(text: str) -> int:
    """Read `256MB`, `1 GiB` or `500000`.

    Returns:
        Bytes.

    Raises:
        InputError: It is no size, or none that a part may have.
    """
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[(match[2] or "").lower()]) if match else 0
    if not _MIN_PART_BYTES <= size <= _MAX_PART_BYTES:
        raise InputError(f"--part-size must be like 256MB, from 1MB to 4GB, not {text!r}.")
    return size


@dataclass(frozen=True, kw_only=True)
class PackRequest:
    """What the user asked for.

    Attributes:
        inputs: Folders, patterns, tables, archives or images.
        output: Folder or URI; new, or of the same job.
        column: Of locations or images in tables; None looks for the usual names.
        part_format: Of the parts.
        part_bytes: Of the images in a part.
        max_failures: Number of failures that stops the job.
        urls: Which addresses images may be fetched from.
        s3: How S3 is reached.
    """

    inputs: tuple[str, ...]
    output: str
    column: str | None = None
    part_format: PackFormat = "parquet"
    part_bytes: int = 256 * 10**6
    max_failures: FailureLimit = field(default_factory=FailureLimit)
    urls: UrlPolicy = field(default_factory=UrlPolicy)
    s3: storage.S3Options = field(default_factory=storage.S3Options)

    def __post_init__(self) -> None:
        if not self.inputs:
            raise InputError("Name inputs: folders, patterns, tables, archives or images.")

    def work(self) -> PackWork:
        """Return what decides the files."""
        return PackWork(
            inputs=tuple(storage.absolute(location) for location in self.inputs),
            column=self.column,
            url_hosts=self.urls.hosts,
            format=self.part_format,
            part_bytes=self.part_bytes,
            max_bytes=DEFAULT_MAX_BYTES,
        )


class PackWork(Work):
    """What decides the files: two runs with equal work on equal images make equal files.

    Attributes:
        inputs: Absolute locations of the inputs.
        column: Table column of locations or images; None for the usual names.
        url_hosts: Hosts that images may be fetched from.
        format: Format of the files.
        part_bytes: Maximum number of bytes of the images in a file.
        max_bytes: Maximum number of bytes of an image.
    """

    inputs: tuple[str, ...]
    column: str | None
    url_hosts: tuple[str, ...]
    format: PackFormat
    part_bytes: int
    max_bytes: int


class PackPlan(Plan[PackWork]):
    """The plan of a packing job."""

    kind: Literal["pack"] = "pack"
