"""The plan of a job: what is run on what, written once, before any work.

A run on an output continues the plan that it finds there, or stops and says what differs.
"""

from __future__ import annotations

import secrets
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from eagleray.batch.sinks import FormatName
from eagleray.core.errors import InputError, OutputExistsError
from eagleray.io import storage
from eagleray.sharded.claims import SettledWork, claim, require_equal
from eagleray.sharded.layout import FileName, OutputLayout

__all__ = ["Plan", "Work", "claim_plan", "new_id", "read_plan", "require_same_work"]


class Work(SettledWork):
    """What decides a job's results: two runs with equal work give equal tables.

    Attributes:
        inputs: Locations, absolute.
        column: Of the table's locations or images; None for the usual names.
        since: Outputs of earlier jobs whose inputs are left out.
        failed_of: Output of the earlier job whose failures are the inputs.
        url_hosts: Hosts that images may be fetched from.
        model: As the user named it.
        model_version: Of the registry; empty outside it.
        model_digest: Of the package.
        contract_digest: Of the image contract.
        precision: Of the forward pass, as asked for.
        top_k: Labels listed for each image.
        seconds_per_image: Time limit of a decode.
        format: Of the result files.
    """

    inputs: tuple[str, ...]
    column: str | None = None
    since: tuple[str, ...] = ()
    failed_of: str | None = None
    url_hosts: tuple[str, ...] = ()
    model: str
    model_version: str
    model_digest: str
    contract_digest: str
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    top_k: int
    seconds_per_image: float
    format: FormatName


class Plan(BaseModel):
    """A job's work with the list of its inputs.

    Attributes:
        job_id: Of the job, whatever number of runs it takes.
        created: ISO time, UTC.
        work: What decides the results.
        task: Of the model.
        architecture: Of the model.
        contract: In its canonical JSON form.
        manifest: Name of the manifest's folder.
        manifest_digest: SHA-256 of its files.
        num_rows: Inputs.
        num_shards: Units of work.
        rows_per_part: A result file ends with the first shard that reaches them.
        remarks: What was decided while the inputs were listed, in sentences.
        skipped: Files that were no inputs, by kind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    created: str
    work: Work
    task: str
    architecture: str
    contract: str
    manifest: FileName
    manifest_digest: str
    num_rows: int
    num_shards: int
    rows_per_part: int
    remarks: tuple[str, ...] = ()
    skipped: dict[str, int] = {}

    def describe(self) -> dict[str, object]:
        """For a page: names and values, without what is empty."""
        facts = {
            **self.work.model_dump(),
            **self.model_dump(exclude={"work", "remarks", "skipped"}),
        }
        return {
            name: ", ".join(value) if isinstance(value, tuple) else value
            for name, value in facts.items()
            if value not in (None, (), "")
        }


def new_id() -> str:
    """Return a short name that nothing else has."""
    return secrets.token_hex(6)


def read_plan(layout: OutputLayout) -> Plan | None:
    """Return the plan of an output; None where there is none.

    Raises:
        OutputExistsError: There is one that this version cannot read.
        InputError: The storage does not say.
    """
    try:
        content = storage.read_bytes(layout.plan)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(
            f"Cannot look at output {layout.location} ({error.strerror or error}); check its name, "
            "the credentials and the endpoint."
        ) from error
    try:
        return Plan.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"]))
        raise OutputExistsError(
            f"Output {layout.location} holds a plan that this version of Eagleray cannot read "
            f"({field}: {fault['msg']}); name another folder."
        ) from None


def claim_plan(layout: OutputLayout, plan: Plan) -> Plan:
    """Make this the plan of an output, or return the one that another run made it first.

    Raises:
        OutputExistsError: The other one is of other work.
    """
    claimed = claim(layout, plan, read_plan)
    require_same_work(layout, claimed, plan.work)
    return claimed


def require_same_work(layout: OutputLayout, plan: Plan, work: Work) -> None:
    """Refuse to continue a plan that is not the one asked for.

    Raises:
        OutputExistsError: Naming what differs.
    """
    require_equal(layout, work, plan.work)
