"""The configuration of a service: a frozen value, with an option for each field."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import field_validator

from eagleray.core.spec import AsList, Spec, Texts, spec_field
from eagleray.core.types import EngineName, Isolation, Precision
from eagleray.io.spec_fields import SOURCES_PANEL as SOURCES
from eagleray.io.spec_fields import PathPrefix

__all__ = ["ServiceConfig"]

_MEGABYTE = 1_000_000

MODELS = "Models"
SPEED = "Performance"
LIMITS = "Limits"
NAMES = "Host names"
BATCHES = "Jobs of callers"

Locations = Annotated[tuple[PathPrefix, ...], AsList]

_NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE | re.ASCII)


class ServiceConfig(Spec):
    """The configuration of a service; the description of each field is its option's help."""

    models: Texts = spec_field(
        (),
        MODELS,
        "Models to load at the start and keep in memory; default: every model with a "
        "version in production, up to --memory-mb. Other models are loaded on their first request.",
    )
    memory_mb: float = spec_field(
        2000,
        MODELS,
        "Memory for versions that no route needs; the least recently used are evicted first.",
        ge=0,
    )
    poll_interval_s: float = spec_field(
        1.0, MODELS, "Seconds between two readings of the registry and the database.", gt=0
    )
    max_snapshot_age_s: float = spec_field(
        300.0,
        MODELS,
        "Seconds without an answer from the database after which keys are no longer accepted, "
        "because they may have been revoked.",
        gt=0,
    )
    replicas: int = spec_field(
        1,
        SPEED,
        "Number of serving processes, each with its own copy of the models.",
        ge=1,
        le=1000,
    )
    gpus_per_replica: float = spec_field(
        0, SPEED, "Number of GPUs of each replica; 0 uses the CPU.", ge=0, le=8
    )
    worker_threads: int | None = spec_field(
        None,
        SPEED,
        "Number of threads of a replica that decode and predict; default: one for each of its "
        "cores, or two beside a GPU.",
        ge=1,
        le=256,
    )
    precision: Precision = spec_field(
        "auto",
        SPEED,
        "Precision of the forward pass; auto uses the faster one, as measured on this machine.",
    )
    engine: EngineName = spec_field(
        "auto",
        SPEED,
        "Engine of the forward pass: auto, eager or openvino; auto serves at once, measures all in "
        "the background and switches to the fastest one; openvino converts a network before it "
        "serves.",
    )
    max_batch_images: int = spec_field(
        8, SPEED, "Maximum number of images in one forward pass.", ge=1, le=1024
    )
    max_batch_pixels: int = spec_field(
        8_000_000, SPEED, "Maximum number of source pixels decoded for one forward pass.", ge=1
    )
    max_queued: int = spec_field(
        256, LIMITS, "Maximum number of images that wait in a replica; more are refused.", ge=1
    )
    max_wait_s: float = spec_field(
        3.0,
        LIMITS,
        "Maximum seconds that an image is expected to wait for a worker; more images are refused.",
        gt=0,
    )
    timeout_s: float = spec_field(
        10.0, LIMITS, "Time limit of a request that has no shorter deadline, in seconds.", gt=0
    )
    max_body_mb: float = spec_field(64, LIMITS, "Maximum size of one request.", gt=0)
    max_in_flight_mb: float = spec_field(
        512, LIMITS, "Maximum size of all requests in a replica together, as they arrive.", gt=0
    )
    max_images: int = spec_field(64, LIMITS, "Maximum number of images in one request.", ge=1)
    isolate: Isolation = spec_field(
        "rare",
        LIMITS,
        "Images decoded in a sandbox process, where a crash or a hang affects no other image: "
        "rare means all formats but JPEG and PNG.",
    )
    decode_timeout_s: float = spec_field(
        5.0, LIMITS, "Time limit for decoding an image in a sandbox process, in seconds.", gt=0
    )
    allow_hosts: Texts = spec_field(
        (),
        NAMES,
        "Names besides localhost under which browsers may reach the service; *.NAME is "
        "every name below one. Default: none without an application, otherwise any.",
    )
    allow_urls: Texts = spec_field(
        (), SOURCES, "Hosts from which images may be fetched; default: none."
    )
    private_networks: Texts = spec_field(
        (), SOURCES, "Private networks in which such hosts may be; default: none."
    )
    allow_storage: Locations = spec_field(
        (), SOURCES, "Prefixes of storage locations from which images may be read; default: none."
    )
    batch_inputs: Locations = spec_field(
        (),
        BATCHES,
        "Prefixes of storage locations that jobs of callers may read; "
        "{application} in one stands for the caller. Default: none.",
    )
    batch_outputs: Locations = spec_field(
        (),
        BATCHES,
        "Prefixes of storage locations to which jobs of callers may write, and from which they may "
        "read earlier results; default: none, and no jobs.",
    )
    max_concurrent_batches: int = spec_field(
        1, BATCHES, "Maximum number of jobs that run at a time; others wait.", ge=1, le=1000
    )
    max_batches_per_application: int = spec_field(
        20,
        BATCHES,
        "Maximum number of jobs of an application, running and waiting; more are refused.",
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
