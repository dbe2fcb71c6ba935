"""Puts results into a table of a SQL database: all rows of a job or none."""

from __future__ import annotations

from eagleray.batch.sinks.sql.sink import SqlSink

__all__ = ["SqlSink"]
