"""Processes that promote and roll back one alias at the same time, some of them killed on the way.

    python -m tests.chaos.aliases                       both, on SQLite and on PostgreSQL
    python -m tests.chaos.aliases HOME race 2 50        two processes, fifty changes each
    python -m tests.chaos.aliases HOME kill 20 40       twenty are killed beside one

EAGLERAY_DATABASE_URL says where the history is. The processes are forks of one that has
imported everything and connected to nothing, so that a kill hits a change and not an import.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.registry.mlflow_models import MlflowModels
from eagleray.registry.promotion import promote, rollback
from eagleray.registry.registry import Registry
from tests.support.models import golden_png, small_package
from tests.support.postgres import find_postgres, running_postgres

NUM_VERSIONS = 4
FORK = multiprocessing.get_context("fork")


class SignallingModels(MlflowModels):
    """Signals the state of a change: about to be written, or written and not applied."""

    about_to_write: Any = None
    written: Any = None

    def has_version(self, name: str, version: int) -> bool:
        if self.about_to_write is not None:
            self.about_to_write.set()
        return super().has_version(name, version)

    def point_alias(self, name: str, alias: str, version: int) -> None:
        if self.written is not None:
            self.written.set()
        super().point_alias(name, alias, version)


def prepare(settings: Settings) -> None:
    registry = Registry(settings)
    for number in range(NUM_VERSIONS):
        metrics = {"accuracy": number / 10}
        registry.register(small_package(metrics=metrics, golden_images=[golden_png(0)]))
    registry.set_alias("digits", "live", 1)


def change(settings: Settings, seed: int, count: int | None, begun: Any = None) -> None:
    """Make a number of changes, or changes until killed."""
    torch.set_num_threads(1)
    choose = random.Random(seed)
    registry = Registry(settings)
    models = SignallingModels(settings, registry.client, registry.artifacts)
    registry.models = models
    if seed % 2:
        models.written = begun
    else:
        models.about_to_write = begun
    done = 0
    while count is None or done < count:
        try:
            if choose.random() < 0.4:
                rollback(registry, "digits", alias="live", actor=str(seed))
            else:
                version = choose.randint(1, NUM_VERSIONS)
                promote(
                    *(registry, "digits", version),
                    alias="live",
                    kpis=None,
                    force=True,
                    actor=str(seed),
                    reason="race",
                )
        except InputError as error:  # it is there already, or nothing was before it
            if "already" not in str(error) and "has no version before" not in str(error):
                raise
        else:
            done += 1


def race(settings: Settings, num_processes: int, count: int) -> None:
    drivers = [start(change, settings, seed, count) for seed in range(num_processes)]
    for driver in drivers:
        driver.join()
        assert driver.exitcode == 0


def kill(settings: Settings, num_victims: int, count: int) -> None:
    choose = random.Random()
    survivor = start(change, settings, 0, count)
    for seed in range(1, num_victims + 1):
        begun = FORK.Event()
        victim = start(change, settings, seed, None, begun)
        assert begun.wait(60)
        time.sleep(choose.uniform(0, 0.2))  # anywhere from the first write to the last and beyond
        victim.kill()
        victim.join()
    survivor.join()
    assert survivor.exitcode == 0
    run(change, settings, 99, 1)  # the next change finishes what the last victim left


def check(settings: Settings) -> None:
    """Compare the history with itself and with MLflow, and print the changes."""
    registry = Registry(settings)
    changes = registry.history.changes("digits", "live")
    assert [item.number for item in changes] == list(range(1, len(changes) + 1))
    before = [item.previous for item in changes]
    assert before == [None, *(item.version for item in changes[:-1])], "a change was not seen"
    assert all(item.applied for item in changes)
    assert registry.alias_target("digits", "live") == changes[-1].version
    by_whom = Counter(item.actor for item in changes)
    print(json.dumps({"changes": len(changes), "by": by_whom}))


def start(work: Any, *arguments: Any) -> Any:
    process = FORK.Process(target=work, args=arguments)
    process.start()
    return process


def run(work: Any, *arguments: Any) -> None:
    process = start(work, *arguments)
    process.join()
    assert process.exitcode == 0


def everything() -> None:
    programs = find_postgres()
    for kind, *numbers in (("race", 2, 50), ("kill", 20, 40)):
        _in_a_home_of_its_own(kind, numbers, {})
        if programs is None:
            print("PostgreSQL is not installed, so that is skipped")
            continue
        with running_postgres(programs) as postgres:
            url = postgres.url(postgres.new_database())
            _in_a_home_of_its_own(kind, numbers, {"EAGLERAY_DATABASE_URL": url})


def _in_a_home_of_its_own(kind: str, numbers: list[int], settings: dict[str, str]) -> None:
    print(kind, *numbers, "PostgreSQL" if settings else "SQLite", flush=True)
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "tests.chaos.aliases", home, kind, *map(str, numbers)]
        subprocess.run(command, env={**os.environ, **settings}, check=True)


def main() -> None:
    if len(sys.argv) == 1:
        everything()
        return
    home, kind, num_processes, count = sys.argv[1:]
    settings = Settings(home=Path(home))
    run(prepare, settings)
    {"race": race, "kill": kill}[kind](settings, int(num_processes), int(count))
    run(check, settings)


if __name__ == "__main__":
    main()
