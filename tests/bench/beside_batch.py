"""Measures the service's latency alone, and with a batch job at full speed on the same cluster.

    make bench-beside-batch PHOTOS=folder
    python -m tests.bench.beside_batch --photos FOLDER --rate 5 --seconds 30

One replica with ResNet-18 and the workers of the job, one on each core, share a head. Requests are
sent on a fixed schedule, before the job starts and while it works.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from eagleray.core.settings import Settings
from eagleray.core.system import free_port, num_usable_cores
from eagleray.models.package import read_package
from eagleray.registry.registry import Registry
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.progress import read_progress
from tests.bench.batch import machine
from tests.bench.folders import fill_folder, photos_of
from tests.bench.open_loop import SentRequest, raise_priority, send_at_rate, send_in_turn
from tests.bench.overload import MODEL, bodies_of, predict_url
from tests.bench.peers.weights import write_weights
from tests.support.processes import end_orphans, family
from tests.support.service import running_service, until

_SECONDS_TO_WORK = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="beside-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        written = write_weights(photos_of(options.photos)[:200], folder / "weights", "fast")
        package = read_package(str(written.package))
        Registry(Settings(home=folder / "home")).register(package, alias="production")
        fill_folder(folder / "images", photos_of(options.photos), options.images)
        with running_head(folder) as (address, environment):
            words = [MODEL, "--cluster", address, "--engine", "eager"]
            with running_service(folder / "home", *words, **environment) as service:
                raise_priority()
                url, bodies = predict_url(service), bodies_of(options.photos)
                asyncio.run(send_in_turn(url, bodies, connections=2, seconds=5))
                alone = send(url, bodies, options)
                show("alone", alone)
                with running_job(folder, str(written.package), address, environment):
                    beside = send(url, bodies, options)
                    show("beside a batch job", beside)
    print(f"p99 is {p99(beside) / p99(alone):.2f} times that alone")


def send(url: str, bodies: Sequence[bytes], options: argparse.Namespace) -> list[SentRequest]:
    return asyncio.run(send_at_rate(url, bodies, rate=options.rate, seconds=options.seconds))


def p99(sent: Sequence[SentRequest]) -> float:
    return float(np.percentile([one.seconds for one in sent if one.status == 200], 99))


def show(name: str, sent: Sequence[SentRequest]) -> None:
    good = [1000 * one.seconds for one in sent if one.status == 200]
    p50, worst = np.percentile(good, 50), max(good)
    print(
        f"{name:20} p50 {p50:6.0f} ms   p99 {1000 * p99(sent):6.0f} ms   slowest {worst:6.0f} ms   "
        f"{len(sent) - len(good)} of {len(sent)} failed",
        flush=True,
    )


@contextlib.contextmanager
def running_head(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Start a head with a token; yield its address and the environment of whoever uses it."""
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "EAGLERAY_HOME": str(folder / "home"),
        "EAGLERAY_GATEWAY_SECRET": secrets.token_hex(32),
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    command += ["--node-ip-address", "127.0.0.1", "--port", address.rpartition(":")[2]]
    command += ["--num-cpus", str(num_usable_cores() + 2), "--disable-usage-stats"]
    command += ["--include-dashboard", "false", "--temp-dir", f"/tmp/ray-{secrets.token_hex(3)}"]
    with subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any("Ray runtime started" in line for line in process.stdout)
        try:
            yield address, environment
        finally:
            started = family(process.pid)
            process.send_signal(signal.SIGTERM)
            end_orphans(started, seconds=5)


@contextlib.contextmanager
def running_job(
    folder: Path, package: str, address: str, environment: dict[str, str]
) -> Iterator[None]:
    """Run a prediction on both cores; begin the block when its workers are at work."""
    output = str(folder / "out")
    command = [sys.executable, "-P", "-m", "eagleray", "predict", str(folder / "images")]
    command += ["--model", package, "--output", output, "--cluster", address]
    command += ["--workers", str(num_usable_cores()), "--engine", "eager"]
    process = subprocess.Popen(command, env={**os.environ, **environment})
    try:
        until(lambda: _num_done(output) > 0, _SECONDS_TO_WORK)
        before, began = _num_done(output), time.monotonic()
        yield
        rate = (_num_done(output) - before) / (time.monotonic() - began)
        print(f"the job predicted {rate:.1f} images/s meanwhile", flush=True)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(process.pid).kill()
        process.wait()


def _num_done(output: str) -> int:
    progress = read_progress(OutputLayout(output))
    return progress.num_done if progress else 0


if __name__ == "__main__":
    main()
