"""What is packed, from where and how: asked for by the user, and settled before any work."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from eagleray.core.errors import InputError, OutputExistsError
from eagleray.imaging.contract import DEFAULT_MAX_BYTES
from eagleray.io import storage
from eagleray.io.http import UrlPolicy
from eagleray.packing.parts import PartFormat
from eagleray.sharded.claims import SettledWork, claim, require_equal
from eagleray.sharded.layout import FileName, OutputLayout

if TYPE_CHECKING:
    from eagleray.batch.spec import FailureLimit

__all__ = [
    "PackPlan",
    "PackRequest",
    "PackWork",
    "claim_plan",
    "parse_part_size",
    "read_plan",
    "require_same_work",
]

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
        max_failures: Stops the job; None lets any number fail.
        urls: Which addresses images may be fetched from.
        s3: How S3 is reached.
    """

    inputs: tuple[str, ...]
    output: str
    column: str | None = None
    part_format: PartFormat = "parquet"
    part_bytes: int = 256 * 10**6
    max_failures: FailureLimit | None = None
    urls: UrlPolicy = field(default_factory=UrlPolicy)
    s3: storage.S3Options = field(default_factory=storage.S3Options)

    def __post_init__(self) -> None:
        if not self.inputs:
            raise InputError("Name inputs: folders, patterns, tables, archives or images.")

    def work(self) -> PackWork:
        """Return what decides the parts."""
        return PackWork(
            inputs=tuple(storage.absolute(location) for location in self.inputs),
            column=self.column,
            url_hosts=self.urls.hosts,
            format=self.part_format,
            part_bytes=self.part_bytes,
            max_bytes=DEFAULT_MAX_BYTES,
        )


class PackWork(SettledWork):
    """What decides the parts: two runs with equal work on equal images make equal files.

    Attributes:
        inputs: Locations, absolute.
        column: Of the table's locations or images; None for the usual names.
        url_hosts: Hosts that images may be fetched from.
        format: Of the parts.
        part_bytes: Of the images in a part.
        max_bytes: Of one image.
    """

    inputs: tuple[str, ...]
    column: str | None
    url_hosts: tuple[str, ...]
    format: PartFormat
    part_bytes: int
    max_bytes: int


class PackPlan(BaseModel):
    """A job's work with the list of its inputs.

    Attributes:
        job_id: Of the job, whatever number of runs it takes.
        created: ISO time, UTC.
        pack: What decides the parts.
        manifest: Name of the manifest's folder.
        manifest_digest: SHA-256 of its files.
        num_rows: Inputs.
        num_shards: Units of work; each becomes a part.
        remarks: What was decided while the inputs were listed, in sentences.
        skipped: Files that were no inputs, by kind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    created: str
    pack: PackWork
    manifest: FileName
    manifest_digest: str
    num_rows: int
    num_shards: int
    remarks: tuple[str, ...] = ()
    skipped: dict[str, int] = {}


def read_plan(layout: OutputLayout) -> PackPlan | None:
    """Return the plan of an output; None where there is none.

    Raises:
        OutputExistsError: There is one of another kind of job, or of another version.
    """
    try:
        content = storage.read_bytes(layout.plan)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return PackPlan.model_validate_json(content)
    except ValidationError:
        raise OutputExistsError(
            f"Output {layout.location} belongs to a job that packs nothing, or was begun by "
            "another version of Eagleray; name another folder."
        ) from None


def claim_plan(layout: OutputLayout, plan: PackPlan) -> PackPlan:
    """Make this the plan of an output, or return the one that another run made it first.

    Raises:
        OutputExistsError: The other one is of other work.
    """
    claimed = claim(layout, plan, read_plan)
    require_same_work(layout, claimed, plan.pack)
    return claimed


def require_same_work(layout: OutputLayout, plan: PackPlan, work: PackWork) -> None:
    """Refuse to continue a plan that is not the one asked for.

    Raises:
        OutputExistsError: Naming what differs.
    """
    require_equal(layout, work, plan.pack)
