"""The gateway with a real HAProxy, before replicas that are small servers of this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path

import grpc
import httpx
import pytest

from eagleray.serve.gateway.join import CALLER, SECRET, RequireGateway
from tests.support.gateway import LIMITS, PREDICT, Replica, Running, run, until


def test_a_replica_gets_the_number_of_refusals_which_callers_cannot_forge(tmp_path: Path) -> None:
    async def test(running: Running, replica: Replica) -> None:
        claims = {"x_eagleray_refused": "1000", "x_eagleray_caller": "9.9.9.9"}
        replica.may_answer.set()
        assert (await running.predict(**claims)).status_code == 200  # now the room is known
        replica.may_answer.clear()
        replica.requested.clear()
        held = asyncio.create_task(running.predict(**claims))
        await replica.requested.wait()
        refused = [(await running.predict(**claims)).status_code for _ in range(3)]
        assert refused == [429, 429, 429]
        replica.may_answer.set()
        assert (await held).status_code == 200
        assert (await running.client.get("/metrics")).status_code == 200
        assert (await running.predict(**claims)).status_code == 200
        heard = [head.get("x-eagleray-refused", "") for head in replica.heads]
        assert heard == ["", "", "3", ""]
        assert {head[CALLER] for head in replica.heads} == {"127.0.0.1"}
        assert {head[SECRET] for head in replica.heads} == {running.address.secret.lower()}

    run(tmp_path, test, "one")


def test_a_place_that_becomes_free_within_a_moment_is_waited_for(tmp_path: Path) -> None:
    async def test(running: Running, replica: Replica) -> None:
        replica.may_answer.set()
        assert (await running.predict()).status_code == 200
        for _ in range(20):  # callers who ask again as soon as they are answered
            both = await asyncio.gather(running.predict(), running.predict())
            assert {response.status_code for response in both} == {200}

    run(tmp_path, test, "one")


def test_every_request_and_every_refusal_has_one_id_of_a_plain_form(tmp_path: Path) -> None:
    async def test(running: Running, replica: Replica) -> None:
        replica.may_answer.set()
        assert (await running.predict(x_request_id="mine-1")).status_code == 200
        assert (await running.predict(x_request_id="no id;")).status_code == 200
        assert (await running.predict()).status_code == 200
        ids = [head["x-request-id"] for head in replica.heads]
        assert ids[0] == "mine-1"
        assert [len(made) for made in ids[1:]] == [36, 36]
        replica.may_answer.clear()
        replica.requested.clear()
        held = asyncio.create_task(running.predict())
        await replica.requested.wait()
        refused = await running.predict(x_request_id="mine-2")
        assert refused.status_code == 429
        assert refused.headers.get_list("x-request-id") == ["mine-2"]
        assert refused.json()["request_id"] == "mine-2"
        replica.may_answer.set()
        await held

    run(tmp_path, test, "one")


def test_a_request_whose_replica_dies_is_served_by_another(tmp_path: Path) -> None:
    async def test(running: Running, one: Replica, other: Replica) -> None:
        asking = [asyncio.create_task(running.predict()) for _ in range(2)]
        await asyncio.gather(one.requested.wait(), other.requested.wait())
        one.die()
        other.may_answer.set()
        responses = await asyncio.gather(*asking)
        assert [(response.status_code, response.text) for response in responses] == [
            (200, "other")
        ] * 2

    run(tmp_path, test, "one", "other")


def test_haproxys_metrics_are_on_a_socket_of_their_own(tmp_path: Path) -> None:
    async def test(running: Running, *_: Replica) -> None:
        place = f"http://{running.place.metrics}"

        async def respond() -> bool:
            text = (await running.client.get(f"{place}/metrics")).text
            return 'haproxy_backend_active_servers{proxy="replicas"} 2' in text

        async with asyncio.timeout(20):
            while not await respond():
                await asyncio.sleep(0.05)
        assert (await running.client.get(f"{place}/live")).status_code == 404
        assert (await running.client.post(place + PREDICT)).status_code == 404

    run(tmp_path, test, "one", "other")


def test_requests_of_a_stalled_replica_are_sent_to_another(
    tmp_path: Path,
) -> None:
    async def test(running: Running, one: Replica, other: Replica) -> None:
        other.may_answer.set()
        one.may_answer.set()
        one.stalled = True
        began = asyncio.get_running_loop().time()
        responses = await asyncio.gather(*(running.predict() for _ in range(2)))
        assert {(response.status_code, response.text) for response in responses} == {(200, "other")}
        assert asyncio.get_running_loop().time() - began < 10
        quick = asyncio.get_running_loop().time()
        assert [(await running.predict()).text for _ in range(5)] == ["other"] * 5
        assert asyncio.get_running_loop().time() - quick < 1

    run(tmp_path, test, "one", "other")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_callers_wait_while_haproxy_is_replaced(tmp_path: Path, how: signal.Signals) -> None:
    async def test(running: Running, replica: Replica) -> None:
        replica.may_answer.set()
        assert (await running.predict()).status_code == 200
        running.haproxy().send_signal(how)
        await running.client.aclose()  # its connections break with the process
        async with httpx.AsyncClient(base_url=running.place.url, timeout=20) as later:
            if how == signal.SIGKILL:  # whoever comes now waits in the socket of the command
                assert (await later.post(PREDICT, content=b"0")).status_code == 200
            await running.wait_for_report("it was restarted in")
            assert (await later.get("/x")).status_code == 200

    run(tmp_path, test, "one")


def test_without_a_replica_callers_get_an_error(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        response = await running.predict()
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["type"] == "/problems/notready"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.place.grpc_port}") as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(b"")
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

    run(tmp_path, test)


@pytest.mark.parametrize("sent", [b"\x16\x03\x01 garbage\r\n\r\n", b"GET / HTTP/9\r\n\r\n"])
def test_malformed_requests_are_refused(tmp_path: Path, sent: bytes) -> None:
    async def test(running: Running) -> None:
        with running.connect() as caller:
            caller.sendall(sent)
            response = b""
            while more := await asyncio.to_thread(caller.recv, 10_000):
                response += more
        assert response.startswith(b"HTTP/1.1 400")

    run(tmp_path, test)


def test_a_caller_with_all_connections_of_an_address_affects_no_other(
    tmp_path: Path,
) -> None:
    async def test(running: Running, replica: Replica) -> None:
        replica.may_answer.set()
        with contextlib.ExitStack() as stack:
            for _ in range(3 * LIMITS.max_connections_per_address):
                stack.enter_context(running.connect("127.0.0.2"))
            for _ in range(3):
                assert (await running.client.get("/live")).status_code == 200
                assert (await running.predict()).status_code == 200

    run(tmp_path, test, "one")


def test_a_connection_without_the_head_of_a_request_is_closed(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        for sent in (b"", b"POST / HTTP/1.1\r\nhost: a\r\n"):
            with running.connect() as caller:
                caller.sendall(sent)
                response = b""
                while more := await asyncio.to_thread(caller.recv, 10_000):
                    response += more
                assert response[:12] in (b"", b"HTTP/1.1 408")

    run(tmp_path, test)


def test_a_replica_without_the_secret_cannot_join(tmp_path: Path) -> None:
    async def test(running: Running, replica: Replica) -> None:
        for line in (
            b'{"secret": "x", "id": "a", "pid": 1, "http": "a", "grpc": "a"}',
            b"[1]",
            b"",
        ):
            reader, writer = await running.address.connect()
            writer.write(line + b"\n")
            assert await reader.read() == b""
            writer.close()
        replica.may_answer.set()
        assert (await running.predict()).text == "one"

    run(tmp_path, test, "one")


def test_files_and_sockets_are_their_owners_alone(tmp_path: Path) -> None:
    async def test(running: Running, _: Replica) -> None:
        assert running.address.folder is not None
        folder = Path(running.address.folder)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.stat().st_uid == os.getuid()
        assert not list(folder.glob("*.cfg"))  # it has the secret, and HAProxy has read it
        for socket_of in folder.glob("haproxy-*.sock"):
            with contextlib.suppress(OSError):  # those of processes that have ended
                reader, writer = await asyncio.open_unix_connection(socket_of)
                writer.write(b"disable server replicas/replica1\n")
                assert b"denied" in (await reader.read()).lower()
                writer.close()

    run(tmp_path, test, "one")


def test_a_replica_that_leaves_gets_no_new_requests(tmp_path: Path) -> None:
    async def test(running: Running, one: Replica) -> None:
        other = Replica("other")
        await running.join(other)
        one.may_answer.set()
        other.may_answer.set()
        seen = {(await running.predict()).text for _ in range(10)}
        assert seen == {"one", "other"}
        await running.members[-1].leave()
        async with httpx.AsyncClient(base_url=running.place.url) as later:
            left = {(await later.post(PREDICT, content=b"0")).text for _ in range(10)}
        assert left == {"one"}
        assert running.reported == []

    run(tmp_path, test, "one")


def test_an_idle_connection_works_after_all_replicas_were_replaced(
    tmp_path: Path,
) -> None:
    async def test(running: Running, one: Replica) -> None:
        one.may_answer.set()
        assert (await running.predict()).text == "one"
        before = running.haproxy()
        other = Replica("other")
        other.may_answer.set()
        await running.join(other)
        await running.members[0].leave()
        one.die()
        assert before.is_running()  # it has the connection, and knows the first replica alone
        responses = [await running.predict() for _ in range(3)]
        assert [(response.status_code, response.text) for response in responses] == [
            (200, "other")
        ] * 3

    run(tmp_path, test, "one")


def test_the_files_of_an_ended_haproxy_are_removed(tmp_path: Path) -> None:
    async def test(running: Running, one: Replica) -> None:
        assert running.address.folder is not None
        folder = Path(running.address.folder)
        running.haproxy().kill()
        await running.wait_for_report("it was restarted in")
        await running.join(Replica("other"))
        await until(lambda: len(list(folder.glob("haproxy-*"))) == 1)
        assert running.address.folder in " ".join(running.haproxy().cmdline())

    run(tmp_path, test, "one")


def test_a_replica_that_stalls_is_reported_and_so_is_its_return(tmp_path: Path) -> None:
    async def test(running: Running, one: Replica, other: Replica) -> None:
        one.may_answer.set()
        other.may_answer.set()
        one.stalled = True
        await running.wait_for_report("does not respond")
        running.haproxy().kill()  # the next one hears of it again, and it is told once
        await running.wait_for_report("it was restarted in")
        one.stalled = False
        await running.wait_for_report("responds again")
        assert [sentence.split(" (")[0] for sentence in running.reported] == [
            "A replica does not respond",
            "HAProxy ended",
            "A replica responds again",
        ]

    run(tmp_path, test, "one", "other")


def test_a_closed_terminal_does_not_end_the_gateway(tmp_path: Path) -> None:
    heard: list[str] = []

    def refuse(sentence: str) -> None:
        heard.append(sentence)
        raise BrokenPipeError

    async def test(running: Running, one: Replica) -> None:
        one.may_answer.set()
        for number in (1, 2):
            running.haproxy().kill()
            await until(lambda number=number: len(heard) == number)  # type: ignore[misc]
        reader, writer = await running.address.connect()
        said = {"secret": running.address.secret, "pid": 1, "http": "unix@/x", "grpc": "unix@/x"}
        writer.write(json.dumps(said).encode() + b"\n")
        assert await reader.readline() == b"joined\n"
        writer.close()
        await until(lambda: len(heard) == 3)
        assert "A replica ended" in heard[2]
        assert [(await running.predict()).text for _ in range(3)] == ["one"] * 3

    run(tmp_path, test, "one", on_fault=refuse)


def test_haproxy_is_not_replaced_where_the_command_itself_was_stopped(tmp_path: Path) -> None:
    async def test(running: Running, one: Replica) -> None:
        one.may_answer.set()
        assert (await running.predict()).status_code == 200
        haproxy = running.haproxy()
        haproxy.suspend()
        await asyncio.sleep(0.8)  # now it is on its way
        running.gateway.loop.call_soon_threadsafe(time.sleep, 3)
        await asyncio.sleep(0.5)
        haproxy.resume()
        await asyncio.sleep(4)
        assert (await running.predict()).status_code == 200
        assert running.reported == []

    run(tmp_path, test, "one")


def test_a_replica_accepts_requests_from_the_gateway_only() -> None:
    seen: list[tuple[object, list[bytes]]] = []

    async def app(scope: dict[str, object], receive: object, send: object) -> None:
        headers = scope["headers"]
        assert isinstance(headers, list)
        seen.append((scope["client"], [name for name, _ in headers]))

    async def ask(*headers: tuple[str, str]) -> int:
        statuses: list[int] = []

        async def send(message: dict[str, int]) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        encoded = [(name.encode(), value.encode()) for name, value in headers]
        scope = {"type": "http", "client": None, "headers": encoded}
        await RequireGateway(app, "open")(scope, None, send)  # type: ignore[arg-type]
        return statuses[0] if statuses else 200

    async def test() -> None:
        assert await ask() == 403
        assert await ask((SECRET, "wrong"), (CALLER, "127.0.0.1")) == 403
        assert seen == []
        assert await ask((SECRET, "open"), (CALLER, "192.0.2.7"), ("host", "a")) == 200
        assert seen == [(("192.0.2.7", 0), [b"host"])]

    asyncio.run(test())
