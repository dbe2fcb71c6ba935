"""Caches model versions in memory: each is loaded once, however many requests wait for it.

A load that fails is retried at growing intervals. Everything here runs in one event loop, except
the loading itself, which runs in a thread.
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

__all__ = ["CachedVersion", "LoadState", "LoadedT", "ModelCache", "Sized"]

log = logging.getLogger(__name__)

_FIRST_RETRY = 5.0  # seconds
_MAX_RETRY = 300.0  # seconds


class Sized(Protocol):
    """The interface of a loaded version that the cache needs."""

    @property
    def num_bytes(self) -> int:
        """Approximate memory of the version."""

    @property
    def engine(self) -> str:
        """What runs the version's network, for display."""

    @property
    def measured(self) -> bool:
        """Whether every engine that could run the network was measured."""


LoadedT = TypeVar("LoadedT", bound=Sized)


class LoadState(StrEnum):
    """The state of a version in the cache."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(slots=True, eq=False)
class CachedVersion(Generic[LoadedT]):
    """A version's entry in the cache.

    Attributes:
        model: Name of the model.
        version: Version number.
        loading: Task that loads the version; None if none runs.
        loaded: The loaded version; None until it is ready.
        error: Error of the last load; None if it succeeded.
        retry_at: Moment on the monotonic clock before which a failed load is not retried.
        failures: Number of failed loads in a row.
        load_seconds: Duration of the last load, without the time in the loader's queue.
        last_used: Moment of the last use, on the monotonic clock.
        in_use: Number of requests that use the version now.
        num_requests: Number of requests that have used the version.
    """

    model: str
    version: int
    loading: asyncio.Task[None] | None = None
    loaded: LoadedT | None = None
    error: Exception | None = None
    retry_at: float = 0.0
    failures: int = 0
    load_seconds: float = 0.0
    last_used: float = field(default_factory=time.monotonic)
    in_use: int = 0
    num_requests: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """Model and version number."""
        return self.model, self.version

    @property
    def fault(self) -> str | None:
        """Why the version does not load, for the log; None if its load did not fail."""
        if self.error is None or isinstance(self.error, EaglerayError):
            return None if self.error is None else str(self.error)
        text = (str(self.error).splitlines() or ["no message"])[0]
        return f"{type(self.error).__name__}: {text}"

    @property
    def public_fault(self) -> str | None:
        """Why the version does not load, for callers; None if its load did not fail."""
        return None if self.error is None else public_fault(self.error)

    @property
    def state(self) -> LoadState:
        """The state of the version."""
        if self.loaded is not None:
            return LoadState.READY
        return LoadState.LOADING if self.loading is not None else LoadState.FAILED

    @property
    def num_bytes(self) -> int:
        """Approximate memory of the version; 0 until it is ready."""
        return 0 if self.loaded is None else self.loaded.num_bytes

    @property
    def is_idle(self) -> bool:
        """Whether the version is neither in use nor being loaded."""
        return self.in_use == 0 and self.loading is None


class ModelCache(Generic[LoadedT]):
    """The versions in memory, by model and version number.

    Args:
        load: Loads and checks a version; called in a thread, for one version at a time.
        on_load_end: Called with the entry after each load, whether it succeeded or failed.
        first_retry: Seconds until a failed load is retried for the first time.
    """

    def __init__(
        self,
        load: Callable[[str, int], LoadedT],
        *,
        on_load_end: Callable[[CachedVersion[LoadedT]], None] = lambda _: None,
        first_retry: float = _FIRST_RETRY,
    ) -> None:
        self._load, self._on_load_end, self._first_retry = load, on_load_end, first_retry
        self._entries: dict[tuple[str, int], CachedVersion[LoadedT]] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._tasks: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[CachedVersion[LoadedT]]:
        return iter(self._entries.values())

    def get(self, model: str, version: int) -> CachedVersion[LoadedT] | None:
        """Return the entry of a version; None if it has none."""
        return self._entries.get((model, version))

    def loaded(self, model: str, version: int) -> LoadedT | None:
        """Return a version that is ready; None if it is not."""
        entry = self._entries.get((model, version))
        return None if entry is None else entry.loaded

    def drop(self, entry: CachedVersion[LoadedT]) -> None:
        """Remove a version; requests that use it finish with it."""
        del self._entries[entry.key]

    def ensure_loading(self, model: str, version: int) -> CachedVersion[LoadedT]:
        """Start to load a version, unless it is ready, being loaded, or waits for its retry."""
        entry = self._entries.setdefault((model, version), CachedVersion(model, version))
        waits = entry.error is not None and time.monotonic() < entry.retry_at
        if entry.loaded is None and entry.loading is None and not waits:
            entry.loading = asyncio.get_running_loop().create_task(self._run_load(entry))
            self._tasks.add(entry.loading)
            entry.loading.add_done_callback(self._tasks.discard)
        return entry

    async def _run_load(self, entry: CachedVersion[LoadedT]) -> None:
        loop = asyncio.get_running_loop()
        try:
            entry.loaded = await loop.run_in_executor(self._loader, self._load_timed, entry)
        except Exception as error:
            entry.failures += 1
            pause = min(self._first_retry * 2 ** (entry.failures - 1), _MAX_RETRY)
            entry.retry_at = time.monotonic() + pause
            entry.error = error
            known = isinstance(error, EaglerayError)
            words = ("version %d of %s does not load: %s", entry.version, entry.model, entry.fault)
            log.error(*words, exc_info=None if known else error)
        else:
            entry.error, entry.failures = None, 0
        entry.loading = None
        entry.last_used = time.monotonic()  # so that it is not evicted before its waiters use it
        self._on_load_end(entry)

    def _load_timed(self, entry: CachedVersion[LoadedT]) -> LoadedT:
        began = time.monotonic()
        try:
            return self._load(entry.model, entry.version)
        finally:
            entry.load_seconds = time.monotonic() - began

    @property
    def is_loading(self) -> bool:
        """Whether any version is being loaded."""
        return any(entry.loading is not None for entry in self)

    async def close(self) -> None:
        """Wait for running loads, and end the loader."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._loader.shutdown()
