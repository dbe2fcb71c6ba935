"""Versions in memory: the new one beside the old one, checked first; failures change nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from eagleray.core.errors import PackageError
from eagleray.serving import model_cache as slots_module
from eagleray.serving.model_cache import State
from eagleray.serving.model_pool import Event, Fleet, FleetOptions
from eagleray.serving.problems import NotReadyError
from eagleray.serving.routing import Application, Choice, Role, Route, Snapshot, Via, choose

DEFAULT = Role("digits", Via.DEFAULT)


@dataclass
class Version:
    number: int
    num_bytes: int = 100
    compiled: bool = False


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


def run(test: Callable[[Shelf, Fleet[Version], list[Event]], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        shelf = Shelf()
        events: list[Event] = []
        options = FleetOptions(keep=frozenset({"digits"}), memory=250, unload_after=0)
        fleet = Fleet(shelf.load, options, happened=events.append)
        await test(shelf, fleet, events)
        for gate in shelf.gates.values():
            gate.set()
        await fleet.close()

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


async def settled(fleet: Fleet[Version], condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            fleet.settle()
            await asyncio.sleep(0.002)


async def answering(fleet: Fleet[Version], snapshot: Snapshot, **asked: Any) -> int:
    version, loaded = await fleet.acquire(choose(snapshot, "digits", **asked), patience=5)
    fleet.release("digits", version)
    assert loaded.number == version
    return version


def test_the_old_version_answers_until_the_new_one_is_there() -> None:
    async def test(shelf: Shelf, fleet: Fleet[Version], events: list[Event]) -> None:
        shelf.gates[2] = threading.Event()
        fleet.apply(production(1))
        assert fleet.waiting_for == ["digits/1 is being loaded"]
        await until(lambda: fleet.serving(DEFAULT) == 1)
        assert fleet.waiting_for == []
        fleet.apply(production(2))
        await until(lambda: ("digits", 2) in shelf.loads)
        assert await answering(fleet, production(2)) == 1
        shelf.gates[2].set()
        await until(lambda: fleet.serving(DEFAULT) == 2)
        assert await answering(fleet, production(2)) == 2
        await settled(fleet, lambda: len(fleet.reports()) == 1)
        assert [event.what for event in events] == [
            "loaded",
            "switched",
            "loaded",
            "switched",
            "unloaded",
        ]

    run(test)


@pytest.mark.parametrize("fault", [PackageError("fails its golden images"), KeyError("weights")])
def test_a_version_that_fails_changes_nothing_and_shows(fault: Exception) -> None:
    async def test(shelf: Shelf, fleet: Fleet[Version], events: list[Event]) -> None:
        shelf.broken[2] = fault
        fleet.apply(production(1))
        await until(lambda: fleet.serving(DEFAULT) == 1)
        fleet.apply(production(2))
        await until(lambda: any(event.what == "failed" for event in events))
        for _ in range(3):
            assert await answering(fleet, production(2)) == 1
        assert shelf.loads.count(("digits", 2)) == 1  # not again at once
        failed = next(event for event in events if event.what == "failed")
        assert str(fault.args[0]) in failed.detail  # for the log
        assert (fleet.fault("digits", 2) or "").endswith("the service's log says why.")
        report = next(item for item in fleet.reports() if item.version == 2)
        assert report.state is State.FAILED
        fleet.apply(production(1))
        assert await answering(fleet, production(1)) == 1

    run(test)


def test_a_failed_load_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "_FIRST_RETRY", 0.05)

    async def test(shelf: Shelf, fleet: Fleet[Version], events: list[Event]) -> None:
        shelf.broken[1] = PackageError("/srv/models/digits is altered")
        fleet.apply(production(1))
        await until(lambda: events)
        with pytest.raises(NotReadyError, match="Its package is refused") as refused:
            await answering(fleet, production(1))
        assert "/srv" not in str(refused.value)
        assert fleet.waiting_for == ["digits/1 does not load"]
        shelf.broken.clear()
        await settled(fleet, lambda: fleet.serving(DEFAULT) == 1)

    run(test)


def test_a_new_process_falls_back_on_what_answered_last() -> None:
    async def test(shelf: Shelf, fleet: Fleet[Version], _: list[Event]) -> None:
        shelf.broken[2] = PackageError("broken")
        fleet.served[DEFAULT] = 1
        fleet.apply(production(2))
        await until(lambda: fleet.serving(DEFAULT) == 1)
        assert fleet.waiting_for == []
        assert await answering(fleet, production(2)) == 1

    run(test)


def test_any_number_of_waiting_requests_is_one_load() -> None:
    async def test(shelf: Shelf, fleet: Fleet[Version], _: list[Event]) -> None:
        snapshot = Snapshot(aliases={"digits": {"production": 1}, "rare": {"production": 4}})
        shelf.gates[4] = threading.Event()
        fleet.apply(snapshot)
        choice = choose(snapshot, "rare")
        waiting = [asyncio.create_task(fleet.acquire(choice, patience=5)) for _ in range(50)]
        await until(lambda: ("rare", 4) in shelf.loads)
        with pytest.raises(NotReadyError, match="is being loaded"):
            await fleet.acquire(choice, patience=0.01)
        shelf.gates[4].set()
        assert {version for version, _ in await asyncio.gather(*waiting)} == {4}
        assert shelf.loads.count(("rare", 4)) == 1

    run(test)


def test_pins_and_canaries_are_kept_beside_the_default() -> None:
    async def test(_: Shelf, fleet: Fleet[Version], __: list[Event]) -> None:
        snapshot = production(
            3,
            routes={"digits": Route(canary="4", canary_share=0.5)},
            applications={"shop": Application("shop", pins={"digits": "2"})},
        )
        fleet.apply(snapshot)
        await until(lambda: len([item for item in fleet.reports() if item.roles]) == 3)
        assert await answering(fleet, snapshot, application="shop") == 2
        fleet.apply(production(3))
        await settled(fleet, lambda: len(fleet.reports()) == 1)
        assert fleet.reports()[0].roles == (DEFAULT,)

    run(test)


def test_memory_goes_to_those_that_were_used_last() -> None:
    async def test(shelf: Shelf, fleet: Fleet[Version], _: list[Event]) -> None:
        names = ["a", "b", "c", "d"]
        snapshot = Snapshot(
            aliases={"digits": {"production": 1}, **{name: {"x": 9} for name in names}}
        )
        fleet._options = FleetOptions(keep=frozenset({"digits"}), memory=250, unload_after=1000)
        fleet.apply(snapshot)
        for name in names:
            choice = Choice(Role(name, Via.ASKED, "9"), 9)
            version, _loaded = await fleet.acquire(choice, patience=5)
            fleet.release(name, version)
        fleet.settle()
        assert {item.model for item in fleet.reports()} == {"digits", "c", "d"}

    run(test)


def test_a_version_that_is_in_use_stays() -> None:
    async def test(_: Shelf, fleet: Fleet[Version], __: list[Event]) -> None:
        fleet.apply(production(1))
        await until(lambda: fleet.serving(DEFAULT) == 1)
        version, _loaded = await fleet.acquire(choose(production(1), "digits"), patience=1)
        fleet.apply(production(2))
        await until(lambda: fleet.serving(DEFAULT) == 2)
        fleet.settle()
        assert [item.version for item in fleet.reports()] == [1, 2]
        fleet.release("digits", version)
        await settled(fleet, lambda: len(fleet.reports()) == 1)

    run(test)
