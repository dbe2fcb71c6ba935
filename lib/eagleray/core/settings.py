"""Where things live and what to connect to: the one place that reads the environment.

Every field can be set as `EAGLERAY_<FIELD>`; command-line flags win over the environment. Two of
OpenTelemetry's own variables are honoured beside ours.
"""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from eagleray.core.environment import require_writable_folder
from eagleray.core.errors import InputError
from eagleray.core.validation import first_validation_error

__all__ = ["Settings", "read_settings"]


def read_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        InputError: Naming the variable at fault.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise InputError(f"{first_validation_error(error, name=_variable)}.") from None


def _variable(field: str) -> str:
    name = field.upper()
    return name if name.startswith(("EAGLERAY_", "OTEL_")) else f"EAGLERAY_{name}"


class Settings(BaseSettings):
    """Settings of one process, read when made and never changed."""

    model_config = SettingsConfigDict(
        env_prefix="EAGLERAY_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        populate_by_name=True,
    )

    home: Path = Field(
        default=Path(".eagleray"),
        description="Folder of the databases, runs and caches that no other setting points away.",
    )
    tracking_uri: str | None = Field(
        default=None,
        description="MLflow server or database. Default: SQLite in the home folder.",
    )
    artifact_root: str | None = Field(
        default=None,
        description="Folder or URI for registered packages. Default: `artifacts` in the home "
        "folder; an MLflow server chooses its own.",
    )
    runs_root: str | None = Field(
        default=None,
        description="Folder or URI of training runs with their checkpoints; on several machines "
        "one that all of them reach. Default: `runs` in the home folder.",
    )
    database_url: str | None = Field(
        default=None,
        repr=False,  # it may hold a password
        description="SQLite or PostgreSQL database of the history of aliases, of "
        "applications and of routes. Default: "
        "`eagleray.db` in the home folder.",
    )
    user: str | None = Field(
        default=None,
        description="Who is written into the history. Default: the login and the machine.",
    )
    ray_address: str | None = Field(
        default=None,
        description="Ray cluster to join. Default: a Ray of its own on this machine.",
    )

    otlp_endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices("EAGLERAY_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="OpenTelemetry collector that traces of requests go to, over OTLP/HTTP; such "
        "as `http://collector:4318`. Default: no traces.",
    )
    otel_service_name: str = Field(
        default="eagleray",
        validation_alias=AliasChoices("EAGLERAY_OTEL_SERVICE_NAME", "OTEL_SERVICE_NAME"),
        description="Name of the service in its traces.",
    )

    s3_endpoint: str | None = Field(
        default=None, description="Address of an S3 server that is not Amazon's."
    )
    s3_region: str | None = Field(default=None, description="Of the buckets.")
    s3_profile: str | None = Field(default=None, description="Of the AWS credentials file.")
    s3_anonymous: bool = Field(default=False, description="Sign no requests to S3.")
    s3_requester_pays: bool = Field(default=False, description="Pay for what is read from S3.")
    url_private_networks: str = Field(
        default="",
        description="Networks, as in `10.0.0.0/8,192.168.7.0/24`, that images may be fetched from "
        "although they are private. Without it no private address is ever fetched.",
    )

    @field_validator("home")
    @classmethod
    def _fits_into_a_database_uri(cls, home: Path) -> Path:
        try:
            resolved = str(home.expanduser().resolve())
        except (OSError, RuntimeError) as error:  # no working folder, or no user for a `~`
            raise ValueError(f"{home} names no folder here ({error}); write a whole path") from None
        if any(character in resolved for character in "?%"):
            raise ValueError(f"{resolved!r} must not contain '?' or '%'; name another folder")
        return home

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_http(cls, endpoint: str | None) -> str | None:
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise ValueError(f"{endpoint!r} must begin with http:// or https://")
        return endpoint or None

    @property
    def home_folder(self) -> Path:
        """The home folder as an absolute path (it need not exist yet)."""
        return self.home.expanduser().resolve()

    def make_home(self) -> Path:
        """Return the home folder, made if need be.

        Raises:
            UserError: It cannot be written.
        """
        require_writable_folder(self.home_folder, "The home folder", "EAGLERAY_HOME")
        return self.home_folder

    def as_environment(self) -> dict[str, str]:
        """Return the variables that give another process the same settings."""
        values = {**self.model_dump(exclude_none=True), "home": self.home_folder}
        return {f"EAGLERAY_{name.upper()}": str(value) for name, value in values.items()}

    @property
    def mlflow_uri(self) -> str:
        """The MLflow tracking URI in force."""
        return self.tracking_uri or f"sqlite:///{self.home_folder / 'mlflow.db'}"

    @property
    def artifacts(self) -> str:
        """Where packages of the default registry are stored."""
        return self.artifact_root or str(self.home_folder / "artifacts")

    @property
    def actor(self) -> str:
        """Who is written into the history."""
        if self.user:
            return self.user
        try:
            login = getpass.getuser()
        except (KeyError, OSError):  # containers run as numbers that nobody gave a name
            login = str(os.getuid())
        return f"{login}@{socket.gethostname()}"

    @property
    def cache_folder(self) -> Path:
        """Caches that can be deleted at any time."""
        return self.home_folder / "cache"

    @property
    def native_log(self) -> Path:
        """Where native libraries write while a command keeps the terminal quiet."""
        return self.home_folder / "logs" / "native.log"

    @property
    def service_logs(self) -> Path:
        """Folder of the logs that replicas of the service write."""
        return self.home_folder / "logs" / "serve"

    @property
    def evaluations_folder(self) -> Path:
        """Pages of evaluations."""
        return self.home_folder / "evaluations"

    @property
    def runs(self) -> str:
        """Where training runs are kept, with their checkpoints."""
        return self.runs_root or str(self.home_folder / "runs")
