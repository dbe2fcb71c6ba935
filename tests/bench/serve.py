"""The service side by side with LitServe, plain FastAPI and Ray Serve's documented example.

    make bench-serve PHOTOS=folder
    python -m tests.bench.serve --photos FOLDER --rounds 3 --seconds 20 --connections 16

Each server runs alone, in turns, on the same cores, with the same weights, ours also quantized; wrk
sends real photographs over a number of connections, each of which waits for its response. Requests
a second and latencies are medians over rounds. For ours, the mean times of the stages of a request
are printed too, from its own metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eagleray.core.settings import Settings
from eagleray.core.system import free_port
from eagleray.models.package import read_package
from eagleray.registry.registry import Registry
from tests.bench.batch import machine
from tests.bench.folders import photos_of
from tests.bench.peers.environment import peers_python
from tests.bench.peers.weights import write_weights
from tests.bench.quantized import write_int8

MODEL, OURS = "resnet18", "Eagleray"
SECONDS_TO_START = 180
WAIT_FOR_ALL = 10  # seconds
WRK_SCRIPT = """
local bodies, files = {}, io.popen("ls PHOTOS")
for name in files:lines() do
  local file = io.open("PHOTOS/" .. name, "rb")
  bodies[#bodies + 1] = file:read("*all")
  file:close()
end
local kind, field = "application/octet-stream", "FIELD"
if field ~= "" then
  kind = "multipart/form-data; boundary=b0b"
  local head = '--b0b\\r\\nContent-Disposition: form-data; name="' .. field
  for number, body in ipairs(bodies) do
    bodies[number] = head .. '"; filename="a.jpg"\\r\\n\\r\\n' .. body .. "\\r\\n--b0b--\\r\\n"
  end
end
local number = math.random(#bodies)
request = function()
  number = number % #bodies + 1
  return wrk.format("POST", nil, {["content-type"] = kind}, bodies[number])
end
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %f %f %f\\n", summary.requests,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """Measurements of wrk.

    Attributes:
        rate: Predictions a second.
        failed: Number of requests without a good response.
        p50: Median latency in milliseconds.
        p99: 99th percentile of the latency in milliseconds.
    """

    rate: float
    failed: int
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Server:
    """A server to measure.

    Attributes:
        name: Name in the table.
        command: Command without the port.
        path: Path of predictions.
        home: Home folder, with the registry of ours.
        field: Form field of the image; empty if the image is the whole body.
    """

    name: str
    command: Sequence[str]
    path: str
    home: Path
    field: str = ""


def main() -> None:
    options = parse_options()
    if shutil.which("wrk") is None:
        sys.exit("This bench needs wrk: apt-get install wrk.")
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as name:
        folder = Path(name)
        photos = photos_of(options.photos)[: options.images]
        place = folder / "photos"
        place.mkdir()
        for index, photo in enumerate(photos):
            (place / f"{index:04d}.jpg").symlink_to(photo.resolve())
        weights = write_weights(photos, folder / "package", options.contract)
        home = folder / "home"
        register(home, weights.package)
        python = peers_python(options.peers.resolve())
        int8_home = folder / "int8-home"
        if not options.no_int8:
            register(int8_home, write_int8(weights, options.photos.resolve(), folder / "int8"))
        servers = servers_of(options, python, str(weights.file), home, int8_home)
        loads: dict[str, list[Load]] = {server.name: [] for server in servers}
        shares: dict[str, float] = {}
        for number in range(options.rounds):
            for server in servers[number % len(servers) :] + servers[: number % len(servers)]:
                script = folder / "post.lua"
                script.write_text(
                    WRK_SCRIPT.replace("PHOTOS", str(place)).replace("FIELD", server.field)
                )
                with running(server) as url:
                    warm = run_wrk(url, script, options.warm_up, options.connections)
                    if not warm.rate:
                        sys.exit(
                            f"{server.name} gave no good response; see {server.home}/server.log."
                        )
                    load = run_wrk(url, script, options.seconds, options.connections)
                    if server.name == servers[0].name:
                        shares = stage_milliseconds(url)
                loads[server.name].append(load)
                print(f"round {number + 1}, {server.name}: {load}", flush=True)
        show(servers, loads, shares, options)


def register(home: Path, package: Path) -> None:
    """Put the package into production in a registry of its own."""
    Registry(Settings(home=home)).register(read_package(str(package)), alias="production")


def servers_of(
    options: argparse.Namespace, python: Path, weights: str, home: Path, int8_home: Path
) -> list[Server]:
    """Return ours first, then the selected peers."""
    ours = [sys.executable, "-m", "eagleray.serve.run", MODEL, "--grpc-port", "0", "--json"]
    # The others never refuse a request.
    ours += ["--max-wait-s", str(WAIT_FOR_ALL), *options.ours]
    peers = {
        "LitServe": "serve_litserve",
        "FastAPI": "serve_fastapi",
        "Ray Serve's example": "serve_ray",
    }
    path = f"/v1/models/{MODEL}/predict"
    found = [Server(OURS, ours, path, home)]
    if not options.no_int8:
        found.append(Server(f"{OURS} int8", ours, path, int8_home))
    for name, module in peers.items():
        if options.only and name not in options.only:
            continue
        command = [str(python), "-m", f"tests.bench.peers.{module}", "--weights", weights]
        field = "request" if name == "LitServe" else ""
        found.append(Server(name, command, "/predict", home, field))
    return found


@contextlib.contextmanager
def running(server: Server) -> Iterator[str]:
    """Run a server, and yield the URL of predictions once it responds."""
    port = free_port()
    environment = {**os.environ, "EAGLERAY_HOME": str(server.home), "RAY_USAGE_STATS_ENABLED": "0"}
    log = (server.home / "server.log").open("w")
    process = subprocess.Popen(
        [*server.command, "--port", str(port)],
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url + server.path, process)
        if server.name.startswith(OURS):
            wait_until_measured(url)
        yield url + server.path
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(2)  # what it started ends too


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server responds with neither 404 nor 503."""
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        if process.poll() is not None:
            sys.exit(f"A server ended with {process.returncode}; see its log.")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as error:
            if error.code not in (404, 503):
                return
            time.sleep(0.2)
        except OSError:
            time.sleep(0.2)
    sys.exit(f"{url} does not respond.")


def wait_until_measured(url: str) -> None:
    """Wait until our service runs on the fastest engine, as it will have for most of its life."""
    end = time.monotonic() + 400
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{url}/v1/models/{MODEL}", timeout=10) as response:
            reports = json.load(response)["in_memory"]
        if reports and all(report["measured"] for report in reports):
            return
        time.sleep(1)
    sys.exit("The engines were not measured in time.")


def run_wrk(url: str, script: Path, seconds: int, connections: int) -> Load:
    """Run wrk, and return its measurements."""
    command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s"]
    command += ["--timeout", "30s", "-s", str(script), url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"RESULT (\d+) (\d+) ([\d.]+) ([\d.]+) ([\d.]+)", output)
    assert match, output
    requests, failed, duration, p50, p99 = map(float, match.groups())
    return Load((requests - failed) / duration, int(failed), p50, p99)


def stage_milliseconds(url: str) -> dict[str, float]:
    """Return the mean milliseconds of a request in each stage, from our metrics."""
    root = url.partition("/v1/")[0]
    with urllib.request.urlopen(root + "/metrics", timeout=10) as response:
        text = response.read().decode()

    def mean(name: str, labels: str) -> float:
        values = {
            line.partition("{")[0]: float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if labels in line
        }
        return 1000 * values[f"{name}_sum"] / values[f"{name}_count"]

    stages = {
        stage: mean("eagleray_stage_seconds", f'{{model="{MODEL}",stage="{stage}"}}')
        for stage in ("queue", "decode", "forward")
    }
    whole = mean("eagleray_request_seconds", f'{{model="{MODEL}",version="1"}}')
    return {**stages, "service": whole}


def show(
    servers: Sequence[Server],
    loads: dict[str, list[Load]],
    shares: dict[str, float],
    options: argparse.Namespace,
) -> None:
    """Print the table."""
    print(f"\n{machine()}\n{options.connections} connections, {options.rounds} rounds\n")
    columns = ["server", "requests/s", "p50 ms", "p99 ms", "failed", "ours is faster"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    ours = statistics.median(load.rate for load in loads[servers[0].name])
    for server in servers:
        found = loads[server.name]
        rate = statistics.median(load.rate for load in found)
        p50 = statistics.median(load.p50 for load in found)
        p99 = statistics.median(load.p99 for load in found)
        failed = sum(load.failed for load in found)
        ratio = "" if server is servers[0] else f"{ours / rate:.2f} times"
        print(f"| {server.name} | {rate:.1f} | {p50:.0f} | {p99:.0f} | {failed} | {ratio} |")
    print("\nMean milliseconds of a request of ours: " + json.dumps(shares))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--photos", type=Path, required=True)
    add("--images", type=int, default=200, help="Different photographs.")
    add("--rounds", type=int, default=3)
    add("--seconds", type=int, default=20, help="Of a measurement.")
    add("--warm-up", type=int, default=5, help="Seconds before it.")
    add("--connections", type=int, default=16)
    add("--contract", default="fast", help="Of our package; the peers have one of their own.")
    add("--no-int8", action="store_true", help="Leave our int8 version out.")
    add("--only", nargs="*", help="Peers that take part.")
    add("--ours", nargs="*", default=[], help="Further flags of ours.")
    add("--peers", type=Path, default=Path(".venv-peers"), help="Environment of the peers.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
