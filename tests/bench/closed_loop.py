"""Measures throughput and latency with callers that wait for a response before the next request.

    make bench-closed-loop PHOTOS=folder
    python -m tests.bench.closed_loop --photos FOLDER --seconds 20 --callers 1 8 16 24 32 48 64

One replica with ResNet-18. A refused caller retries immediately, which is the
worst case. With N callers and R responses a second a response takes N / R seconds; callers are
refused if that is longer than `--max-wait-s` and the work on their own image.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from tests.bench.batch import machine
from tests.bench.open_loop import raise_priority, send_in_turn
from tests.bench.overload import Phase, bodies_of, percentile, predict_url, running_resnet
from tests.support.service import RunningService

CALLERS = (1, 8, 16, 24, 32, 48, 64)
COLUMNS = ("callers", "responses/s", "p50 ms", "p99 ms", "slowest ms", "refused", "otherwise")


def main() -> None:
    options = parse_options()
    bodies = bodies_of(options.photos)
    with running_resnet(options.photos, *options.ours) as service:
        raise_priority()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(send_in_turn(predict_url(service), bodies, connections=8, seconds=5))
            phases = [
                runner.run(measure(service, bodies, callers, options.seconds))
                for callers in options.callers
            ]
    show(phases)


async def measure(
    service: RunningService, bodies: Sequence[bytes], callers: int, seconds: float
) -> Phase:
    """Run a number of callers for some seconds."""
    began = time.monotonic()
    sent = await send_in_turn(predict_url(service), bodies, connections=callers, seconds=seconds)
    return Phase(str(callers), began, time.monotonic() - began, sent)


def show(phases: Sequence[Phase]) -> None:
    """Print the table."""
    print(f"\n{machine()}\n\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for phase in phases:
        good = phase.latencies(200)
        refused = len(phase.latencies(429))
        cells = [
            phase.name,
            f"{phase.goodput:.1f}",
            *(percentile(good, which) for which in (50, 99, 100)),
            f"{refused:,}",
            f"{len(phase.sent) - len(good) - refused:,}",
        ]
        print(f"| {' | '.join(cells)} |")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--photos", type=Path, required=True)
    add("--seconds", type=float, default=20, help="For each number of callers.")
    add("--callers", type=int, nargs="*", default=CALLERS, help="How many, one after the other.")
    add("--ours", nargs="*", default=[], help="Further flags of the service.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
