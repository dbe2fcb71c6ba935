"""Changes versions and kills replicas of a service under steady load, and counts failed requests.

    make chaos-serve
    python -m tests.chaos.serving --switches 50 --rollbacks 10 --broken 10 --kills 10 --redeploys 5

Requests arrive at a fixed rate, whether earlier ones are complete or not. Meanwhile versions are
promoted and rolled back; versions are promoted that cannot serve (altered files, golden images with
other outputs, missing weights); replicas are killed, and replaced one by one by
those of another configuration. Every response must be right for
the version that it names, and that version must be one that could serve. Printed are the requests
that failed, by what was being done, and latencies with and without a change under way.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from eagleray.core.settings import Settings
from eagleray.core.types import TOLERANCE
from eagleray.inference.predictor import Predictor
from eagleray.models.package import GOLDEN_FILE, MANIFEST_FILE, WEIGHTS_FILE, ModelPackage
from eagleray.registry.registry import ModelVersion, Registry
from tests.support.models import golden_png, lenet_module, small_package
from tests.support.service import RunningService, running_service

MODEL, IMAGE = "digits", golden_png(7)
NUM_GOOD = 4
SAME_SCORE = max(TOLERANCE.values())


@dataclass
class Seen:
    """Results of the requests.

    Attributes:
        latencies: Change under way and seconds of each good response.
        failures: Number of failures by error and change under way.
        wrong: Responses that differ from those of the version they name.
        doing: Change under way.
    """

    latencies: list[tuple[str, float]] = field(default_factory=list)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    doing: str = "nothing"


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory(prefix="chaos-serve-") as name:
        home = Path(name) / "home"
        registry = Registry(Settings(home=home))
        expected = register_good(registry)
        broken = register_broken(registry)
        config = Path(name) / "service.yaml"
        write_config(config, number=0)
        words = [
            "--config",
            str(config),
            "--replicas",
            str(options.replicas),
            "--worker-threads",
            "1",
        ]
        with running_service(home, MODEL, *words, "--engine", "eager") as service:
            seen = asyncio.run(run_changes(options, registry, service, config, expected, broken))
    sys.exit(0 if show(seen) else 1)


def write_config(path: Path, *, number: int) -> None:
    """Write a configuration that differs from others without an effect on callers."""
    path.write_text(f"max_queued: {256 + number}\n")


def register_good(registry: Registry) -> dict[int, tuple[str, float]]:
    """Register versions that differ; return the response of each to the image."""
    expected = {}
    for seed in range(NUM_GOOD):
        package = small_package(module=lenet_module(seed=seed), golden_images=[golden_png(0)])
        version = registry.register(package)
        prediction = Predictor(package, engine="eager").predict([IMAGE])[0].prediction
        assert prediction is not None
        assert prediction.label is not None
        assert prediction.score is not None
        expected[version.version] = (prediction.label, prediction.score)
    registry.set_alias(MODEL, "production", 1)
    return expected


def register_broken(registry: Registry) -> list[int]:
    """Register versions that cannot serve, each for another reason."""
    good = small_package(module=lenet_module(seed=9), golden_images=[golden_png(0)])
    altered = registry.register(good)
    manifest = folder_of(altered) / MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace('"accuracy": 0.5', '"accuracy": 0.9'))
    lost = registry.register(good)
    (folder_of(lost) / WEIGHTS_FILE).unlink()
    # A golden image whose expected outputs are not the network's.
    golden = json.loads(good.files[GOLDEN_FILE])
    golden["images"][0]["outputs"] = [1.0, 0.0, 0.0]
    files = {**good.files, GOLDEN_FILE: json.dumps(golden).encode()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    ill = ModelPackage(good.manifest.model_copy(update={"files": digests}), files)
    return [altered.version, lost.version, registry.register(ill).version]


def folder_of(version: ModelVersion) -> Path:
    """Return the folder of a version's package, in a registry on this disk."""
    return Path(version.source.removeprefix("file://"))


async def run_changes(
    options: argparse.Namespace,
    registry: Registry,
    service: RunningService,
    config: Path,
    expected: dict[int, tuple[str, float]],
    broken: list[int],
) -> Seen:
    """Make all changes in random order, while the service handles requests."""
    seen, rng, numbers = Seen(), random.Random(options.seed), itertools.count(1)
    changes: list[tuple[str, Callable[[], Awaitable[None]]]] = []

    async def move(version: int) -> None:
        await asyncio.to_thread(registry.set_alias, MODEL, "production", version)
        await asyncio.sleep(options.pause)

    async def kill() -> None:
        victims = service.replicas()
        rng.choice(victims).kill()
        await asyncio.sleep(options.pause_after_kill)

    async def redeploy() -> None:
        write_config(config, number=next(numbers))
        old = {replica.pid for replica in service.replicas()}
        service.process.send_signal(signal.SIGHUP)
        while old & {replica.pid for replica in service.replicas()}:
            await asyncio.sleep(0.5)

    good = list(expected)
    changes += [("switch", lambda: move(rng.choice(good))) for _ in range(options.switches)]
    changes += [("rollback", lambda: move(good[0])) for _ in range(options.rollbacks)]
    changes += [("broken", lambda: move(rng.choice(broken))) for _ in range(options.broken)]
    changes += [("kill", kill) for _ in range(options.kills)]
    changes += [("redeploy", redeploy) for _ in range(options.redeploys)]
    rng.shuffle(changes)
    stop = asyncio.Event()
    sending = asyncio.create_task(send_steadily(service.url, options.rate, expected, seen, stop))
    await asyncio.sleep(options.quiet)
    for number, (name, make_change) in enumerate(changes):
        seen.doing = name
        await make_change()
        seen.doing = "nothing"
        await asyncio.sleep(options.quiet / 5)
        if number % 10 == 9:
            count = len(seen.latencies)
            print(
                f"{number + 1} of {len(changes)}: {count} responses, {dict(seen.failures)}",
                flush=True,
            )
    stop.set()
    await sending
    return seen


async def send_steadily(
    url: str, rate: float, expected: dict[int, tuple[str, float]], seen: Seen, stop: asyncio.Event
) -> None:
    """Send requests at a fixed rate, and record their results."""
    pending: set[asyncio.Task[None]] = set()
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
        due = time.monotonic()
        while not stop.is_set():
            task = asyncio.create_task(send_request(client, expected, seen))
            pending.add(task)
            task.add_done_callback(pending.discard)
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*pending)


async def send_request(
    client: httpx.AsyncClient, expected: dict[int, tuple[str, float]], seen: Seen
) -> None:
    doing, began = seen.doing, time.monotonic()
    try:
        response = await client.post(f"/v1/models/{MODEL}/predict", content=IMAGE)
    except httpx.HTTPError as error:
        seen.failures[type(error).__name__, doing] += 1
        return
    if response.status_code != 200:
        seen.failures[f"{response.status_code} {response.text[:80]!r}", doing] += 1
        return
    seen.latencies.append((doing, time.monotonic() - began))
    body = response.json()
    label, score = expected.get(body["version"], ("no version that can serve", 0.0))
    result = body["results"][0]
    if result["label"] != label or abs(result["score"] - score) > SAME_SCORE:
        seen.wrong.append(f"version {body['version']} predicted {result['label']}, not {label}")


def show(seen: Seen) -> bool:
    """Print the results; return whether every response was right."""
    total = len(seen.latencies) + sum(seen.failures.values())
    print(f"{total:,} requests, {sum(seen.failures.values())} failed: {dict(seen.failures)}")
    print(f"{len(seen.wrong)} wrong responses {seen.wrong[:3]}")
    for doing in ("nothing", "switch", "rollback", "broken", "kill", "redeploy"):
        times = [1000 * seconds for name, seconds in seen.latencies if name == doing]
        if times:
            p99 = float(np.percentile(times, 99))
            print(
                f"{doing}: {len(times):,}, p50 {statistics.median(times):.0f} ms, p99 {p99:.0f} ms"
            )
    return not seen.failures and not seen.wrong


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--switches", type=int, default=50)
    add("--rollbacks", type=int, default=10)
    add("--broken", type=int, default=10)
    add("--kills", type=int, default=10)
    add("--redeploys", type=int, default=5)
    add("--replicas", type=int, default=2)
    add("--rate", type=float, default=20, help="Requests a second.")
    add("--pause", type=float, default=3, help="Seconds that a change has.")
    add("--pause-after-kill", type=float, default=30, help="Seconds that a new replica has.")
    add("--quiet", type=float, default=5, help="Seconds before the first change.")
    add("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
