"""Checks that each request gets its own version, among many models, versions and applications.

The labels of a version name the model and the version, so a response shows which version made it.
Applications are pinned to versions and to aliases, models have defaults and canaries of their own,
and some requests name a version. The requests arrive at a real service over several connections.
Each response must come from exactly the version that the request, the pin or the route selects; for
a canary the one that `routing.choose` draws for the request id, with a share within four standard
deviations.

Then versions that are not in memory are requested: one after another, fifty times concurrently, and
more of them than fit into memory.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from eagleray.core.settings import Settings
from eagleray.registry.registry import Registry
from eagleray.serving.callers.applications import Applications
from eagleray.serving.versions.routes import Routes
from eagleray.serving.versions.routing import Application, Route, Snapshot, choose
from eagleray.serving.watch import read_snapshot
from eagleray.tasks import Multiclass
from tests.support.models import golden_png, lenet_module, small_package
from tests.support.service import running_service

IMAGES = [golden_png(seed) for seed in range(8)]
ALIASES = ("production", "stable", "candidate")
ATTEMPTS = 5
NUM_CONCURRENT = 50  # requests that wait for one version


@dataclass(frozen=True)
class Options:
    """The size of the check.

    Attributes:
        models: Number of models.
        versions: Number of versions of each model.
        applications: Number of applications.
        requests: Number of requests.
        connections: Number of concurrent connections.
        version_share: Fraction of the requests that name a version.
        unloaded: Number of versions outside memory that are requested one after another.
        memory_mb: Memory for versions without a route or a pin, in megabytes.
        seed: Seed of the setup and the requests.
    """

    models: int = 20
    versions: int = 12
    applications: int = 10
    requests: int = 10_000
    connections: int = 8
    version_share: float = 0.03
    unloaded: int = 20
    memory_mb: float = 10.0
    seed: int = 0


@dataclass(frozen=True)
class Setup:
    """The registered models, their routes and the applications.

    Attributes:
        versions: Number of versions of each model.
        aliases: Version of each alias of each model.
        routes: Routes of the models that have one of their own.
        pins: Target of each application on each model that it is pinned on.
        keys: Key of each application.
    """

    versions: int
    aliases: dict[str, dict[str, int]]
    routes: dict[str, Route]
    pins: dict[str, dict[str, str]]
    keys: dict[str, str] = field(default_factory=dict)

    def version(self, model: str, target: str) -> int:
        """Return the version that a target means."""
        return int(target) if target.isdecimal() else self.aliases[model][target]

    def routed_versions(self) -> set[tuple[str, int]]:
        """Return the versions that some route or pin selects."""
        found = {(model, targets[model]) for targets in self.pins.values() for model in targets}
        for model in self.aliases:
            route = self.routes.get(model, Route())
            found |= {(model, target) for target in (route.default, route.canary) if target}
        return {(model, self.version(model, target)) for model, target in found}


@dataclass(frozen=True, slots=True)
class Request:
    """A request of an application, for a model and possibly a version."""

    id: str
    application: str
    model: str
    version: int | None


@dataclass
class Results:
    """The results of the requests."""

    milliseconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    num_retries: int = 0  # after responses of 503: the version was not loaded in time
    by: Counter[str] = field(default_factory=Counter)
    canaries: dict[str, list[bool]] = field(default_factory=dict)


def draw_setup(num_models: int, num_versions: int, num_applications: int, seed: int) -> Setup:
    """Draw the aliases, routes and pins."""
    draw = random.Random(seed)
    models = [f"m{number:02d}" for number in range(num_models)]
    aliases = {
        model: {alias: draw.randint(1, num_versions) for alias in ALIASES} for model in models
    }
    routes = {}
    for number, model in enumerate(models):
        others = [v for v in range(1, num_versions + 1) if v != aliases[model]["production"]]
        if number % 3 == 0:
            share = draw.choice((0.05, 0.1, 0.3, 0.5))
            routes[model] = Route(canary=str(draw.choice(others)), canary_share=share)
        elif number % 3 == 1:
            target = draw.choice(("stable", str(draw.choice(others))))
            routes[model] = Route(default=target)
    pins: dict[str, dict[str, str]] = {}
    for number in range(num_applications):
        pinned = draw.sample(models, max(1, num_models * 2 // 5))
        targets = [str(draw.randint(1, num_versions)) for _ in pinned]
        targets = [draw.choice((target, draw.choice(ALIASES))) for target in targets]
        pins[f"app{number}"] = dict(zip(pinned, targets, strict=True))
    return Setup(num_versions, aliases, routes, pins)


def label_of(model: str, version: int) -> str:
    return f"{model}-v{version:02d}"


def build(setup: Setup, home: Path) -> tuple[Registry, Setup]:
    """Register everything; return the setup with the applications' keys."""
    registry = Registry(Settings(home=home))
    for model, aliases in setup.aliases.items():
        for version in range(1, setup.versions + 1):
            name = label_of(model, version)
            task = Multiclass(labels=(f"{name} a", f"{name} b"))
            module = lenet_module(2, seed=version)
            registry.register(
                small_package(name=model, task=task, module=module, golden_images=[IMAGES[0]])
            )
        for alias, version in aliases.items():
            registry.set_alias(model, alias, version)
    database = registry.history.database
    applications, routes = Applications(database, actor="bench"), Routes(database, actor="bench")
    for model, route in setup.routes.items():
        changes = {"default": route.default, "canary": route.canary}
        routes.set(model, **changes, canary_share=route.canary_share)
    keys = {}
    for name, pins in setup.pins.items():
        keys[name] = applications.create(name).key
        for model, target in pins.items():
            applications.pin(name, model, target)
    return registry, Setup(setup.versions, setup.aliases, setup.routes, setup.pins, keys)


def draw_requests(setup: Setup, count: int, seed: int, version_share: float) -> list[Request]:
    """Draw the application, the model and the version of each request."""
    draw = random.Random(seed)
    applications, models = list(setup.pins), list(setup.aliases)
    return [
        Request(
            id=f"r{number}",
            application=draw.choice(applications),
            model=draw.choice(models),
            version=draw.randint(1, setup.versions) if draw.random() < version_share else None,
        )
        for number in range(count)
    ]


def expected(setup: Setup, snapshot: Snapshot, request: Request) -> tuple[int, str]:
    """Return the version that must respond, and by which rule, computed from the setup alone.

    Only the draw of a canary for a request id comes from the router.
    """
    model, pins = request.model, setup.pins[request.application]
    if request.version is not None:
        return request.version, "requested"
    if model in pins:
        return setup.version(model, pins[model]), "pinned"
    route = setup.routes.get(model, Route())
    default = setup.version(model, route.default)
    if route.canary is None:
        return default, "default"
    choice = choose(snapshot, model, application=request.application, request_id=request.id)
    assert choice.version in (default, setup.version(model, route.canary))
    return choice.version, choice.role.via.value


async def send(
    client: httpx.AsyncClient, setup: Setup, request: Request, results: Results
) -> tuple[httpx.Response, float]:
    """Send a request, and retry after 503; return the response and its milliseconds."""
    began = time.perf_counter()
    for _ in range(ATTEMPTS):
        response = await send_once(client, setup, request)
        if response.status_code != 503:
            break
        results.num_retries += 1
        await asyncio.sleep(float(response.headers["retry-after"]))
    return response, 1000 * (time.perf_counter() - began)


async def send_once(client: httpx.AsyncClient, setup: Setup, request: Request) -> httpx.Response:
    return await client.post(
        f"/v1/models/{request.model}/predict",
        content=IMAGES[sum(request.id.encode()) % len(IMAGES)],
        params={} if request.version is None else {"version": str(request.version)},
        headers={
            "authorization": f"Bearer {setup.keys[request.application]}",
            "x-request-id": request.id,
        },
    )


def record(setup: Setup, snapshot: Snapshot, request: Request, sent: Any, results: Results) -> None:
    """Compare a response with the expected one."""
    response, milliseconds = sent
    results.milliseconds.append(milliseconds)
    version, via = expected(setup, snapshot, request)
    if response.status_code != 200:
        results.wrong.append(f"{request}: {response.status_code} {response.text[:200]}")
        return
    body = response.json()
    label = body["results"][0]["label"]
    found = (body["model"], body["version"], body["via"], label.partition(" ")[0])
    wanted = (request.model, version, via, label_of(request.model, version))
    results.by[via] += 1
    if found != wanted:
        results.wrong.append(f"{request}: {found}, not {wanted}")
    route = setup.routes.get(request.model)
    if via in ("canary", "default") and route is not None and route.canary is not None:
        results.canaries.setdefault(request.model, []).append(body["via"] == "canary")


async def send_all(
    url: str, setup: Setup, snapshot: Snapshot, requests: Sequence[Request], connections: int
) -> Results:
    """Send all requests over a number of connections, one at a time on each."""
    results, left = Results(), iter(requests)

    async def caller() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for request in left:
                sent = await send(client, setup, request, results)
                record(setup, snapshot, request, sent, results)

    await asyncio.gather(*(caller() for _ in range(connections)))
    return results


def unexpected_shares(setup: Setup, results: Results) -> list[str]:
    """Return the canaries whose share is more than four standard deviations off."""
    unexpected = []
    for model, draws in results.canaries.items():
        share, n = setup.routes[model].canary_share, len(draws)
        off = abs(sum(draws) - n * share)
        if off > 4 * math.sqrt(n * share * (1 - share)) + 1:
            unexpected.append(f"{model}: {sum(draws)} of {n}, not {share:.0%}")
    return unexpected


class Inspector:
    """Reads the state of the service with the key of one application."""

    def __init__(self, url: str, setup: Setup) -> None:
        key = next(iter(setup.keys.values()))
        headers = {"authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=60)
        self._models = list(setup.aliases)

    def in_memory(self) -> list[dict[str, Any]]:
        """Return the reports of the versions in memory."""
        found = []
        for model in self._models:
            reports = self._client.get(f"/v1/models/{model}").json()["in_memory"]
            found += [report for report in reports if report["state"] == "ready"]
        return found

    def events(self, event: str, model: str = "") -> int:
        """Return the number of events of a kind."""
        text = self._client.get("/metrics").text
        pattern = (
            rf'^eagleray_version_events_total\{{event="{event}",model="({model or ".*"})"\}} (\S+)$'
        )
        return int(sum(float(value) for _, value in re.findall(pattern, text, re.MULTILINE)))


@dataclass
class Findings:
    """The findings of a check.

    Attributes:
        wrong: Sentences; empty if every request got the right version.
        figures: Measurements by name, for the table.
    """

    wrong: list[str]
    figures: dict[str, str]


def check_versions(options: Options) -> Findings:
    """Start a service, send it all requests, and return the findings."""
    setup = draw_setup(options.models, options.versions, options.applications, options.seed)
    with tempfile.TemporaryDirectory(prefix="many-models-") as name:
        home = Path(name) / "home"
        registry, setup = build(setup, home)
        snapshot = read_snapshot(registry)
        assert all(
            snapshot.applications[name] == Application(name, None, pins)
            for name, pins in setup.pins.items()
        )
        began = time.perf_counter()
        words = ["--engine", "eager", "--memory-mb", str(options.memory_mb)]
        with running_service(home, *words) as service:
            url, (replica,) = service.url, service.replicas()
            findings = Findings([], {"seconds to start": f"{time.perf_counter() - began:.0f}"})
            _measure(options, setup, snapshot, url, replica, findings)
    return findings


def _measure(
    options: Options,
    setup: Setup,
    snapshot: Snapshot,
    url: str,
    replica: psutil.Process,
    findings: Findings,
) -> None:
    inspector, figures, wrong = Inspector(url, setup), findings.figures, findings.wrong
    routed = setup.routed_versions()
    loaded = inspector.in_memory()
    missing = routed - {(item["model"], item["version"]) for item in loaded}
    wrong += [f"{model}/{version} is not in memory" for model, version in sorted(missing)]
    figures["versions with a route or a pin, in memory from the start"] = str(len(routed))
    figures["memory of the replica with them"] = megabytes(replica)

    requests = draw_requests(setup, options.requests, options.seed + 1, options.version_share)
    began = time.perf_counter()
    results = asyncio.run(send_all(url, setup, snapshot, requests, options.connections))
    seconds = time.perf_counter() - began
    wrong += results.wrong + unexpected_shares(setup, results)
    figures[f"requests over {options.connections} connections"] = f"{len(requests):,}"
    figures["of them pinned, default, canary, requested"] = ", ".join(
        f"{results.by[via]:,}" for via in ("pinned", "default", "canary", "requested")
    )
    figures["responses by the wrong version"] = str(len(results.wrong))
    figures["retries, as the version was not loaded in time"] = str(results.num_retries)
    drawn = [draw for draws in results.canaries.values() for draw in draws]
    meant = sum(setup.routes[model].canary_share * len(d) for model, d in results.canaries.items())
    figures["canaries' share, expected and measured"] = (
        f"{meant / max(1, len(drawn)):.1%}, {sum(drawn) / max(1, len(drawn)):.1%}"
    )
    p50, p99 = np.percentile(results.milliseconds, [50, 99])
    figures["requests/s; p50, p99"] = f"{len(requests) / seconds:.0f}; {p50:.0f} ms, {p99:.0f} ms"
    figures["memory of the replica after them"] = megabytes(replica)
    loads = [item["load_seconds"] for item in inspector.in_memory()]
    figures["load of a version: median, max"] = (
        f"{1000 * statistics.median(loads):.0f} ms, {1000 * max(loads):.0f} ms"
    )
    _measure_unloaded_versions(options, setup, snapshot, url, inspector, findings)
    figures["memory of the replica at the end"] = megabytes(replica)


def _measure_unloaded_versions(
    options: Options,
    setup: Setup,
    snapshot: Snapshot,
    url: str,
    inspector: Inspector,
    findings: Findings,
) -> None:
    """Request versions that are not in memory."""
    figures, wrong, routed = findings.figures, findings.wrong, setup.routed_versions()
    application = next(iter(setup.pins))

    def unloaded() -> list[Request]:
        loaded = {(item["model"], item["version"]) for item in inspector.in_memory()}
        return [
            Request(f"rare-{model}-{version}", application, model, version)
            for model in setup.aliases
            for version in range(1, setup.versions + 1)
            if (model, version) not in routed | loaded
        ]

    together, *one_by_one = unloaded()
    before = inspector.events("loaded", together.model)
    results = asyncio.run(
        send_all(url, setup, snapshot, [together] * NUM_CONCURRENT, NUM_CONCURRENT)
    )
    wrong += results.wrong
    loads = inspector.events("loaded", together.model) - before
    figures[f"loads for {NUM_CONCURRENT} requests that wait for one version"] = str(loads)
    if loads != 1:
        wrong.append(
            f"{NUM_CONCURRENT} requests for {together.model}/{together.version}: {loads} loads"
        )

    results = asyncio.run(send_all(url, setup, snapshot, one_by_one[: options.unloaded], 1))
    wrong += results.wrong
    figures["first response of a version that was not in memory: median, max"] = (
        f"{statistics.median(results.milliseconds):.0f} ms, {max(results.milliseconds):.0f} ms"
    )

    before = inspector.events("unloaded")
    results = asyncio.run(send_all(url, setup, snapshot, unloaded(), 4))
    wrong += results.wrong
    free = [item for item in inspector.in_memory() if not item["roles"]]
    used = sum(item["num_bytes"] for item in free) / 1e6
    gone = inspector.events("unloaded") - before
    figures[f"{len(results.milliseconds)} more of them: evicted, and what remains"] = (
        f"{gone}, {len(free)} with {used:.1f} of {options.memory_mb:g} MB"
    )
    if used > options.memory_mb:
        wrong.append(
            f"{used:.1f} MB are used by versions without a route or a pin, and "
            f"{options.memory_mb:g} are allowed"
        )


def megabytes(process: psutil.Process) -> str:
    return f"{process.memory_info().rss / 1e6:.0f} MB"
