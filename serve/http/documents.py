"""What answers look like, for the OpenAPI document: schemas, statuses, and how callers are known.

Handlers write their answers themselves; tests hold them against these descriptions.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from eagleray.serving.problems import PROBLEM_TYPE
from eagleray.serving.responses import BatchAnswer, ImageAnswer

__all__ = [
    "SECURITY",
    "BatchResults",
    "BatchesAnswer",
    "InferAnswer",
    "LabelsAnswer",
    "LiveAnswer",
    "MlflowAnswer",
    "ModelAnswer",
    "ModelMetadata",
    "ModelReady",
    "ModelsAnswer",
    "ProblemDocument",
    "ReadyAnswer",
    "ServerMetadata",
    "ShadowAnswer",
    "VersionsAnswer",
    "refusals",
]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", title=None)


class ProblemDocument(_Document):
    """A refusal, as RFC 9457 describes them."""

    type: str = Field(description="Path of the kind of problem: /problems/KIND.")
    title: str = Field(description="Of the kind; never changes.")
    status: int = Field(description="Of HTTP.")
    detail: str = Field(description="A sentence about this request.")
    reason: str | None = Field(default=None, description="Code of an image that cannot be used.")
    request_id: str = Field(description="That the service's log has.")


# --- models --------------------------------------------------------------------------------------


class _ModelBrief(_Document):
    name: str
    serving: int | None = Field(description="Version that answers by default, now.")
    aliases: dict[str, int]


class ModelsAnswer(_Document):
    """All models."""

    models: list[_ModelBrief]


class ModelAnswer(_ModelBrief):
    """A model, and how its versions are doing in this replica."""

    route: dict[str, Any]
    roles: list[dict[str, Any]]
    usage: list[dict[str, Any]] = Field(description="Requests of the caller, by version.")
    in_memory: list[dict[str, Any]]


class LabelsAnswer(_Document):
    """What a version answers with."""

    model: str
    version: int
    task: str
    labels: list[str] = Field(description="In the order of the probabilities.")
    attributes: list[dict[str, Any]] = Field(description="That go with each image.")
    hierarchy: dict[str, Any] | None
    contract_digest: str
    contract: dict[str, Any] = Field(description="How images are prepared.")


class _Version(_Document):
    version: int
    aliases: list[str]
    created: int = Field(description="Milliseconds since 1970.")
    task: str
    architecture: str
    metrics: dict[str, float | None]
    package_digest: str


class VersionsAnswer(_Document):
    """All versions of a model, newest first."""

    model: str
    versions: list[_Version]


class _Difference(_Document):
    request_id: str
    version: int
    label: str | None
    shadow_version: int
    shadow_label: str | None


class ShadowAnswer(_Document):
    """How a shadow's answers compare with those that were given."""

    model: str
    same: int
    different: int
    skipped: int
    examples: list[_Difference]


class MlflowAnswer(_Document):
    """One answer for each row."""

    predictions: list[ImageAnswer]


# --- batch jobs ----------------------------------------------------------------------------------


class BatchesAnswer(_Document):
    """The caller's batch jobs, newest first."""

    batches: list[BatchAnswer]


class _BatchFile(_Document):
    location: str
    rows: int
    failed: int
    bytes: int
    sha256: str


class BatchResults(_Document):
    """What came of a batch job: inputs are ok and failed."""

    id: str
    output: str
    format: str
    rows: int
    ok: int
    failed: int
    reasons: dict[str, int]
    files: list[_BatchFile]


# --- the Open Inference Protocol -----------------------------------------------------------------


class _TensorMetadata(_Document):
    name: str
    datatype: Literal["BYTES", "UINT8", "FP32"]
    shape: list[int] = Field(description="-1 for any number.")


class ServerMetadata(_Document):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class ModelMetadata(_Document):
    """A model's inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[_TensorMetadata]
    outputs: list[_TensorMetadata]


class ModelReady(_Document):
    """A model answers."""

    name: str
    ready: Literal[True]


class _TensorAnswer(_TensorMetadata):
    parameters: dict[str, Any] | None = None
    data: list[str | float | None] | None = Field(
        default=None, description="Missing where raw bytes follow; null stands for no number."
    )


class InferAnswer(_Document):
    """Outputs; the binary extension appends raw ones to this JSON."""

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, Any]
    outputs: list[_TensorAnswer]


# --- health --------------------------------------------------------------------------------------


class LiveAnswer(_Document):
    """The process answers."""

    live: Literal[True]


class ReadyAnswer(_Document):
    """Every kept model has a version that is healthy."""

    ready: Literal[True]


# --- refusals, and who is let in -----------------------------------------------------------------

_REFUSALS = {
    400: "The body, or the only image in it, cannot be used.",
    401: "No key, or one that does not hold.",
    403: "A location that the service does not read from.",
    404: "No such thing; the nearest names are in the sentence.",
    408: "The body came too slowly.",
    409: "The output belongs to another batch, or the results are not there yet.",
    413: "Too many bytes, pixels, images or values.",
    415: "A format or a content type that is not taken.",
    422: "A parameter is not valid.",
    429: "The queue is full, or the quota is used up; see Retry-After.",
    503: "The version is not ready, or a part of the service does not answer; see Retry-After.",
    504: "The deadline passed.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the refusals of a route by their statuses."""
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {status: {"description": _REFUSALS[status], "content": content} for status in statuses}


SECURITY: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The key of an application."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "password": {"type": "http", "scheme": "basic", "description": "The key as password."},
}
"""How an application's key is sent; where none is configured, callers on this machine need none."""
