"""Step 4: how many requests each application sent to each version, by day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "usage_by_day",
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("day", sa.Date(), primary_key=True),
        sa.Column("application", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.DateTime(timezone=True), nullable=False),
    )
