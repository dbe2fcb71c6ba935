"""The versions in memory: each is loaded once, however many ask, and is tried again when it fails.

Everything here runs in one event loop, except the loading itself, which has a thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from eagleray.core.errors import EaglerayError
from eagleray.serving.problems import public_fault

__all__ = ["Sized", "Slot", "Slots", "State", "V"]

log = logging.getLogger(__name__)

_FIRST_RETRY = 5.0
_LAST_RETRY = 300.0


class Sized(Protocol):
    """What is asked of a loaded version here."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, roughly."""

    @property
    def compiled(self) -> bool:
        """Whether its network is compiled."""


V = TypeVar("V", bound=Sized)


class State(StrEnum):
    """Of a version in memory."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(slots=True, eq=False)
class Slot(Generic[V]):
    """A version's place in memory.

    Attributes:
        model: Name.
        version: Number.
        loading: While it is on its way.
        loaded: When it is there.
        error: When it does not load.
        retry_at: On the monotonic clock; before it a failed load is not tried again.
        failures: In a row.
        load_seconds: Of the last try, without the wait for others.
        last_used: On the monotonic clock.
        in_use: Requests that it answers now.
        num_requests: That it answered.
    """

    model: str
    version: int
    loading: asyncio.Task[None] | None = None
    loaded: V | None = None
    error: Exception | None = None
    retry_at: float = 0.0
    failures: int = 0
    load_seconds: float = 0.0
    last_used: float = field(default_factory=time.monotonic)
    in_use: int = 0
    num_requests: int = 0

    @property
    def fault(self) -> str | None:
        """Why it does not load, for the log."""
        if self.error is None or isinstance(self.error, EaglerayError):
            return None if self.error is None else str(self.error)
        text = (str(self.error).splitlines() or ["no message"])[0]
        return f"{type(self.error).__name__}: {text}"

    @property
    def public_fault(self) -> str | None:
        """Why it does not load, for callers."""
        return None if self.error is None else public_fault(self.error)

    @property
    def state(self) -> State:
        """How it is doing."""
        if self.loaded is not None:
            return State.READY
        return State.LOADING if self.loading is not None else State.FAILED

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, roughly; 0 until it is there."""
        return 0 if self.loaded is None else self.loaded.num_bytes

    @property
    def is_idle(self) -> bool:
        """Whether nothing is done with it."""
        return self.in_use == 0 and self.loading is None


class Slots(Generic[V]):
    """The versions in memory, by model and number.

    Args:
        load: Loads and checks a version; called in a thread, for one version at a time.
        ended: Told of each load that has ended, well or not.
    """

    def __init__(
        self, load: Callable[[str, int], V], *, ended: Callable[[Slot[V]], None] = lambda _: None
    ) -> None:
        self._load, self._ended = load, ended
        self._slots: dict[tuple[str, int], Slot[V]] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._tasks: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Slot[V]]:
        return iter(self._slots.values())

    def get(self, model: str, version: int) -> Slot[V] | None:
        """Return a version's slot, if it has one."""
        return self._slots.get((model, version))

    def loaded(self, model: str, version: int) -> V | None:
        """Return a version that is there."""
        slot = self._slots.get((model, version))
        return None if slot is None else slot.loaded

    def drop(self, slot: Slot[V]) -> None:
        """Let go of a version; who still uses it does so to the end."""
        del self._slots[slot.model, slot.version]

    def begin(self, model: str, version: int) -> Slot[V]:
        """Begin to load a version, unless it is there, on its way, or has just failed."""
        slot = self._slots.setdefault((model, version), Slot(model, version))
        waits = slot.error is not None and time.monotonic() < slot.retry_at
        if slot.loaded is None and slot.loading is None and not waits:
            slot.loading = asyncio.get_running_loop().create_task(self._run_load(slot))
            self._tasks.add(slot.loading)
            slot.loading.add_done_callback(self._tasks.discard)
        return slot

    async def _run_load(self, slot: Slot[V]) -> None:
        loop = asyncio.get_running_loop()
        try:
            slot.loaded = await loop.run_in_executor(self._loader, self._load_timed, slot)
        except Exception as error:
            slot.failures += 1
            pause = min(_FIRST_RETRY * 2 ** (slot.failures - 1), _LAST_RETRY)
            slot.retry_at = time.monotonic() + pause
            slot.error = error
            known = isinstance(error, EaglerayError)
            words = ("version %d of %s does not load: %s", slot.version, slot.model, slot.fault)
            log.error(*words, exc_info=None if known else error)
        else:
            slot.error, slot.failures = None, 0
        slot.loading = None
        slot.last_used = time.monotonic()  # or it would leave before those that wait for it use it
        self._ended(slot)

    def _load_timed(self, slot: Slot[V]) -> V:
        began = time.monotonic()
        try:
            return self._load(slot.model, slot.version)
        finally:
            slot.load_seconds = time.monotonic() - began

    @property
    def is_loading(self) -> bool:
        """Whether any version is on its way."""
        return any(slot.loading is not None for slot in self)

    async def close(self) -> None:
        """Wait for what is being loaded, and end."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._loader.shutdown()
