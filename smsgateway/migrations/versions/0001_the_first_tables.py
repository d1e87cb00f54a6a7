"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "batch",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("request_id", sa.Text(collation="C"), nullable=False),
        sa.Column("sms_type", sa.SmallInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("accepted", sa.Integer(), nullable=False),
        sa.Column("segments", sa.BigInteger(), nullable=False),
        sa.Column("order_no", sa.Text(collation="C"), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("accepted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("brand_id", "batch_id"),
        schema="smsgateway",
    )
    op.create_index(
        "batch_accepting",
        "batch",
        ["created_at"],
        unique=False,
        schema="smsgateway",
        postgresql_where=sa.text("accepted_at is null"),
    )
    op.create_table(
        "dispatch",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("dispatch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("mode", sa.SmallInteger(), nullable=False),
        sa.Column("sms_type", sa.SmallInteger(), nullable=False),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=True),
        sa.Column("messages", sa.Integer(), nullable=False),
        sa.Column("segments", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.Text(collation="C"), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("stream_entry", sa.Text(), nullable=True),
        sa.Column("order_no", sa.Text(collation="C"), nullable=True),
        sa.Column("payment_no", sa.Text(collation="C"), nullable=True),
        sa.Column("account", sa.Text(), nullable=True),
        sa.Column("call_id", sa.Text(), nullable=True),
        sa.Column("carrier_message_id", sa.Text(), nullable=True),
        sa.Column("failed_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retry_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("submitting_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("messages > 0 and segments > 0", name="dispatch_not_empty"),
        sa.CheckConstraint("state < 2 or order_no is not null", name="dispatch_frozen_before_queued"),
        sa.CheckConstraint(
            "state < 4 or (payment_no is not null and call_id is not null and submitting_at is not null)",
            name="dispatch_paid_before_submitted",
        ),
        sa.PrimaryKeyConstraint("brand_id", "dispatch_id"),
        schema="smsgateway",
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "dispatch_batch",
        "dispatch",
        ["brand_id", "batch_id"],
        unique=False,
        schema="smsgateway",
        postgresql_where=sa.text("batch_id is not null"),
    )
    op.create_index(
        "dispatch_not_before",
        "dispatch",
        ["not_before"],
        unique=False,
        schema="smsgateway",
        postgresql_where=sa.text("not_before is not null"),
    )
    op.create_index("dispatch_progress", "dispatch", ["state", "changed_at"], unique=False, schema="smsgateway")
    op.create_table(
        "message",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("message_id", sa.Text(collation="C"), nullable=False),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=True),
        sa.Column("dispatch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("request_id", sa.Text(collation="C"), nullable=False),
        sa.Column("sms_type", sa.SmallInteger(), nullable=False),
        sa.Column("mobile", sa.Text(collation="C"), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("segments", sa.Integer(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("order_no", sa.Text(collation="C"), nullable=True),
        sa.Column("payment_no", sa.Text(collation="C"), nullable=True),
        sa.Column("account", sa.Text(), nullable=True),
        sa.Column("call_id", sa.Text(), nullable=True),
        sa.Column("carrier_message_id", sa.Text(), nullable=True),
        sa.Column("result_code", sa.Text(), nullable=True),
        sa.Column("result_detail", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("segments > 0", name="message_segments_positive"),
        sa.CheckConstraint("state between 1 and 11", name="message_state_known"),
        sa.PrimaryKeyConstraint("brand_id", "message_id"),
        schema="smsgateway",
    )
    op.create_index(
        "message_batch",
        "message",
        ["brand_id", "batch_id", "message_id"],
        unique=False,
        schema="smsgateway",
        postgresql_where=sa.text("batch_id is not null"),
    )
    op.create_index(
        "message_dispatch",
        "message",
        ["brand_id", "dispatch_id", "mobile"],
        unique=False,
        schema="smsgateway",
        postgresql_where=sa.text("batch_id is not null"),
    )
    op.create_index(
        "message_mobile", "message", ["brand_id", "mobile", "message_id"], unique=False, schema="smsgateway"
    )
    op.create_index(
        "message_sent", "message", ["sent_at"], unique=False, schema="smsgateway", postgresql_where=sa.text("state = 5")
    )
    op.create_table(
        "outbox",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("outbox_id", sa.Text(collation="C"), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("brand_id", "outbox_id"),
        schema="smsgateway",
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "outbox_next_at",
        "outbox",
        ["next_at"],
        unique=False,
        schema="smsgateway",
        postgresql_where=sa.text("next_at is not null"),
    )
    op.create_index(
        "outbox_parked",
        "outbox",
        ["created_at"],
        unique=False,
        schema="smsgateway",
        postgresql_where=sa.text("next_at is null"),
    )
    op.create_table(
        "receipt_inbox",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(collation="C"), nullable=False),
        sa.Column("inbox_id", sa.Text(collation="C"), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=True),
        sa.Column("mobile", sa.Text(collation="C"), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("carrier_code", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("billed_segments", sa.SmallInteger(), nullable=True),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("account", "reference", "inbox_id"),
        schema="smsgateway",
    )
    op.create_index(
        "receipt_inbox_next_at",
        "receipt_inbox",
        ["next_at"],
        unique=False,
        schema="smsgateway",
        postgresql_where=sa.text("next_at is not null"),
    )
    op.create_index(
        "receipt_inbox_parked",
        "receipt_inbox",
        ["received_at"],
        unique=False,
        schema="smsgateway",
        postgresql_where=sa.text("next_at is null"),
    )
    op.create_table(
        "request_key",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("operation", sa.SmallInteger(), nullable=False),
        sa.Column("request_id", sa.Text(collation="C"), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("target_id", sa.Text(collation="C"), nullable=False),
        sa.Column("reply", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("brand_id", "operation", "request_id"),
        schema="smsgateway",
    )
    op.create_index("request_key_created_at", "request_key", ["created_at"], unique=False, schema="smsgateway")
    op.create_table(
        "route",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(collation="C"), nullable=False),
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("dispatch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("account", "reference"),
        schema="smsgateway",
    )
    op.create_index("route_created_at", "route", ["created_at"], unique=False, schema="smsgateway")
