"""Keeps HAProxy running, in a thread of the command, with the replicas that are there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from eagleray.core.errors import JobFailedError
from eagleray.serve.gateway.haproxy import HAProxy, HAProxyError, Limits, Plan, start_haproxy
from eagleray.serve.gateway.join import GatewayAddress
from eagleray.serve.gateway.replicas import Replica, Replicas
from eagleray.serve.gateway.sockets import Doors

__all__ = ["Gateway", "running_gateway"]

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_CHECK_EVERY = 0.5  # seconds between two looks at HAProxy
_ANSWER_WITHIN = 1.5  # seconds in which HAProxy says how it is; one that does not is replaced
_LATE = 0.5  # seconds by which a time-out may be late
_SETTLING = 0.02  # seconds in which several changes of the replicas become one
_PAUSE = 0.5  # seconds until HAProxy is started again, where that failed


class Gateway:
    """HAProxy with the replicas that are there. Its coroutines run in a loop of its own.

    Args:
        plan: What each process of HAProxy is started with.
        tell: Is called with a sentence about each fault of a part, and about its end.
    """

    def __init__(self, plan: Plan, tell: Callable[[str], None]) -> None:
        self._plan, self._teller = plan, tell
        self._replicas = Replicas(plan.folder, plan.secret, self._applied, self._lost)
        self._haproxy: HAProxy | None = None
        self._numbers = itertools.count(1)
        self._change, self._replacing = asyncio.Condition(), asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []  # a loop itself keeps none
        self._running: dict[HAProxy, asyncio.Task[None]] = {}  # also those that were replaced
        self._stalled: set[str] = set()  # replicas that were told of
        self._wanted, self._done = 0, 0  # changes of the replicas, and those that HAProxy has
        self.loop = asyncio.new_event_loop()

    def wait_for_replica(self, seconds: float) -> bool:
        """Wait for the first replica; return whether it came."""
        waiting = asyncio.run_coroutine_threadsafe(self._replicas.joined.wait(), self.loop)
        try:
            return waiting.result(seconds)
        except concurrent.futures.TimeoutError:
            waiting.cancel()
            return False

    async def start(self, node_ip: str | None) -> GatewayAddress:
        """Let replicas join and callers in, from now on.

        Args:
            node_ip: Address at which other machines reach this one; None where the replicas are on
                this machine.

        Raises:
            JobFailedError: HAProxy does not start.
        """
        secret, folder = self._plan.secret, self._plan.folder
        if node_ip is None:
            address = GatewayAddress(str(folder / "join.sock"), str(folder), secret)
            await asyncio.start_unix_server(self._replicas.serve, address.join)
        else:
            server = await asyncio.start_server(self._replicas.serve, node_ip, 0)
            port = server.sockets[0].getsockname()[1]
            address = GatewayAddress(f"{node_ip}:{port}", None, secret)
        try:
            self._haproxy = await self._start()
        except (HAProxyError, OSError) as error:
            raise JobFailedError(str(error)) from None
        self._tasks = [asyncio.create_task(_for_ever(step)) for step in (self._follow, self._watch)]
        return address

    async def stop(self) -> None:
        """End HAProxy; what is still being answered breaks."""
        await _cancel(self._tasks)  # so that no other is started
        for haproxy in self._running:
            haproxy.kill()
        await asyncio.gather(*self._running.values())
        await _cancel(asyncio.all_tasks() - {asyncio.current_task()})

    # --- what goes on ---

    async def _applied(self) -> None:
        """Have HAProxy use the replicas that are there now."""
        async with self._change:
            self._wanted += 1
            mine = self._wanted
            self._change.notify_all()
            await self._change.wait_for(lambda: self._done >= mine)

    async def _follow(self) -> None:
        """Wait until the replicas are others, and replace HAProxy."""
        async with self._change:
            await self._change.wait_for(lambda: self._wanted > self._done)
        await asyncio.sleep(_SETTLING)
        wanted = self._wanted
        try:
            async with self._replacing:
                self._haproxy = await self._start(old=self._haproxy)
        except (HAProxyError, OSError) as error:
            self._tell(f"{error} The one before continues, with the replicas that it has.")
            await asyncio.sleep(_PAUSE)
            return
        async with self._change:
            self._done = wanted
            self._change.notify_all()

    async def _watch(self) -> None:
        """Look at HAProxy once, and start it again when it has ended or does not answer."""
        watched = self._haproxy
        assert watched is not None
        fault = await self._fault_of(watched)
        async with self._replacing:
            if fault is None or watched is not self._haproxy:
                return
            began = time.monotonic()
            watched.kill()
            try:
                self._haproxy = await self._start()
            except (HAProxyError, OSError) as error:
                self._tell(f"HAProxy {fault}. {error} It is tried again.")
                await asyncio.sleep(_PAUSE)
                return
        seconds = time.monotonic() - began
        self._tell(f"HAProxy {fault}; it was started again in {seconds:.1f} s.")

    async def _fault_of(self, haproxy: HAProxy) -> str | None:
        """Look at a process until its time to be looked at again; return what is wrong with it."""
        try:
            async with asyncio.timeout(_CHECK_EVERY):
                return f"ended ({await haproxy.ended()})"
        except TimeoutError:
            pass
        began = time.monotonic()
        answering = await haproxy.look(_ANSWER_WITHIN)
        if answering is not None:
            self._note(answering)
            return None
        if time.monotonic() - began > _ANSWER_WITHIN + _LATE:
            return None  # this process was stopped itself, so nothing is known
        return f"gave no sign of life for {_ANSWER_WITHIN:g} s"

    def _note(self, answering: dict[str, bool]) -> None:
        """Tell of replicas that stall, and of those that answer again."""
        for replica in self._replicas.present:
            answers = answering.get(replica.name)
            if answers is False and replica.name not in self._stalled:
                self._stalled.add(replica.name)
                self._tell(
                    f"A replica gives no sign of life (process {replica.pid}); until it does, "
                    "requests are put to the others."
                )
            elif answers and replica.name in self._stalled:
                self._stalled.remove(replica.name)
                self._tell(f"A replica answers again (process {replica.pid}).")

    async def _start(self, old: HAProxy | None = None) -> HAProxy:
        started = await start_haproxy(
            self._plan, number=next(self._numbers), replicas=self._replicas.present, old=old
        )
        self._running[started] = asyncio.create_task(self._clear_away(started))
        return started

    async def _clear_away(self, haproxy: HAProxy) -> None:
        await haproxy.ended()
        haproxy.clear_away()
        del self._running[haproxy]

    def _tell(self, sentence: str) -> None:
        """Tell a sentence; whoever cannot hear it must not end what is done here."""
        try:
            self._teller(sentence)
        except OSError as error:
            log.warning("that could not be told: %s", error)

    def _lost(self, replica: Replica) -> None:
        left = len(self._replicas.present) - 1
        self._tell(
            f"A replica ended (process {replica.pid}); Ray starts another, and {left} "
            f"{'answers' if left == 1 else 'answer'} meanwhile."
        )


async def _for_ever(step: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again; a defect in it is logged, and does not end it."""
    while True:
        try:
            await step()
        except Exception:
            log.exception("a step of the gateway failed; it is tried again")
            await asyncio.sleep(_PAUSE)


async def _cancel(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks, and wait for their ends."""
    found = [task for task in tasks if task is not None]
    for task in found:
        task.cancel()
    await asyncio.gather(*found, return_exceptions=True)


@contextlib.contextmanager
def running_gateway(
    folder: Path,
    doors: Doors,
    *,
    limits: Limits,
    log: Path,
    tell: Callable[[str], None],
    node_ip: str | None = None,
) -> Iterator[tuple[Gateway, GatewayAddress]]:
    """Let callers in for the time of the block.

    Args:
        folder: Folder that only this user enters.
        doors: Where callers connect.
        limits: What they may take up.
        log: File that gets what HAProxy says.
        tell: Is called with a sentence about each fault of a part, in another thread.
        node_ip: Address at which other machines reach this one, where replicas are on them.

    Yields:
        The gateway, and what a replica needs to join it.

    Raises:
        JobFailedError: HAProxy does not start.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    gateway = Gateway(Plan(folder, doors, limits, log, secrets.token_urlsafe(32)), tell)
    # HAProxy ends with the thread that started it, and so with the process.
    thread = threading.Thread(target=gateway.loop.run_forever, name="gateway", daemon=True)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(coroutine, gateway.loop).result()

    try:
        yield gateway, run(gateway.start(node_ip))
    finally:
        run(gateway.stop())
        gateway.loop.call_soon_threadsafe(gateway.loop.stop)
        thread.join()
        gateway.loop.close()
