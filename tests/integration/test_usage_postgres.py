"""Counts of requests on PostgreSQL: as on SQLite, and with many replicas at once."""

from __future__ import annotations

from pathlib import Path

from eagleray.core.settings import Settings
from eagleray.database.store import OpenDatabase, open_database
from tests.support.postgres import PostgresServer
from tests.support.usage import check_concurrent_additions, check_sums


def opened(server: PostgresServer, folder: Path) -> OpenDatabase:
    url = server.url(server.new_database())
    return open_database(Settings(home=folder / "home", database_url=url))


def test_replicas_add_to_the_same_rows(postgres: PostgresServer, tmp_path: Path) -> None:
    check_sums(opened(postgres, tmp_path))


def test_additions_at_the_same_time_all_count(
    postgres: PostgresServer,
    tmp_path: Path,
) -> None:
    check_concurrent_additions(opened(postgres, tmp_path))
