"""A service on a real registry, called over HTTP without a network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx

from eagleray.core.job_state import JobState
from eagleray.registry.registry import Registry
from eagleray.scheduling.assignment import Assignment
from eagleray.scheduling.records import JobRecords
from eagleray.serve.grpc import GrpcInterface
from eagleray.serve.http import build_http
from eagleray.serving.config import ServiceConfig
from eagleray.serving.jobs.launcher import Capacity
from eagleray.serving.service import ImageService
from tests.support.models import golden_png, registry_in, small_package

PREDICT = "/v1/models/digits/predict"
IMAGE = golden_png(7)

Ask = Callable[["RunningApp"], Awaitable[None]]


@dataclass
class RecordingLauncher:
    """Notes what it is to run; the jobs stay as their records are."""

    started: list[Assignment] = field(default_factory=list)
    has: Capacity = field(default_factory=lambda: Capacity(2, 0))

    def capacity(self) -> Capacity:
        """Say what there is for jobs."""
        return self.has

    def submit(self, assignment: Assignment, environment: Mapping[str, str]) -> None:
        """Note a process."""
        assert environment["EAGLERAY_HOME"]
        self.started.append(assignment)


class RunningApp:
    """A service that runs, and a client of it."""

    def __init__(
        self, service: ImageService, client: httpx.AsyncClient, launcher: RecordingLauncher
    ) -> None:
        self.service, self.client, self.launcher = service, client, launcher

    async def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait for something to come about."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)


class CallContext:
    """What gRPC gives to a call."""

    def __init__(self, caller: str = "127.0.0.1", **metadata: str) -> None:
        self.code, self.details, self.caller = grpc.StatusCode.OK, "", caller
        self._metadata = tuple(metadata.items())

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


async def grpc_call(service: ImageService, method: str, request: Any, context: CallContext) -> Any:
    """Make a call with a message that has arrived."""

    async def read(_: str) -> Any:
        return request

    return await GrpcInterface(service).call(method, read, context, context.caller)


def registry_with(folder: Path, *names: str, versions: int = 1) -> Registry:
    """Make a registry of models with versions that differ, the first one in production."""
    registry = registry_in(folder)
    for name in names:
        add_versions(registry, name, versions)
        registry.set_alias(name, "production", 1)
    return registry


def records_of(registry: Registry) -> JobRecords:
    """Return the records of jobs beside a registry."""
    return JobRecords(registry.history.database, registry.settings)


def end_cancelled(registry: Registry, job: str) -> None:
    """End a job that waits and is asked to end, as its process does."""
    records = records_of(registry)
    row = records.claim(job, records.get(job).submission)
    assert row is not None
    assert records.wait_for_turn(job, row.epoch) is None


def run_job(registry: Registry, job: str, state: JobState, **fields: Any) -> None:
    """Claim a job as its process does, and bring it to a state: running, or ended."""
    records = records_of(registry)
    row = records.claim(job, records.get(job).submission)
    assert row is not None
    epoch = row.epoch
    turn = records.wait_for_turn(job, epoch)
    assert turn is not None
    assert turn.admitted
    if state != JobState.RUNNING:
        assert records.end(job, epoch, state, **fields)


def add_versions(registry: Registry, name: str, count: int) -> None:
    """Register versions that answer differently."""
    from tests.support.models import lenet_module

    for _ in range(count):
        number = len(registry.versions(name)) if name in registry.names() else 0
        module = lenet_module(seed=number)
        given = {"name": name, "module": module, "golden_images": [golden_png(0)]}
        registry.register(small_package(**given))


@contextlib.asynccontextmanager
async def _running(registry: Registry, address: str, **fields: Any) -> AsyncIterator[RunningApp]:
    config = ServiceConfig(**{"engine": "eager", "poll_interval_s": 0.05, **fields})
    service = ImageService(registry, config, device="cpu", num_cores=2)
    launcher = RecordingLauncher()
    app = build_http(service, launcher)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, client=(address, 4000), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield RunningApp(service, client, launcher)


def with_service(
    registry: Registry, test: Ask, *, address: str = "127.0.0.1", **fields: Any
) -> None:
    """Run a test against a service, from its first request to its orderly end."""

    async def main() -> None:
        async with _running(registry, address, **fields) as running:
            await test(running)

    asyncio.run(main())
