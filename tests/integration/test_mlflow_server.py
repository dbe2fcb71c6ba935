"""The registry on real MLflow servers, which keep the artifacts themselves."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from eagleray.core.errors import UnknownNameError
from eagleray.core.settings import Settings
from eagleray.evaluation.kpi import parse_kpis
from eagleray.evaluation.record import EvaluationRecord
from eagleray.registry.lineage import ImageUse, find_image_uses, trace_lineage
from eagleray.registry.promotion import promote, rollback
from eagleray.registry.references import load_model
from eagleray.registry.registry import Registry
from tests.support.models import small_package
from tests.support.postgres import PostgresServer

START_SECONDS = 90


@contextlib.contextmanager
def running_server(folder: Path, backend: str, artifacts: str) -> Iterator[str]:
    """Start a server; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", backend, "--workers", "1"]
    command += ["--artifacts-destination", artifacts]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)  # the server and its workers: the session that we started
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("mlflow")
    with running_server(folder, f"sqlite:///{folder}/server.db", str(folder / "artifacts")) as url:
        yield url


@pytest.fixture(scope="module")
def production(
    postgres: PostgresServer, s3: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """Everything as in production: MLflow and our tables in PostgreSQL, artifacts in S3."""
    folder: Path = tmp_path_factory.mktemp("production")
    backend = postgres.url(postgres.new_database()).replace("postgresql", "postgresql+psycopg", 1)
    with running_server(folder, backend, f"{s3}/mlflow") as url:
        database = postgres.url(postgres.new_database())
        yield Settings(home=folder / "home", tracking_uri=url, database_url=database, user="ada")


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(0.2)  # nobody to tell us: the port is not open yet


def test_versions_live_on_the_server(server: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", tracking_uri=server)
    package = small_package(name="digits", metrics={"test_accuracy": 0.5})
    version = Registry(settings).register(package, alias="candidate")
    assert version.reference == "digits/1"
    assert version.source.startswith("mlflow-artifacts:")

    elsewhere = Settings(home=tmp_path / "another", tracking_uri=server)
    loaded = load_model("digits@candidate", elsewhere)
    assert loaded.package.digest == package.digest
    assert loaded.version == "1"
    assert Registry(elsewhere).versions("digits")[0].metrics == {"test_accuracy": 0.5}
    assert not (tmp_path / "home" / "mlflow.db").exists()


@pytest.mark.long
def test_versions_live_in_production(production: Settings, tmp_path: Path) -> None:
    """Registered, evaluated, promoted, taken back, traced, deleted, through PostgreSQL and S3."""
    registry = Registry(production)
    versions = [
        registry.register(small_package(metrics={"accuracy": accuracy}), alias="candidate")
        for accuracy in (0.5, 0.75)
    ]
    assert registry.load(versions[1]).digest == versions[1].digest
    assert registry.manifest(versions[0]).metrics == {"accuracy": 0.5}
    records = [
        EvaluationRecord(
            data="s3://pictures/test",
            data_digest="a" * 64,
            package_digest=version.digest,
            num_images=10,
            num_failed=0,
            metrics=dict(version.metrics),
        )
        for version in versions
    ]
    for version, record in zip(versions, records, strict=True):
        assert registry.evaluations(version) == []
        registry.record_evaluation(version, record)
        assert registry.evaluations(version) == [record]

    kpis = parse_kpis("accuracy > current", where="kpi.txt")
    for number in (1, 2):
        promote(registry, "digits", number, alias="production", kpis=kpis)
    assert rollback(registry, "digits", alias="production", reason="slow").version == 1
    assert load_model("digits@production", production).version == "1"
    assert registry.latest_versions()[0].reference == "digits/2"
    moved = registry.history.changes("digits", "production")
    assert [(item.action, item.previous, item.version, item.actor) for item in moved] == [
        ("promote", None, 1, "ada"),
        ("promote", 1, 2, "ada"),
        ("rollback", 2, 1, "ada"),
    ]
    assert not (production.home_folder / "eagleray.db").exists()

    rows = {"uri": ["s3://pictures/1.png"], "version": [""], "label": ["one"], "split": ["train"]}
    pq.write_table(pa.table(rows), tmp_path / "split.parquet")
    registry.client.log_artifact(versions[1].run_id, tmp_path / "split.parquet")
    found = find_image_uses(registry, "s3://pictures/1.png")
    assert found.uses == (ImageUse("digits/2", "train", "one", None),)
    assert found.unknown == ("digits/1",)
    assert trace_lineage(registry, versions[1]).split == f"{versions[1].run_folder}/split.parquet"

    registry.set_alias("digits", "candidate", 1)
    kept = s3fs.S3FileSystem().find("pictures/mlflow")
    registry.delete("digits", 2)
    gone = set(kept) - set(s3fs.S3FileSystem().find("pictures/mlflow", refresh=True))
    folders = {name.partition("/artifacts/")[2].rpartition("/")[0] for name in gone}
    assert folders == {"model", "model/package", "model/package/golden"}
    assert [version.version for version in registry.versions("digits")] == [1]
    with pytest.raises(UnknownNameError, match="Nearest: digits"):
        registry.get("digit", version=1)
