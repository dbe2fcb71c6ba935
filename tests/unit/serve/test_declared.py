"""A service that is declared to a cluster: its arguments, its secret and its gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.settings import Settings, read_settings
from eagleray.core.system import free_port
from eagleray.serve.declared import build
from eagleray.serve.gateway.join import GatewayAddress, Membership
from tests.support.gateway import Replica, until
from tests.support.serving import registry_with

SECRET = "k" * 32
ARGUMENTS: dict[str, Any] = {"gateway": "gateway:8002", "cores_per_replica": 3}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    registry_with(tmp_path, "digits")
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EAGLERAY_GATEWAY_SECRET", SECRET)
    return tmp_path / "home"


def test_replicas_get_the_declared_cores_and_always_require_keys(home: Path) -> None:
    service = {"models": ["digits"], "replicas": 2}
    deployment = build({**ARGUMENTS, "service": service})._bound_deployment
    assert deployment.ray_actor_options["num_cpus"] == 3
    assert deployment.num_replicas == 2
    config, access, gateway, num_cores = deployment.init_args
    assert (config["models"], num_cores) == (["digits"], 3)
    assert access["keyless"] is False
    assert gateway == {"join": "gateway:8002", "folder": None, "secret": SECRET}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"gateway": "gateway"}, "'gateway' must be HOST:PORT, such as eagleray-gateway:8002"),
        ({"cores_per_replica": 0}, "cores_per_replica"),
        ({"service": {"replicas": 0}}, "replicas"),
        ({"service": {"models": ["digitz"]}}, "Nearest: digits"),
        ({"replica": 2}, "replica"),
    ],
)
def test_a_wrong_declaration_is_one_sentence(
    home: Path, changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((InputError, UnknownNameError), match=sentence) as refused:
        build({**ARGUMENTS, **changed})
    assert "\n" not in str(refused.value)


def test_a_missing_or_weak_secret_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EAGLERAY_GATEWAY_SECRET")
    with pytest.raises(InputError, match=r"EAGLERAY_GATEWAY_SECRET is not set"):
        build(ARGUMENTS)
    monkeypatch.setenv("EAGLERAY_GATEWAY_SECRET", "short")
    with pytest.raises(InputError, match=r"EAGLERAY_GATEWAY_SECRET"):
        read_settings()


def test_jobs_of_callers_do_not_get_the_secret(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, gateway_secret=SECRET)
    assert SECRET not in f"{settings.as_environment()} {settings!r}"


@contextlib.contextmanager
def running_gateway(home: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "eagleray.serve.gateway.run", "--json", *words]
    process = subprocess.Popen(
        command, env=os.environ.copy(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_replica_on_another_machine_joins_the_gateway(home: Path) -> None:
    port, join_port = free_port(), free_port()
    words = ["--port", str(port), "--grpc-port", "0", "--join-port", str(join_port)]

    async def ask() -> None:
        replica = Replica("remote")
        replica.may_answer.set()
        replica.server = await asyncio.start_server(replica.response, "127.0.0.1", 0)
        host, at = replica.server.sockets[0].getsockname()
        address = f"{host}:{at}"
        gateway = GatewayAddress(f"127.0.0.1:{join_port}", None, SECRET)
        member = Membership(gateway, http=address, grpc=address)
        member.join()
        await until(lambda: member.joined)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/v2")).text == "remote"
        await member.leave()
        replica.die()

    with running_gateway(home, *words) as process:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        assert started == {
            "url": f"http://127.0.0.1:{port}",
            "grpc_port": 0,
            "join_port": join_port,
        }
        asyncio.run(ask())
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0

    with running_gateway(
        home, "--port", str(port), "--grpc-port", "0", "--join-port", str(port)
    ) as process:
        said = process.communicate(timeout=30)[1]
        assert process.returncode == 2
        assert f"Replicas cannot join at port {port} of 127.0.0.1" in said
        assert "Traceback" not in said
