"""Alerts to people: their rules, what is open, and letters that wait to be sent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

SCHEMA = "smsgateway"


def _identifier(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(collation="C"), nullable=False)


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _brand() -> sa.Column[int]:
    return sa.Column("brand_id", sa.BigInteger(), nullable=False)


def upgrade() -> None:
    op.create_table(
        "alert_rule",
        _brand(),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("sms_type", sa.SmallInteger(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("segments", sa.BigInteger(), nullable=False),
        sa.Column("days", sa.Integer(), nullable=False),
        sa.Column("percent", sa.Integer(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("minutes", sa.Integer(), nullable=False),
        sa.Column("hold_seconds", sa.Integer(), nullable=False),
        sa.Column("recipients", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("webhooks", sa.Boolean(), nullable=False),
        _moment("updated_at"),
        sa.PrimaryKeyConstraint("brand_id", "kind", "sms_type"),
        sa.CheckConstraint("brand_id >= 0", name="alert_rule_brand"),
        sa.CheckConstraint("kind between 1 and 7 and sms_type between 0 and 3", name="alert_rule_known"),
        schema=SCHEMA,
    )
    op.create_table(
        "alert",
        _brand(),
        _identifier("alert_id"),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        _identifier("subject"),
        _moment("since"),
        _moment("opened_at", nullable=True),
        _moment("good_since", nullable=True),
        _moment("recovered_at", nullable=True),
        sa.Column("withdrawn", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("figures", postgresql.JSONB(), nullable=False),
        sa.Column("recipients", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("webhooks", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("brand_id", "alert_id"),
        sa.CheckConstraint("brand_id >= 0", name="alert_brand"),
        sa.CheckConstraint(
            "opened_at is not null or (good_since is null and recovered_at is null)", name="alert_told_before_over"
        ),
        schema=SCHEMA,
    )
    op.create_index(
        "alert_open",
        "alert",
        ["brand_id", "kind", "subject"],
        unique=True,
        schema=SCHEMA,
        postgresql_where=sa.text("recovered_at is null"),
    )
    op.create_index(
        "alert_recovered_at",
        "alert",
        ["recovered_at"],
        schema=SCHEMA,
        postgresql_where=sa.text("recovered_at is not null"),
    )
    op.create_table(
        "alert_mail",
        _brand(),
        _identifier("mail_id"),
        _identifier("recipient"),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        _moment("next_at", nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        _moment("created_at"),
        sa.PrimaryKeyConstraint("brand_id", "mail_id"),
        schema=SCHEMA,
    )
    op.create_index(
        "alert_mail_next_at", "alert_mail", ["next_at"], schema=SCHEMA, postgresql_where=sa.text("next_at is not null")
    )
    # What is told of an alert: nothing else keeps it, for people are told what was so then.
    op.add_column("webhook_event", sa.Column("details", postgresql.JSONB(), nullable=True), schema=SCHEMA)


def downgrade() -> None:
    op.drop_column("webhook_event", "details", schema=SCHEMA)
    for table in ("alert_mail", "alert", "alert_rule"):
        op.drop_table(table, schema=SCHEMA)
