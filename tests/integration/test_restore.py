"""Backup and restore of the databases as docs/operations.md tells it, on a real PostgreSQL."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from eagleray.core.settings import Settings
from eagleray.database.store import open_database
from eagleray.registry.references import load_model
from eagleray.registry.registry import Registry
from eagleray.scheduling.records import JobRecords, new_job
from eagleray.serving.callers.applications import Applications
from tests.support.models import golden_png, small_package
from tests.support.postgres import PostgresServer, find_postgres


def settings_of(folder: Path, eagleray: str, mlflow: str) -> Settings:
    return Settings(
        home=folder / "home",
        database_url=eagleray,
        tracking_uri=mlflow.replace("postgresql:", "postgresql+psycopg:", 1),
        artifact_root=str(folder / "bucket"),
    )


def dump(url: str, file: Path) -> None:
    _run("pg_dump", "--format=custom", f"--file={file}", url)


def restore(server: PostgresServer, file: Path) -> str:
    """Restore a dump into a new database, and return its address."""
    url = server.url(server.new_database())
    _run("pg_restore", "--exit-on-error", "--no-owner", "--dbname", url, str(file))
    return url


def _run(program: str, *words: str) -> None:
    folder = find_postgres()
    assert folder is not None
    said = subprocess.run([folder / program, *words], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr


@pytest.fixture
def databases(postgres: PostgresServer) -> list[str]:
    """The addresses of two empty databases: ours and MLflow's."""
    return [postgres.url(postgres.new_database()) for _ in range(2)]


def test_the_restored_databases_have_models_history_keys_and_jobs(
    postgres: PostgresServer, databases: list[str], tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, *databases)
    registry = Registry(settings)
    for _ in range(2):
        registry.register(small_package(name="digits", golden_images=[golden_png(0)]))
    registry.set_alias("digits", "production", 1)
    registry.set_alias("digits", "production", 2)
    key = Applications(open_database(settings), actor="ada").create("shop").key
    records = JobRecords(open_database(settings), settings)
    records.add(new_job(id="predict-1", program="predict", owner="ada"))
    digest = load_model("digits@production", settings).package.digest

    files = [tmp_path / "eagleray.dump", tmp_path / "mlflow.dump"]
    for url, file in zip(databases, files, strict=True):
        dump(url, file)
    registry.set_alias("digits", "production", 1)  # what came after the dump is not in it
    restored = settings_of(tmp_path, *(restore(postgres, file) for file in files))

    model = load_model("digits@production", restored)
    assert (model.version, model.package.digest) == ("2", digest)
    database = open_database(restored)
    history = Registry(restored).history.changes("digits", "production")
    assert [change.version for change in history] == [1, 2]
    applications = Applications(database, actor="ada")
    assert applications.read() == Applications(open_database(settings), actor="ada").read()
    assert applications.create("other").key != key
    assert JobRecords(database, restored).get("predict-1").owner == "ada"
