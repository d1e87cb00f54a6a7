"""The sender's rules, what numbers got lately, and work that is held, scheduled or valid for a time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SCHEMA = "smsgateway"


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _identifier(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable)


def upgrade() -> None:
    op.add_column("dispatch", _moment("due_at", nullable=True), schema=SCHEMA)
    op.add_column("dispatch", _moment("valid_until", nullable=True), schema=SCHEMA)
    op.add_column("dispatch", sa.Column("tried", sa.Boolean(), nullable=False, server_default="false"), schema=SCHEMA)
    op.add_column("dispatch", _identifier("subject", nullable=True), schema=SCHEMA)
    op.add_column("batch", sa.Column("held", sa.Boolean(), nullable=False, server_default="false"), schema=SCHEMA)
    op.add_column("batch", _identifier("subject", nullable=True), schema=SCHEMA)
    op.create_table(
        "sender_rules",
        sa.Column("brand_id", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("signatures", sa.Boolean(), nullable=True),
        sa.Column("templates", sa.Boolean(), nullable=True),
        sa.Column("suffix", sa.SmallInteger(), nullable=True),
        sa.Column("frequency", sa.Boolean(), nullable=True),
        sa.Column("verification_limits", sa.ARRAY(sa.Integer()), nullable=True),
        sa.Column("notification_limits", sa.ARRAY(sa.Integer()), nullable=True),
        sa.Column("marketing_limits", sa.ARRAY(sa.Integer()), nullable=True),
        sa.Column("quiet", sa.Boolean(), nullable=True),
        sa.Column("quiet_from", sa.SmallInteger(), nullable=True),
        sa.Column("quiet_until", sa.SmallInteger(), nullable=True),
        sa.Column("suppressed", sa.Boolean(), nullable=False, server_default="false"),
        _moment("changed_at"),
        sa.PrimaryKeyConstraint("brand_id"),
        sa.CheckConstraint("suffix between 1 and 3", name="sender_rules_suffix_known"),
        schema=SCHEMA,
    )
    op.create_index("sender_rules_changed_at", "sender_rules", ["changed_at"], schema=SCHEMA)
    op.create_table(
        "signature",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        _identifier("signature"),
        sa.Column("approval", sa.SmallInteger(), nullable=False),
        _moment("created_at"),
        _moment("changed_at"),
        sa.PrimaryKeyConstraint("brand_id", "signature"),
        sa.CheckConstraint("approval between 1 and 3", name="signature_approval_known"),
        schema=SCHEMA,
    )
    op.create_table(
        "template",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        _identifier("template_id"),
        sa.Column("sms_type", sa.SmallInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("approval", sa.SmallInteger(), nullable=False),
        _moment("created_at"),
        _moment("changed_at"),
        sa.PrimaryKeyConstraint("brand_id", "template_id"),
        sa.CheckConstraint("approval between 1 and 3", name="template_approval_known"),
        schema=SCHEMA,
    )
    op.create_table(
        "frequency",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("sms_type", sa.SmallInteger(), nullable=False),
        _identifier("subject"),
        _identifier("mobile"),
        sa.Column("sent_at", sa.ARRAY(sa.DateTime(timezone=True)), nullable=False),
        sa.Column("targets", sa.ARRAY(sa.Text(collation="C")), nullable=False),
        sa.Column("granted", sa.Integer(), nullable=False),
        sa.Column("per_minute", sa.Integer(), nullable=True),
        sa.Column("per_hour", sa.Integer(), nullable=True),
        sa.Column("per_day", sa.Integer(), nullable=True),
        sa.Column("kept_seconds", sa.Integer(), nullable=False),
        _moment("expires_at"),
        sa.PrimaryKeyConstraint("brand_id", "sms_type", "subject", "mobile"),
        schema=SCHEMA,
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("frequency_expires_at", "frequency", ["expires_at"], schema=SCHEMA)


def downgrade() -> None:
    for table in ("frequency", "template", "signature", "sender_rules"):
        op.drop_table(table, schema=SCHEMA)
    for column in ("subject", "held"):
        op.drop_column("batch", column, schema=SCHEMA)
    for column in ("subject", "tried", "valid_until", "due_at"):
        op.drop_column("dispatch", column, schema=SCHEMA)
