"""What a running service lets others reach: its sockets, what they say without a key, its files."""

from __future__ import annotations

import contextlib
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from eagleray.serving.callers.applications import Applications
from tests.support.http2 import Http2Caller
from tests.support.mlflow_database import prepare_home
from tests.support.service import RunningService, running_service
from tests.support.serving import registry_with

__all__ = [
    "LOOPBACK",
    "SAID_BY",
    "Answers",
    "Exposed",
    "Listening",
    "Made",
    "Setup",
    "answers_of",
    "exposed",
    "files_of",
    "listening_sockets",
    "outer_address",
    "setups",
    "table",
]

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
NO_ANSWER = "closed"
ASKED = "/v1/models"  # needs a key
_SECONDS = 5.0
_PARTS = {  # of the command line of a process, and what it is
    "eagleray.serve.run": "the command",
    "/haproxy": "HAProxy",
    "ServeReplica": "replica",
    "ServeController": "Ray Serve's controller",
    "gcs_server": "Ray's control store (GCS)",
    "raylet/raylet": "Ray's node manager (raylet)",
    "ray::DashboardAgent": "Ray's dashboard agent",
    "ray::RuntimeEnvAgent": "Ray's runtime environment agent",
    "autoscaler/_private/monitor.py": "Ray's autoscaler monitor",
    "log_monitor.py": "Ray's log monitor",
    "ray-dashboard-": "a part of Ray's dashboard",
    "dashboard/dashboard.py": "Ray's dashboard",
    "multiprocessing": "a helper of Ray's dashboard",
    "ray::": "a worker of Ray",
}
SAID_BY = {
    "HAProxy": {
        "HTTP/1.1": {"401", "200", NO_ANSWER},
        "HTTP/2": {"401", "200", NO_ANSWER},
        "gRPC": {"UNAUTHENTICATED", "UNIMPLEMENTED", "OK"},
        "raw": {"HTTP/1.1 400 Bad request", NO_ANSWER},
    },
}
"""What may be said without a key; 200 and OK only where callers need none."""


@dataclass(frozen=True)
class Setup:
    """A way to start a service.

    Attributes:
        host: What `--host` says.
        replicas: Number of replicas.
        batches: Whether it takes batch jobs.
        keyed: Whether there is an application, so that callers need its key.
        answers_at: Addresses of this machine at which it is to answer.
    """

    host: str
    replicas: int
    batches: bool
    keyed: bool
    answers_at: tuple[str, ...]

    @property
    def name(self) -> str:
        """Describe it in a word or two."""
        more = f"{self.replicas} replica{'s' if self.replicas > 1 else ''}"
        return f"--host {self.host}, {more}{', batches' if self.batches else ''}"


@dataclass(frozen=True)
class Listening:
    """A socket that somebody may send to.

    Attributes:
        protocol: `tcp`, `udp`, `unix`, or `abstract` for a name that is no file.
        address: IP address, path, or name.
        port: Of `tcp` and `udp`, else 0.
        owner: What process has it.
    """

    protocol: str
    address: str
    port: int
    owner: str


@dataclass(frozen=True)
class Answers:
    """What a port says to somebody without a key, by each way of asking."""

    http1: str
    http2: str
    grpc: str
    raw: str

    def by_way(self) -> dict[str, str]:
        """Return the answers by the names of the ways."""
        return {"HTTP/1.1": self.http1, "HTTP/2": self.http2, "gRPC": self.grpc, "raw": self.raw}


@dataclass(frozen=True)
class Made:
    """A file, folder or socket that a service made.

    Attributes:
        path: Where it is.
        owner: Number of the user that it belongs to.
        mode: What is allowed to whom.
        is_enclosed: Whether it is in a folder that only its owner enters, or is one.
    """

    path: Path
    owner: int
    mode: int
    is_enclosed: bool


@dataclass(frozen=True)
class Exposed:
    """A service that runs.

    Attributes:
        setup: How it was started.
        running: It.
        home: Its home folder; everybody may enter the folders above.
        user_home: The home folder of its user, and what it keeps there (`HOME`, `XDG_…`).
        key: Of its application; empty where there is none.
    """

    setup: Setup
    running: RunningService
    home: Path
    user_home: Path
    key: str

    @property
    def ports(self) -> tuple[int, int]:
        """Those of `--port` and `--grpc-port`."""
        return tuple(int(url.rpartition(":")[2]) for url in (self.running.url, self.running.grpc))  # type: ignore[return-value]

    def processes(self) -> list[psutil.Process]:
        """Return the command and all that it started, directly or not."""
        command = psutil.Process(self.running.process.pid)
        return [command, *command.children(recursive=True)]


def outer_address(family: socket.AddressFamily = socket.AF_INET) -> str | None:
    """Return an address of this machine that others may reach it by, if it has one."""
    for found in psutil.net_if_addrs().values():
        for item in found:
            address = item.address
            inner = address == "::1" or address.startswith(("127.", "fe80"))
            if item.family is family and not inner:
                return str(address)
    return None


def has_ipv6() -> bool:
    """Whether this machine speaks IPv6 at all."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as tried:
        tried.bind(("::1", 0))
        return True
    return False


def setups() -> dict[str, Setup | None]:
    """Return the ways to start a service, by name; None for those that this machine cannot."""
    outer, outer6 = outer_address(), outer_address(socket.AF_INET6)
    every4 = ("127.0.0.1", *([outer] if outer else []))
    every = (*every4, "::1", *([outer6] if outer6 else []))
    return {
        "loopback": Setup("127.0.0.1", 1, False, False, ("127.0.0.1",)),
        "address": Setup(outer, 2, True, True, (outer,)) if outer else None,
        "all of IPv4": Setup("0.0.0.0", 1, True, True, every4),
        "all": Setup("::", 2, False, True, every) if has_ipv6() else None,
    }


@contextlib.contextmanager
def exposed(setup: Setup) -> Iterator[Exposed]:
    """Run a service in folders of its own, whose parents everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="exposed-", dir="/tmp"))
    folder.chmod(0o755)
    home, user_home = folder / "home", folder / "user"
    user_home.mkdir()
    (folder / "photos").mkdir()
    try:
        prepare_home(home)
        registry = registry_with(folder, "digits", versions=1)
        key = ""
        if setup.keyed:
            key = Applications(registry.history.database, actor="tester").create("shop").key
        words = ["digits", "--engine", "eager", "--host", setup.host]
        words += ["--replicas", str(setup.replicas)]
        if setup.batches:
            words += ["--batch-inputs", str(folder / "photos")]
            words += ["--batch-outputs", str(folder / "results" / "{application}")]
        variables = {"HOME": str(user_home)}
        for kind in ("CACHE", "CONFIG", "DATA", "STATE"):
            variables[f"XDG_{kind}_HOME"] = str(user_home / kind.lower())
        with running_service(home, *words, **variables) as running:
            yield Exposed(setup, running, home, user_home, key)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def listening_sockets(service: Exposed) -> list[Listening]:
    """Return every socket of the service that somebody may send to."""
    owners = {process.pid: _what(process) for process in service.processes()}
    who: dict[tuple[str, str, int], set[str]] = {}
    for process in service.processes():
        for kind in ("tcp", "udp"):
            for item in _connections(process, kind):
                if item.laddr and (kind == "udp" or item.status == psutil.CONN_LISTEN):
                    key = (kind, item.laddr.ip, item.laddr.port)
                    who.setdefault(key, set()).add(owners.get(process.pid, _what(process)))
    # The command holds the sockets that HAProxy listens on.
    found = {
        Listening(*key, "HAProxy" if "HAProxy" in names else ", ".join(sorted(names)))
        for key, names in who.items()
    }
    inodes = {inode: owner for pid, owner in owners.items() for inode in _inodes(pid)}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split(maxsplit=7)
        accepts = int(words[3], 16) & 0x10000  # it listens
        if len(words) == 8 and accepts and words[6] in inodes:
            kind = "abstract" if words[7].startswith("@") else "unix"
            found.add(Listening(kind, words[7], 0, inodes[words[6]]))
    return sorted(found, key=lambda item: (item.protocol, item.owner, item.port, item.address))


def _connections(process: psutil.Process, kind: str) -> list[Any]:
    with contextlib.suppress(psutil.Error):
        return list(process.net_connections(kind))
    return []


def _inodes(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    yield target[8:-1]


def _what(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        words = " ".join([process.name(), *process.cmdline()])
        return next((name for word, name in _PARTS.items() if word in words), words)
    return "a process that ended"


def answers_of(item: Listening) -> Answers:
    """Return what a TCP port says to somebody without a key."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(item.address, item.address)
    host = host.removeprefix("::ffff:")
    request = f"GET {ASKED} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    first = _raw(host, item.port, request.encode())
    http1 = first.split(" ")[1] if first.startswith("HTTP/1") else first
    raw = _raw(host, item.port, b"\x16\x03\x01\x00\xff garbage\r\n\r\n")
    return Answers(http1, _http2(host, item.port), _grpc(host, item.port), raw)


def _raw(host: str, port: int, sent: bytes) -> str:
    with contextlib.suppress(OSError), socket.create_connection((host, port), _SECONDS) as caller:
        caller.sendall(sent)
        line = caller.recv(1000).partition(b"\r\n")[0]
        return line.decode() if line.isascii() and line.startswith(b"HTTP") else _kind(line)
    return NO_ANSWER


def _kind(line: bytes) -> str:
    frames = len(line) >= 9 and line[3] in (4, 7)  # it speaks HTTP/2: settings, or that it ends
    return "frames of HTTP/2" if frames else "something" if line else NO_ANSWER


def _http2(host: str, port: int) -> str:
    with contextlib.suppress(OSError), Http2Caller(port, host) as caller:
        caller.begin("GET", ASKED, ends=True)
        (response,) = caller.answers(1)
        if "grpc-status" in response:
            return f"{response[':status']}, gRPC status {response['grpc-status']}"
        return response[":status"]
    return NO_ANSWER


def _grpc(host: str, port: int) -> str:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
        try:
            call(b"", timeout=_SECONDS)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def files_of(service: Exposed) -> list[Made]:
    """Return the files, folders and sockets that the service made, or has open, anywhere."""
    roots = {service.home: service.home, service.user_home: service.user_home}
    for item in listening_sockets(service):
        if item.protocol == "unix":
            folder = Path(item.address).parent
            top = Path("/", *folder.parts[1:3])  # the folder below /tmp
            kept = folder.parent if folder.name == "sockets" else folder  # a session of Ray's
            roots[kept] = top.parent
    found: dict[Path, Made] = {}
    for folder, root in roots.items():
        for path in (folder, *folder.rglob("*")):
            _note(path, root, found)
        for above in folder.parents:
            if above == root or root not in above.parents:
                break
            _note(above, root, found)
    for process in service.processes():
        for path in _open_files(process):
            if path.parts[1] in ("tmp", "dev") and path not in found:
                _note(path, Path("/", *path.parts[1:2]), found)
    return [made for made in found.values() if not stat.S_ISLNK(made.mode)]


def _open_files(process: psutil.Process) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                path = entry.readlink()
                regular = path.is_absolute() and path.exists() and path.is_file()
                if regular and entry.stat().st_ctime > process.create_time() - 60:
                    yield path


def _note(path: Path, root: Path, found: dict[Path, Made]) -> None:
    with contextlib.suppress(FileNotFoundError):
        entry = path.lstat()
        above = [path, *(folder for folder in path.parents if root in folder.parents)]
        enclosed = any(
            stat.S_ISDIR(folder.stat().st_mode) and not folder.stat().st_mode & 0o077
            for folder in above
            if folder.exists()
        )
        found[path] = Made(path, entry.st_uid, entry.st_mode, enclosed)


def table(service: Exposed) -> Iterator[str]:
    """Yield the rows of a table in Markdown: who listens where, and what they say without a key."""
    names = dict(zip(service.ports, ("--port", "--grpc-port"), strict=True))
    rows = set()
    for item in listening_sockets(service):
        if item.protocol == "tcp":
            said = " | ".join(answers_of(item).by_way().values())
            where = f"{item.address}, {names.get(item.port, 'a port')}"
            rows.add(f"| {where} | {item.owner} | {said} |")
        elif item.protocol == "udp":
            rows.add(f"| {item.address}, UDP | {item.owner} | | | | |")
        else:
            folder = Path(item.address).parent
            is_private = any(
                not above.stat().st_mode & 0o077 for above in (folder, *folder.parents)
            )
            word = "a socket in a folder of mode 700" if is_private else item.address
            rows.add(f"| {word} | {item.owner} | | | | |")
    yield from sorted(rows)
