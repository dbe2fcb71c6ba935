"""Keeps HAProxy running with the replicas that are available, in a thread of the command."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from eagleray.core.errors import InputError, JobFailedError
from eagleray.serve.gateway.haproxy import HAProxy, HAProxyError, HAProxySettings, start_haproxy
from eagleray.serve.gateway.join import GatewayAddress
from eagleray.serve.gateway.replicas import Replica, Replicas

__all__ = ["Gateway", "running_gateway"]

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_CHECK_INTERVAL = 0.5  # seconds between two checks of HAProxy
_STATUS_TIMEOUT = 1.5  # seconds; a process that does not respond in time is replaced
_LATE = 0.5  # seconds by which a time-out may be late
_DEBOUNCE = 0.02  # seconds in which several changes of the replicas become one
_PAUSE = 0.5  # seconds until a failed start of HAProxy is retried


class Gateway:
    """HAProxy with the replicas that are available. Its coroutines run in its own event loop.

    Args:
        settings: The settings of every HAProxy process.
        on_fault: Called with a sentence about each fault of a part, and about its end.
    """

    def __init__(self, settings: HAProxySettings, on_fault: Callable[[str], None]) -> None:
        self._settings, self._on_fault = settings, on_fault
        self._replicas = Replicas(
            settings.folder, settings.secret, self._apply_change, self._on_loss
        )
        self._haproxy: HAProxy | None = None
        self._numbers = itertools.count(1)
        self._change, self._replacing = asyncio.Condition(), asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []  # a loop has only weak references to tasks
        self._running: dict[
            HAProxy, asyncio.Task[None]
        ] = {}  # including replaced ones that have not ended
        self._stalled: set[str] = set()  # names of replicas that were reported as stalled
        self._wanted, self._done = 0, 0  # number of changes of the replicas, and of those applied
        self.loop = asyncio.new_event_loop()

    def wait_for_replica(self, seconds: float) -> bool:
        """Wait for the first replica; return whether it joined in time."""
        waiting = asyncio.run_coroutine_threadsafe(self._replicas.joined.wait(), self.loop)
        try:
            return waiting.result(seconds)
        except concurrent.futures.TimeoutError:
            waiting.cancel()
            return False

    async def start(self, node_ip: str | None, join_port: int = 0) -> GatewayAddress:
        """Accept replicas and callers from now on.

        Args:
            node_ip: Address at which other machines reach this one; None if all replicas run on
                this machine.
            join_port: Port at which replicas on other machines join; 0 for any.

        Raises:
            InputError: If replicas cannot join at this address.
            JobFailedError: If HAProxy does not start.
        """
        secret, folder = self._settings.secret, self._settings.folder
        if node_ip is None:
            address = GatewayAddress(str(folder / "join.sock"), str(folder), secret)
            await asyncio.start_unix_server(self._replicas.serve, address.join)
        else:
            try:
                server = await asyncio.start_server(self._replicas.serve, node_ip, join_port)
            except OSError as error:
                raise InputError(
                    f"Replicas cannot join at port {join_port} of {node_ip} "
                    f"({error.strerror or error}); choose another --join-port."
                ) from None
            port = server.sockets[0].getsockname()[1]
            address = GatewayAddress(f"{node_ip}:{port}", None, secret)
        try:
            self._haproxy = await self._start()
        except (HAProxyError, OSError) as error:
            raise JobFailedError(str(error)) from None
        self._tasks = [
            asyncio.create_task(_repeat(step)) for step in (self._follow_replicas, self._check)
        ]
        return address

    async def stop(self) -> None:
        """End HAProxy; requests that have not finished break."""
        await _cancel(self._tasks)  # so that no new process is started
        for haproxy in self._running:
            haproxy.kill()
        await asyncio.gather(*self._running.values())
        await _cancel(asyncio.all_tasks() - {asyncio.current_task()})

    # --- in the event loop ---

    async def _apply_change(self) -> None:
        """Wait until HAProxy uses the current replicas."""
        async with self._change:
            self._wanted += 1
            mine = self._wanted
            self._change.notify_all()
            await self._change.wait_for(lambda: self._done >= mine)

    async def _follow_replicas(self) -> None:
        """Wait until the replicas change, and replace HAProxy."""
        async with self._change:
            await self._change.wait_for(lambda: self._wanted > self._done)
        await asyncio.sleep(_DEBOUNCE)
        wanted = self._wanted
        try:
            async with self._replacing:
                self._haproxy = await self._start(old=self._haproxy)
        except (HAProxyError, OSError) as error:
            self._report(f"{error} The previous process continues, with the replicas that it has.")
            await asyncio.sleep(_PAUSE)
            return
        async with self._change:
            self._done = wanted
            self._change.notify_all()

    async def _check(self) -> None:
        """Check HAProxy once, and restart it if it has ended or does not respond."""
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
                self._report(f"HAProxy {fault}. {error} The start is retried.")
                await asyncio.sleep(_PAUSE)
                return
        seconds = time.monotonic() - began
        self._report(f"HAProxy {fault}; it was restarted in {seconds:.1f} s.")

    async def _fault_of(self, haproxy: HAProxy) -> str | None:
        """Check a process after an interval; return what is wrong with it, or None."""
        try:
            async with asyncio.timeout(_CHECK_INTERVAL):
                return f"ended ({await haproxy.ended()})"
        except TimeoutError:
            pass
        began = time.monotonic()
        responding = await haproxy.status(_STATUS_TIMEOUT)
        if responding is not None:
            self._report_stalls(responding)
            return None
        if time.monotonic() - began > _STATUS_TIMEOUT + _LATE:
            return None  # this process was suspended itself, so nothing is known
        return f"did not respond for {_STATUS_TIMEOUT:g} s"

    def _report_stalls(self, responding: dict[str, bool]) -> None:
        """Report replicas that stall, and those that respond again."""
        for replica in self._replicas.present:
            responds = responding.get(replica.name)
            if responds is False and replica.name not in self._stalled:
                self._stalled.add(replica.name)
                self._report(
                    f"A replica does not respond (process {replica.pid}); until it does, its "
                    "requests go to the others."
                )
            elif responds and replica.name in self._stalled:
                self._stalled.remove(replica.name)
                self._report(f"A replica responds again (process {replica.pid}).")

    async def _start(self, old: HAProxy | None = None) -> HAProxy:
        started = await start_haproxy(
            self._settings, number=next(self._numbers), replicas=self._replicas.present, old=old
        )
        self._running[started] = asyncio.create_task(self._clean_up(started))
        return started

    async def _clean_up(self, haproxy: HAProxy) -> None:
        await haproxy.ended()
        haproxy.clean_up()
        del self._running[haproxy]

    def _report(self, sentence: str) -> None:
        """Report a sentence; a terminal that cannot be written to must not end the gateway."""
        try:
            self._on_fault(sentence)
        except OSError as error:
            log.warning("a fault could not be reported: %s", error)

    def _on_loss(self, replica: Replica) -> None:
        left = len(self._replicas.present) - 1
        self._report(
            f"A replica ended (process {replica.pid}); Ray starts another, and {left} "
            f"{'serves' if left == 1 else 'serve'} meanwhile."
        )


async def _repeat(step: Callable[[], Awaitable[None]]) -> None:
    """Run a step again and again; an error is logged and does not end it."""
    while True:
        try:
            await step()
        except Exception:
            log.exception("a step of the gateway failed; it is retried")
            await asyncio.sleep(_PAUSE)


async def _cancel(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks, and wait for their ends."""
    found = [task for task in tasks if task is not None]
    for task in found:
        task.cancel()
    await asyncio.gather(*found, return_exceptions=True)


@contextlib.contextmanager
def running_gateway(
    settings: HAProxySettings,
    *,
    on_fault: Callable[[str], None],
    node_ip: str | None = None,
    join_port: int = 0,
) -> Iterator[tuple[Gateway, GatewayAddress]]:
    """Run the gateway while the block runs.

    Args:
        settings: The settings of every HAProxy process.
        on_fault: Called in another thread with a sentence about each fault of a part.
        node_ip: Address at which other machines reach this one; None if all replicas run on this
            machine.
        join_port: Port at which replicas on other machines join; 0 for any.

    Yields:
        The gateway, and the address at which replicas join it.

    Raises:
        InputError: If replicas cannot join at this address.
        JobFailedError: If HAProxy does not start.
    """
    settings.log.parent.mkdir(parents=True, exist_ok=True)
    gateway = Gateway(settings, on_fault)
    # HAProxy ends with the thread that started it, and so with the process.
    thread = threading.Thread(target=gateway.loop.run_forever, name="gateway", daemon=True)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(coroutine, gateway.loop).result()

    try:
        yield gateway, run(gateway.start(node_ip, join_port))
    finally:
        run(gateway.stop())
        gateway.loop.call_soon_threadsafe(gateway.loop.stop)
        thread.join()
        gateway.loop.close()
