"""Reads the rows of a table, and skips damaged rows instead of failing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from eagleray.database.tables import Base

__all__ = ["BadRowError", "readable_rows", "report_bad_row"]

log = logging.getLogger(__name__)

RowT = TypeVar("RowT", bound=Base)


class BadRowError(ValueError):
    """A row has a value that is not allowed in its table."""


def readable_rows(
    session: Session, table: type[RowT], *conditions: sa.ColumnElement[bool]
) -> Iterator[RowT]:
    """Yield the rows of a table; rows that cannot be read are logged and skipped.

    Args:
        session: A session in a transaction.
        table: The mapped class of the table.
        conditions: Conditions that the rows must meet.

    Raises:
        OutageError: If the database does not answer; the session's block raises it.
    """
    try:
        rows = list(session.scalars(sa.select(table).where(*conditions)))
    except (ValueError, TypeError, LookupError):  # a value is not of its column's type
        session.expunge_all()
        yield from _one_by_one(session, table, conditions)
    else:
        yield from rows


def report_bad_row(table: type[Base], key: object, error: Exception) -> None:
    """Log a row that is skipped."""
    log.error("row %s of table %s is skipped: %s", key, table.__tablename__, error)


def _one_by_one(
    session: Session, table: type[RowT], conditions: tuple[sa.ColumnElement[bool], ...]
) -> Iterator[RowT]:
    key = sa.inspect(table).primary_key
    for values in list(session.execute(sa.select(*key).where(*conditions))):
        same = [column == value for column, value in zip(key, values, strict=True)]
        try:
            row = session.scalars(sa.select(table).where(*same)).one_or_none()
        except (ValueError, TypeError, LookupError) as error:
            report_bad_row(table, tuple(values), error)
        else:
            if row is not None:
                yield row
