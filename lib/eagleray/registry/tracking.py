"""Connects to MLflow, describes its failures in one sentence, and tracks runs in it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from eagleray.core.environment import bypass_proxy_for_loopback, set_user_variables
from eagleray.core.errors import InputError, OutageError
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.io.lock import lock_if_writable

__all__ = [
    "EXPERIMENT",
    "PARENT_TAG",
    "TrackedDataset",
    "TrackedRun",
    "connect",
    "metric_key",
    "registry_errors",
    "sqlite_file",
]

log = logging.getLogger(__name__)

EXPERIMENT = "eagleray"
"""The experiment of runs that name no other."""

PARENT_TAG = "mlflow.parentRunId"
"""The tag with the ID of a run's parent, by which MLflow nests runs."""

_MAX_PARAMETER = 6000  # characters; this and the limits of a request are MLflow's
_MAX_PARAMETERS, _MAX_METRICS = 100, 1000
_SHOWN_DIGEST = 12  # characters, as on our pages; MLflow shows them beside the name
_NOT_IN_METRIC_KEYS = re.compile(r"[^\w.\- :]")
_MAX_LABEL = 150  # characters of a label in a key of at most 250
_PUBLIC = "The registry of models does not answer now; try again later."
_CREATION_SECONDS = 120.0
_ANSWER_SECONDS = "10"
_PASSWORD = re.compile(r"(://[^\s:/@]*:)[^\s/@]+@")  # of a URI, after the user


def metric_key(name: str) -> str:
    """Return the name of a metric in MLflow, which takes no brackets: `recall/frog`.

    MLflow shows the metrics of labels in a group. Of a label, characters that it refuses become
    underscores.
    """
    metric, bracket, label = name.partition("[")
    if not bracket:
        return name
    label = _NOT_IN_METRIC_KEYS.sub("_", label.removesuffix("]"))[:_MAX_LABEL]
    return f"{metric}/{label if label.strip('. ') else '_'}"


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
    # The environment of a model is written from its own requirements, not from the working folder.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
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
    with registry_errors(settings, makes_store=True), _creation_lock(file):
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


def _creation_lock(file: Path | None) -> AbstractContextManager[None]:
    """Let one process at a time create the tables of a SQLite file, which MLflow does unguarded."""
    if file is None:
        return contextlib.nullcontext()
    # A file that cannot be written exists, and needs no lock.
    return lock_if_writable(Path(f"{file}.lock"), max_seconds=_CREATION_SECONDS)


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


@dataclass(frozen=True)
class TrackedDataset:
    """A data set that a run uses.

    Attributes:
        name: Name for display.
        context: Use of the data: `train`, `validation` or `test`.
        digest: SHA-256 of the data.
        source: Location of the data.
        columns: Columns of the table.
        profile: Figures about the data.
    """

    name: str
    context: str
    digest: str
    source: str
    columns: tuple[str, ...]
    profile: Mapping[str, object]

    def as_entity(self) -> Any:
        """Return the data set as MLflow's entity."""
        from mlflow.entities import Dataset

        scheme, is_uri, _ = self.source.partition("://")
        columns = [{"type": "string", "name": name} for name in self.columns]
        return Dataset(
            name=self.name,
            digest=self.digest[:_SHOWN_DIGEST],
            source_type=scheme if is_uri else "local",
            source=json.dumps({"uri": self.source}),
            schema=json.dumps({"mlflow_colspec": columns}),
            profile=json.dumps({**self.profile, "sha256": self.digest}),
        )


class TrackedRun:
    """An MLflow run as a context manager, whose end records whether the work succeeded.

    Args:
        settings: The settings that name the MLflow.
        client: A client that is connected to it.
        name: Name of a new run.
        run_id: ID of a run to resume; None starts a new run.
        experiment: Experiment of a new run, which is created if it does not exist.
        tags: Tags of a new run, beside those of the user and the Git commit.
        samples_system: Whether MLflow samples the use of this machine while the run lasts, unless
            MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is false.

    Raises:
        InputError: If the experiment is deleted.
        OutageError: If MLflow fails or does not answer.
    """

    def __init__(
        self,
        settings: Settings,
        client: Any,
        name: str,
        *,
        run_id: str | None = None,
        experiment: str = EXPERIMENT,
        tags: Mapping[str, str] = MappingProxyType({}),
        samples_system: bool = False,
    ) -> None:
        self._settings, self._client = settings, client
        with registry_errors(settings):
            if run_id is None:
                number = _experiment(settings, client, experiment)
                every = {**_context_tags(settings), **tags}
                run = client.create_run(number, run_name=name, tags=every)
            else:
                client.update_run(run_id, status="RUNNING")
                run = client.get_run(run_id)
        self.run_id: str = run.info.run_id
        self.artifact_uri: str = run.info.artifact_uri
        self._parameters: dict[str, str] = dict(run.data.params)
        self._is_resumed = run_id is not None
        self._known_steps: dict[str, set[int]] = {}  # by key of the metric
        self._monitor = _start_monitor(settings, self.run_id) if samples_system else None

    def log_parameters(self, parameters: Mapping[str, object]) -> None:
        """Record the parameters of the run.

        MLflow's parameters are final. One that differs in a resumed run becomes a tag,
        `eagleray.resumed.NAME`.
        """
        from mlflow.entities import Param

        texts = {key: str(value)[:_MAX_PARAMETER] for key, value in parameters.items()}
        new = [Param(key, text) for key, text in texts.items() if key not in self._parameters]
        for first in range(0, len(new), _MAX_PARAMETERS):
            self._client.log_batch(self.run_id, params=new[first : first + _MAX_PARAMETERS])
        changed = {
            f"eagleray.resumed.{key}": text
            for key, text in texts.items()
            if self._parameters.get(key, text) != text
        }
        self.set_tags(changed)
        self._parameters = {**texts, **self._parameters}

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        from mlflow.entities import RunTag

        if tags:
            entities = [RunTag(key, value) for key, value in tags.items()]
            self._client.log_batch(self.run_id, tags=entities)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Record metrics at a step."""
        self.log_curves({name: [(step, value)] for name, value in metrics.items()})

    def log_curves(self, curves: Mapping[str, Iterable[tuple[int, float]]]) -> None:
        """Record metrics at many steps, in few requests, under the names of `metric_key`.

        A step that has a value keeps it, also if an earlier process has recorded it.

        Args:
            curves: Steps and values by name of the metric.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = []
        for name, points in curves.items():
            key = metric_key(name)
            known = self._steps_of(key)
            new = {step: value for step, value in points if step not in known}
            entities += [Metric(key, value, now, step) for step, value in new.items()]
            known.update(new)
        for first in range(0, len(entities), _MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=entities[first : first + _MAX_METRICS])

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an epoch."""
        self.log_metrics(metrics, step=epoch)

    def _steps_of(self, key: str) -> set[int]:
        """Return the steps at which a metric has a value."""
        if key not in self._known_steps:
            history = self._client.get_metric_history(self.run_id, key) if self._is_resumed else ()
            self._known_steps[key] = {item.step for item in history}
        return self._known_steps[key]

    def log_datasets(self, datasets: Sequence[TrackedDataset]) -> None:
        """Record the data sets that the run uses; repeating it changes nothing."""
        from mlflow.entities import DatasetInput, InputTag

        self._client.log_inputs(
            self.run_id,
            datasets=[
                DatasetInput(item.as_entity(), [InputTag("mlflow.data.context", item.context)])
                for item in datasets
            ],
        )

    def log_file(self, location: str, folder: str | None = None) -> None:
        """Keep a copy of a file as an artifact of the run, in a folder if one is named."""
        with tempfile.TemporaryDirectory(prefix="eagleray-") as place:
            local = Path(place) / storage.name_of(location)
            local.write_bytes(storage.read_bytes(location))
            self._client.log_artifact(self.run_id, str(local), folder)

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the run."""
        if self._monitor is not None:
            self._monitor.finish()
        self._client.set_terminated(self.run_id, status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.end("FINISHED")
        else:
            self.end("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")


def _context_tags(settings: Settings) -> dict[str, str]:
    """Return the tags in which MLflow shows who started a run, with what, and at which commit."""
    from mlflow.utils import mlflow_tags
    from mlflow.utils.git_utils import get_git_commit

    commit = get_git_commit(".")
    return {
        mlflow_tags.MLFLOW_USER: settings.actor,
        mlflow_tags.MLFLOW_SOURCE_NAME: "eagleray",
        mlflow_tags.MLFLOW_SOURCE_TYPE: "LOCAL",
        **({} if commit is None else {mlflow_tags.MLFLOW_GIT_COMMIT: commit}),
    }


def _start_monitor(settings: Settings, run_id: str) -> Any:
    """Start MLflow's sampler of system metrics; None if it is switched off or cannot start."""
    from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING as SWITCH
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    if SWITCH.is_set() and not SWITCH.get():
        return None
    try:
        monitor = SystemMetricsMonitor(
            run_id, resume_logging=True, tracking_uri=settings.mlflow_uri
        )
    except Exception as error:  # noqa: BLE001 - sensors raise anything, and no run needs them
        log.info("system metrics are not sampled: %s", error)
        return None
    monitor.start()
    return monitor


def _experiment(settings: Settings, client: Any, name: str) -> str:
    """Return the ID of an experiment, which is created if it does not exist.

    Raises:
        InputError: If it is deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise InputError(
                f"The experiment {name!r} is deleted in MLflow; name another one, or restore it "
                f"with `mlflow experiments restore --experiment-id {found.experiment_id}`."
            )
        return str(found.experiment_id)
    # A server chooses where its artifacts go; for a database the settings do.
    location = None if settings.mlflow_uri.startswith("http") else settings.artifacts
    return str(client.create_experiment(name, artifact_location=location))
