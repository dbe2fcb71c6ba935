"""The plan of a packing job: what is packed from where and how, written before any work."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from eagleray.core.errors import OutputExistsError
from eagleray.io import storage
from eagleray.packing.parts import PartFormat
from eagleray.sharded.claims import SettledWork, claim, require_equal
from eagleray.sharded.layout import FileName, OutputLayout

__all__ = [
    "PackPlan",
    "PackWork",
    "claim_plan",
    "read_plan",
    "require_same_work",
]


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
