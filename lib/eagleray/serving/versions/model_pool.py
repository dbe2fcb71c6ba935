"""Decides which model versions are in memory, and which of them serves each role.

Every use of a version has a role (`routing.py`): a model's default, its canary, an application's
pin. A role has a desired version, which the routes say, and a serving version, which predicts now.
When the desired version changes, the new one is loaded and checked on its golden images while the
old one continues to serve; it takes over when it is ready. If it fails, the old one stays and the
failure is reported. Failed loads are retried at growing intervals. A process that has just started
has no old version; it falls back on the version that any process served last in the role.

The cache (`model_cache.py`) loads and holds versions. All of this runs in one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from eagleray.core.errors import UnknownVersionError
from eagleray.serving.problems import NotReadyError
from eagleray.serving.versions.model_cache import CachedVersion, LoadedT, LoadState, ModelCache
from eagleray.serving.versions.routing import Choice, Role, Snapshot

__all__ = ["LoadState", "ModelPool", "ModelPoolOptions", "VersionEvent", "VersionReport"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelPoolOptions:
    """What stays in memory.

    Attributes:
        warm: Names of the models that are loaded before any request needs them; None for every
            model with a version in production, up to the memory limit.
        memory: Maximum bytes of versions that no role needs; the least recently used are evicted
            first.
        unload_after: Seconds that an unused version without a role stays.
        first_retry: Seconds until a failed load is retried for the first time.
    """

    warm: frozenset[str] | None = None
    memory: int = 2_000_000_000
    unload_after: float = 60.0
    first_retry: float = 5.0


@dataclass(frozen=True, slots=True)
class VersionEvent:
    """A change of a version in memory, for logs and counters.

    Attributes:
        kind: `loaded`, `failed`, `switched` or `unloaded`.
        model: Name of the model.
        version: Version number.
        detail: A sentence about the failure, or the role.
        seconds: Duration of the load.
        role: The role that was switched to the version; None for other events.
    """

    kind: str
    model: str
    version: int
    detail: str = ""
    seconds: float = 0.0
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class VersionReport:
    """The state of a version in memory, for callers."""

    model: str
    version: int
    state: LoadState
    fault: str | None
    load_seconds: float
    num_bytes: int
    num_requests: int
    engine: str | None
    measured: bool
    roles: tuple[Role, ...]


class ModelPool(Generic[LoadedT]):
    """The versions in memory, and the roles that they serve.

    Args:
        load: Loads and checks a version; called in a thread.
        options: What stays in memory.
        on_event: Called with every change of a version.
    """

    def __init__(
        self,
        load: Callable[[str, int], LoadedT],
        options: ModelPoolOptions,
        *,
        on_event: Callable[[VersionEvent], None] = lambda _: None,
    ) -> None:
        self._options, self._on_event = options, on_event
        self._snapshot = Snapshot(aliases={})
        self._cache = ModelCache(
            load, on_load_end=self._on_load_end, first_retry=options.first_retry
        )
        self._serving: dict[Role, int] = {}
        self.last_served: dict[Role, int] = {}
        """The version that served each role last, in any process."""

    # --- which versions are needed ---

    def apply(self, snapshot: Snapshot) -> None:
        """Adopt a new snapshot: start to load what it needs, switch to what is ready."""
        self._snapshot = snapshot
        self.reconcile()

    def reconcile(self) -> None:
        """Switch roles to versions that are ready, load those that are not, evict the rest."""
        warm = self._warm_models()
        for role, version in self._snapshot.desired_versions.items():
            if self._cache.loaded(role.model, version) is not None:
                self._switch(role, version)
            elif role.model in warm or role in self._serving:
                self._cache.ensure_loading(role.model, version)
                self._fall_back(role, version)
        for role in [role for role in self._serving if role not in self._snapshot.desired_versions]:
            del self._serving[role]
        self._evict()

    def _on_load_end(self, entry: CachedVersion[LoadedT]) -> None:
        kind = "failed" if entry.loaded is None else "loaded"
        detail = entry.fault or ""
        self._on_event(VersionEvent(kind, entry.model, entry.version, detail, entry.load_seconds))
        self.reconcile()

    def _fall_back(self, role: Role, desired: int) -> None:
        """Serve a role with the version that served it last, if nothing else can."""
        entry, last = self._cache.get(role.model, desired), self.last_served.get(role)
        if entry is None or entry.error is None or role in self._serving:
            return
        if last is None or last == desired:
            return
        if self._cache.ensure_loading(role.model, last).loaded is not None:
            self._switch(role, last)

    def _warm_models(self) -> set[str]:
        """Return the models whose roles are loaded before any request needs them."""
        snapshot = self._snapshot
        warm = {model for model, route in snapshot.routes.items() if route.warm}
        if self._options.warm is not None:
            return warm | self._options.warm
        if sum(entry.num_bytes for entry in self._cache) < self._options.memory:
            return set(snapshot.aliases)
        return warm | {entry.model for entry in self._cache}

    def _switch(self, role: Role, version: int) -> None:
        before = self._serving.get(role)
        if before == version:
            return
        self._serving[role] = version
        self.last_served[role] = version
        self._on_event(VersionEvent("switched", role.model, version, role.description, role=role))
        log.info("%s of %s: version %s -> %d", role.via, role.model, before, version)

    def _evict(self) -> None:
        """Drop versions without a role: after a while, or at once if memory is short."""
        needed = {(role.model, version) for role, version in self._serving.items()}
        needed |= {(role.model, n) for role, n in self._snapshot.desired_versions.items()}
        free = [entry for entry in self._cache if entry.key not in needed]
        used = sum(entry.num_bytes for entry in free)
        now = time.monotonic()
        for entry in sorted(free, key=lambda entry: entry.last_used):
            expired = now - entry.last_used > self._options.unload_after
            removed = entry.model not in self._snapshot.aliases
            if entry.is_idle and (expired or removed or used > self._options.memory):
                used -= entry.num_bytes
                self._cache.drop(entry)
                self._on_event(VersionEvent("unloaded", entry.model, entry.version))

    # --- requests ---

    async def acquire(self, choice: Choice, *, patience: float) -> tuple[int, LoadedT]:
        """Return the version that serves a role, and count one more use of it.

        While the desired version is being loaded, the version that had the role before serves it.
        All requests for a version that is not in memory wait for the same load.

        Args:
            choice: The role and its desired version, from `routing.choose`.
            patience: Maximum seconds to wait.

        Raises:
            NotReadyError: If the version fails to load, or is not ready in time.
            UnknownVersionError: If the model has no such version.
        """
        entry = self._cache.get(choice.role.model, choice.version)
        if entry is None or entry.loaded is None:
            serving = self._serving.get(choice.role, self.last_served.get(choice.role))
            old = None if serving is None else self._cache.get(choice.role.model, serving)
            if old is not None and old.loaded is not None:
                self._cache.ensure_loading(choice.role.model, choice.version)
                entry = old
            else:
                entry = await self._wait_for(choice, patience)
        assert entry.loaded is not None
        entry.in_use += 1
        entry.num_requests += 1
        entry.last_used = time.monotonic()
        return entry.version, entry.loaded

    def release(self, model: str, version: int) -> None:
        """Count one use less of a version."""
        entry = self._cache.get(model, version)
        if entry is not None:
            entry.in_use -= 1
            entry.last_used = time.monotonic()

    async def _wait_for(self, choice: Choice, patience: float) -> CachedVersion[LoadedT]:
        model, version = choice.role.model, choice.version
        entry = self._cache.ensure_loading(model, version)
        if entry.loading is not None:
            try:
                await asyncio.wait_for(asyncio.shield(entry.loading), patience)
            except TimeoutError:
                raise NotReadyError(f"Version {version} of {model} is being loaded.") from None
        if entry.loaded is None:
            last = self.last_served.get(choice.role)
            if last is not None and last != version:
                return await self._wait_for(Choice(choice.role, last), patience)
            if isinstance(entry.error, UnknownVersionError):
                raise entry.error
            raise NotReadyError(
                f"Version {version} of {model} does not load: {entry.public_fault}",
                retry_after=max(1.0, entry.retry_at - time.monotonic()),
            )
        return entry

    # --- state ---

    def loaded(self, model: str, version: int) -> LoadedT | None:
        """Return a version that is ready; None if it is not."""
        return self._cache.loaded(model, version)

    def replace(self, model: str, version: int, loaded: LoadedT) -> None:
        """Replace a loaded version by a faster copy of it."""
        entry = self._cache.get(model, version)
        if entry is not None and entry.loaded is not None:
            entry.loaded = loaded

    @property
    def is_loading(self) -> bool:
        """Whether any version is being loaded."""
        return self._cache.is_loading

    @property
    def unready_reasons(self) -> list[str]:
        """Why the pool is not ready: roles of warm models that no version serves."""
        warm, reasons = self._warm_models(), []
        for role, version in self._snapshot.desired_versions.items():
            if role.model in warm and role not in self._serving:
                failed = self.fault(role.model, version) is not None
                state = "does not load" if failed else "is being loaded"
                reasons.append(f"{role.model}/{version} {state}")
        return sorted(reasons)

    def serving(self, role: Role) -> int | None:
        """Return the version that serves a role now; None if none does."""
        return self._serving.get(role)

    def fault(self, model: str, version: int) -> str | None:
        """Return why a version does not load, for callers; None if its load did not fail."""
        entry = self._cache.get(model, version)
        return None if entry is None else entry.public_fault

    def reports(self) -> list[VersionReport]:
        """Return the state of each version in memory, by model and version."""
        roles: dict[tuple[str, int], list[Role]] = {}
        for role, version in self._serving.items():
            roles.setdefault((role.model, version), []).append(role)
        return [
            VersionReport(
                model=entry.model,
                version=entry.version,
                state=entry.state,
                fault=entry.public_fault,
                load_seconds=entry.load_seconds,
                num_bytes=entry.num_bytes,
                num_requests=entry.num_requests,
                engine=entry.loaded.engine if entry.loaded is not None else None,
                measured=entry.loaded is not None and entry.loaded.measured,
                roles=tuple(sorted(roles.get(entry.key, []), key=lambda role: role.description)),
            )
            for entry in sorted(self._cache, key=lambda entry: entry.key)
        ]

    async def close(self) -> None:
        """Wait for running loads, and end the loader."""
        await self._cache.close()
