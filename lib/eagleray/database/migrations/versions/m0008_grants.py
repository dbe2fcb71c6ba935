"""Step 8: roles of applications for models, and the highest priority of their jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Create the table and the column."""
    op.create_table(
        "grants",
        sa.Column(
            "application",
            sa.String(64),
            sa.ForeignKey("applications.name", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("models", sa.String(128), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
    )
    op.add_column(
        "applications", sa.Column("max_priority", sa.Integer(), nullable=False, server_default="0")
    )
