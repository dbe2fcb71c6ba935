"""Versions of models in memory: loaded beside the old, checked, and only then given traffic.

Every use of a version has a role (`routing.py`): a model's default, its canary, an application's
pin. A role's version is the one that answers now, its target the one that should. When a target
changes, the new version is loaded and checked on its golden images while the old one goes on
answering; it takes over when it is ready, and when it fails the old one stays and the failure is
there to be seen. Failed loads are tried again, at longer and longer intervals. A process that has
just begun has no old version; it falls back on the one that answered last, in whatever process.

Loading is `slots.py`; here is who needs which version, and what may leave. All of it runs in one
event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from eagleray.core.errors import UnknownVersionError
from eagleray.serving.model_cache import Slot, Slots, State, V
from eagleray.serving.problems import NotReadyError
from eagleray.serving.routing import Choice, Role, Snapshot

__all__ = ["Event", "Fleet", "FleetOptions", "SlotReport", "State"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """What stays in memory.

    Attributes:
        keep: Models whose versions are loaded before anyone asks; None for every model with a
            version in production, as far as memory goes.
        memory: Bytes of versions that nobody needs for a role; the least used go first.
        unload_after: Seconds that a version without a role stays.
    """

    keep: frozenset[str] | None = None
    memory: int = 2_000_000_000
    unload_after: float = 60.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a version: for logs and counters.

    Attributes:
        what: `loaded`, `failed`, `switched` or `unloaded`.
        model: Name.
        version: Number.
        detail: A sentence, or the role.
        seconds: That it took.
        role: That was switched.
    """

    what: str
    model: str
    version: int
    detail: str = ""
    seconds: float = 0.0
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class SlotReport:
    """How a version in memory is doing."""

    model: str
    version: int
    state: State
    fault: str | None
    load_seconds: float
    num_bytes: int
    num_requests: int
    compiled: bool
    roles: tuple[Role, ...]


class Fleet(Generic[V]):
    """The versions in memory.

    Args:
        load: Loads and checks a version; called in a thread.
        options: What stays.
        happened: Told of everything that happens.
    """

    def __init__(
        self,
        load: Callable[[str, int], V],
        options: FleetOptions,
        *,
        happened: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._options, self._happened = options, happened
        self._snapshot = Snapshot(aliases={})
        self._slots = Slots(load, ended=self._load_ended)
        self._serving: dict[Role, int] = {}
        self.served: dict[Role, int] = {}  # the version that answered last, in whatever process

    # --- what should be there ---

    def apply(self, snapshot: Snapshot) -> None:
        """Go by a new snapshot: begin to load what it needs, switch to what is there."""
        self._snapshot = snapshot
        self.settle()

    def settle(self) -> None:
        """Switch roles to targets that are ready, load those that are not, let go of the rest."""
        keeps = self._kept_models()
        for role, version in self._snapshot.standing.items():
            if self._slots.loaded(role.model, version) is not None:
                self._switch(role, version)
            elif role.model in keeps or role in self._serving:
                self._slots.begin(role.model, version)
                self._fall_back(role, version)
        for role in [role for role in self._serving if role not in self._snapshot.standing]:
            del self._serving[role]
        self._unload()

    def _load_ended(self, slot: Slot[V]) -> None:
        what = "failed" if slot.loaded is None else "loaded"
        detail = slot.fault or ""
        self._happened(Event(what, slot.model, slot.version, detail, slot.load_seconds))
        self.settle()

    def _fall_back(self, role: Role, target: int) -> None:
        """Where nothing answers in a role and its target fails, turn to what answered last."""
        slot, last = self._slots.get(role.model, target), self.served.get(role)
        if slot is None or slot.error is None or role in self._serving or last in (None, target):
            return
        assert last is not None
        if self._slots.begin(role.model, last).loaded is not None:
            self._switch(role, last)

    def _kept_models(self) -> set[str]:
        """Return the models whose standing roles are loaded before anyone asks."""
        snapshot = self._snapshot
        kept = {model for model, route in snapshot.routes.items() if route.keep}
        if self._options.keep is not None:
            return kept | self._options.keep
        if sum(slot.num_bytes for slot in self._slots) < self._options.memory:
            return set(snapshot.aliases)
        return kept | {slot.model for slot in self._slots}

    def _switch(self, role: Role, version: int) -> None:
        before = self._serving.get(role)
        if before == version:
            return
        self._serving[role] = version
        self.served[role] = version
        self._happened(Event("switched", role.model, version, role.words, role=role))
        log.info("%s of %s: version %s -> %d", role.via, role.model, before, version)

    def _unload(self) -> None:
        """Let go of versions without a role: after a while, or at once where memory is short."""
        needed = {(role.model, version) for role, version in self._serving.items()}
        needed |= {(role.model, version) for role, version in self._snapshot.standing.items()}
        free = [slot for slot in self._slots if (slot.model, slot.version) not in needed]
        used = sum(slot.num_bytes for slot in free)
        now = time.monotonic()
        for slot in sorted(free, key=lambda slot: slot.last_used):
            idle = now - slot.last_used > self._options.unload_after
            gone = slot.model not in self._snapshot.aliases
            if slot.is_idle and (idle or gone or used > self._options.memory):
                used -= slot.num_bytes
                self._slots.drop(slot)
                self._happened(Event("unloaded", slot.model, slot.version))

    # --- requests ---

    async def acquire(self, choice: Choice, *, patience: float) -> tuple[int, V]:
        """Return the version that answers in a role, and count a use of it.

        While a target is being loaded the version that had the role before answers. Whoever asks
        for a version that nobody had in memory waits for it, together with all others who do.

        Args:
            choice: As `routing.choose` makes it.
            patience: Seconds to wait.

        Raises:
            NotReadyError: The version fails to load, or does not come in time.
            UnknownVersionError: There is none of that number.
        """
        slot = self._slots.get(choice.role.model, choice.version)
        if slot is None or slot.loaded is None:
            serving = self._serving.get(choice.role, self.served.get(choice.role))
            old = None if serving is None else self._slots.get(choice.role.model, serving)
            if old is not None and old.loaded is not None:
                self._slots.begin(choice.role.model, choice.version)
                slot = old
            else:
                slot = await self._wait_for(choice, patience)
        assert slot.loaded is not None
        slot.in_use += 1
        slot.num_requests += 1
        slot.last_used = time.monotonic()
        return slot.version, slot.loaded

    def release(self, model: str, version: int) -> None:
        """Count a use as ended."""
        slot = self._slots.get(model, version)
        if slot is not None:
            slot.in_use -= 1
            slot.last_used = time.monotonic()

    async def _wait_for(self, choice: Choice, patience: float) -> Slot[V]:
        model, version = choice.role.model, choice.version
        slot = self._slots.begin(model, version)
        if slot.loading is not None:
            try:
                await asyncio.wait_for(asyncio.shield(slot.loading), patience)
            except TimeoutError:
                raise NotReadyError(f"Version {version} of {model} is being loaded.") from None
        if slot.loaded is None:
            last = self.served.get(choice.role)
            if last is not None and last != version:
                return await self._wait_for(Choice(choice.role, last), patience)
            if isinstance(slot.error, UnknownVersionError):
                raise slot.error
            wait = max(1.0, slot.retry_at - time.monotonic())
            raise NotReadyError(
                f"Version {version} of {model} does not load: {slot.public_fault}", retry_after=wait
            )
        return slot

    # --- looking ---

    def loaded(self, model: str, version: int) -> V | None:
        """Return a version that is in memory and ready."""
        return self._slots.loaded(model, version)

    def replace(self, model: str, version: int, loaded: V) -> None:
        """Put a faster copy of a version in the place of the one that answers now."""
        slot = self._slots.get(model, version)
        if slot is not None and slot.loaded is not None:
            slot.loaded = loaded

    @property
    def is_loading(self) -> bool:
        """Whether any version is on its way."""
        return self._slots.is_loading

    @property
    def waiting_for(self) -> list[str]:
        """Why the service is not ready: kept versions without anything that answers for them."""
        keeps, reasons = self._kept_models(), []
        for role, version in self._snapshot.standing.items():
            if role.model in keeps and role not in self._serving:
                failed = self.fault(role.model, version) is not None
                words = "does not load" if failed else "is being loaded"
                reasons.append(f"{role.model}/{version} {words}")
        return sorted(reasons)

    def serving(self, role: Role) -> int | None:
        """Return the version that answers in a role now."""
        return self._serving.get(role)

    def fault(self, model: str, version: int) -> str | None:
        """Return why a version does not load, for callers."""
        slot = self._slots.get(model, version)
        return None if slot is None else slot.public_fault

    def reports(self) -> list[SlotReport]:
        """Return how the versions in memory are doing, by model and version."""
        roles: dict[tuple[str, int], list[Role]] = {}
        for role, version in self._serving.items():
            roles.setdefault((role.model, version), []).append(role)
        return [
            SlotReport(
                model=slot.model,
                version=slot.version,
                state=slot.state,
                fault=slot.public_fault,
                load_seconds=slot.load_seconds,
                num_bytes=slot.num_bytes,
                num_requests=slot.num_requests,
                compiled=slot.loaded is not None and slot.loaded.compiled,
                roles=tuple(
                    sorted(roles.get((slot.model, slot.version), []), key=lambda role: role.words)
                ),
            )
            for slot in sorted(self._slots, key=lambda slot: (slot.model, slot.version))
        ]

    async def close(self) -> None:
        """Wait for what is being loaded, and end."""
        await self._slots.close()
