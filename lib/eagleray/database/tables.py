"""The tables of the organisation's database, as SQLAlchemy maps them.

A table that joins them needs a step in `migrations/`; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["AliasChangeRow", "Base"]


class UtcTime(sa.TypeDecorator[datetime]):
    """A moment. SQLite keeps no time zone, so UTC goes in and comes out."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: sa.Dialect) -> datetime | None:
        """Refuse moments whose zone nobody knows."""
        assert value is None or value.tzinfo is not None
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _: sa.Dialect) -> datetime | None:
        """Give the zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """What all tables of the organisation's database have in common."""


class AliasChangeRow(Base):
    """One change of an alias, or with the empty alias of a version itself.

    It is written before MLflow is asked, and `applied` says that MLflow has done it.
    """

    __tablename__ = "alias_changes"

    model: Mapped[str] = mapped_column(sa.String(256), primary_key=True)
    alias: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int]
    previous: Mapped[int | None]
    action: Mapped[str] = mapped_column(sa.String(16))
    who: Mapped[str] = mapped_column(sa.Text())
    time: Mapped[datetime] = mapped_column(UtcTime())
    why: Mapped[str] = mapped_column(sa.Text())
    evidence: Mapped[dict[str, Any]] = mapped_column(sa.JSON())
    applied: Mapped[bool]
