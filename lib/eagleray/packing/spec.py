"""The specification of a packing job, from the command line to the workers."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from eagleray.core.spec import Names, Texts, spec_field
from eagleray.imaging.contract import DEFAULT_MAX_BYTES
from eagleray.io import storage
from eagleray.io.spec_fields import SourceFields
from eagleray.packing.files import PackFormat
from eagleray.packing.plan import PackWork
from eagleray.sharded.failure_limit import FailureLimit, FailureLimitText

__all__ = ["PackSpec"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_MIN_FILE_BYTES, _MAX_FILE_BYTES = 10**6, 4 * 10**9  # a worker holds a file in its memory

INPUT, RESULTS = "Input", "Results"


def parse_size(text: str) -> int:
    """Read `256MB`, `1 GiB` or `500000` as a number of bytes; 0 if the text is not a size."""
    match = _SIZE.fullmatch(text.strip())
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()]) if match else 0


def _file_size(text: str) -> str:
    if not _MIN_FILE_BYTES <= parse_size(text) <= _MAX_FILE_BYTES:
        raise ValueError(f"write a size such as 256MB, from 1MB to 4GB, not {text!r}")
    return text


FileSizeText = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_file_size)]


class PackSpec(SourceFields):
    """A packing job: what is packed, and into which files."""

    inputs: Texts = spec_field(
        (), INPUT, "Folders, patterns, tables, archives or images.", names=Names.INPUT
    )
    output: str = spec_field(
        ...,
        RESULTS,
        "Folder or URI for the packed files; new, or of the same job.",
        names=Names.OUTPUT,
    )
    column: str | None = spec_field(
        None, INPUT, "Table column that holds the locations, or the images.", min_length=1
    )
    format: PackFormat = spec_field("parquet", RESULTS, "Format of the packed files.")
    file_size: FileSizeText = spec_field("256MB", RESULTS, "Size of the images in a packed file.")
    max_failures: FailureLimitText = spec_field(
        "100%", "Limits", "Stop when more inputs than this fail: 1% or 200."
    )

    @model_validator(mode="after")
    def _has_inputs(self) -> Self:
        if not self.inputs:
            raise ValueError("name inputs: folders, patterns, tables, archives or images")
        return self

    @property
    def file_bytes(self) -> int:
        """Size of the images in a packed file, in bytes."""
        return parse_size(self.file_size)

    @property
    def failure_limit(self) -> FailureLimit:
        """How many inputs may fail."""
        return FailureLimit.parse(self.max_failures)

    def work(self) -> PackWork:
        """Return what decides the packed files."""
        return PackWork(
            inputs=tuple(map(storage.absolute, self.inputs)),
            column=self.column,
            url_hosts=self.urls.hosts,
            format=self.format,
            file_bytes=self.file_bytes,
            max_bytes=DEFAULT_MAX_BYTES,
        )
