"""The history of aliases, on a fake registry, also when a change is interrupted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.core.errors import InputError
from eagleray.database.store import open_database
from eagleray.registry.alias_history import AliasChange, VersionHistory, version_stack
from tests.support.models import settings_in


class Killed(BaseException):
    """Ends a block at a certain place, as the end of the process would."""


class FakeVersions:
    """Versions 1 to 9 of every model, and aliases in a dictionary."""

    def __init__(self) -> None:
        self.present = set(range(1, 10))
        self.aliases: dict[tuple[str, str], int] = {}
        self.removed_files: list[str | None] = []
        self.killed_at = ""

    def alias_target(self, name: str, alias: str) -> int | None:
        return self.aliases.get((name, alias))

    def has_version(self, name: str, version: int) -> bool:
        return version in self.present

    def point_alias(self, name: str, alias: str, version: int) -> None:
        self._die("before")
        self.aliases[name, alias] = version
        self._die("after")

    def remove_version(self, name: str, version: int, files: str | None) -> None:
        self._die("before")
        self.present.discard(version)
        self._die("after")
        self.removed_files.append(files)

    def _die(self, place: str) -> None:
        if self.killed_at == place:
            self.killed_at = ""
            raise Killed


@pytest.fixture
def versions() -> FakeVersions:
    return FakeVersions()


@pytest.fixture
def history(tmp_path: Path, versions: FakeVersions) -> VersionHistory:
    return VersionHistory(open_database(settings_in(tmp_path)), versions)


def move(history: VersionHistory, version: int, alias: str = "live") -> AliasChange:
    with history.lock("digits") as locked:
        return locked.move(alias, version, action="promote", actor="ada", reason="better")


def go_back(history: VersionHistory) -> int:
    with history.lock("digits") as locked:
        version = locked.rollback_targets("live")[0]
        locked.move("live", version, action="rollback", actor="ada")
    return version


def path(history: VersionHistory) -> list[tuple[int, int | None, int, bool]]:
    return [
        (change.number, change.previous, change.version, change.applied)
        for change in history.changes("digits", "live")
    ]


def test_changes_are_numbered_for_each_alias(history: VersionHistory) -> None:
    move(history, 1)
    move(history, 2)
    move(history, 1, alias="candidate")
    assert path(history) == [(1, None, 1, True), (2, 1, 2, True)]
    assert [change.number for change in history.changes("digits")] == [1, 1, 2]
    assert history.changes("flowers") == []
    assert (move(history, 3).actor, move(history, 3).reason) == ("ada", "better")


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_unfinished_change_of_a_dead_process_is_completed_by_the_next(
    history: VersionHistory, versions: FakeVersions, place: str
) -> None:
    move(history, 1)
    versions.killed_at = place
    with pytest.raises(Killed):
        move(history, 2)
    assert path(history)[-1] == (2, 1, 2, False)
    move(history, 3)
    assert path(history) == [(1, None, 1, True), (2, 1, 2, True), (3, 2, 3, True)]
    assert versions.aliases == {("digits", "live"): 3}


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_deletion_that_was_broken_off_is_finished_too(
    history: VersionHistory, versions: FakeVersions, place: str
) -> None:
    versions.killed_at = place
    with pytest.raises(Killed), history.lock("digits") as locked:
        locked.delete(5, actor="ada", reason="", files="/runs/5")
    move(history, 1)
    assert 5 not in versions.present
    assert versions.removed_files == ["/runs/5"]
    assert [(item.alias, item.action, item.applied) for item in history.changes("digits")] == [
        ("", "delete", True),
        ("live", "promote", True),
    ]


def test_a_broken_off_move_to_a_version_that_is_gone_is_left_and_counts_for_nothing(
    history: VersionHistory, versions: FakeVersions
) -> None:
    move(history, 1)
    move(history, 2)
    versions.killed_at = "before"
    with pytest.raises(Killed):
        move(history, 3)
    versions.present.discard(3)
    assert go_back(history) == 1
    assert path(history)[2:] == [(3, 2, 3, False), (4, 2, 1, True)]


def test_a_version_that_is_not_there_leaves_no_trace(history: VersionHistory) -> None:
    with pytest.raises(InputError, match="no longer has version 44"):
        move(history, 44)
    assert path(history) == []


def test_a_second_rollback_goes_further_back(history: VersionHistory) -> None:
    for version in (1, 2, 3):
        move(history, version)
    assert [go_back(history), go_back(history)] == [2, 1]
    with history.lock("digits") as locked:
        assert locked.rollback_targets("live") == []


def test_a_deleted_version_is_passed_over(history: VersionHistory, versions: FakeVersions) -> None:
    for version in (1, 2, 3):
        move(history, version)
    versions.present.discard(2)
    assert go_back(history) == 1


def test_a_move_in_mlflow_itself_is_seen_and_noted(
    history: VersionHistory, versions: FakeVersions
) -> None:
    move(history, 1)
    move(history, 2)
    assert history.alias_mismatches("digits") == {}
    versions.aliases["digits", "live"] = 7
    assert history.alias_mismatches("digits") == {"live": (2, 7)}
    move(history, 3)
    assert path(history)[-1] == (3, 7, 3, True)
    assert history.alias_mismatches("digits") == {}
    assert [go_back(history), go_back(history), go_back(history)] == [7, 2, 1]


def test_going_back_after_a_move_in_mlflow_itself_goes_to_what_the_history_says(
    history: VersionHistory, versions: FakeVersions
) -> None:
    move(history, 1)
    versions.aliases["digits", "live"] = 7
    assert go_back(history) == 1


def test_an_alias_that_was_there_before_the_history_can_be_gone_back_to(
    history: VersionHistory, versions: FakeVersions
) -> None:
    versions.aliases["digits", "live"] = 4
    move(history, 5)
    assert go_back(history) == 4


@given(st.lists(st.one_of(st.none(), st.integers(1, 5)), max_size=30))
def test_the_stack_is_that_of_pushes_and_pops(steps: list[int | None]) -> None:
    """None pops. The stack of the changes is the one that a list would have."""
    stack: list[int] = []
    changes: list[AliasChange] = []
    for step in steps:
        previous = stack[-1] if stack else None
        if step is None:
            if len(stack) < 2:
                continue
            stack.pop()
            action = "rollback"
        else:
            if stack[-1:] != [step]:
                stack.append(step)
            action = "promote"
        number = len(changes) + 1
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        changes.append(
            AliasChange(
                *("digits", "live", number, stack[-1], previous, action, "ada", moment),
                *("", {}, True),
            )
        )
    assert version_stack(changes, stack[-1] if stack else None) == stack
