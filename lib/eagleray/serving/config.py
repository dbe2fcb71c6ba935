"""What a service is told when it starts: a frozen value, with a field for each option."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from eagleray.choices import CompileMode, Precision

__all__ = ["ServiceConfig"]

_MEGABYTE = 1_000_000


class ServiceConfig(BaseModel):
    """How a service answers; `serve/config.yaml` and the flags of `eagleray serve` have these.

    Attributes:
        models: Kept in memory from the start. Empty for every model that has a version in
            production, as far as `memory_mb` goes; the others are loaded when they are asked for.
        replicas: Processes that answer; each has its own copy of the models.
        gpus_per_replica: GPUs of each; 0 for the CPU.
        lanes: Threads of a replica that decode and predict; None for one for each core that it
            has, or two beside a GPU.
        precision: Of the forward pass.
        compile: `auto` answers at once, compiles beside it with what the cores have left, and then
            answers with that; `always` compiles before a version takes traffic; `never` does not.
        batch_images: Most images in one forward pass.
        batch_pixels: Most source pixels decoded for one.
        max_queued: Images that wait in a replica; more are refused.
        max_wait_s: Seconds that an image may be expected to wait; more are refused.
        timeout_s: For a request that brings no deadline of its own.
        max_body_mb: Of one request.
        max_flight_mb: Of all requests in a replica together.
        max_images: In one request.
        memory_mb: For versions that nobody needs at present.
        watch_s: Seconds between two looks at the registry and the database.
        allow_urls: Hosts that images may be fetched from, as for batch jobs; none by default.
        private_networks: Networks of such hosts that are not the public internet.
        allow_storage: Prefixes of storage locations that images may be read from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = ()
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    gpus_per_replica: Annotated[float, Field(ge=0, le=8)] = 0
    lanes: Annotated[int | None, Field(ge=1, le=256)] = None
    precision: Precision = "auto"
    compile: CompileMode = "auto"
    batch_images: Annotated[int, Field(ge=1, le=1024)] = 8
    batch_pixels: Annotated[int, Field(ge=1)] = 8_000_000
    max_queued: Annotated[int, Field(ge=1)] = 256
    max_wait_s: Annotated[float, Field(gt=0)] = 1.0
    timeout_s: Annotated[float, Field(gt=0)] = 10.0
    max_body_mb: Annotated[float, Field(gt=0)] = 64
    max_flight_mb: Annotated[float, Field(gt=0)] = 512
    max_images: Annotated[int, Field(ge=1)] = 64
    memory_mb: Annotated[float, Field(ge=0)] = 2000
    watch_s: Annotated[float, Field(gt=0)] = 1.0
    allow_urls: tuple[str, ...] = ()
    private_networks: tuple[str, ...] = ()
    allow_storage: tuple[str, ...] = ()

    @property
    def max_body_bytes(self) -> int:
        """Of one request."""
        return int(self.max_body_mb * _MEGABYTE)

    @property
    def max_flight_bytes(self) -> int:
        """Of all requests together."""
        return int(self.max_flight_mb * _MEGABYTE)

    @property
    def memory_bytes(self) -> int:
        """For versions that nobody needs at present."""
        return int(self.memory_mb * _MEGABYTE)
