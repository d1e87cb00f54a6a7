"""Numbers that must not be sent to: opt-outs and black lists."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCHEMA = "smsgateway"


def upgrade() -> None:
    op.create_table(
        "suppression",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("mobile", sa.Text(collation="C"), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("source", sa.Text(collation="C"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("brand_id", "mobile", "kind"),
        sa.CheckConstraint("brand_id >= 0", name="suppression_brand"),
        sa.CheckConstraint("kind between 1 and 2", name="suppression_kind_known"),
        schema=SCHEMA,
    )


def downgrade() -> None:
    op.drop_table("suppression", schema=SCHEMA)
