"""Dispatches count the tries that met an error of ours, and lists of parked work find their rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = "smsgateway"


def upgrade() -> None:
    op.add_column(
        "dispatch", sa.Column("failures", sa.SmallInteger(), server_default="0", nullable=False), schema=SCHEMA
    )
    op.add_column("dispatch", sa.Column("last_error", sa.Text(), nullable=True), schema=SCHEMA)
    op.create_index(
        "dispatch_parked",
        "dispatch",
        ["created_at"],
        schema=SCHEMA,
        postgresql_where=sa.text("not_before = 'infinity'::timestamp with time zone"),
    )
    op.create_index(
        "receipt_inbox_parked_id",
        "receipt_inbox",
        ["inbox_id"],
        schema=SCHEMA,
        postgresql_where=sa.text("next_at is null"),
    )


def downgrade() -> None:
    op.drop_index("receipt_inbox_parked_id", table_name="receipt_inbox", schema=SCHEMA)
    op.drop_index("dispatch_parked", table_name="dispatch", schema=SCHEMA)
    op.drop_column("dispatch", "last_error", schema=SCHEMA)
    op.drop_column("dispatch", "failures", schema=SCHEMA)
