"""Step 2: applications, their keys and pins, routes of models, and which version served last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the tables."""
    application = "applications.name"
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "applications",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("created", moment, nullable=False),
        sa.Column("images_per_second", sa.Double()),
        sa.Column("disabled", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column(
            "application",
            sa.String(64),
            sa.ForeignKey(application, ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("created", moment, nullable=False),
        sa.Column("expires", moment),
        sa.Column("revoked", moment),
    )
    op.create_index("ix_api_keys_application", "api_keys", ["application"])
    op.create_table(
        "pins",
        sa.Column(
            "application",
            sa.String(64),
            sa.ForeignKey(application, ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("target", sa.String(64), nullable=False),
    )
    op.create_table(
        "model_routes",
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("default", sa.String(64), nullable=False),
        sa.Column("canary", sa.String(64)),
        sa.Column("canary_share", sa.Double(), nullable=False),
        sa.Column("shadow", sa.String(64)),
        sa.Column("shadow_share", sa.Double(), nullable=False),
        sa.Column("keep", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "serving_changes",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
        ),
        sa.Column("subject", sa.String(320), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("time", moment, nullable=False),
    )
    op.create_index("ix_serving_changes_subject", "serving_changes", ["subject"])
    op.create_table(
        "served_versions",
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("via", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("time", moment, nullable=False),
    )
