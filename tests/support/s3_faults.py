"""A proxy in front of an S3 server that fails some of the calls, on purpose and counted.

    with FaultProxy("http://127.0.0.1:5000", Faults(slow_down=0.05, reset=0.03)) as proxy:
        storage.use_s3(S3Options(endpoint=proxy.endpoint))
        proxy.inject("reset_after", r"PUT .*/plan.json")    # the next such call, for certain
        ...
        print(proxy.num_calls, proxy.counts)

It runs in a thread of its own on a free loopback port. Faults come from one seeded generator, in
the order in which calls arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit

REFUSALS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "denied": (403, "AccessDenied", "Access Denied"),
}


@dataclass(frozen=True)
class Faults:
    """Shares of calls that fail, each from 0 to 1, and what all calls suffer.

    Attributes:
        slow_down: Answered 503 SlowDown; the server never hears of them.
        reset: The connection is reset, half of the times after the server has done its work.
        hang: Never answered, half of the times after the server has done its work.
        truncate: The body of the answer stops half way (calls without one are left alone).
        latency: Seconds that every call takes longer.
    """

    slow_down: float = 0.0
    reset: float = 0.0
    hang: float = 0.0
    truncate: float = 0.0
    latency: float = 0.0


class FaultProxy:
    """The running proxy.

    Attributes:
        faults: In force; may be replaced at any time.
        counts: Faults injected, by kind: `slow_down`, `reset_before`, `reset_after`,
            `hang_before`, `hang_after`, `truncate`.
        calls: Methods and paths of all calls, in the order of their arrival.
        headers: Of the same calls, names in small letters.
    """

    def __init__(self, upstream: str, faults: Faults | None = None, *, seed: int = 0) -> None:
        self.faults = faults or Faults()
        self.counts: Counter[str] = Counter()
        self.calls: list[str] = []
        self.headers: list[dict[str, str]] = []
        parts = urlsplit(upstream)
        assert parts.hostname is not None
        self._upstream = (parts.hostname, parts.port or 80)
        self._random = random.Random(seed)
        self._planned: list[tuple[str, re.Pattern[str]]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()
        self.endpoint = ""

    @property
    def num_calls(self) -> int:
        return len(self.calls)

    def inject(self, kind: str, call: str = "") -> None:
        """Fail the next call whose method and path (`PUT /bucket/key`) the expression finds.

        Kinds are those of `counts`, and `denied`: answered 403 AccessDenied.
        """
        self._planned.append((kind, re.compile(call)))

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        self._talks.add(talk)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._serve_call(reader, writer):
                    pass
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            self._talks.discard(talk)
            writer.close()

    async def _serve_call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one call; gives whether the connection can take another."""
        head = await reader.readuntil(b"\r\n\r\n")
        if b"100-continue" in head.lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await read_body(reader, head)
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        self.calls.append(f"{method} {target}")
        pairs = (line.split(":", 1) for line in lines)
        self.headers.append({name.lower(): value.strip() for name, value in pairs})
        fault = self._draw(self.calls[-1])
        await asyncio.sleep(self.faults.latency)
        if fault in REFUSALS:
            writer.write(refusal(*REFUSALS[fault], with_body=method != "HEAD"))
        elif fault in {"reset_before", "hang_before"}:
            return await self._break_off(fault, reader, writer)
        else:
            answer = await self._ask(head, body)
            if fault == "truncate" and not cut(answer):
                fault = ""
            if fault in {"reset_after", "hang_after"}:
                return await self._break_off(fault, reader, writer)
            writer.write(cut(answer) if fault == "truncate" else answer)
        self.counts.update([fault] if fault else [])
        await writer.drain()
        return fault != "truncate"

    def _draw(self, call: str) -> str:
        for plan in self._planned:
            if plan[1].search(call):
                self._planned.remove(plan)
                return plan[0]
        faults = self.faults
        when = "_before" if self._random.random() < 0.5 else "_after"
        kinds = ["slow_down", "reset" + when, "hang" + when, "truncate", ""]
        shares = [faults.slow_down, faults.reset, faults.hang, faults.truncate]
        return self._random.choices(kinds, [*shares, 1.0 - sum(shares)])[0]

    async def _break_off(
        self, fault: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        self.counts[fault] += 1
        if fault.startswith("hang"):
            await reader.read()  # until the client gives up
        else:
            linger = struct.pack("ii", 1, 0)  # closing sends a reset
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return False

    async def _ask(self, head: bytes, body: bytes) -> bytes:
        """Pass a call on, and give the whole answer."""
        reader, writer = await asyncio.open_connection(*self._upstream)
        lines = [
            line
            for line in head.removesuffix(b"\r\n\r\n").split(b"\r\n")
            if not line.lower().startswith((b"connection:", b"expect:"))
        ]
        writer.write(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
        answer = await reader.read()
        writer.close()
        return re.sub(rb"\r\nConnection: close(?=\r\n)", b"", answer, count=1, flags=re.IGNORECASE)


def refusal(status: int, code: str, message: str, *, with_body: bool) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" * with_body
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def cut(answer: bytes) -> bytes:
    """Half of the body under its whole head; nothing when there is no body to cut."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n" + body[: len(body) // 2] if len(body) > 1 else b""


async def read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """Read a body as it is on the wire."""
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    if length:
        return await reader.readexactly(int(length[1]))
    if not re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
        return b""
    parts = []
    while True:
        parts.append(await reader.readuntil(b"\r\n"))
        size = int(parts[-1].split(b";")[0], 16)
        if size == 0:
            break
        parts.append(await reader.readexactly(size + 2))
    while parts[-1] != b"\r\n":  # trailers
        parts.append(await reader.readuntil(b"\r\n"))
    return b"".join(parts)


def s3_error(code: str, status: int) -> BaseException:
    """Return what s3fs raises for an error response of S3."""
    import botocore.exceptions
    from s3fs.errors import translate_boto_error

    response = {
        "Error": {"Code": code, "Message": "text"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error: BaseException = translate_boto_error(botocore.exceptions.ClientError(response, "Get"))
    return error
