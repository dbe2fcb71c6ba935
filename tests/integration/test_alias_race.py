"""Two processes move one alias, and others are killed while they do: no gap, no lost change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer

ROOT = Path(__file__).parents[2]


def run(home: Path, *words: str, **settings: str) -> dict[str, dict[str, int]]:
    """The program checks the history; what it counted comes back."""
    command = [sys.executable, "-m", "tests.chaos.aliases", str(home), *words]
    environment = {**os.environ, **settings}
    answer = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    counted: dict[str, dict[str, int]] = json.loads(answer.stdout)
    return counted


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def test_changes_of_many_processes_some_of_them_killed(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    settings = {}
    if database == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        settings["EAGLERAY_DATABASE_URL"] = server.url(server.new_database())
    counted = run(tmp_path / "home", "kill", "2", "4", **settings)
    assert counted["by"]["0"] == 4
    assert not (tmp_path / "home" / "eagleray.db").exists() or database == "sqlite"
