"""Carrier accounts beside the environment's, the rules that lead to them, and how fast brands may send."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SCHEMA = "smsgateway"


def _identifier(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(collation="C"), nullable=False)


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "carrier_account",
        _identifier("account_id"),
        _identifier("kind"),
        sa.Column("settings", JSONB(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False, server_default="false"),
        sa.Column("rate", sa.Numeric(12, 3), nullable=False, server_default="0"),
        sa.Column("burst", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("calls_max", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("balance_alert", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("balance", sa.BigInteger(), nullable=True),
        _moment("balance_at", nullable=True),
        sa.Column("balance_low", sa.Boolean(), nullable=False, server_default="false"),
        sa.Column("version", sa.BigInteger(), nullable=False),
        _moment("updated_at"),
        sa.PrimaryKeyConstraint("account_id"),
        sa.CheckConstraint(
            "rate >= 0 and burst >= 0 and calls_max >= 0 and balance_alert >= 0",
            name="carrier_account_limits_positive",
        ),
        schema=SCHEMA,
    )
    op.create_table(
        "routing_rule",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("sms_type", sa.SmallInteger(), nullable=False),
        _identifier("prefix"),
        _identifier("account_id"),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        _moment("updated_at"),
        sa.PrimaryKeyConstraint("brand_id", "sms_type", "prefix", "account_id"),
        sa.CheckConstraint("priority >= 0 and weight >= 0", name="routing_rule_positive"),
        schema=SCHEMA,
    )
    op.create_table(
        "sending_limit",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("sms_type", sa.SmallInteger(), nullable=False),
        sa.Column("rate", sa.Numeric(12, 3), nullable=False),
        sa.Column("burst", sa.Integer(), nullable=False, server_default="0"),
        _moment("updated_at"),
        sa.PrimaryKeyConstraint("brand_id", "sms_type"),
        sa.CheckConstraint("rate > 0 and burst >= 0", name="sending_limit_positive"),
        schema=SCHEMA,
    )
    op.create_table(
        "routing_version",
        sa.Column("id", sa.SmallInteger(), nullable=False, autoincrement=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        schema=SCHEMA,
    )


def downgrade() -> None:
    for table in ("routing_version", "sending_limit", "routing_rule", "carrier_account"):
        op.drop_table(table, schema=SCHEMA)
