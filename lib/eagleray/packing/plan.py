"""The plan of a packing job: everything that determines its files."""

from __future__ import annotations

from typing import Literal

from eagleray.packing.files import PackFormat
from eagleray.sharded.plan import Plan, Work

__all__ = ["PackPlan", "PackWork"]


class PackWork(Work):
    """What decides the files: two runs with equal work on equal images make equal files.

    Attributes:
        inputs: Absolute locations of the inputs.
        column: Table column of locations or images; None for the usual names.
        url_hosts: Hosts that images may be fetched from.
        format: Format of the files.
        file_bytes: Maximum number of bytes of the images in a file.
        max_bytes: Maximum number of bytes of an image.
    """

    inputs: tuple[str, ...]
    column: str | None
    url_hosts: tuple[str, ...]
    format: PackFormat
    file_bytes: int
    max_bytes: int


class PackPlan(Plan[PackWork]):
    """The plan of a packing job."""

    kind: Literal["pack"] = "pack"
