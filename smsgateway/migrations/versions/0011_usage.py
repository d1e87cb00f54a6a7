"""What became of messages, counted by brand, type, carrier account and hour."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

SCHEMA = "smsgateway"
_COUNTED = ("messages", "delivered", "undelivered", "expired", "failed", "cancelled", "refunded")


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)


def upgrade() -> None:
    op.add_column("message", sa.Column("refunded", sa.Integer(), nullable=True), schema=SCHEMA)
    op.create_table(
        "usage_change",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("change_id", sa.Uuid(), nullable=False),
        _moment("hour"),
        sa.Column("sms_type", sa.SmallInteger(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("counted", sa.Boolean(), nullable=False),
        sa.Column("refunded", sa.Boolean(), nullable=False),
        sa.Column("messages", sa.Integer(), nullable=False),
        sa.Column("segments", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("brand_id", "change_id"),
        sa.CheckConstraint("messages > 0 and segments > 0", name="usage_change_positive"),
        schema=SCHEMA,
    )
    op.create_table(
        "usage_hour",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        _moment("hour"),
        sa.Column("sms_type", sa.SmallInteger(), nullable=False),
        sa.Column("account", sa.Text(collation="C"), nullable=False),
        *(
            _counter(name)
            for counted in _COUNTED
            for name in (counted, "segments" if counted == "messages" else f"{counted}_segments")
        ),
        sa.PrimaryKeyConstraint("brand_id", "hour", "sms_type", "account"),
        schema=SCHEMA,
        postgresql_with={"fillfactor": "70"},
    )
    op.create_table(
        "usage_day",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        _moment("day"),
        sa.Column("sms_type", sa.SmallInteger(), nullable=False),
        sa.Column("recipients", sa.BigInteger(), nullable=True),
        _moment("counted_at", nullable=True),
        _counter("changes"),
        _counter("counted_changes"),
        _moment("due_at"),
        sa.PrimaryKeyConstraint("brand_id", "day", "sms_type"),
        schema=SCHEMA,
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "usage_day_due",
        "usage_day",
        ["due_at"],
        schema=SCHEMA,
        postgresql_where=sa.text("changes <> counted_changes"),
    )


def downgrade() -> None:
    for table in ("usage_day", "usage_hour", "usage_change"):
        op.drop_table(table, schema=SCHEMA)
    op.drop_column("message", "refunded", schema=SCHEMA)
