"""Reads settings from the environment: folders, servers and credentials of storage.

Every field can be set as `EAGLERAY_<FIELD>`; command-line options take precedence. Two variables of
OpenTelemetry are accepted too.
"""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from eagleray.core.environment import require_writable_folder
from eagleray.core.errors import InputError
from eagleray.core.validation import first_validation_error

__all__ = ["Settings", "read_settings"]


def read_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        InputError: If a variable is invalid; the message names it.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise InputError(f"{first_validation_error(error, name=_variable)}.") from None


def _variable(field: str) -> str:
    if not field:
        return ""
    name = field.upper()
    return name if name.startswith(("EAGLERAY_", "OTEL_")) else f"EAGLERAY_{name}"


def _split(modules: str) -> tuple[str, ...]:
    return tuple(name for part in modules.split(",") if (name := part.strip()))


class Settings(BaseSettings):
    """Settings of one process, read when created and immutable."""

    model_config = SettingsConfigDict(
        env_prefix="EAGLERAY_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        populate_by_name=True,
    )

    home: Path = Field(
        default=Path(".eagleray"),
        description="Folder of databases, runs and caches, unless another setting moves them.",
    )
    tracking_uri: str | None = Field(
        default=None,
        description="MLflow server or database. Default: SQLite in the home folder.",
    )
    artifact_root: str | None = Field(
        default=None,
        description="Folder or URI for registered packages. Default: `artifacts` in the home "
        "folder; an MLflow server has its own.",
    )
    runs_root: str | None = Field(
        default=None,
        description="Folder or URI of training runs with their checkpoints, which all machines "
        "must reach. Default: `runs` in the home folder.",
    )
    database_url: str | None = Field(
        default=None,
        repr=False,  # it may contain a password
        description="SQLite or PostgreSQL database of alias history, applications and routes. "
        "Default: `eagleray.db` in the home folder.",
    )
    user: str | None = Field(
        default=None,
        description="Name recorded in histories. Default: login and host name.",
    )
    ray_address: str | None = Field(
        default=None,
        description="Ray cluster to join. Default: a local Ray on this machine.",
    )
    node_types: str = Field(
        default="",
        description="Nodes that the autoscaler of the Ray cluster may add, as JSON like "
        "`available_node_types` of Ray, where a job cannot see it, as on Kubernetes: "
        '`{"cpu": {"resources": {"CPU": 16}, "max_workers": 40}}`.',
    )
    cluster_name: str = Field(
        default="",
        max_length=64,
        description="Name of the cluster of this process. Set it if clusters share a database: "
        "each has a queue of its own.",
    )
    jobs_root: str | None = Field(
        default=None,
        description="Folder or URI of the logs of submitted jobs without an output, which all "
        "machines must reach. Default: `_jobs` in the folder of runs.",
    )
    max_concurrent_jobs: int = Field(
        default=1,
        ge=1,
        description="Number of submitted jobs that run on a cluster at a time; others wait.",
    )
    heartbeat_seconds: float = Field(
        default=5.0, gt=0, description="Time between two signs of life of a submitted job."
    )
    lease_seconds: float = Field(
        default=20.0,
        gt=0,
        description="Time without a sign of life after which a submitted job is lost.",
    )
    core_hour_price: float | None = Field(
        default=None, ge=0, description="Price of a CPU core for an hour, in any currency."
    )
    gpu_hour_price: float | None = Field(
        default=None, ge=0, description="Price of a GPU for an hour, in the same currency."
    )
    gateway_secret: str | None = Field(
        default=None,
        repr=False,
        exclude=True,  # no job of a caller needs it
        pattern=r"^[A-Za-z0-9_-]{32,256}$",
        description="Secret that `eagleray gateway` and the replicas on a cluster share.",
    )
    extensions: str = Field(
        default="",
        description="Modules of your own code that commands may import, such as "
        "`my_networks,my_losses`. Default: none.",
    )

    log_format: Literal["text", "json"] = Field(
        default="text",
        description="`json` writes what jobs and servers report to standard error as JSON "
        "objects, one a line, unless it is a terminal.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices("EAGLERAY_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="OpenTelemetry collector for traces of requests over OTLP/HTTP, such as "
        "`http://collector:4318`. Default: no traces.",
    )
    otel_service_name: str = Field(
        default="eagleray",
        validation_alias=AliasChoices("EAGLERAY_OTEL_SERVICE_NAME", "OTEL_SERVICE_NAME"),
        description="Service name in traces.",
    )

    s3_endpoint: str | None = Field(
        default=None, description="Base URL of an S3-compatible server."
    )
    s3_region: str | None = Field(default=None, description="Region of the buckets.")
    s3_profile: str | None = Field(
        default=None, description="Profile in the AWS configuration files."
    )
    s3_anonymous: bool = Field(default=False, description="Send unsigned requests to S3.")
    s3_requester_pays: bool = Field(
        default=False, description="Pay for reads from requester-pays buckets."
    )
    url_private_networks: str = Field(
        default="",
        description="Private networks that images may be fetched from, such as "
        "`10.0.0.0/8,192.168.7.0/24`. Default: none.",
    )

    hosted_models: str = Field(
        default="",
        description="Hosts of models that other servers run, such as "
        "`models.example.com,10.0.0.7:8000`; no other host is asked. Default: none.",
    )
    hosted_model_keys: Path | None = Field(
        default=None,
        description="File with the keys of such hosts, a host and its key on each line, that "
        "nobody else can read. Default: no keys.",
    )

    @field_validator("home")
    @classmethod
    def _is_valid_in_database_uri(cls, home: Path) -> Path:
        try:
            resolved = str(home.expanduser().resolve())
        except (OSError, RuntimeError) as error:  # no working folder, or no user for `~`
            raise ValueError(
                f"{home} is not a folder here ({error}); write an absolute path"
            ) from None
        if any(character in resolved for character in "?%"):
            raise ValueError(f"{resolved!r} must not contain '?' or '%'; choose another folder")
        return home

    @field_validator("extensions")
    @classmethod
    def _are_modules(cls, modules: str) -> str:
        for module in _split(modules):
            if not all(part.isidentifier() for part in module.split(".")):
                raise ValueError(f"{module!r} is not the name of a module, such as my_networks")
        return modules

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_http(cls, endpoint: str | None) -> str | None:
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise ValueError(f"{endpoint!r} must start with http:// or https://")
        return endpoint or None

    @property
    def home_folder(self) -> Path:
        """The home folder as an absolute path, which need not exist yet."""
        return self.home.expanduser().resolve()

    def make_home(self) -> Path:
        """Create the home folder if it does not exist, and return it.

        Raises:
            UserError: If it is not writable.
        """
        require_writable_folder(self.home_folder, "The home folder", "EAGLERAY_HOME")
        return self.home_folder

    @property
    def extension_modules(self) -> tuple[str, ...]:
        """Names of the user's own modules that may be imported."""
        return _split(self.extensions)

    @property
    def hosted_hosts(self) -> tuple[str, ...]:
        """Patterns of the hosts that hosted models may be on."""
        return _split(self.hosted_models)

    def as_environment(self) -> dict[str, str]:
        """Return environment variables that give another process the same settings."""
        values = {**self.model_dump(exclude_none=True), "home": self.home_folder}
        return {f"EAGLERAY_{name.upper()}": str(value) for name, value in values.items()}

    @property
    def mlflow_uri(self) -> str:
        """The effective MLflow tracking URI."""
        return self.tracking_uri or f"sqlite:///{self.home_folder / 'mlflow.db'}"

    @property
    def artifacts(self) -> str:
        """Folder or URI of packages in the default registry."""
        return self.artifact_root or str(self.home_folder / "artifacts")

    @property
    def job_logs(self) -> str:
        """Folder or URI of the logs of submitted jobs without an output."""
        return self.jobs_root or f"{self.runs.rstrip('/')}/_jobs"

    @property
    def actor(self) -> str:
        """Name recorded in histories."""
        if self.user:
            return self.user
        try:
            login = getpass.getuser()
        except (KeyError, OSError):  # containers may run as a user without a name
            login = str(os.getuid())
        return f"{login}@{socket.gethostname()}"

    @property
    def cache_folder(self) -> Path:
        """Folder of caches, which can be deleted at any time."""
        return self.home_folder / "cache"

    @property
    def native_log(self) -> Path:
        """Log file of native libraries while a command runs."""
        return self.home_folder / "logs" / "native.log"

    @property
    def service_logs(self) -> Path:
        """Folder of the service replicas' logs."""
        return self.home_folder / "logs" / "serve"

    @property
    def evaluations_folder(self) -> Path:
        """Folder of evaluation pages."""
        return self.home_folder / "evaluations"

    @property
    def runs(self) -> str:
        """Folder or URI of training runs with their checkpoints."""
        return self.runs_root or str(self.home_folder / "runs")
