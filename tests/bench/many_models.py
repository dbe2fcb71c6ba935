"""Many models, versions and applications in one service: does everyone get the right version?

    make bench-many-models
    python -m tests.bench.many_models --models 20 --versions 12 --applications 10 --requests 10000

Every version's labels name the model and the version, so an answer says who gave it. Applications
are pinned to versions and to aliases, models have defaults and canaries of their own, and some
requests ask for a version. The real service is asked over several connections at once. Each answer
must come from exactly the version that its pin, its route or its own wish names; for a canary the
one that `routing.choose` draws for its request id, with a share within four standard deviations.

Then versions that nobody had in memory are asked for: one after another, fifty times at once, and
more of them than there is memory for. Printed are times, memory, loads and evictions.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import re
import statistics
import sys
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
from eagleray.serving.applications import Applications
from eagleray.serving.routes import Routes
from eagleray.serving.routing import Application, Route, Snapshot, choose
from eagleray.serving.watch import read_snapshot
from eagleray.tasks import Multiclass
from tests.support.models import golden_png, lenet_module, small_package
from tests.support.service import running_service

IMAGES = [golden_png(seed) for seed in range(8)]
ALIASES = ("production", "stable", "candidate")
ATTEMPTS = 5
AT_ONCE = 50  # that wait for one version


@dataclass(frozen=True)
class World:
    """What is registered, and who is to get what.

    Attributes:
        versions: Of each model.
        aliases: Version of each alias of each model.
        routes: Of the models that have one of their own.
        pins: Target of each application on each model that it is pinned on.
        keys: Of each application.
    """

    versions: int
    aliases: dict[str, dict[str, int]]
    routes: dict[str, Route]
    pins: dict[str, dict[str, str]]
    keys: dict[str, str] = field(default_factory=dict)

    def version(self, model: str, target: str) -> int:
        """Return the version that a target means."""
        return int(target) if target.isdecimal() else self.aliases[model][target]

    def desired_versions(self) -> set[tuple[str, int]]:
        """Return the versions that some route or pin leads to."""
        found = {(model, targets[model]) for targets in self.pins.values() for model in targets}
        for model in self.aliases:
            route = self.routes.get(model, Route())
            found |= {(model, target) for target in (route.default, route.canary) if target}
        return {(model, self.version(model, target)) for model, target in found}


@dataclass(frozen=True, slots=True)
class Question:
    """A request: by whom, about what, and the version it asks for, if it does."""

    id: str
    application: str
    model: str
    asked: int | None


@dataclass
class Seen:
    """What came of the requests."""

    milliseconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    postponed: int = 0  # answers of 503: the version did not come in time
    by: Counter[str] = field(default_factory=Counter)
    canaries: dict[str, list[bool]] = field(default_factory=dict)


def make_world(num_models: int, num_versions: int, num_applications: int, seed: int) -> World:
    """Draw who gets what."""
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
    return World(num_versions, aliases, routes, pins)


def label_of(model: str, version: int) -> str:
    return f"{model}-v{version:02d}"


def build(world: World, home: Path) -> tuple[Registry, World]:
    """Register everything; return the world with the applications' keys."""
    registry = Registry(Settings(home=home))
    for model, aliases in world.aliases.items():
        for version in range(1, world.versions + 1):
            name = label_of(model, version)
            task = Multiclass(labels=(f"{name} a", f"{name} b"))
            module = lenet_module(2, seed=version)
            registry.register(
                small_package(name=model, task=task, module=module, golden_images=[IMAGES[0]])
            )
        for alias, version in aliases.items():
            registry.set_alias(model, alias, version)
    database = registry.history.database
    applications, routes = Applications(database, who="bench"), Routes(database, who="bench")
    for model, route in world.routes.items():
        changes = {"default": route.default, "canary": route.canary}
        routes.set(model, **changes, canary_share=route.canary_share)
    keys = {}
    for name, pins in world.pins.items():
        keys[name] = applications.create(name).key
        for model, target in pins.items():
            applications.pin(name, model, target)
    return registry, World(world.versions, world.aliases, world.routes, world.pins, keys)


def questions(world: World, count: int, seed: int, asked_share: float) -> list[Question]:
    """Draw who asks what."""
    draw = random.Random(seed)
    applications, models = list(world.pins), list(world.aliases)
    return [
        Question(
            id=f"q{number}",
            application=draw.choice(applications),
            model=draw.choice(models),
            asked=draw.randint(1, world.versions) if draw.random() < asked_share else None,
        )
        for number in range(count)
    ]


def expected(world: World, snapshot: Snapshot, question: Question) -> tuple[int, str]:
    """Return the version that must answer, and why, from what was set and not from the router.

    Only a canary's draw for a request id is the router's own word.
    """
    model, pins = question.model, world.pins[question.application]
    if question.asked is not None:
        return question.asked, "requested"
    if model in pins:
        return world.version(model, pins[model]), "pinned"
    route = world.routes.get(model, Route())
    default = world.version(model, route.default)
    if route.canary is None:
        return default, "default"
    choice = choose(snapshot, model, application=question.application, request_id=question.id)
    assert choice.version in (default, world.version(model, route.canary))
    return choice.version, choice.role.via.value


async def ask(
    client: httpx.AsyncClient, world: World, question: Question, seen: Seen
) -> tuple[httpx.Response, float]:
    """Ask one question, again where the service says so; return the answer and its milliseconds."""
    began = time.perf_counter()
    for _ in range(ATTEMPTS):
        answer = await ask_once(client, world, question)
        if answer.status_code != 503:
            break
        seen.postponed += 1
        await asyncio.sleep(float(answer.headers["retry-after"]))
    return answer, 1000 * (time.perf_counter() - began)


async def ask_once(client: httpx.AsyncClient, world: World, question: Question) -> httpx.Response:
    return await client.post(
        f"/v1/models/{question.model}/predict",
        content=IMAGES[sum(question.id.encode()) % len(IMAGES)],
        params={} if question.asked is None else {"version": str(question.asked)},
        headers={
            "authorization": f"Bearer {world.keys[question.application]}",
            "x-request-id": question.id,
        },
    )


def note(world: World, snapshot: Snapshot, question: Question, told: Any, seen: Seen) -> None:
    """Compare an answer with the one that must be."""
    answer, milliseconds = told
    seen.milliseconds.append(milliseconds)
    version, via = expected(world, snapshot, question)
    if answer.status_code != 200:
        seen.wrong.append(f"{question}: {answer.status_code} {answer.text[:200]}")
        return
    body = answer.json()
    label = body["results"][0]["label"]
    found = (body["model"], body["version"], body["via"], label.partition(" ")[0])
    wanted = (question.model, version, via, label_of(question.model, version))
    seen.by[via] += 1
    if found != wanted:
        seen.wrong.append(f"{question}: {found}, not {wanted}")
    route = world.routes.get(question.model)
    if via in ("canary", "default") and route is not None and route.canary is not None:
        seen.canaries.setdefault(question.model, []).append(body["via"] == "canary")


async def ask_all(
    url: str, world: World, snapshot: Snapshot, todo: Sequence[Question], connections: int
) -> Seen:
    """Ask everything, over a number of connections that each wait for their answer."""
    seen, left = Seen(), iter(todo)

    async def caller() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for question in left:
                told = await ask(client, world, question, seen)
                note(world, snapshot, question, told, seen)

    await asyncio.gather(*(caller() for _ in range(connections)))
    return seen


def odd_shares(world: World, seen: Seen) -> list[str]:
    """Return the canaries whose share is more than four standard deviations off."""
    odd = []
    for model, draws in seen.canaries.items():
        share, n = world.routes[model].canary_share, len(draws)
        off = abs(sum(draws) - n * share)
        if off > 4 * math.sqrt(n * share * (1 - share)) + 1:
            odd.append(f"{model}: {sum(draws)} of {n}, not {share:.0%}")
    return odd


class Looker:
    """Looks at the service with the key of one application."""

    def __init__(self, url: str, world: World) -> None:
        key = next(iter(world.keys.values()))
        headers = {"authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=60)
        self._models = list(world.aliases)

    def in_memory(self) -> list[dict[str, Any]]:
        """The versions in memory, with what is known of each."""
        found = []
        for model in self._models:
            reports = self._client.get(f"/v1/models/{model}").json()["in_memory"]
            found += [report for report in reports if report["state"] == "ready"]
        return found

    def events(self, what: str, model: str = "") -> int:
        """How often something happened to a version."""
        text = self._client.get("/metrics").text
        pattern = (
            rf'^eagleray_version_events_total\{{model="({model or ".*"})",event="{what}"\}} (\S+)$'
        )
        return int(sum(float(value) for _, value in re.findall(pattern, text, re.MULTILINE)))


@dataclass
class Findings:
    """What the proof found.

    Attributes:
        wrong: Sentences; empty when everyone got the right version.
        figures: For the table.
    """

    wrong: list[str]
    figures: dict[str, str]


def prove(options: argparse.Namespace) -> Findings:
    """Do all of it."""
    world = make_world(options.models, options.versions, options.applications, options.seed)
    with tempfile.TemporaryDirectory(prefix="bench-many-models-") as name:
        home = Path(name) / "home"
        registry, world = build(world, home)
        snapshot = read_snapshot(registry)
        assert all(
            snapshot.applications[name] == Application(name, None, pins)
            for name, pins in world.pins.items()
        )
        began = time.perf_counter()
        words = ["--compile", "never", "--memory-mb", str(options.memory_mb)]
        with running_service(home, *words) as service:
            url, (replica,) = service.url, service.replicas()
            findings = Findings([], {"seconds to start": f"{time.perf_counter() - began:.0f}"})
            look(options, world, snapshot, url, replica, findings)
    return findings


def look(
    options: argparse.Namespace,
    world: World,
    snapshot: Snapshot,
    url: str,
    replica: psutil.Process,
    findings: Findings,
) -> None:
    looker, figures, wrong = Looker(url, world), findings.figures, findings.wrong
    standing = world.desired_versions()
    there = looker.in_memory()
    missing = standing - {(item["model"], item["version"]) for item in there}
    wrong += [f"{model}/{version} is not in memory" for model, version in sorted(missing)]
    figures["versions with a route or a pin, in memory from the start"] = str(len(standing))
    figures["memory of the replica with them"] = megabytes(replica)

    todo = questions(world, options.requests, options.seed + 1, options.asked_share)
    began = time.perf_counter()
    seen = asyncio.run(ask_all(url, world, snapshot, todo, options.connections))
    seconds = time.perf_counter() - began
    wrong += seen.wrong + odd_shares(world, seen)
    figures[f"requests over {options.connections} connections"] = f"{len(todo):,}"
    figures["of them pinned, default, canary, asked"] = ", ".join(
        f"{seen.by[via]:,}" for via in ("pinned", "default", "canary", "requested")
    )
    figures["answers by the wrong version"] = str(len(seen.wrong))
    figures["asked again, as the version did not come in time"] = str(seen.postponed)
    drawn = [draw for draws in seen.canaries.values() for draw in draws]
    meant = sum(world.routes[model].canary_share * len(d) for model, d in seen.canaries.items())
    figures["canaries' share, meant and seen"] = (
        f"{meant / max(1, len(drawn)):.1%}, {sum(drawn) / max(1, len(drawn)):.1%}"
    )
    p50, p99 = np.percentile(seen.milliseconds, [50, 99])
    figures["requests/s; p50, p99"] = f"{len(todo) / seconds:.0f}; {p50:.0f} ms, {p99:.0f} ms"
    figures["memory of the replica after them"] = megabytes(replica)
    loads = [item["load_seconds"] for item in looker.in_memory()]
    figures["load of a version: median, max"] = (
        f"{1000 * statistics.median(loads):.0f} ms, {1000 * max(loads):.0f} ms"
    )
    look_at_rare_versions(options, world, snapshot, url, looker, findings)
    figures["memory of the replica at the end"] = megabytes(replica)


def look_at_rare_versions(
    options: argparse.Namespace,
    world: World,
    snapshot: Snapshot,
    url: str,
    looker: Looker,
    findings: Findings,
) -> None:
    """Ask for versions that nobody has in memory."""
    figures, wrong, standing = findings.figures, findings.wrong, world.desired_versions()
    someone = next(iter(world.pins))

    def rare() -> list[Question]:
        there = {(item["model"], item["version"]) for item in looker.in_memory()}
        return [
            Question(f"rare-{model}-{version}", someone, model, version)
            for model in world.aliases
            for version in range(1, world.versions + 1)
            if (model, version) not in standing | there
        ]

    together, *one_by_one = rare()
    before = looker.events("loaded", together.model)
    seen = asyncio.run(ask_all(url, world, snapshot, [together] * AT_ONCE, AT_ONCE))
    wrong += seen.wrong
    loads = looker.events("loaded", together.model) - before
    figures[f"loads for {AT_ONCE} requests that wait for one version"] = str(loads)
    if loads != 1:
        wrong.append(f"{AT_ONCE} requests for {together.model}/{together.asked}: {loads} loads")

    seen = asyncio.run(ask_all(url, world, snapshot, one_by_one[: options.rare], 1))
    wrong += seen.wrong
    figures["first answer of a version that nobody had in memory: median, max"] = (
        f"{statistics.median(seen.milliseconds):.0f} ms, {max(seen.milliseconds):.0f} ms"
    )

    before = looker.events("unloaded")
    seen = asyncio.run(ask_all(url, world, snapshot, rare(), 4))
    wrong += seen.wrong
    free = [item for item in looker.in_memory() if not item["roles"]]
    used = sum(item["num_bytes"] for item in free) / 1e6
    gone = looker.events("unloaded") - before
    figures[f"{len(seen.milliseconds)} more of them: evicted, and what stays"] = (
        f"{gone}, {len(free)} with {used:.1f} of {options.memory_mb:g} MB"
    )
    if used > options.memory_mb:
        wrong.append(f"{used:.1f} MB are in memory for nobody, {options.memory_mb:g} may be")


def megabytes(process: psutil.Process) -> str:
    return f"{process.memory_info().rss / 1e6:.0f} MB"


def main() -> None:
    options = parse_options()
    findings = prove(options)
    print(
        f"{options.models} models x {options.versions} versions, "
        f"{options.applications} applications\n"
    )
    print("| what | seen |\n|---|---|")
    for what, value in findings.figures.items():
        print(f"| {what} | {value} |")
    for sentence in findings.wrong[:20]:
        print(sentence, file=sys.stderr)
    sys.exit(1 if findings.wrong else 0)


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", type=int, default=20)
    add("--versions", type=int, default=12, help="Of each model.")
    add("--applications", type=int, default=10)
    add("--requests", type=int, default=10_000)
    add("--connections", type=int, default=8)
    add("--asked-share", type=float, default=0.03, help="Of requests that name a version.")
    add("--rare", type=int, default=20, help="Versions asked for one after another.")
    add("--memory-mb", type=float, default=10, help="For versions that nobody needs.")
    add("--seed", type=int, default=0)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
