"""Step 9: webhooks of applications, with their limits and secrets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "webhooks",
        sa.Column(
            "application",
            sa.String(64),
            sa.ForeignKey("applications.name", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
    )
