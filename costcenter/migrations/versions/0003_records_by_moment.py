"""Refunds and entries by moment, so that a statement reads its period only."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("refund_at", "refund", ["brand_id", "created_at", "record_no"], schema="costcenter")
    op.create_index("entry_at", "entry", ["brand_id", "at", "record_no"], schema="costcenter")


def downgrade() -> None:
    op.drop_index("entry_at", table_name="entry", schema="costcenter")
    op.drop_index("refund_at", table_name="refund", schema="costcenter")
