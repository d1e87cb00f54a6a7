"""Whose turn it is to pull an account's receipts, and since when none is left there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = "smsgateway"


def upgrade() -> None:
    op.create_table(
        "receipt_pull",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(collation="C"), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("emptied_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stored_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("account"),
        schema=SCHEMA,
    )


def downgrade() -> None:
    op.drop_table("receipt_pull", schema=SCHEMA)
