"""Schemas of responses, statuses and authentication, for the OpenAPI document.

Handlers do not use the schemas to build responses; tests check that both agree.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from eagleray.serving.prediction.responses import BatchResponse, ImagePrediction, JobResponse
from eagleray.serving.problems import PROBLEM_TYPE

__all__ = [
    "SECURITY",
    "BatchResults",
    "BatchesResponse",
    "InferResponse",
    "JobsResponse",
    "LabelsResponse",
    "LiveResponse",
    "MlflowResponse",
    "ModelMetadata",
    "ModelReady",
    "ModelResponse",
    "ModelsResponse",
    "ProblemDocument",
    "ReadyResponse",
    "ServerMetadata",
    "ShadowResponse",
    "VersionsResponse",
    "refusals",
]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", title=None)


class ProblemDocument(_Document):
    """A refused request, as an RFC 9457 problem document."""

    type: str = Field(description="Path of the kind of problem: /problems/KIND.")
    title: str = Field(description="Title of the kind; constant.")
    status: int = Field(description="HTTP status.")
    detail: str = Field(description="A sentence about this request.")
    reason: str | None = Field(
        default=None, description="Reason code of an image that cannot be used."
    )
    request_id: str = Field(description="Id of the request, as in the log of the service.")


# --- models --------------------------------------------------------------------------------------


class _ModelBrief(_Document):
    name: str
    serving: int | None = Field(description="Version that serves by default now.")
    aliases: dict[str, int]


class ModelsResponse(_Document):
    """All models."""

    models: list[_ModelBrief]


class ModelResponse(_ModelBrief):
    """A model, and the state of its versions in this replica."""

    route: dict[str, Any]
    roles: list[dict[str, Any]]
    usage: list[dict[str, Any]] = Field(description="Recent requests of the caller, by version.")
    in_memory: list[dict[str, Any]]


class LabelsResponse(_Document):
    """The labels, attributes and contract of a version."""

    model: str
    version: int
    task: str
    labels: list[str] = Field(description="In the order of the probabilities.")
    positive: str | None = Field(description="The positive label of a binary task.")
    attributes: list[dict[str, Any]] = Field(description="Attributes that each image needs.")
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


class VersionsResponse(_Document):
    """All versions of a model, newest first."""

    model: str
    versions: list[_Version]


class _Difference(_Document):
    request_id: str
    version: int
    label: str | None
    shadow_version: int
    shadow_label: str | None


class ShadowResponse(_Document):
    """How a shadow's predictions compare with those that were returned."""

    model: str
    same: int
    different: int
    skipped: int
    examples: list[_Difference]


class MlflowResponse(_Document):
    """One prediction for each row."""

    predictions: list[ImagePrediction]


# --- jobs ----------------------------------------------------------------------------------------


class BatchesResponse(_Document):
    """The caller's batch jobs, newest first."""

    batches: list[BatchResponse]


class JobsResponse(_Document):
    """The caller's jobs, newest first."""

    jobs: list[JobResponse]


class _BatchFile(_Document):
    location: str
    rows: int
    failed: int
    bytes: int
    sha256: str


class BatchResults(_Document):
    """The results of a batch job: numbers of inputs that are ok or failed, and files."""

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
    """A model is ready."""

    name: str
    ready: Literal[True]


class _TensorResponse(_TensorMetadata):
    parameters: dict[str, Any] | None = None
    data: list[str | float | None] | None = Field(
        default=None, description="Missing if raw bytes follow; null means not a number."
    )


class InferResponse(_Document):
    """Output tensors; the binary extension appends raw ones to this JSON."""

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, Any]
    outputs: list[_TensorResponse]


# --- health --------------------------------------------------------------------------------------


class LiveResponse(_Document):
    """The process is alive."""

    live: Literal[True]


class ReadyResponse(_Document):
    """Every warm model has a healthy version."""

    ready: Literal[True]


# --- refusals and authentication -----------------------------------------------------------------

_REFUSALS = {
    400: "The body, or the only image in it, cannot be used.",
    401: "No key, or an invalid one.",
    403: "A location or a field that is not for callers, or a role that this caller lacks.",
    404: "Not found; the message has the nearest names.",
    408: "The body arrived too slowly.",
    409: "The output belongs to another job, or the job is not in a state for this.",
    413: "Too many bytes, pixels, images or values.",
    415: "A format or a content type that is not supported.",
    422: "A parameter is invalid.",
    429: "The queue is full, or the quota is used up; see Retry-After.",
    503: "The version is not ready, or a part of the service does not answer; see Retry-After.",
    504: "The deadline has passed.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of a route's error responses."""
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {status: {"description": _REFUSALS[status], "content": content} for status in statuses}


SECURITY: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The key of an application."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "password": {"type": "http", "scheme": "basic", "description": "The key as password."},
}
"""How an application's key is sent; without any application callers need none."""
