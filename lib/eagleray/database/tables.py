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
    "BatchRow",
    "IdentityRow",
    "ModelRouteRow",
    "PinRow",
    "ReplicaMetricsRow",
    "ServedRow",
    "ServingChangeRow",
    "UsageRow",
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


class BatchRow(Base):
    """A batch job that a caller of the service started; its output has the rest.

    `request` is the caller's request, `model` the version that it named at that time, `submission`
    the name of its last run as a Ray job, and `state` the last known state.
    """

    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    application: Mapped[str] = mapped_column(sa.String(64), index=True)
    created: Mapped[datetime] = mapped_column(UtcTime())
    output: Mapped[str] = mapped_column(sa.Text())
    request: Mapped[dict[str, Any]] = mapped_column(sa.JSON())
    model: Mapped[str] = mapped_column(sa.String(320))
    submission: Mapped[str] = mapped_column(sa.String(64))
    state: Mapped[str] = mapped_column(sa.String(16))
    message: Mapped[str] = mapped_column(sa.Text())
