"""The configuration of a service: a frozen value, with an option for each field."""

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
from eagleray.imaging.contract import first_validation_error
from eagleray.io import storage

__all__ = ["ServiceConfig", "make_config", "read_config"]

_MEGABYTE = 1_000_000

MODELS = "Models"
SPEED = "Performance"
LIMITS = "Limits"
NAMES = "Host names"
SOURCES = "Image sources"
BATCHES = "Batch jobs"

_NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE | re.ASCII)


def _location(text: str) -> str:
    try:
        storage.require_prefix(text)
    except InputError as error:
        raise ValueError(str(error).removesuffix(".")) from None
    return text


Location = Annotated[str, AfterValidator(_location)]
"""A folder, or a prefix of an object store."""


def _field(default: Any, panel: str, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": panel}, **limits)


class ServiceConfig(BaseModel):
    """The configuration of a service; the description of each field is its option's help."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = _field(
        (),
        MODELS,
        "Models to load at the start and keep in memory, as A,B,…; default: every model with a "
        "version in production, up to --memory-mb. Other models are loaded on their first request.",
    )
    memory_mb: float = _field(
        2000,
        MODELS,
        "Memory for versions that no route needs; the least recently used are evicted first.",
        ge=0,
    )
    poll_interval_s: float = _field(
        1.0, MODELS, "Seconds between two readings of the registry and the database.", gt=0
    )
    max_snapshot_age_s: float = _field(
        300.0,
        MODELS,
        "Seconds without an answer from the database after which keys are no longer accepted, "
        "because they may have been revoked.",
        gt=0,
    )
    replicas: int = _field(
        1,
        SPEED,
        "Number of serving processes, each with its own copy of the models.",
        ge=1,
        le=1000,
    )
    gpus_per_replica: float = _field(
        0, SPEED, "Number of GPUs of each replica; 0 uses the CPU.", ge=0, le=8
    )
    worker_threads: int | None = _field(
        None,
        SPEED,
        "Number of threads of a replica that decode and predict; default: one for each of its "
        "cores, or two beside a GPU.",
        ge=1,
        le=256,
    )
    precision: Precision = _field(
        "auto",
        SPEED,
        "Precision of the forward pass; auto uses the faster one, as measured on this machine.",
    )
    compile: CompileMode = _field(
        "auto",
        SPEED,
        "Compilation of networks: auto serves at once, compiles in the background and switches to "
        "the compiled network; always compiles before a version serves.",
    )
    max_batch_images: int = _field(
        8, SPEED, "Maximum number of images in one forward pass.", ge=1, le=1024
    )
    max_batch_pixels: int = _field(
        8_000_000, SPEED, "Maximum number of source pixels decoded for one forward pass.", ge=1
    )
    max_queued: int = _field(
        256, LIMITS, "Maximum number of images that wait in a replica; more are refused.", ge=1
    )
    max_wait_s: float = _field(
        3.0,
        LIMITS,
        "Maximum seconds that an image is expected to wait for a worker; more images are refused.",
        gt=0,
    )
    timeout_s: float = _field(
        10.0, LIMITS, "Time limit of a request that has no shorter deadline, in seconds.", gt=0
    )
    max_body_mb: float = _field(64, LIMITS, "Maximum size of one request.", gt=0)
    max_in_flight_mb: float = _field(
        512, LIMITS, "Maximum size of all requests in a replica together, as they arrive.", gt=0
    )
    max_images: int = _field(64, LIMITS, "Maximum number of images in one request.", ge=1)
    isolate: Isolation = _field(
        "rare",
        LIMITS,
        "Images decoded in a sandbox process, where a crash or a hang affects no other image: "
        "rare means all formats but JPEG and PNG.",
    )
    decode_timeout_s: float = _field(
        5.0, LIMITS, "Time limit for decoding an image in a sandbox process, in seconds.", gt=0
    )
    allow_hosts: tuple[str, ...] = _field(
        (),
        NAMES,
        "Names besides localhost under which browsers may reach the service, as A,B,…; *.NAME is "
        "every name below one. Default: none without an application, otherwise any.",
    )
    allow_urls: tuple[str, ...] = _field(
        (), SOURCES, "Hosts from which images may be fetched, as A,B,…; default: none."
    )
    private_networks: tuple[str, ...] = _field(
        (), SOURCES, "Private networks in which such hosts may be, as A,B,…; default: none."
    )
    allow_storage: tuple[Location, ...] = _field(
        (), SOURCES, "Prefixes of storage locations from which images may be read; default: none."
    )
    batch_inputs: tuple[Location, ...] = _field(
        (),
        BATCHES,
        "Prefixes of storage locations that batch jobs of callers may read, as A,B,…; "
        "{application} in one stands for the caller. Default: none.",
    )
    batch_outputs: tuple[Location, ...] = _field(
        (),
        BATCHES,
        "Prefixes of storage locations to which batch jobs may write, and from which they may read "
        "earlier results; default: none, and no batch jobs.",
    )
    max_concurrent_batches: int = _field(
        1, BATCHES, "Maximum number of batch jobs that run at a time; others wait.", ge=1, le=1000
    )
    max_batches_per_application: int = _field(
        20,
        BATCHES,
        "Maximum number of batch jobs of an application, running and waiting; more are refused.",
        ge=1,
    )

    @field_validator("allow_hosts")
    @classmethod
    def _only_names(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if _NAME.fullmatch(name) is None:
                raise ValueError(
                    f"{name!r} is not a host name; give it without scheme and port (IP addresses "
                    "need no entry)"
                )
        return given

    @property
    def max_body_bytes(self) -> int:
        """Maximum bytes of one request."""
        return int(self.max_body_mb * _MEGABYTE)

    @property
    def max_in_flight_bytes(self) -> int:
        """Maximum bytes of all requests in a replica together."""
        return int(self.max_in_flight_mb * _MEGABYTE)

    @property
    def claimed_resources(self) -> tuple[float, float]:
        """Number of CPU cores and GPUs that all replicas together claim from Ray.

        On CPUs they claim none, because batch jobs share the cores with them.
        """
        gpus = self.gpus_per_replica
        return (float(self.replicas) if gpus else 0.0, self.replicas * gpus)

    @property
    def memory_bytes(self) -> int:
        """Maximum bytes of versions that no route needs."""
        return int(self.memory_mb * _MEGABYTE)


def make_config(fields: Mapping[str, Any]) -> ServiceConfig:
    """Make a configuration from values, or from text of a command line.

    Raises:
        InputError: If a value is invalid; the message names its field.
    """
    values = dict(fields)
    for name, field in ServiceConfig.model_fields.items():
        if isinstance(values.get(name), str) and get_origin(field.annotation) is tuple:
            values[name] = [item.strip() for item in values[name].split(",") if item.strip()]
    try:
        return ServiceConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"Service configuration, {first_validation_error(error)}.") from None


def read_config(location: str) -> dict[str, Any]:
    """Read the fields of a configuration from a YAML file.

    Raises:
        InputError: If the file cannot be read.
    """
    try:
        fields = yaml.safe_load(storage.read_bytes(location))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{location} cannot be read as YAML ({error}).") from None
    if not isinstance(fields, dict):
        raise InputError(f"{location} has no fields; write lines such as `replicas: 2`.")
    return fields
