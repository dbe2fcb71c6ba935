"""What decides the results of a prediction job, and its plan."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, Field

from eagleray.batch.sinks import FormatName
from eagleray.sharded.plan import Plan, Work

__all__ = ["PredictPlan", "PredictWork"]


class PredictWork(Work):
    """What decides a job's results: two runs with equal work give equal tables.

    Attributes:
        inputs: Absolute locations of the inputs.
        column: Table column of locations or images; None for the usual names.
        since: Outputs of earlier jobs whose inputs are skipped.
        failed_of: Output of the earlier job whose failures are the inputs.
        url_hosts: Hosts that images may be fetched from.
        model: Reference of the model, as the user named it.
        model_version: Version in the registry; empty outside it.
        model_digest: Digest of the model package.
        contract_digest: Digest of the image contract.
        precision: Requested precision of the forward pass.
        top_k: Number of labels listed for each image.
        limit: Numbers of objects that are to be noticed.
        tiling: Description of how large images are divided into tiles; None for no tiles.
        masks: Whether results have the masks of objects.
        seconds_per_image: Time limit for decoding an image, in seconds.
        format: Format of the result files.
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
    limit: tuple[str, ...] = ()
    tiling: str | None = None
    masks: bool = False
    seconds_per_image: float
    format: FormatName


class PredictPlan(Plan[PredictWork]):
    """The plan of a prediction job.

    Attributes:
        task: Task of the model.
        architecture: Architecture of the model.
        contract: Image contract of the model as canonical JSON.
        rows_per_file: A result file ends with the first shard that reaches this number of rows.
    """

    kind: Literal["predict"] = "predict"
    task: str
    architecture: str
    contract: str
    # Plans of the version before have `rows_per_part`.
    rows_per_file: int = Field(validation_alias=AliasChoices("rows_per_file", "rows_per_part"))
