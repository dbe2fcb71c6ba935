"""Versions of models in memory: loaded beside the old, checked, and only then given traffic.

Every use of a version has a role (`routing.py`): a model's default, its canary, an application's
pin. A role's version is the one that answers now, its target the one that should. When a target
changes, the new version is loaded and checked on its golden images while the old one goes on
answering; it takes over when it is ready, and when it fails the old one stays and the failure is
there to be seen. Failed loads are tried again, at longer and longer intervals. A process that has
just begun has no old version; it falls back on the one that answered last, in whatever process.

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

from eagleray.errors import EaglerayError, UnknownVersionError
from eagleray.serving.problems import NotReadyError
from eagleray.serving.routing import Choice, Role, Snapshot, roles_of

__all__ = ["Event", "Fleet", "FleetOptions", "SlotReport", "State"]

log = logging.getLogger(__name__)

_FIRST_RETRY = 5.0
_LAST_RETRY = 300.0


class Sized(Protocol):
    """What the fleet needs of a loaded version."""

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
    roles: tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Slot(Generic[V]):
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
        """Why it does not load."""
        if self.error is None or isinstance(self.error, EaglerayError):
            return None if self.error is None else str(self.error)
        text = (str(self.error).splitlines() or ["no message"])[0]
        return f"{type(self.error).__name__}: {text}"

    @property
    def state(self) -> State:
        if self.loaded is not None:
            return State.READY
        return State.LOADING if self.loading is not None else State.FAILED


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
        self._load, self._options, self._happened = load, options, happened
        self._snapshot = Snapshot(aliases={})
        self._slots: dict[tuple[str, int], _Slot[V]] = {}
        self._serving: dict[Role, int] = {}
        self.served: dict[Role, int] = {}  # the version that answered last, in whatever process
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what should be there ---

    def apply(self, snapshot: Snapshot) -> None:
        """Go by a new snapshot: begin to load what it needs, switch to what is there."""
        self._snapshot = snapshot
        self.settle()

    def settle(self) -> None:
        """Switch roles to targets that are ready, load those that are not, let go of the rest."""
        for model in self._snapshot.aliases:
            keep = self._keeps(model)
            for role, version in self._targets(model):
                slot = self._slots.get((model, version))
                if slot is not None and slot.loaded is not None:
                    self._switch(role, version)
                elif keep or role in self._serving:
                    self._begin(model, version)
                    self._fall_back(role, version)
        self._drop_roles()
        self._unload()

    def _targets(self, model: str) -> Iterator[tuple[Role, int]]:
        """Yield every standing role of a model with the version that it should have."""
        for role, target in roles_of(self._snapshot, model):
            version = self._snapshot.version(model, target)
            if version is not None:
                yield role, version

    def _fall_back(self, role: Role, target: int) -> None:
        """Where nothing answers in a role and its target fails, turn to what answered last."""
        slot, last = self._slots[role.model, target], self.served.get(role)
        if slot.error is None or role in self._serving or last in (None, target):
            return
        assert last is not None
        old = self._begin(role.model, last)
        if old.loaded is not None:
            self._switch(role, last)

    def _keeps(self, model: str) -> bool:
        if self._snapshot.route(model).keep:
            return True
        if self._options.keep is not None:
            return model in self._options.keep
        used = sum(slot.loaded.num_bytes for slot in self._slots.values() if slot.loaded)
        return used < self._options.memory or any(name == model for name, _ in self._slots)

    def _switch(self, role: Role, version: int) -> None:
        before = self._serving.get(role)
        if before == version:
            return
        self._serving[role] = version
        self.served[role] = version
        words = f"{role.via} {role.name}".strip()
        self._happened(Event("switched", role.model, version, words, role=role))
        log.info("%s of %s: version %s -> %d", role.via, role.model, before, version)

    def _drop_roles(self) -> None:
        standing = {role for model in self._snapshot.aliases for role, _ in self._targets(model)}
        for role in [role for role in self._serving if role not in standing]:
            del self._serving[role]

    def _unload(self) -> None:
        """Let go of versions without a role: after a while, or at once where memory is short."""
        needed = {(role.model, version) for role, version in self._serving.items()}
        for model in self._snapshot.aliases:
            needed |= {(model, version) for _, version in self._targets(model)}
        now = time.monotonic()
        free = sorted(
            (
                slot
                for key, slot in self._slots.items()
                if key not in needed and slot.in_use == 0 and slot.loading is None
            ),
            key=lambda slot: slot.last_used,
        )
        used = sum(slot.loaded.num_bytes for slot in self._slots.values() if slot.loaded)
        for slot in free:
            idle = now - slot.last_used > self._options.unload_after
            gone = slot.model not in self._snapshot.aliases
            if idle or gone or used > self._options.memory:
                used -= 0 if slot.loaded is None else slot.loaded.num_bytes
                del self._slots[slot.model, slot.version]
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
        slot = self._slots.get((choice.role.model, choice.version))
        if slot is None or slot.loaded is None:
            serving = self._serving.get(choice.role, self.served.get(choice.role))
            old = None if serving is None else self._slots.get((choice.role.model, serving))
            if old is not None and old.loaded is not None:
                self._begin(choice.role.model, choice.version)
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
        slot = self._slots.get((model, version))
        if slot is not None:
            slot.in_use -= 1
            slot.last_used = time.monotonic()

    async def _wait_for(self, choice: Choice, patience: float) -> _Slot[V]:
        model, version = choice.role.model, choice.version
        slot = self._begin(model, version)
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
                f"Version {version} of {model} does not load: {slot.fault}", retry_after=wait
            )
        return slot

    # --- loading ---

    def _begin(self, model: str, version: int) -> _Slot[V]:
        """Begin to load a version, unless it is there, on its way, or has just failed."""
        slot = self._slots.setdefault((model, version), _Slot(model, version))
        waits = slot.error is not None and time.monotonic() < slot.retry_at
        if slot.loaded is None and slot.loading is None and not waits:
            slot.loading = asyncio.get_running_loop().create_task(self._run_load(slot))
            self._tasks.add(slot.loading)
            slot.loading.add_done_callback(self._tasks.discard)
        return slot

    async def _run_load(self, slot: _Slot[V]) -> None:
        loop, began = asyncio.get_running_loop(), time.monotonic()
        try:
            slot.loaded = await loop.run_in_executor(
                self._loader, self._load, slot.model, slot.version
            )
        except Exception as error:
            slot.failures += 1
            pause = min(_FIRST_RETRY * 2 ** (slot.failures - 1), _LAST_RETRY)
            slot.retry_at = time.monotonic() + pause
            slot.error = error
            known = isinstance(error, EaglerayError)
            words = ("version %d of %s does not load: %s", slot.version, slot.model, slot.fault)
            log.error(*words, exc_info=None if known else error)
            what = "failed"
        else:
            slot.error, slot.failures = None, 0
            what = "loaded"
        slot.loading = None
        slot.load_seconds = time.monotonic() - began
        detail = slot.fault or ""
        self._happened(Event(what, slot.model, slot.version, detail, slot.load_seconds))
        self.settle()

    def loaded(self, model: str, version: int) -> V | None:
        """Return a version that is in memory and ready."""
        slot = self._slots.get((model, version))
        return None if slot is None else slot.loaded

    def replace(self, model: str, version: int, loaded: V) -> None:
        """Put a faster copy of a version in the place of the one that answers now."""
        slot = self._slots.get((model, version))
        if slot is not None and slot.loaded is not None:
            slot.loaded = loaded

    # --- looking ---

    @property
    def is_loading(self) -> bool:
        """Whether any version is on its way."""
        return any(slot.loading is not None for slot in self._slots.values())

    @property
    def waiting_for(self) -> list[str]:
        """Why the service is not ready: kept versions without anything that answers for them."""
        reasons = []
        for model in sorted(self._snapshot.aliases):
            if not self._keeps(model):
                continue
            for role, version in self._targets(model):
                if role in self._serving:
                    continue
                slot = self._slots.get((model, version))
                fault = slot.fault if slot is not None else None
                reasons.append(f"{model}/{version} " + (fault or "is being loaded"))
        return reasons

    def serving(self, role: Role) -> int | None:
        """Return the version that answers in a role now."""
        return self._serving.get(role)

    def fault(self, model: str, version: int) -> str | None:
        """Return why a version does not load."""
        slot = self._slots.get((model, version))
        return None if slot is None else slot.fault

    def reports(self) -> list[SlotReport]:
        """Return how the versions in memory are doing, by model and version."""
        roles: dict[tuple[str, int], list[str]] = {}
        for role, version in self._serving.items():
            words = f"{role.via} {role.name}".strip()
            roles.setdefault((role.model, version), []).append(words)
        return [
            SlotReport(
                model=slot.model,
                version=slot.version,
                state=slot.state,
                fault=slot.fault,
                load_seconds=slot.load_seconds,
                num_bytes=0 if slot.loaded is None else slot.loaded.num_bytes,
                num_requests=slot.num_requests,
                compiled=slot.loaded is not None and slot.loaded.compiled,
                roles=tuple(sorted(roles.get(key, []))),
            )
            for key, slot in sorted(self._slots.items())
        ]

    async def close(self) -> None:
        """Wait for what is being loaded, and end."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._loader.shutdown()
