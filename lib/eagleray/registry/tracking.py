"""Connects to MLflow, describes its failures in one sentence, and tracks runs in it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from eagleray.core.environment import bypass_proxy_for_loopback, set_user_variables
from eagleray.core.errors import OutageError
from eagleray.core.settings import Settings
from eagleray.io import storage

__all__ = ["TrackedRun", "connect", "registry_errors", "sqlite_file"]

EXPERIMENT = "eagleray"
_PUBLIC = "The registry of models does not answer now; try again later."
_ANSWER_SECONDS = "10"
_PASSWORD = re.compile(r"(://[^\s:/@]*:)[^\s/@]+@")  # of a URI, after the user


def connect(settings: Settings) -> Any:
    """Return an `MlflowClient` for the configured server or database.

    Raises:
        OutageError: If it cannot be reached.
        UserError: If the home folder cannot be written.
    """
    set_user_variables(settings.home_folder)
    bypass_proxy_for_loopback()
    # MLflow reads these at import. Telemetry stays off.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault(
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"
    )  # the terminal shows our own
    # A missing server is reported within seconds, not after MLflow's minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # MLflow reads these when it first opens a database. A SQLite file is opened for every use, so
    # that a replaced file is noticed; connecting to PostgreSQL has a time-out.
    uri = settings.mlflow_uri
    if uri.startswith("sqlite"):
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    os.environ.setdefault("PGCONNECT_TIMEOUT", _ANSWER_SECONDS)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if settings.tracking_uri is None:
        settings.make_home()
    file = sqlite_file(settings)
    with registry_errors(settings, makes_store=True):
        _require_answer(uri)
        _existing_files.discard(file)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    if file is not None:
        _forbid_creation(file)
    return client


_existing_files: set[Path | None] = set()
"""SQLite files of MLflow that this process has opened, and that SQLite may not create again."""


def _forbid_creation(file: Path) -> None:
    """Have SQLite open a file from now on only if it exists."""
    from sqlalchemy import Engine, event

    if not event.contains(Engine, "do_connect", _connect_to_existing):
        event.listen(Engine, "do_connect", _connect_to_existing)
    _existing_files.add(file)


def _connect_to_existing(
    dialect: Any, _: Any, arguments: list[Any], options: dict[str, Any]
) -> None:
    if dialect.name == "sqlite" and arguments and Path(arguments[0]) in _existing_files:
        arguments[0] = f"file:{urllib.parse.quote(arguments[0])}?mode=rw"
        options["uri"] = True


def _require_store(settings: Settings) -> None:
    """Refuse a missing SQLite file of MLflow: SQLite would create an empty one.

    Raises:
        OutageError: If the file does not exist.
    """
    file = sqlite_file(settings)
    if file is not None and not file.exists():
        raise OutageError(
            f"The MLflow database {file} no longer exists; put it back, or check "
            "EAGLERAY_TRACKING_URI.",
            public=_PUBLIC,
        )


def sqlite_file(settings: Settings) -> Path | None:
    """Return the SQLite file of MLflow, if its database is one."""
    from sqlalchemy import make_url

    uri = settings.mlflow_uri
    if not uri.startswith("sqlite"):
        return None
    name = make_url(uri).database
    return Path(name).absolute() if name and name != ":memory:" else None


def _require_answer(uri: str) -> None:
    """Connect to a PostgreSQL database once, as MLflow itself would try for minutes.

    Raises:
        SQLAlchemyError: If it does not answer, or refuses the connection.
    """
    from sqlalchemy import NullPool, create_engine

    if uri.startswith(("postgresql:", "postgresql+")):
        engine = create_engine(uri, poolclass=NullPool)
        with engine.connect():
            pass


@contextlib.contextmanager
def registry_errors(settings: Settings, *, makes_store: bool = False) -> Iterator[None]:
    """Turn failures of MLflow in the block into one sentence.

    Args:
        settings: The settings that name the MLflow.
        makes_store: Whether a missing SQLite file may be created.

    Raises:
        OutageError: If MLflow fails or does not answer.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if not makes_store:
        _require_store(settings)
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        check = (
            f"that {settings.home_folder} has room and can be written, or set EAGLERAY_HOME"
            if settings.tracking_uri is None
            else "EAGLERAY_TRACKING_URI"
        )
        sentence = (
            f"The MLflow registry at {settings.mlflow_uri} does not answer as it should ({text}); "
            f"check {check}."
        )
        raise OutageError(_PASSWORD.sub(r"\1***@", sentence), public=_PUBLIC) from error


class TrackedRun:
    """An MLflow run as a context manager, whose end records whether the work succeeded.

    Args:
        settings: The settings that name the MLflow.
        client: A client that is connected to it.
        name: Name of a new run.
        run_id: ID of a run to resume; None starts a new run.
    """

    def __init__(
        self, settings: Settings, client: Any, name: str, *, run_id: str | None = None
    ) -> None:
        self._client = client
        with registry_errors(settings):
            if run_id is None:
                run = client.create_run(_experiment(settings, client), run_name=name)
            else:
                client.update_run(run_id, status="RUNNING")
                run = client.get_run(run_id)
        self.run_id: str = run.info.run_id
        self.artifact_uri: str = run.info.artifact_uri

    def log_parameters(self, parameters: Mapping[str, object]) -> None:
        """Record the parameters of the run."""
        from mlflow.entities import Param

        entities = [Param(key, str(value)[:6000]) for key, value in parameters.items()]
        self._client.log_batch(self.run_id, params=entities)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Record metrics at a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [Metric(key, value, now, step) for key, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=entities)

    def steps_of(self, metric: str) -> set[int]:
        """Return the steps at which a metric is recorded."""
        return {item.step for item in self._client.get_metric_history(self.run_id, metric)}

    def log_file(self, location: str) -> None:
        """Keep a copy of a file as an artifact of the run."""
        with tempfile.TemporaryDirectory(prefix="eagleray-") as folder:
            local = Path(folder) / storage.name_of(location)
            local.write_bytes(storage.read_bytes(location))
            self._client.log_artifact(self.run_id, str(local))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # An interrupt is not an `Exception`.
        failed = "FAILED" if kind is not None and issubclass(kind, Exception) else "KILLED"
        self._client.set_terminated(self.run_id, "FINISHED" if kind is None else failed)


def _experiment(settings: Settings, client: Any) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    # A server chooses where its artifacts go; for a database the settings do.
    location = None if settings.mlflow_uri.startswith("http") else settings.artifacts
    return str(client.create_experiment(EXPERIMENT, artifact_location=location))
