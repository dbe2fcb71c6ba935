"""What a running service lets others reach: every socket and file, for strangers and neighbours.

For each way to listen the service is started by its command, and probed from outside.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from tests.support.exposure import (
    LOOPBACK,
    SAID_BY,
    Answers,
    Exposed,
    Listening,
    answers_of,
    exposed,
    files_of,
    listening_sockets,
    outer_address,
    setups,
)

NEIGHBOUR = 65_534  # a user of the machine who has nothing to do with the service
RAYS = {
    "Ray's autoscaler monitor",
    "Ray's dashboard agent",
    "Ray's dashboard",
    "Ray's runtime environment agent",
    "Ray Serve's controller",
    "Ray's control store (GCS)",
    "Ray's node manager (raylet)",
    "replica",  # as a worker of Ray
    "the command",  # as one, too
}
"""Who has ports of Ray's, all of them on loopback."""
COUNTERS = {"Ray's autoscaler monitor", "Ray's dashboard"}
"""Who tells everybody on this machine counters of what Ray's processes use."""
RAYS_METHODS = [
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVPut",
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "/ray.rpc.NodeManagerService/ShutdownRaylet",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.CoreWorkerService/KillActor",
]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("loopback", marks=pytest.mark.long),
        pytest.param("address", marks=pytest.mark.long),
        pytest.param("all of IPv4", marks=pytest.mark.long),
        "all",
    ],
)
def service(request: pytest.FixtureRequest) -> Iterator[Exposed]:
    setup = setups()[request.param]
    if setup is None:
        pytest.skip(f"this machine has no address for: {request.param}")
    with exposed(setup) as running:
        yield running


@pytest.fixture(scope="module")
def sockets(service: Exposed) -> list[Listening]:
    return listening_sockets(service)


@pytest.fixture(scope="module")
def responses(sockets: list[Listening]) -> dict[Listening, Answers]:
    return {item: answers_of(item) for item in sockets if item.protocol == "tcp"}


def test_only_the_ports_of_the_service_are_off_loopback(
    service: Exposed, sockets: list[Listening]
) -> None:
    ours = {(item.address, item.port) for item in sockets if item.owner == "HAProxy" and item.port}
    assert ours == {(service.setup.host, port) for port in service.ports}
    others = [item for item in sockets if item.port and (item.address, item.port) not in ours]
    assert [item for item in others if item.address not in LOOPBACK] == []
    assert {item.owner for item in others} <= RAYS
    assert [item for item in sockets if item.protocol in ("udp", "abstract")] == []


def test_the_service_is_reached_at_exactly_the_configured_addresses(service: Exposed) -> None:
    every = ["127.0.0.1", "::1", outer_address(), outer_address(socket.AF_INET6)]
    http, grpc_port = service.ports
    found = []
    for address in filter(None, every):
        host = f"[{address}]" if ":" in address else address
        lives = [_says(f"http://{host}:{http}"), _lives(f"{host}:{grpc_port}")]
        assert lives[0] == lives[1], address
        found += [address] if lives[0] else []
    assert tuple(found) == tuple(a for a in every if a in service.setup.answers_at)


def _says(url: str) -> bool:
    try:
        return httpx.get(f"{url}/live", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _lives(address: str) -> bool:
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=5)
        except grpc.RpcError:
            return False
    return True


def test_the_services_ports_want_a_key_by_every_protocol(
    service: Exposed, responses: dict[Listening, Answers]
) -> None:
    http, grpc_port = service.ports
    by_port = {item.port: said for item, said in responses.items() if item.owner == "HAProxy"}
    assert by_port.keys() == {http, grpc_port}
    if service.setup.keyed:
        assert by_port[http].http1 == by_port[http].http2 == "401"
        assert by_port[grpc_port].grpc == "UNAUTHENTICATED"
        assert by_port[http].grpc == "UNAUTHENTICATED"
    else:  # whoever is on this machine is let in
        assert by_port[http].http1 == by_port[http].http2 == "200"
        assert by_port[grpc_port].grpc == "OK"
    assert by_port[http].raw in SAID_BY["HAProxy"]["raw"]
    assert by_port[grpc_port].raw == by_port[grpc_port].http1 == "closed"


def test_rays_ports_reveal_nothing_of_the_service_and_accept_no_commands(
    responses: dict[Listening, Answers],
) -> None:
    for item, said in responses.items():
        if item.owner == "HAProxy":
            continue
        if item.owner in COUNTERS and said.http1 == "200":
            page = httpx.get(f"http://127.0.0.1:{item.port}/metrics", trust_env=False).text
            assert "# HELP" in page
            assert "digits" not in page
        else:
            assert said.http1 in ("401", "403", "404", "closed", "frames of HTTP/2"), (item, said)
        assert said.grpc in ("UNAVAILABLE", "UNIMPLEMENTED", "UNAUTHENTICATED"), (item, said)
        for method in RAYS_METHODS if said.grpc != "UNAVAILABLE" else ():
            channel = grpc.insecure_channel(f"127.0.0.1:{item.port}")
            with channel, pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(method)(b"", timeout=5)
            code = refused.value.code()
            assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED), item


def test_the_token_of_ray_is_enforced_by_those_that_have_its_methods(
    responses: dict[Listening, Answers],
) -> None:
    """So that the test above does not pass because every method is called something else now."""
    refusing = set()
    for item in responses:
        for method in RAYS_METHODS:
            with grpc.insecure_channel(f"127.0.0.1:{item.port}") as channel:
                try:
                    channel.unary_unary(method)(b"", timeout=5)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                        refusing.add(item.owner)
    assert {"Ray's control store (GCS)", "Ray's node manager (raylet)", "replica"} <= refusing


def test_nothing_that_was_made_can_be_changed_by_others(service: Exposed) -> None:
    made = files_of(service)
    assert len(made) > 50
    assert {item.owner for item in made} == {os.getuid()}
    open_to_others = [
        f"{stat.filemode(item.mode)} {item.path}"
        for item in made
        if not item.is_enclosed and item.mode & 0o022
    ]
    assert open_to_others == []


def test_sockets_and_logs_are_in_folders_that_only_their_owner_enters(
    service: Exposed, sockets: list[Listening]
) -> None:
    made = {item.path: item for item in files_of(service)}
    unix = [Path(item.address) for item in sockets if item.protocol == "unix"]
    assert len(unix) >= 5
    assert [path for path in unix if not _is_enclosed(path)] == []
    logs = [item for path, item in made.items() if path.suffix in (".jsonl", ".log")]
    of_service = [item for item in logs if "logs/serve" in str(item.path)]
    assert len(of_service) >= 2 + service.setup.replicas
    assert [item.path for item in of_service if not item.is_enclosed] == []


def _is_enclosed(path: Path) -> bool:
    return any(not folder.stat().st_mode & 0o077 for folder in path.parents)


def test_the_arguments_of_processes_which_all_may_read_hold_no_secrets(service: Exposed) -> None:
    secrets = {service.key} - {""}
    for process in service.processes():
        secrets |= {
            value for name, value in process.environ().items() if name == "RAY_AUTH_TOKEN" and value
        }
    assert secrets
    for process in service.processes():
        words = " ".join(process.cmdline())
        assert not any(secret in words for secret in secrets), process


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_user_of_the_machine_is_refused_everywhere(
    service: Exposed, sockets: list[Listening]
) -> None:
    unix = [Path(item.address) for item in sockets if item.protocol == "unix"]
    logs = [item.path for item in files_of(service) if "logs/serve" in str(item.path)]
    sessions = {path.parent.parent for path in unix if path.parent.name == "sockets"}
    tried: dict[str, Callable[[], object]] = {}
    for path in unix:
        tried[f"connect to {path}"] = partial(_connect, path)
        tried[f"replace {path}"] = path.unlink
    for path in logs:
        tried[f"read {path}"] = partial(os.listdir, path) if path.is_dir() else path.open
    for folder in (*sessions, *{path.parent for path in unix}):
        tried[f"list {folder}"] = partial(os.listdir, folder)
        tried[f"write in {folder}"] = (folder / "planted").touch
    for folder in (service.home, service.home / "logs", service.home / "artifacts"):
        tried[f"write in {folder}"] = (folder / "planted").touch
    for name in ("mlflow.db", "eagleray.db"):
        tried[f"change {name}"] = partial((service.home / name).open, "ab")
    for process in service.processes():
        environment = Path(f"/proc/{process.pid}/environ")
        tried[f"read {environment}"] = environment.read_bytes
    assert len(tried) > 30
    assert len(sessions) == 1
    outcomes = _as_neighbour(tried)
    assert {what: said for what, said in outcomes.items() if said != "PermissionError"} == {}


def _connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))


def _as_neighbour(tried: dict[str, Callable[[], object]]) -> dict[str, str]:
    """Try each as another user, in a process of its own; return the kinds of the errors."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        outcomes: dict[str, Any] = {}
        try:
            os.setgroups([])
            os.setgid(NEIGHBOUR)
            os.setuid(NEIGHBOUR)
            for what, attempt in tried.items():
                try:
                    attempt()
                except OSError as error:
                    outcomes[what] = type(error).__name__
                else:
                    outcomes[what] = "it is let in"
        finally:
            with os.fdopen(writing, "w") as pipe:
                json.dump(outcomes, pipe)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said: dict[str, str] = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert said.keys() == tried.keys()
    return said
