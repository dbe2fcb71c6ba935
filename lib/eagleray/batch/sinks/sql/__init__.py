"""Results in a table of a SQL database: all rows of a job or none, however often they are put."""

from __future__ import annotations

from eagleray.batch.sinks.sql.target import SqlSink

__all__ = ["SqlSink"]
