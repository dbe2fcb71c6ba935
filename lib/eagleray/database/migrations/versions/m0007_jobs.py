"""Step 7: one table for all submitted jobs, with lease, queue and cost; batches move into it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the table, move the batches into it, and drop theirs."""
    moment = sa.DateTime(timezone=True)
    jobs = op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("program", sa.String(32), nullable=False),
        sa.Column("words", sa.JSON(), nullable=False),
        sa.Column("spec", sa.JSON(none_as_null=True)),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("model", sa.String(320), nullable=False),
        sa.Column("package", sa.String(128), nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(320), nullable=False),
        sa.Column("application", sa.String(64)),
        sa.Column("created", moment, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger()),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.Column("retries_left", sa.Integer(), nullable=False),
        sa.Column("output", sa.Text(), nullable=False),
        sa.Column("logs", sa.Text(), nullable=False),
        sa.Column("s3", sa.JSON(), nullable=False),
        sa.Column("cluster", sa.String(64), nullable=False),
        sa.Column("submission", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("lease_until", moment),
        sa.Column("heartbeat", moment),
        sa.Column("started", moment),
        sa.Column("ended", moment),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("can_yield", sa.Boolean(), nullable=False),
        sa.Column("yields_to", sa.String(64), nullable=False),
        sa.Column("yielded", sa.Boolean(), nullable=False),
        sa.Column("stage", sa.String(64), nullable=False),
        sa.Column("num_done", sa.BigInteger(), nullable=False),
        sa.Column("num_failed", sa.BigInteger(), nullable=False),
        sa.Column("num_total", sa.BigInteger()),
        sa.Column("core_seconds", sa.Double(), nullable=False),
        sa.Column("gpu_seconds", sa.Double(), nullable=False),
    )
    for column in ("owner", "application", "state"):
        op.create_index(f"ix_jobs_{column}", "jobs", [column])
    kept = ("id", "application", "created", "output", "request", "model", "submission", "state")
    batches = sa.table("batches", *map(sa.column, (*kept, "message")))
    values: dict[str, Any] = {
        **{name: batches.c[name] for name in (*kept, "message")},
        "owner": batches.c.application,
        **dict.fromkeys(("package", "version", "logs", "cluster", "yields_to", "stage"), ""),
        **dict.fromkeys(("priority", "retries", "retries_left", "epoch"), 0),
        **dict.fromkeys(("num_done", "num_failed", "core_seconds", "gpu_seconds"), 0),
        **dict.fromkeys(("cancel_requested", "can_yield", "yielded"), False),
        "program": "predict",
    }
    columns = [sa.literal(v) if isinstance(v, str | int) else v for v in values.values()]
    empty: list[Any] = [sa.literal([], sa.JSON()), sa.literal({}, sa.JSON())]
    op.execute(jobs.insert().from_select([*values, "words", "s3"], sa.select(*columns, *empty)))
    op.drop_table("batches")
