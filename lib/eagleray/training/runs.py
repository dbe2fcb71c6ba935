"""The folder of a training run.

RUN/run.json            name, MLflow run, alias and version
RUN/spec.yaml           specification
RUN/split.parquet       split of every image
RUN/tuning.json         budget and trials, if the run is a tuning
RUN/checkpoints/        see `checkpoint`
RUN/*.html              pages of the data, the training and the evaluation
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.io.yaml_fields import read_fields
from eagleray.training.extension import Extension
from eagleray.training.spec import TrainSpec

__all__ = ["Run", "RunRecord", "create_run", "find_run", "new_run_name"]


class RunRecord(BaseModel):
    """The content of `run.json`.

    Attributes:
        run: Name of the run.
        created: UTC time of creation in ISO 8601.
        data_digest: Digest of the labelled images.
        alias: Alias that will point to the registered version; None for `candidate`, if the version
            is better than the present one.
        force: Move the alias from a model of another task, labels or input too.
        mlflow_run: Identifier of the MLflow run.
        version: Registered version, once there is one.
        extensions: Extensions beyond the first number of epochs, in order.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    run: str
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    data_digest: str
    alias: str | None = None
    force: bool = False
    mlflow_run: str | None = None
    version: str | None = None
    extensions: tuple[Extension, ...] = ()


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        name: Name of the run.
        folder: Location of the run's folder.
    """

    name: str
    folder: str

    @property
    def spec_file(self) -> str:
        """Location of the specification."""
        return storage.join(self.folder, "spec.yaml")

    @property
    def split_file(self) -> str:
        """Location of the split."""
        return storage.join(self.folder, "split.parquet")

    @property
    def tuning_file(self) -> str:
        """Location of the budget and the trials of a tuning."""
        return storage.join(self.folder, "tuning.json")

    @property
    def space_file(self) -> str:
        """Location of the search space of a tuning."""
        return storage.join(self.folder, "space.yaml")

    @property
    def checkpoints(self) -> str:
        """Location of the checkpoints."""
        return storage.join(self.folder, "checkpoints")

    @property
    def ray_folder(self) -> str:
        """Location of Ray's own state."""
        return storage.join(self.folder, "ray")

    def page(self, name: str) -> str:
        """Return the location of a page."""
        return storage.join(self.folder, f"{name}.html")

    def write(self, record: RunRecord) -> None:
        """Write `run.json`."""
        storage.put_atomic(self._record_file, record.model_dump_json(indent=2).encode())

    def read(self) -> RunRecord:
        """Read `run.json`.

        Raises:
            InputError: If it is missing or damaged.
        """
        try:
            return RunRecord.model_validate_json(storage.read_bytes(self._record_file))
        except (ValidationError, FileNotFoundError):
            raise InputError(f"{self._record_file} is damaged; begin a new run.") from None

    def read_spec(self) -> TrainSpec:
        """Read the specification of the run.

        Raises:
            InputError: If it is damaged, or was written by another version of Eagleray.
        """
        fields = read_fields(self.spec_file)
        unknown = [str(field) for field in fields if field not in TrainSpec.model_fields]
        if unknown:
            raise InputError(
                f"Run {self.name} cannot be resumed: another version of Eagleray began it, and its "
                f"specification has fields that do not exist here ({', '.join(unknown)}); begin a "
                "new run."
            )
        return TrainSpec.make(fields, where=self.spec_file)

    def write_spec(self, spec: TrainSpec) -> None:
        """Write the specification."""
        storage.put_atomic(self.spec_file, spec.to_yaml().encode())

    @property
    def _record_file(self) -> str:
        return storage.join(self.folder, "run.json")


def new_run_name(spec: TrainSpec) -> str:
    """Return the name of a new run."""
    return f"{spec.name}-{secrets.token_hex(4)}"


def create_run(settings: Settings, spec: TrainSpec, name: str | None = None) -> Run:
    """Create the folder of a new run, with its specification.

    Args:
        settings: Settings that name the folder of runs.
        spec: Specification of the run.
        name: Name of the run; None makes a new one.
    """
    name = name or new_run_name(spec)
    run = Run(name, storage.join(settings.runs, name))
    run.write_spec(spec)
    return run


def find_run(settings: Settings, name: str) -> Run:
    """Find the folder of a run.

    Raises:
        UnknownNameError: If there is no such run.
    """
    run = Run(name, storage.join(settings.runs, name))
    if not storage.exists(run.spec_file):
        raise UnknownNameError("training run", name, _names(settings))
    return run


def _names(settings: Settings) -> list[str]:
    if not storage.is_folder(settings.runs):
        return []
    root = storage.absolute(settings.runs).rstrip("/") + "/"
    files = storage.list_files(root)
    return sorted({file.uri.removeprefix(root).split("/")[0] for file in files})
