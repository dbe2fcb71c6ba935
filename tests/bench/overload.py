"""Measures goodput, latency and refusals of a service under overload.

    make bench-overload PHOTOS=folder
    python -m tests.bench.overload --photos FOLDER --seconds 120 --plot overload.png

First the peak goodput is measured, with as many callers as keep it busy, and the latency with few
requests. Then requests arrive at three and at ten times that rate, whether earlier ones
are complete or not. At the end the peak is measured once more, as the speed of a machine varies;
the mean of both is the peak. Printed are, for each, the good responses a second, their latency,
the latency of refusals, and the memory of the service at the start and the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import matplotlib as mpl
import numpy as np
import psutil
import uvloop
from matplotlib.figure import Figure

from eagleray.core.settings import Settings
from eagleray.models.package import read_package
from eagleray.registry.registry import Registry
from tests.bench.batch import machine
from tests.bench.folders import photos_of
from tests.bench.open_loop import SentRequest, raise_priority, send_at_rate, send_in_turn
from tests.bench.peers.weights import write_weights
from tests.bench.serve import wait_until_measured
from tests.support.service import RunningService, running_service

MODEL = "resnet18"
PEAK = "peak"
CALLERS = 16
UNLOADED = 0.3  # of the peak
OVERLOADS = (3, 10)
MEGABYTE = 2**20


@dataclass
class Phase:
    """A stretch of time with one load.

    Attributes:
        name: Name in the table.
        began: Seconds since the bench began.
        seconds: Planned duration.
        sent: Requests of the phase.
        memory: (seconds since the bench began, bytes of the service).
        cores: Cores that this client used.
    """

    name: str
    began: float
    seconds: float
    sent: list[SentRequest] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    cores: float = 0.0

    @property
    def goodput(self) -> float:
        """Good responses a second."""
        return len(self.latencies(200)) / self.seconds

    def latencies(self, *statuses: int) -> list[float]:
        """Return the milliseconds of the requests that ended with a status."""
        return [1000 * item.seconds for item in self.sent if item.status in statuses]


def main() -> None:
    options = parse_options()
    bodies = bodies_of(options.photos)
    with running_resnet(options.photos, *options.ours) as service:
        raise_priority()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            phases = runner.run(go_through(service, bodies, options.seconds))
    show(phases)
    if options.plot:
        plot(phases, options.plot)


@contextlib.contextmanager
def running_resnet(photos: Path, *flags: str) -> Iterator[RunningService]:
    """Serve ResNet-18 with random weights until the end of the block, on the fastest engine."""
    with tempfile.TemporaryDirectory(prefix="bench-service-") as name:
        home = Path(name) / "home"
        package = write_weights(photos_of(photos)[:200], Path(name) / "package", "fast").package
        Registry(Settings(home=home)).register(read_package(str(package)), alias="production")
        with running_service(home, MODEL, *flags) as service:
            if "eager" not in flags:
                wait_until_measured(service.url)
            yield service


def bodies_of(photos: Path) -> list[bytes]:
    """Return the photographs to send."""
    return [photo.read_bytes() for photo in photos_of(photos)[:200]]


def predict_url(service: RunningService) -> str:
    """Return the URL of predictions."""
    return f"{service.url}/v1/models/{MODEL}/predict"


async def go_through(
    service: RunningService, bodies: Sequence[bytes], seconds: float
) -> list[Phase]:
    """Load the service in phases of increasing load."""
    url = predict_url(service)
    start = time.monotonic()
    brief = min(seconds, 30.0)
    await send_in_turn(url, bodies, connections=CALLERS, seconds=5)

    async def phase(name: str, seconds: float, sending: object) -> Phase:
        found = Phase(name, time.monotonic() - start, seconds)
        watching = asyncio.create_task(watch(service, found.memory, start))
        before = seconds_of_cores()
        found.sent = await sending  # type: ignore[misc]
        found.cores = (seconds_of_cores() - before) / (time.monotonic() - start - found.began)
        watching.cancel()
        print(f"{name}: {found.goodput:.1f}/s", flush=True)
        await asyncio.sleep(5)  # waiting requests are completed
        return found

    async def look_for_peak() -> Phase:
        turns = send_in_turn(url, bodies, connections=CALLERS, seconds=brief)
        return await phase(PEAK, brief, turns)

    peak = await look_for_peak()
    few = send_at_rate(url, bodies, rate=UNLOADED * peak.goodput, seconds=brief)
    phases = [peak, await phase(f"{UNLOADED:.0%}", brief, few)]
    for times in OVERLOADS:
        many = send_at_rate(url, bodies, rate=times * peak.goodput, seconds=seconds)
        phases.append(await phase(f"{times} times", seconds, many))
    return [*phases, await look_for_peak()]


async def watch(service: RunningService, memory: list[tuple[float, int]], start: float) -> None:
    """Note the memory of the service every second."""
    while True:
        memory.append((time.monotonic() - start, await asyncio.to_thread(service.memory)))
        await asyncio.sleep(1)


def seconds_of_cores() -> float:
    """Return what this process has used."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def show(phases: Sequence[Phase]) -> None:
    """Print the table."""
    columns = ["load", "sent/s", "good/s", "of the peak", "p50 ms", "p99 ms", "refused"]
    columns += [
        "refused p99 ms",
        "otherwise",
        "client late p99 ms",
        "client's cores",
        "MB at start",
        "MB at end",
    ]
    print(f"\n{machine()}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    peak = mean(phase.goodput for phase in phases if phase.name == PEAK)
    for phase in phases:
        good, refused = phase.latencies(200), phase.latencies(429)
        others = Counter(item.status for item in phase.sent if item.status not in (200, 429))
        late = percentile([1000 * item.late for item in phase.sent], 99)
        cells = [
            phase.name,
            f"{len(phase.sent) / phase.seconds:.0f}",
            f"{phase.goodput:.1f}",
            f"{phase.goodput / peak:.2f}",
            percentile(good, 50),
            percentile(good, 99),
            f"{len(refused):,}",
            percentile(refused, 99),
            str(dict(others) or ""),
            late,
            f"{phase.cores:.2f}",
            *(f"{phase.memory[at][1] / MEGABYTE:.0f}" for at in (0, -1)),
        ]
        print(f"| {' | '.join(cells)} |")


def percentile(values: Sequence[float], which: float) -> str:
    return f"{np.percentile(values, which):.0f}" if values else ""


def plot(phases: Sequence[Phase], path: Path) -> None:
    """Draw the sent, completed and refused requests, their latency, and the memory by second."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 6), layout="constrained")
        rates, times, memory = figure.subplots(3, 1, sharex=True)
        for number, phase in enumerate(phases):
            due = np.asarray([item.due for item in phase.sent]).astype(int)
            seconds = np.arange(int(phase.seconds))
            at = phase.began + seconds
            first = number == 0
            for status, colour, label in (
                (429, "#c0392b", "refused"),
                (200, "#2471a3", "completed"),
            ):
                chosen = np.asarray([item.status == status for item in phase.sent])
                counts = np.bincount(due[chosen], minlength=len(seconds))[: len(seconds)]
                rates.plot(at, counts, color=colour, label=label if first else None)
                spent = np.asarray([1000 * item.seconds for item in phase.sent])
                worst = [
                    np.percentile(spent[chosen & (due == second)], 99)
                    if (chosen & (due == second)).any()
                    else np.nan
                    for second in seconds
                ]
                times.plot(at, worst, color=colour, lw=1)
            memory.plot(*zip(*((t, size / MEGABYTE) for t, size in phase.memory), strict=True))
            memory.lines[-1].set_color("#555555")
            rates.text(phase.began, 1.02, phase.name, transform=rates.get_xaxis_transform())
            for axis in (rates, times, memory):
                axis.axvline(phase.began, color="#dddddd", lw=1, zorder=0)
        rates.set_ylabel("requests a second")
        rates.legend(frameon=False, loc="upper left")
        times.set_ylabel("p99, milliseconds")
        times.set_yscale("log")
        memory.set_ylabel("service, MB")
        memory.set_ylim(bottom=0)
        memory.set_xlabel("seconds")
        figure.savefig(path, dpi=110)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--photos", type=Path, required=True)
    add("--seconds", type=float, default=120, help="Of each overload.")
    add("--plot", type=Path, help="Picture to write.")
    add("--ours", nargs="*", default=[], help="Further flags of the service.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
