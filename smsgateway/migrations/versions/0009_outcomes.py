"""What people sent back, and webhooks: where brands hear what became of their messages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

SCHEMA = "smsgateway"


def _identifier(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable)


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    _replies()
    _webhooks()


def _replies() -> None:
    op.create_table(
        "reply",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        _identifier("reply_id"),
        sa.Column("account", sa.Text(), nullable=False),
        _identifier("reference"),
        _identifier("mobile"),
        _identifier("destination"),
        sa.Column("text", sa.Text(), nullable=False),
        _identifier("part"),
        sa.Column("opt_out", sa.Boolean(), nullable=False),
        _identifier("message_id", nullable=True),
        _moment("received_at"),
        _moment("created_at"),
        sa.PrimaryKeyConstraint("brand_id", "reply_id"),
        sa.CheckConstraint("brand_id >= 0", name="reply_brand"),
        schema=SCHEMA,
    )
    op.create_index("reply_mobile", "reply", ["brand_id", "mobile", "reply_id"], schema=SCHEMA)
    op.create_table(
        "reply_reference",
        sa.Column("account", sa.Text(), nullable=False),
        _identifier("reference"),
        _moment("created_at"),
        sa.PrimaryKeyConstraint("account", "reference"),
        schema=SCHEMA,
    )
    op.create_index("reply_reference_created_at", "reply_reference", ["created_at"], schema=SCHEMA)


def _webhooks() -> None:
    op.create_table(
        "webhook",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        _identifier("webhook_id"),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("kinds", sa.BigInteger(), nullable=False),
        sa.Column("full_number", sa.Boolean(), nullable=False),
        sa.Column("reply_text", sa.Boolean(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("old_secret", sa.Text(), nullable=True),
        _moment("old_secret_until", nullable=True),
        _moment("created_at"),
        _moment("updated_at"),
        sa.PrimaryKeyConstraint("brand_id", "webhook_id"),
        sa.CheckConstraint("brand_id >= 0", name="webhook_brand"),
        schema=SCHEMA,
    )
    op.create_table(
        "webhook_turn",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        _identifier("webhook_id"),
        _identifier("worker"),
        _moment("until"),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("events_max", sa.Integer(), nullable=False),
        _moment("next_at"),
        sa.Column("last_error", sa.Text(), nullable=True),
        _moment("succeeded_at", nullable=True),
        sa.PrimaryKeyConstraint("brand_id", "webhook_id"),
        schema=SCHEMA,
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "webhook_event",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        _identifier("event_id"),
        _identifier("webhook_id"),
        _identifier("subject_id"),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("result_code", sa.Text(), nullable=True),
        _moment("happened_at"),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        _moment("created_at"),
        _moment("parked_at", nullable=True),
        sa.PrimaryKeyConstraint("brand_id", "event_id"),
        schema=SCHEMA,
    )
    op.create_index(
        "webhook_event_waiting",
        "webhook_event",
        ["brand_id", "webhook_id", "created_at", "event_id"],
        schema=SCHEMA,
        postgresql_where=sa.text("parked_at is null"),
    )
    op.create_index(
        "webhook_event_parked",
        "webhook_event",
        ["created_at"],
        schema=SCHEMA,
        postgresql_where=sa.text("parked_at is not null"),
    )


def downgrade() -> None:
    for table in ("webhook_event", "webhook_turn", "webhook", "reply_reference", "reply"):
        op.drop_table(table, schema=SCHEMA)
