"""The organisation's database: created at first use, by several processes, with clear errors."""

from __future__ import annotations

import multiprocessing
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from eagleray.core.errors import UserError
from eagleray.core.settings import Settings
from eagleray.database.store import VERSION_TABLE, open_database
from eagleray.database.tables import AliasChangeRow, Base


def row(**overrides: Any) -> AliasChangeRow:
    fields: dict[str, Any] = {
        "model": "digits",
        "alias": "production",
        "number": 1,
        "version": 2,
        "previous": None,
        "action": "promote",
        "actor": "ada",
        "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "reason": "Käfer 猫",
        "evidence": {"kpis": [], "forced": False},
        "applied": True,
    }
    return AliasChangeRow(**{**fields, **overrides})


def test_the_steps_make_the_tables_that_the_code_maps(tmp_path: Path) -> None:
    with open_database(Settings(home=tmp_path / "home")).session() as session:
        context = MigrationContext.configure(
            session.connection(),
            opts={"version_table": VERSION_TABLE, "compare_type": True},
        )
        assert compare_metadata(context, Base.metadata) == []


def test_what_was_written_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    with open_database(settings).session() as session:
        session.add(row(time=datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2)))))
    with open_database(settings).session() as session:
        found = session.scalars(sa.select(AliasChangeRow)).one()
    assert (found.reason, found.evidence["forced"], found.applied) == ("Käfer 猫", False, True)
    assert found.time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert found.time.tzinfo is UTC
    assert (tmp_path / "home" / "eagleray.db").is_file()


def test_a_block_that_fails_keeps_nothing(tmp_path: Path) -> None:
    database = open_database(Settings(home=tmp_path / "home"))

    def write_and_fail() -> None:
        with database.session() as session:
            session.add(row())
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    with database.session() as session:
        assert session.scalars(sa.select(AliasChangeRow)).all() == []


def open_when_all_are_there(settings: Settings, barrier: Any, answers: Any) -> None:
    barrier.wait(timeout=120)
    with open_database(settings).session() as session:
        answers.put(session.scalar(sa.text(f"SELECT count(*) FROM {VERSION_TABLE}")))


def test_several_processes_open_a_new_database_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(3), context.Queue()
    given = (Settings(home=tmp_path / "home"), barrier, answers)
    processes = [context.Process(target=open_when_all_are_there, args=given) for _ in range(3)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=120) for _ in processes] == [1, 1, 1]
    for process in processes:
        process.join()


def test_a_turn_is_one_at_a_time_for_each_purpose(tmp_path: Path) -> None:
    database = open_database(Settings(home=tmp_path / "home"))
    entered = threading.Event()

    def enter(purpose: str) -> threading.Thread:
        def wait_and_enter() -> None:
            with database.lock(purpose):
                entered.set()

        thread = threading.Thread(target=wait_and_enter)
        thread.start()
        return thread

    with database.lock("digits"):
        enter("flowers").join(60)  # another purpose does not wait
        assert entered.is_set()
        entered.clear()
        same = enter("digits")
        assert not entered.wait(0.3)
    same.join(60)
    assert entered.is_set()


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    with open_database(settings).session() as session:
        session.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(UserError, match=r"^[^\n]+migrated by a newer Eagleray \(to 9999\)"):
        open_database(settings)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mysql://host/db", "EAGLERAY_DATABASE_URL: Databases are SQLite or PostgreSQL, not"),
        ("nonsense", "EAGLERAY_DATABASE_URL: The database URL must look like"),
        ("sqlite:////nowhere/at/all/a.db", "There is no folder /nowhere/at/all"),
        ("postgresql://127.0.0.1:9/db", "check the host"),
    ],
)
def test_a_database_that_cannot_be_is_one_sentence(tmp_path: Path, url: str, expected: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        open_database(Settings(home=tmp_path, database_url=url))
    assert expected in str(caught.value)


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "eagleray.db").write_text("hello " * 1000)
    with pytest.raises(UserError, match=r"file is not a database\); check EAGLERAY_DATABASE_URL"):
        open_database(Settings(home=tmp_path))


def test_settings_do_not_show_the_password() -> None:
    settings = Settings(database_url="postgresql://ada:hush@host/db")
    assert "hush" not in repr(settings)


def test_who_is_the_setting_or_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "grace")
    assert Settings().actor.startswith("grace@")
    assert Settings(user="Ada").actor == "Ada"
