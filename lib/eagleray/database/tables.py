"""The tables of the organisation's database, mapped by SQLAlchemy.

Every change of a table needs a migration in `migrations/`; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "AliasChangeRow",
    "ApiKeyRow",
    "ApplicationRow",
    "Base",
    "GrantRow",
    "IdentityRow",
    "JobRow",
    "ModelRouteRow",
    "PinRow",
    "ReplicaMetricsRow",
    "ServedRow",
    "ServingChangeRow",
    "UsageRow",
    "UtcTime",
]


class UtcTime(sa.TypeDecorator[datetime]):
    """A time, stored in UTC, as SQLite keeps no time zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: sa.Dialect) -> datetime | None:
        """Convert to UTC; a time without a zone is refused."""
        assert value is None or value.tzinfo is not None
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _: sa.Dialect) -> datetime | None:
        """Add the zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The base class of all tables."""


class IdentityRow(Base):
    """The identity of the database: a random id that is drawn when the database is created."""

    __tablename__ = "database_identity"

    id: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    created: Mapped[datetime] = mapped_column(UtcTime())


class AliasChangeRow(Base):
    """One change of an alias or, with an empty alias, the deletion of a version.

    The row is written before the change is made in MLflow; `applied` says that it was made.
    """

    __tablename__ = "alias_changes"

    model: Mapped[str] = mapped_column(sa.String(256), primary_key=True)
    alias: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int]
    previous: Mapped[int | None]
    action: Mapped[str] = mapped_column(sa.String(16))
    actor: Mapped[str] = mapped_column("who", sa.Text())
    time: Mapped[datetime] = mapped_column(UtcTime())
    reason: Mapped[str] = mapped_column("why", sa.Text())
    evidence: Mapped[dict[str, Any]] = mapped_column(sa.JSON())
    applied: Mapped[bool]


# --- the service: its callers, and the versions that serve ------------------------------------


class ApplicationRow(Base):
    """A caller of the service."""

    __tablename__ = "applications"

    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    created: Mapped[datetime] = mapped_column(UtcTime())
    images_per_second: Mapped[float | None]
    disabled: Mapped[bool]
    max_priority: Mapped[int] = mapped_column(server_default="0")


class ApiKeyRow(Base):
    """A key of an application: its SHA-256, and the first characters to know it again by."""

    __tablename__ = "api_keys"

    digest: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    application: Mapped[str] = mapped_column(
        sa.ForeignKey("applications.name", ondelete="CASCADE"), index=True
    )
    prefix: Mapped[str] = mapped_column(sa.String(16))
    created: Mapped[datetime] = mapped_column(UtcTime())
    expires: Mapped[datetime | None] = mapped_column(UtcTime())
    revoked: Mapped[datetime | None] = mapped_column(UtcTime())


class PinRow(Base):
    """The version of a model that one application gets: a number or an alias."""

    __tablename__ = "pins"

    application: Mapped[str] = mapped_column(
        sa.ForeignKey("applications.name", ondelete="CASCADE"), primary_key=True
    )
    model: Mapped[str] = mapped_column(sa.String(256), primary_key=True)
    target: Mapped[str] = mapped_column(sa.String(64))


class GrantRow(Base):
    """A role of an application for a model, or for all whose names match a pattern."""

    __tablename__ = "grants"

    application: Mapped[str] = mapped_column(
        sa.ForeignKey("applications.name", ondelete="CASCADE"), primary_key=True
    )
    models: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    role: Mapped[str] = mapped_column(sa.String(16))


class WebhookRow(Base):
    """Where an application is told of predictions that exceed its limits."""

    __tablename__ = "webhooks"

    application: Mapped[str] = mapped_column(
        sa.ForeignKey("applications.name", ondelete="CASCADE"), primary_key=True
    )
    url: Mapped[str] = mapped_column(sa.Text())
    secret: Mapped[str] = mapped_column(sa.String(64))
    limits: Mapped[list[str]] = mapped_column(sa.JSON())


class ModelRouteRow(Base):
    """The versions of a model for callers without a pin; targets are numbers or aliases."""

    __tablename__ = "model_routes"

    model: Mapped[str] = mapped_column(sa.String(256), primary_key=True)
    default: Mapped[str] = mapped_column(sa.String(64))
    canary: Mapped[str | None] = mapped_column(sa.String(64))
    canary_share: Mapped[float]
    shadow: Mapped[str | None] = mapped_column(sa.String(64))
    shadow_share: Mapped[float]
    warm: Mapped[bool] = mapped_column("keep")


class ServingChangeRow(Base):
    """One change of the tables above, for the audit log."""

    __tablename__ = "serving_changes"

    number: Mapped[int] = mapped_column(
        sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True
    )
    subject: Mapped[str] = mapped_column(sa.String(320), index=True)
    change: Mapped[str] = mapped_column("what", sa.Text())
    actor: Mapped[str] = mapped_column("who", sa.Text())
    time: Mapped[datetime] = mapped_column(UtcTime())


class ServedRow(Base):
    """The last version that served in a role, which a new process falls back on."""

    __tablename__ = "served_versions"

    model: Mapped[str] = mapped_column(sa.String(256), primary_key=True)
    via: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    version: Mapped[int]
    time: Mapped[datetime] = mapped_column(UtcTime())


class UsageRow(Base):
    """Number of requests of one application that a version served on one day, in UTC."""

    __tablename__ = "usage_by_day"

    model: Mapped[str] = mapped_column(sa.String(256), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    application: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    requests: Mapped[int] = mapped_column(sa.BigInteger())
    last: Mapped[datetime] = mapped_column(UtcTime())


class ReplicaMetricsRow(Base):
    """The metrics of a replica at a time; `families` are those of `Telemetry`."""

    __tablename__ = "replica_metrics"

    replica: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    time: Mapped[datetime] = mapped_column(UtcTime())
    families: Mapped[list[Any]] = mapped_column(sa.JSON())


class JobRow(Base):
    """A job that was submitted to a cluster or to the service; its record outlives both.

    What is to run:
        `program` is the command and `words` its command line. A job of the service has instead a
        `spec`, the specification that its program reads, and the `request` of its caller.
        `package` names the archive of local inputs that came along.
    Who, and in which order:
        `owner` is the user or the application, `application` the application alone. `size` is the
        number of images, if it is known. `retries` are allowed and `retries_left` of them left.
    Where:
        `output` holds the results and `logs` what is printed; `s3` are options to reach them.
        `cluster` names the cluster and `submission` the Ray job of the last attempt there.
    The attempt:
        `epoch` is its number: who holds an older one has lost the job. It holds the job until
        `lease_until`, which each `heartbeat` moves. `can_yield` says that it is able to make room,
        `yields_to` for which job it is asked to, and `yielded` that it has.
    What came of it:
        `stage`, `num_done`, `num_failed` and `num_total` are its progress, `core_seconds` and
        `gpu_seconds` what all attempts have held.
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    program: Mapped[str] = mapped_column(sa.String(32))
    words: Mapped[list[str]] = mapped_column(sa.JSON())
    spec: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    request: Mapped[dict[str, Any]] = mapped_column(sa.JSON())
    model: Mapped[str] = mapped_column(sa.String(320))
    package: Mapped[str] = mapped_column(sa.String(128))
    version: Mapped[str] = mapped_column(sa.String(32))

    owner: Mapped[str] = mapped_column(sa.String(320), index=True)
    application: Mapped[str | None] = mapped_column(sa.String(64), index=True)
    created: Mapped[datetime] = mapped_column(UtcTime())
    priority: Mapped[int]
    size: Mapped[int | None] = mapped_column(sa.BigInteger())
    retries: Mapped[int]
    retries_left: Mapped[int]

    output: Mapped[str] = mapped_column(sa.Text())
    logs: Mapped[str] = mapped_column(sa.Text())
    s3: Mapped[dict[str, Any]] = mapped_column(sa.JSON())
    cluster: Mapped[str] = mapped_column(sa.String(64))
    submission: Mapped[str] = mapped_column(sa.String(128))

    state: Mapped[str] = mapped_column(sa.String(16), index=True)
    message: Mapped[str] = mapped_column(sa.Text())
    epoch: Mapped[int]
    lease_until: Mapped[datetime | None] = mapped_column(UtcTime())
    heartbeat: Mapped[datetime | None] = mapped_column(UtcTime())
    started: Mapped[datetime | None] = mapped_column(UtcTime())
    ended: Mapped[datetime | None] = mapped_column(UtcTime())
    exit_code: Mapped[int | None]
    cancel_requested: Mapped[bool]
    can_yield: Mapped[bool]
    yields_to: Mapped[str] = mapped_column(sa.String(64))
    yielded: Mapped[bool]

    stage: Mapped[str] = mapped_column(sa.String(64))
    num_done: Mapped[int] = mapped_column(sa.BigInteger())
    num_failed: Mapped[int] = mapped_column(sa.BigInteger())
    num_total: Mapped[int | None] = mapped_column(sa.BigInteger())
    core_seconds: Mapped[float]
    gpu_seconds: Mapped[float]
