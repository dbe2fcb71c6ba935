"""Kills and stops every process of a running service under steady load.

    make chaos-serve
    python -m tests.chaos.serving_faults --processes replica,raylet --signals KILL --rate 10

The command runs two replicas. Requests arrive at a fixed rate over HTTP and gRPC, and none is sent
twice. One process at a time is killed (SIGKILL), or stopped and continued (SIGSTOP, SIGCONT); the
command is also ended (SIGTERM) while it handles long requests. A row is printed for each: the
results of the requests, the message of the command and its time, and the exit code if it ended. A
service that continues must still work afterwards: a promoted version is served by both
replicas, and SIGHUP replaces them. The exit status is 1 if a target was missed.

There is no proxy of Ray Serve and no manager of HAProxy to attack: the command itself listens, and
keeps HAProxy running.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from eagleray.registry.registry import Registry
from tests.chaos.serving_load import Load, request_prediction, steady_load
from tests.support.models import golden_png
from tests.support.processes import end_orphans, family
from tests.support.service import RunningService, running_service
from tests.support.serving import registry_with

MODEL, IMAGE = "digits", golden_png(7)
PROCESSES = {
    "haproxy": "haproxy",
    "controller": "ray::ServeController",
    "replica": "ray::ServeReplica",
    "gcs": "gcs_server",
    "raylet": "raylet",
    "agent": "ray::RuntimeEnvAgent",
    "command": "",
}
"""The attacked processes, and the beginnings of their names."""

SIGNALS = ("STOP", "KILL", "TERM")  # those that the command survives come first
_SECONDS_TO_RECOVER = 120.0
_SECONDS_TO_END = 90.0  # of the command's processes, after its end
_SECONDS_TO_FINISH = 60.0  # of the command, after SIGTERM
_SLOW = 9.0  # seconds of a request that is completed although the service ends
_NUM_SLOW = 4
_QUIET = 2.0  # seconds of load before a fault


@dataclass(frozen=True)
class Target:
    """Limits on the effects of a fault.

    Attributes:
        failed: Maximum number of failed requests; None for any number.
        gap: Maximum time without a good response, in seconds.
        slowest: Maximum time of a good response, in seconds.
        ends: Whether the command ends.
        says: Whether the command prints a message.
        orderly: Whether its exit code is 0, and not another.
        gone: Maximum time until its processes have ended too, in seconds.
    """

    failed: int | None = 0
    gap: float = 2.0
    slowest: float = 2.0
    ends: bool = False
    says: bool = False
    orderly: bool = False
    gone: float = 5.0


_CONTINUES = Target()
_ENDS = Target(failed=None, ends=True, says=True)
TARGETS = {
    # Requests in progress break with the connections of HAProxy.
    ("haproxy", "KILL"): Target(failed=None, gap=3.0, slowest=3.0, says=True),
    ("haproxy", "STOP"): Target(failed=None, gap=3.0, slowest=3.0, says=True),
    ("replica", "KILL"): Target(says=True),
    ("gcs", "KILL"): _ENDS,
    ("raylet", "KILL"): _ENDS,
    ("agent", "KILL"): _ENDS,  # the raylet ends with it
    # Two of Ray's agents wait a minute for its control store before they end.
    ("command", "KILL"): Target(failed=None, ends=True, gone=75.0),
    # Later requests are refused with Retry-After, and are not counted.
    ("command", "TERM"): Target(ends=True, orderly=True),
}


@dataclass
class Outcome:
    """Effects of a fault.

    Attributes:
        kind: Kind of the attacked process.
        signal: Name of the signal.
        requests: Number of requests sent after the fault, or in progress then.
        failed: Number of failures by error.
        gap: Longest time without a good response, in seconds.
        slowest: Longest time that a good response took, in seconds.
        said: Seconds until the command's first message, and the message.
        rotation: Seconds after the fault, and the replicas that HAProxy used from then on.
        ended: The exit code of the command and the seconds until its end; None while it runs.
        gone: Seconds between its end and that of the last of its processes.
        left: Names of the processes that did not end.
        missed: Missed targets.
    """

    kind: str
    signal: str
    requests: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    gap: float = 0.0
    slowest: float = 0.0
    said: tuple[float, str] | None = None
    rotation: list[tuple[float, int]] = field(default_factory=list)
    ended: tuple[int, float] | None = None
    gone: float = 0.0
    left: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def compare(self, target: Target) -> None:
        """Compare the effects with the target."""
        num_failed = self.failed.total()
        if target.failed is not None and num_failed > target.failed:
            self.missed.append(f"{num_failed} requests failed, of at most {target.failed}")
        if target.says and self.said is None:
            self.missed.append("the command printed no message")
        if target.ends != (self.ended is not None):
            self.missed.append("the command continues" if target.ends else "the command ended")
        if self.ended is not None:
            if target.orderly != (self.ended[0] == 0):
                self.missed.append(f"the command ended with exit code {self.ended[0]}")
            if self.gone > target.gone:
                self.missed.append(
                    f"its processes continued for {self.gone:.1f} s, of {target.gone:g}"
                )
            if self.left:
                self.missed.append(f"of its processes were left: {', '.join(self.left)}")
            return
        if self.gap > target.gap:
            self.missed.append(f"{self.gap:.2f} s without a good response, of {target.gap:g}")
        if self.slowest > target.slowest:
            self.missed.append(f"a response took {self.slowest:.2f} s, of {target.slowest:g}")


def main() -> None:
    options = parse_options()
    attacks = [
        (kind, name)
        for name in options.signals
        for kind in options.processes
        if name != "TERM" or kind == "command"
    ]
    outcomes: list[Outcome] = []
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-serve-") as name:
        folder = Path(name)
        registry = registry_with(folder, MODEL, versions=2)
        while attacks:
            with service_to_attack(folder, options.replicas) as service:
                while attacks and service.process.poll() is None:
                    outcome = asyncio.run(attack(options, registry, service, *attacks.pop(0)))
                    outcome.compare(TARGETS.get((outcome.kind, outcome.signal), _CONTINUES))
                    print(row_of(outcome), flush=True)
                    outcomes.append(outcome)
    for outcome in outcomes:
        for missed in outcome.missed:
            print(f"MISSED: {outcome.kind}, {outcome.signal}: {missed}.")
    sys.exit(1 if any(outcome.missed for outcome in outcomes) else 0)


@contextlib.contextmanager
def service_to_attack(folder: Path, replicas: int) -> Iterator[RunningService]:
    """Run a service with a configuration file; it may fetch images from this machine."""
    write_config(folder, number=0)
    words = [
        "--config",
        str(config_in(folder)),
        "--replicas",
        str(replicas),
        "--worker-threads",
        "1",
    ]
    words += ["--engine", "eager", "--poll-interval-s", "0.5"]
    with running_service(folder / "home", MODEL, *words) as service:
        yield service


def config_in(folder: Path) -> Path:
    return folder / "service.yaml"


def write_config(folder: Path, *, number: int) -> None:
    """Write a configuration that differs from others without an effect on callers."""
    lines = [
        f"max_queued: {256 + number}",
        'allow_urls: ["127.0.0.1:*"]',
        'private_networks: ["127.0.0.0/8"]',
        "timeout_s: 30",
    ]
    config_in(folder).write_text("\n".join(lines))


# --- one attack -----------------------------------------------------------------------------------


async def attack(
    options: argparse.Namespace, registry: Registry, service: RunningService, kind: str, name: str
) -> Outcome:
    """Send a signal to a process, and record its effects until the service recovers or ends."""
    outcome = Outcome(kind, name)
    await until(lambda: in_rotation(service) == options.replicas)
    victim = find(service, kind)
    members = [psutil.Process(service.process.pid), *family(service.process.pid)]
    load_of = steady_load(service, MODEL, IMAGE, rate=options.rate, grpc_rate=options.grpc_rate)
    async with load_of as load:
        slow = asyncio.create_task(send_slowly(service, load)) if name == "TERM" else None
        await asyncio.sleep(_QUIET)
        began = time.monotonic()
        watching = asyncio.create_task(watch(service, outcome, began))
        victim.send_signal(getattr(signal, f"SIG{name}"))
        if name == "STOP":
            await let_pass(service, options.stopped)
            with contextlib.suppress(psutil.NoSuchProcess):  # it may have been replaced
                victim.send_signal(signal.SIGCONT)
        waits_for_end = slow is not None or TARGETS.get((kind, name), _CONTINUES).ends
        await let_pass(service, _SECONDS_TO_FINISH if waits_for_end else options.after)
        end = time.monotonic()
        if service.process.poll() is None:
            watching.cancel()
            outcome.missed += await recover(registry, service, load, options.replicas)
        else:
            await watching
        if slow is not None:
            await slow
    seen = load.under_way(began) if slow else load.during(began, end)
    outcome.requests, outcome.failed = len(seen.sent), seen.failures()
    if slow and outcome.requests < _NUM_SLOW:
        outcome.missed.append("no slow request was under way")
    outcome.gap, outcome.slowest = seen.longest_gap(began, end), seen.slowest()
    if (afterwards := load.during(end, time.monotonic()).failures()) and outcome.ended is None:
        outcome.missed.append(f"afterwards requests failed: {dict(afterwards)}")
    if outcome.ended is not None:
        await_ends(outcome, members)
        if is_reached(service):
            outcome.missed.append("its port still takes connections")
    return outcome


async def send_slowly(service: RunningService, load: Load) -> None:
    """Send some requests for images that a server of this process sends slowly."""

    async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(_SLOW)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(IMAGE) + IMAGE)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(give, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    body = {"images": [{"url": f"http://{host}:{port}/a.png"}]}
    async with server, httpx.AsyncClient(base_url=service.url, timeout=60) as client:
        sending = [
            load.record(lambda: request_prediction(client, MODEL, json=body))
            for _ in range(_NUM_SLOW)
        ]
        await asyncio.gather(*sending)


def await_ends(outcome: Outcome, processes: Sequence[psutil.Process]) -> None:
    """Record the end of processes, and end those that remain after a long time."""
    began = time.monotonic()
    _, left = psutil.wait_procs(processes, timeout=_SECONDS_TO_END)
    outcome.gone = time.monotonic() - began
    outcome.left = [process.name() for process in left if process.is_running()]
    end_orphans(left, seconds=0)


def find(service: RunningService, kind: str) -> psutil.Process:
    """Return a process by its kind; the newest of several."""
    command = psutil.Process(service.process.pid)
    if kind == "command":
        return command
    found = []
    for process in command.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            title = (process.cmdline() or [""])[0]
            if PROCESSES[kind] in (process.name(), title) or title.startswith(
                PROCESSES[kind] + ":"
            ):
                found.append(process)
    return max(found, key=psutil.Process.create_time)


async def watch(service: RunningService, outcome: Outcome, began: float) -> None:
    """Record the command's message and end, and the number of replicas that HAProxy uses."""
    place = service.log.stat().st_size
    while True:
        seconds = time.monotonic() - began
        if outcome.said is None and (said := first_line(service.log, place)):
            outcome.said = (seconds, said)
        using = in_rotation(service)
        if using >= 0 and (not outcome.rotation or outcome.rotation[-1][1] != using):
            outcome.rotation.append((seconds, using))
        if (code := service.process.poll()) is not None:
            outcome.ended = (code, seconds)
            return
        await asyncio.sleep(0.05)


def first_line(log: Path, place: int) -> str:
    """Return the first line that was written to a log after a place."""
    with log.open("rb") as file:
        file.seek(place)
        return next((line.strip() for line in file.read().decode().splitlines() if line), "")


async def let_pass(service: RunningService, seconds: float) -> None:
    """Wait, unless the command ends."""
    with contextlib.suppress(TimeoutError):
        await until(lambda: service.process.poll() is not None, seconds)


async def until(condition: Callable[[], bool], seconds: float = _SECONDS_TO_RECOVER) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


# --- recovery -------------------------------------------------------------------------------------


async def recover(
    registry: Registry, service: RunningService, load: Load, replicas: int
) -> list[str]:
    """Check that the service still works, and return what fails.

    Args:
        registry: Registry with the model.
        service: Service after a fault.
        load: Continuing load.
        replicas: Expected number of replicas.
    """

    async def is_served(version: int) -> None:
        await asyncio.to_thread(registry.set_alias, MODEL, "production", version)
        await until(lambda: {item.version for item in load.sent[-10:] if item.version} == {version})

    async def replace() -> None:
        old = {replica.pid for replica in service.replicas()}
        write_config(service.log.parent.parent, number=int(time.time()) % 10_000)
        service.process.send_signal(signal.SIGHUP)
        await until(lambda: not old & {replica.pid for replica in service.replicas()})
        await until(lambda: in_rotation(service) == replicas)

    missed = []
    steps: dict[str, Callable[[], Awaitable[None]]] = {
        "not all replicas are back": lambda: until(lambda: in_rotation(service) == replicas),
        "a promoted version is not served": lambda: is_served(2),
        "SIGHUP does not replace the replicas": replace,
        "the version before is not served again": lambda: is_served(1),
    }
    for what, step in steps.items():
        try:
            await step()
        except TimeoutError:
            missed.append(what)
    return missed


def in_rotation(service: RunningService) -> int:
    """Return the number of replicas that HAProxy uses; -1 if unknown."""
    try:
        process = find(service, "haproxy")
        words = process.cmdline()
        with socket.socket(socket.AF_UNIX) as sending:
            sending.settimeout(0.2)
            sending.connect(str(Path(words[words.index("-f") + 1]).with_suffix(".sock")))
            sending.sendall(b"show stat\n")
            response = b"".join(iter(lambda: sending.recv(65536), b"")).decode()
    except (OSError, ValueError, psutil.Error):
        return -1
    rows = csv.DictReader(response.removeprefix("# ").splitlines())
    return sum(
        row["pxname"] == "replicas"
        and row["svname"] != "BACKEND"
        and row["status"].startswith(("UP", "no check"))
        for row in rows
    )


def is_reached(service: RunningService) -> bool:
    """Whether the service's address accepts connections."""
    host, _, port = service.url.removeprefix("http://").rpartition(":")
    with socket.socket() as caller:
        return caller.connect_ex((host, int(port))) == 0


# --- output ---------------------------------------------------------------------------------------

COLUMNS = (
    *("process", "signal", "requests", "failed", "longest gap", "slowest response"),
    *("replicas in use", "message after", "message", "exit code", "processes left"),
)


def row_of(outcome: Outcome) -> str:
    """Return a line of the table."""
    after, said = outcome.said or (None, "")
    cells = [
        outcome.kind,
        outcome.signal,
        str(outcome.requests),
        ", ".join(f"{count} {what}" for what, count in outcome.failed.items()) or "0",
        "" if outcome.ended else f"{outcome.gap:.2f} s",
        f"{outcome.slowest:.2f} s",
        ", ".join(f"{count} ({seconds:.1f} s)" for seconds, count in outcome.rotation),
        "" if after is None else f"{after:.1f} s",
        said,
        "" if outcome.ended is None else f"{outcome.ended[0]} after {outcome.ended[1]:.1f} s",
        "" if outcome.ended is None else f"{len(outcome.left)} after {outcome.gone:.1f} s",
    ]
    return f"| {' | '.join(cells)} |"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
        def names(text: str) -> list[str]:
            chosen = text.split(",")
            if unknown := set(chosen) - set(known):
                raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is not among them")
            return chosen

        return names

    add = parser.add_argument
    add(
        "--processes",
        type=some_of(list(PROCESSES)),
        default=list(PROCESSES),
        help=",".join(PROCESSES),
    )
    add("--signals", type=some_of(SIGNALS), default=list(SIGNALS), help=",".join(SIGNALS))
    add("--replicas", type=int, default=2)
    add("--rate", type=float, default=15, help="HTTP requests a second.")
    add("--grpc-rate", type=float, default=3, help="gRPC calls a second.")
    add("--stopped", type=float, default=20, help="Seconds until a stopped process continues.")
    add("--after", type=float, default=10, help="Seconds of load recorded after that.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
