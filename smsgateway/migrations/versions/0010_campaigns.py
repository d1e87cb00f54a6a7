"""Texts with variables, campaigns, and batches that are paused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

SCHEMA = "smsgateway"
_PAID = "payment_no is not null and call_id is not null and submitting_at is not null"


def upgrade() -> None:
    op.add_column("message", sa.Column("variables", sa.Text(), nullable=True), schema=SCHEMA)
    op.add_column("batch", sa.Column("variables", sa.Text(), nullable=True), schema=SCHEMA)
    op.add_column("batch", sa.Column("campaign_id", sa.Text(collation="C"), nullable=True), schema=SCHEMA)
    op.add_column("batch", sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True), schema=SCHEMA)
    op.create_index(
        "batch_campaign",
        "batch",
        ["brand_id", "campaign_id", "batch_id"],
        schema=SCHEMA,
        postgresql_where=sa.text("campaign_id is not null"),
    )
    op.create_table(
        "campaign",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("campaign_id", sa.Text(collation="C"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("brand_id", "campaign_id"),
        schema=SCHEMA,
    )
    op.create_index("campaign_created_at", "campaign", ["brand_id", "created_at", "campaign_id"], schema=SCHEMA)
    op.add_column("dispatch", sa.Column("paused", sa.Boolean(), server_default="false", nullable=False), schema=SCHEMA)
    op.drop_constraint("dispatch_paid_before_submitted", "dispatch", schema=SCHEMA)
    op.create_check_constraint(
        "dispatch_paid_before_submitted", "dispatch", f"state < 4 or state = 7 or ({_PAID})", schema=SCHEMA
    )
    op.create_check_constraint("dispatch_paused_with_its_batch", "dispatch", "state <> 7 or paused", schema=SCHEMA)
    op.create_check_constraint("dispatch_paused_is_not_claimed", "dispatch", "state <> 3 or not paused", schema=SCHEMA)


def downgrade() -> None:
    op.drop_constraint("dispatch_paused_is_not_claimed", "dispatch", schema=SCHEMA)
    op.drop_constraint("dispatch_paused_with_its_batch", "dispatch", schema=SCHEMA)
    op.drop_constraint("dispatch_paid_before_submitted", "dispatch", schema=SCHEMA)
    op.create_check_constraint("dispatch_paid_before_submitted", "dispatch", f"state < 4 or ({_PAID})", schema=SCHEMA)
    op.drop_column("dispatch", "paused", schema=SCHEMA)
    op.drop_table("campaign", schema=SCHEMA)
    op.drop_index("batch_campaign", "batch", schema=SCHEMA)
    op.drop_column("batch", "paused_at", schema=SCHEMA)
    op.drop_column("batch", "campaign_id", schema=SCHEMA)
    op.drop_column("batch", "variables", schema=SCHEMA)
    op.drop_column("message", "variables", schema=SCHEMA)
