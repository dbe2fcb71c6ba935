"""Versions in memory: the new one beside the old one, checked first; failures change nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from eagleray.core.errors import PackageError
from eagleray.serving.problems import NotReadyError
from eagleray.serving.versions.model_cache import LoadState
from eagleray.serving.versions.model_pool import ModelPool, ModelPoolOptions, VersionEvent
from eagleray.serving.versions.routing import (
    Application,
    Choice,
    Role,
    Route,
    Snapshot,
    Via,
    choose,
)

DEFAULT = Role("digits", Via.DEFAULT)


@dataclass
class Version:
    number: int
    num_bytes: int = 100
    engine: str = "PyTorch on cpu"
    measured: bool = False


class Shelf:
    """Loads versions as it is told to."""

    def __init__(self) -> None:
        self.loads: list[tuple[str, int]] = []
        self.broken: dict[int, Exception] = {}
        self.gates: dict[int, threading.Event] = {}

    def load(self, model: str, version: int) -> Version:
        self.loads.append((model, version))
        if version in self.gates:
            assert self.gates[version].wait(10)
        if version in self.broken:
            raise self.broken[version]
        return Version(version)


def production(version: int, **more: Any) -> Snapshot:
    return Snapshot(aliases={"digits": {"production": version}}, **more)


def run(
    test: Callable[[Shelf, ModelPool[Version], list[VersionEvent]], Coroutine[Any, Any, None]],
    **options: Any,
) -> None:
    async def main() -> None:
        shelf = Shelf()
        events: list[VersionEvent] = []
        values: dict[str, Any] = {
            "warm": frozenset({"digits"}),
            "memory": 250,
            "unload_after": 0,
            **options,
        }
        pool = ModelPool(shelf.load, ModelPoolOptions(**values), on_event=events.append)
        await test(shelf, pool, events)
        for gate in shelf.gates.values():
            gate.set()
        await pool.close()

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


async def reconciled(pool: ModelPool[Version], condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            pool.reconcile()
            await asyncio.sleep(0.002)


async def answering(pool: ModelPool[Version], snapshot: Snapshot, **request: Any) -> int:
    version, loaded = await pool.acquire(choose(snapshot, "digits", **request), patience=5)
    pool.release("digits", version)
    assert loaded.number == version
    return version


def test_the_old_version_serves_until_the_new_one_is_ready() -> None:
    async def test(shelf: Shelf, pool: ModelPool[Version], events: list[VersionEvent]) -> None:
        shelf.gates[2] = threading.Event()
        pool.apply(production(1))
        assert pool.unready_reasons == ["digits/1 is being loaded"]
        await until(lambda: pool.serving(DEFAULT) == 1)
        assert pool.unready_reasons == []
        pool.apply(production(2))
        await until(lambda: ("digits", 2) in shelf.loads)
        assert await answering(pool, production(2)) == 1
        shelf.gates[2].set()
        await until(lambda: pool.serving(DEFAULT) == 2)
        assert await answering(pool, production(2)) == 2
        await reconciled(pool, lambda: len(pool.reports()) == 1)
        assert [event.kind for event in events] == [
            "loaded",
            "switched",
            "loaded",
            "switched",
            "unloaded",
        ]

    run(test)


@pytest.mark.parametrize("fault", [PackageError("fails its golden images"), KeyError("weights")])
def test_a_version_that_fails_changes_nothing_and_shows(fault: Exception) -> None:
    async def test(shelf: Shelf, pool: ModelPool[Version], events: list[VersionEvent]) -> None:
        shelf.broken[2] = fault
        pool.apply(production(1))
        await until(lambda: pool.serving(DEFAULT) == 1)
        pool.apply(production(2))
        await until(lambda: any(event.kind == "failed" for event in events))
        for _ in range(3):
            assert await answering(pool, production(2)) == 1
        assert shelf.loads.count(("digits", 2)) == 1  # not again at once
        failed = next(event for event in events if event.kind == "failed")
        assert str(fault.args[0]) in failed.detail  # for the log
        assert (pool.fault("digits", 2) or "").endswith("the service's log says why.")
        report = next(item for item in pool.reports() if item.version == 2)
        assert report.state is LoadState.FAILED
        pool.apply(production(1))
        assert await answering(pool, production(1)) == 1

    run(test)


def test_a_failed_load_is_retried_later() -> None:
    async def test(shelf: Shelf, pool: ModelPool[Version], events: list[VersionEvent]) -> None:
        shelf.broken[1] = PackageError("/srv/models/digits is altered")
        pool.apply(production(1))
        await until(lambda: events)
        with pytest.raises(NotReadyError, match="Its package is refused") as refused:
            await answering(pool, production(1))
        assert "/srv" not in str(refused.value)
        assert pool.unready_reasons == ["digits/1 does not load"]
        shelf.broken.clear()
        await reconciled(pool, lambda: pool.serving(DEFAULT) == 1)

    run(test, first_retry=0.05)


def test_a_new_process_falls_back_on_the_version_that_served_last() -> None:
    async def test(shelf: Shelf, pool: ModelPool[Version], _: list[VersionEvent]) -> None:
        shelf.broken[2] = PackageError("broken")
        pool.last_served[DEFAULT] = 1
        pool.apply(production(2))
        await until(lambda: pool.serving(DEFAULT) == 1)
        assert pool.unready_reasons == []
        assert await answering(pool, production(2)) == 1

    run(test)


def test_any_number_of_waiting_requests_is_one_load() -> None:
    async def test(shelf: Shelf, pool: ModelPool[Version], _: list[VersionEvent]) -> None:
        snapshot = Snapshot(aliases={"digits": {"production": 1}, "rare": {"production": 4}})
        shelf.gates[4] = threading.Event()
        pool.apply(snapshot)
        choice = choose(snapshot, "rare")
        waiting = [asyncio.create_task(pool.acquire(choice, patience=5)) for _ in range(50)]
        await until(lambda: ("rare", 4) in shelf.loads)
        with pytest.raises(NotReadyError, match="is being loaded"):
            await pool.acquire(choice, patience=0.01)
        shelf.gates[4].set()
        assert {version for version, _ in await asyncio.gather(*waiting)} == {4}
        assert shelf.loads.count(("rare", 4)) == 1

    run(test)


def test_pins_and_canaries_stay_loaded_beside_the_default() -> None:
    async def test(_: Shelf, pool: ModelPool[Version], __: list[VersionEvent]) -> None:
        snapshot = production(
            3,
            routes={"digits": Route(canary="4", canary_share=0.5)},
            applications={"shop": Application("shop", pins={"digits": "2"})},
        )
        pool.apply(snapshot)
        await until(lambda: len([item for item in pool.reports() if item.roles]) == 3)
        assert await answering(pool, snapshot, application="shop") == 2
        pool.apply(production(3))
        await reconciled(pool, lambda: len(pool.reports()) == 1)
        assert pool.reports()[0].roles == (DEFAULT,)

    run(test)


def test_the_least_recently_used_versions_are_evicted() -> None:
    async def test(shelf: Shelf, pool: ModelPool[Version], _: list[VersionEvent]) -> None:
        names = ["a", "b", "c", "d"]
        snapshot = Snapshot(
            aliases={"digits": {"production": 1}, **{name: {"x": 9} for name in names}}
        )
        pool.apply(snapshot)
        for name in names:
            choice = Choice(Role(name, Via.REQUESTED, "9"), 9)
            version, _loaded = await pool.acquire(choice, patience=5)
            pool.release(name, version)
        pool.reconcile()
        assert {item.model for item in pool.reports()} == {"digits", "c", "d"}

    run(test, unload_after=1000)


def test_a_version_that_is_in_use_stays() -> None:
    async def test(_: Shelf, pool: ModelPool[Version], __: list[VersionEvent]) -> None:
        pool.apply(production(1))
        await until(lambda: pool.serving(DEFAULT) == 1)
        version, _loaded = await pool.acquire(choose(production(1), "digits"), patience=1)
        pool.apply(production(2))
        await until(lambda: pool.serving(DEFAULT) == 2)
        pool.reconcile()
        assert [item.version for item in pool.reports()] == [1, 2]
        pool.release("digits", version)
        await reconciled(pool, lambda: len(pool.reports()) == 1)

    run(test)
