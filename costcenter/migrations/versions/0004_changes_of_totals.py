"""Entries that change a brand's total by moment, so that what brands paid lately follows from a few of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "entry_of_total",
        "entry",
        ["brand_id", "at"],
        schema="costcenter",
        postgresql_where=sa.text("kind not in (4, 5)"),
    )


def downgrade() -> None:
    op.drop_index("entry_of_total", table_name="entry", schema="costcenter")
