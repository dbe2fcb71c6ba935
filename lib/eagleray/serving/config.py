"""What a service is told when it starts: a frozen value, with a flag for each field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from eagleray.core.errors import InputError
from eagleray.core.types import CompileMode, Isolation, Precision
from eagleray.core.validation import first_validation_error
from eagleray.io import storage

__all__ = ["ServiceConfig", "make_config", "read_config"]

_MEGABYTE = 1_000_000

MODELS = "Models"
SPEED = "Speed"
LIMITS = "Limits"
NAMES = "Names of the service"
SOURCES = "Where images may come from"
BATCHES = "Batch jobs"

_NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE | re.ASCII)


def _place(text: str) -> str:
    try:
        storage.require_prefix(text)
    except InputError as error:
        raise ValueError(str(error).removesuffix(".")) from None
    return text


Place = Annotated[str, AfterValidator(_place)]
"""A folder, or a prefix of an object store."""


def _field(default: Any, panel: str, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": panel}, **limits)


class ServiceConfig(BaseModel):
    """How a service answers; the description of each field is the help of its flag."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = _field(
        (),
        MODELS,
        "Kept in memory from the start, as A,B,…; default: every model with a version in "
        "production, as far as --memory-mb goes. All others are loaded when they are asked for.",
    )
    memory_mb: float = _field(
        2000, MODELS, "For versions that nobody needs at present; the least used go first.", ge=0
    )
    watch_s: float = _field(
        1.0, MODELS, "Seconds between two looks at the registry and the database.", gt=0
    )
    max_snapshot_age_s: float = _field(
        300.0,
        MODELS,
        "Seconds that the database may be away before keys are no longer accepted: one that was "
        "revoked meanwhile would still hold.",
        gt=0,
    )
    replicas: int = _field(
        1, SPEED, "Processes that answer, each with its own copy of the models.", ge=1, le=1000
    )
    gpus_per_replica: float = _field(0, SPEED, "GPUs of each; 0 for the CPU.", ge=0, le=8)
    lanes: int | None = _field(
        None,
        SPEED,
        "Threads of a replica that decode and predict; default: one for each of its cores, or "
        "two beside a GPU.",
        ge=1,
        le=256,
    )
    precision: Precision = _field(
        "auto", SPEED, "Of the forward pass; auto takes the faster one, as measured here."
    )
    compile: CompileMode = _field(
        "auto",
        SPEED,
        "auto answers at once, compiles with what the cores have left, and goes on compiled; "
        "always compiles before a version takes traffic.",
    )
    batch_images: int = _field(8, SPEED, "Most images in one forward pass.", ge=1, le=1024)
    batch_pixels: int = _field(8_000_000, SPEED, "Most source pixels decoded for one.", ge=1)
    max_queued: int = _field(256, LIMITS, "Images that wait in a replica; more are refused.", ge=1)
    max_wait_s: float = _field(
        3.0,
        LIMITS,
        "Seconds that an image may be expected to wait for its turn; more are refused.",
        gt=0,
    )
    timeout_s: float = _field(
        10.0, LIMITS, "Seconds for a request that brings no shorter deadline.", gt=0
    )
    max_body_mb: float = _field(64, LIMITS, "Of one request.", gt=0)
    max_flight_mb: float = _field(
        512, LIMITS, "Of all requests in a replica together, as they arrive.", gt=0
    )
    max_images: int = _field(64, LIMITS, "In one request.", ge=1)
    isolate: Isolation = _field(
        "rare",
        LIMITS,
        "Images decoded in a process of their own, where a crash or a hang costs only them: rare "
        "means all but JPEG and PNG.",
    )
    decode_s: float = _field(5.0, LIMITS, "Seconds for each image that is decoded so.", gt=0)
    allow_hosts: tuple[str, ...] = _field(
        (),
        NAMES,
        "Names besides localhost that browsers may reach the service by, as A,B,…; *.NAME is every "
        "name below one. Default: with no application none, else any.",
    )
    allow_urls: tuple[str, ...] = _field(
        (), SOURCES, "Hosts that images may be fetched from, as A,B,…; default: none."
    )
    private_networks: tuple[str, ...] = _field(
        (), SOURCES, "Networks of such hosts that are not the public internet."
    )
    allow_storage: tuple[Place, ...] = _field(
        (), SOURCES, "Prefixes of storage locations that images may be read from."
    )
    batch_inputs: tuple[Place, ...] = _field(
        (),
        BATCHES,
        "Prefixes of storage locations that batch jobs of callers may read, as A,B,…; "
        "{application} in one stands for the caller. Default: none.",
    )
    batch_outputs: tuple[Place, ...] = _field(
        (),
        BATCHES,
        "Prefixes of storage locations that they may write to, and read earlier results from; "
        "default: none, and no batch jobs.",
    )
    batches_at_once: int = _field(
        1, BATCHES, "Batch jobs that run at a time; others wait.", ge=1, le=1000
    )
    max_batches: int = _field(
        20, BATCHES, "Of an application, running and waiting; more are refused.", ge=1
    )

    @field_validator("allow_hosts")
    @classmethod
    def _only_names(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if _NAME.fullmatch(name) is None:
                raise ValueError(
                    f"{name!r} is no name of a host, without scheme and port; addresses need none"
                )
        return given

    @property
    def max_body_bytes(self) -> int:
        """Of one request."""
        return int(self.max_body_mb * _MEGABYTE)

    @property
    def max_flight_bytes(self) -> int:
        """Of all requests together."""
        return int(self.max_flight_mb * _MEGABYTE)

    @property
    def claim(self) -> tuple[float, float]:
        """CPU cores and GPUs that all replicas claim of Ray.

        On CPUs they claim none: a batch job shares the cores with them, and goes on where they have
        nothing to do.
        """
        gpus = self.gpus_per_replica
        return (float(self.replicas) if gpus else 0.0, self.replicas * gpus)

    @property
    def memory_bytes(self) -> int:
        """For versions that nobody needs at present."""
        return int(self.memory_mb * _MEGABYTE)


def make_config(fields: Mapping[str, Any]) -> ServiceConfig:
    """Make a configuration of values, or of text as a command line gives it.

    Raises:
        InputError: Naming the field at fault.
    """
    values = dict(fields)
    for name, field in ServiceConfig.model_fields.items():
        if isinstance(values.get(name), str) and get_origin(field.annotation) is tuple:
            values[name] = [part.strip() for part in values[name].split(",") if part.strip()]
    try:
        return ServiceConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"Service configuration, {first_validation_error(error)}.") from None


def read_config(location: str) -> dict[str, Any]:
    """Read the fields of a configuration from a YAML file.

    Raises:
        InputError: It cannot be read.
    """
    try:
        fields = yaml.safe_load(storage.read_bytes(location))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{location} cannot be read as YAML ({error}).") from None
    if not isinstance(fields, dict):
        raise InputError(f"{location} holds no fields; write lines such as `replicas: 2`.")
    return fields
