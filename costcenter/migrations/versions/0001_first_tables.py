"""The ledger's first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "adjustment",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("adjustment_no", sa.Text(collation="C"), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("package_id", sa.BigInteger(), nullable=False),
        sa.Column("segments", sa.BigInteger(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("segments > 0", name="adjustment_positive"),
        sa.PrimaryKeyConstraint("brand_id", "adjustment_no"),
        schema="costcenter",
    )
    op.create_table(
        "balance",
        sa.Column("brand_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("frozen", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_package_id", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("next_record_no", sa.BigInteger(), server_default="1", nullable=False),
        sa.CheckConstraint("0 <= frozen and frozen <= total", name="balance_frozen_within_total"),
        sa.PrimaryKeyConstraint("brand_id"),
        schema="costcenter",
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index(
        "balance_next_due_at",
        "balance",
        ["next_due_at"],
        unique=False,
        schema="costcenter",
        postgresql_where=sa.text("next_due_at is not null"),
    )
    op.create_table(
        "balance_history",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("frozen", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("0 <= frozen and frozen <= total", name="balance_history_frozen_within_total"),
        sa.PrimaryKeyConstraint("brand_id", "at"),
        schema="costcenter",
    )
    op.create_table(
        "brand",
        sa.Column("brand_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("refund_undelivered", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("brand_id > 0", name="brand_id_positive"),
        sa.CheckConstraint("status between 1 and 3", name="brand_status_known"),
        sa.PrimaryKeyConstraint("brand_id"),
        schema="costcenter",
    )
    op.create_table(
        "entry",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("record_no", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("package_id", sa.BigInteger(), nullable=False),
        sa.Column("segments", sa.BigInteger(), nullable=False),
        sa.Column("reference", sa.Text(collation="C"), nullable=False),
        sa.CheckConstraint("at <= booked_at", name="entry_booked_after"),
        sa.CheckConstraint("kind between 1 and 6", name="entry_kind_known"),
        sa.CheckConstraint("segments > 0", name="entry_positive"),
        sa.PrimaryKeyConstraint("brand_id", "record_no"),
        schema="costcenter",
    )
    op.create_table(
        "freeze",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("order_no", sa.Text(collation="C"), nullable=False),
        sa.Column("request_id", sa.Text(collation="C"), nullable=False),
        sa.Column("sms_type", sa.SmallInteger(), nullable=False),
        sa.Column("segments", sa.BigInteger(), nullable=False),
        sa.Column("paid", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("released", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("timed_out", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("line_packages", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("line_segments", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("record_no", sa.BigInteger(), nullable=False),
        sa.Column(
            "is_open",
            sa.Boolean(),
            sa.Computed("paid + released + timed_out < segments", persisted=True),
            nullable=False,
        ),
        sa.CheckConstraint("cardinality(line_packages) = cardinality(line_segments)", name="freeze_lines_whole"),
        sa.CheckConstraint("expires_at > created_at", name="freeze_lasts"),
        sa.CheckConstraint("paid + released + timed_out <= segments", name="freeze_settles_at_most_once"),
        sa.CheckConstraint("paid >= 0 and released >= 0 and timed_out >= 0", name="freeze_not_negative"),
        sa.CheckConstraint("segments > 0", name="freeze_positive"),
        sa.PrimaryKeyConstraint("brand_id", "order_no"),
        schema="costcenter",
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "freeze_open",
        "freeze",
        ["brand_id", "expires_at"],
        unique=False,
        schema="costcenter",
        postgresql_where=sa.text("is_open"),
    )
    op.create_table(
        "idempotency_key",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("operation", sa.SmallInteger(), nullable=False),
        sa.Column("request_id", sa.Text(collation="C"), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("reply", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("brand_id", "operation", "request_id"),
        schema="costcenter",
    )
    op.create_index(
        "idempotency_key_created_at",
        "idempotency_key",
        ["created_at"],
        unique=False,
        schema="costcenter",
        postgresql_using="brin",
    )
    op.create_table(
        "lane",
        sa.Column("lane_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("lane_id"),
        schema="costcenter",
    )
    op.create_table(
        "package_offer",
        sa.Column("offer_id", sa.Text(collation="C"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("segments", sa.BigInteger(), nullable=False),
        sa.Column("price", sa.Numeric(precision=18, scale=4), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("validity_days", sa.Integer(), nullable=True),
        sa.Column("validity_months", sa.Integer(), nullable=True),
        sa.Column("sms_types", postgresql.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.CheckConstraint("segments > 0 and price >= 0", name="package_offer_positive"),
        sa.CheckConstraint("validity_days is null or validity_months is null", name="package_offer_one_validity"),
        sa.PrimaryKeyConstraint("offer_id"),
        schema="costcenter",
    )
    op.create_table(
        "package_order",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("package_order_no", sa.Text(collation="C"), nullable=False),
        sa.Column("offer_id", sa.Text(collation="C"), nullable=False),
        sa.Column("segments", sa.BigInteger(), nullable=False),
        sa.Column("price", sa.Numeric(precision=18, scale=4), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("validity_days", sa.Integer(), nullable=True),
        sa.Column("validity_months", sa.Integer(), nullable=True),
        sa.Column("sms_types", postgresql.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pay_before", sa.DateTime(timezone=True), nullable=False),
        sa.Column("paid_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("payment_reference", sa.Text(), nullable=True),
        sa.Column("package_id", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "(status = 3) = (paid_at is not null and payment_reference is not null and package_id is not null)",
            name="package_order_paid_is_credited",
        ),
        sa.CheckConstraint("status between 1 and 3", name="package_order_status_known"),
        sa.PrimaryKeyConstraint("brand_id", "package_order_no"),
        schema="costcenter",
    )
    op.create_index(
        "package_order_unpaid",
        "package_order",
        ["pay_before"],
        unique=False,
        schema="costcenter",
        postgresql_where=sa.text("status = 1"),
    )
    op.create_table(
        "package_queue",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("package_id", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.SmallInteger(), nullable=False),
        sa.Column("source_no", sa.Text(collation="C"), nullable=False),
        sa.Column("granted", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("remaining", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("held", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("paid", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("refunded", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("expired", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("sms_types", postgresql.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("origin_package_id", sa.BigInteger(), nullable=True),
        sa.Column("is_live", sa.Boolean(), sa.Computed("remaining > 0", persisted=True), nullable=False),
        sa.CheckConstraint("(source = 3) = (origin_package_id is not null)", name="package_refund_has_origin"),
        sa.CheckConstraint("0 <= held and held <= remaining", name="package_held_within_remaining"),
        sa.CheckConstraint("granted = remaining + paid - refunded + expired", name="package_adds_up"),
        sa.CheckConstraint(
            "granted >= 0 and refunded >= 0 and expired >= 0 and refunded <= paid", name="package_not_negative"
        ),
        sa.CheckConstraint("source between 1 and 3", name="package_source_known"),
        sa.PrimaryKeyConstraint("brand_id", "package_id"),
        schema="costcenter",
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index(
        "package_queue_live",
        "package_queue",
        ["brand_id", "package_id"],
        unique=False,
        schema="costcenter",
        postgresql_where=sa.text("is_live"),
    )
    op.create_index(
        "package_queue_origin",
        "package_queue",
        ["brand_id", "origin_package_id"],
        unique=True,
        schema="costcenter",
        postgresql_where=sa.text("origin_package_id is not null"),
    )
    op.create_table(
        "payment",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("payment_no", sa.Text(collation="C"), nullable=False),
        sa.Column("order_no", sa.Text(collation="C"), nullable=False),
        sa.Column("request_id", sa.Text(collation="C"), nullable=False),
        sa.Column("sms_type", sa.SmallInteger(), nullable=False),
        sa.Column("segments", sa.BigInteger(), nullable=False),
        sa.Column("refunded", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("line_packages", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("line_segments", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("record_no", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("(status = 4) = (refunded = segments)", name="payment_status_refunded"),
        sa.CheckConstraint("0 <= refunded and refunded <= segments", name="payment_refunded_within_segments"),
        sa.CheckConstraint("cardinality(line_packages) = cardinality(line_segments)", name="payment_lines_whole"),
        sa.CheckConstraint("segments > 0", name="payment_positive"),
        sa.CheckConstraint("status between 1 and 4", name="payment_status_known"),
        sa.PrimaryKeyConstraint("brand_id", "payment_no"),
        schema="costcenter",
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "payment_order", "payment", ["brand_id", "order_no", "payment_no"], unique=False, schema="costcenter"
    )
    op.create_table(
        "payment_key",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("request_id", sa.Text(collation="C"), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("reply", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("brand_id", "request_id"),
        schema="costcenter",
    )
    op.create_table(
        "receipt",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("payment_no", sa.Text(collation="C"), nullable=False),
        sa.Column("message_id", sa.Text(collation="C"), nullable=False),
        sa.Column("segments", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("carrier_code", sa.Text(), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("house_loss", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("house_loss >= 0", name="receipt_loss_not_negative"),
        sa.CheckConstraint("state between 1 and 4", name="receipt_state_known"),
        sa.PrimaryKeyConstraint("brand_id", "payment_no", "message_id"),
        schema="costcenter",
    )
    op.create_table(
        "refund",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("payment_no", sa.Text(collation="C"), nullable=False),
        sa.Column("message_id", sa.Text(collation="C"), nullable=False),
        sa.Column("segments", sa.BigInteger(), nullable=False),
        sa.Column("line_packages", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("line_segments", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("line_targets", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("cause", sa.SmallInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("record_no", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "cardinality(line_packages) = cardinality(line_segments)"
            " and cardinality(line_targets) = cardinality(line_segments)",
            name="refund_lines_whole",
        ),
        sa.CheckConstraint("cause between 1 and 2", name="refund_cause_known"),
        sa.CheckConstraint("segments > 0", name="refund_positive"),
        sa.PrimaryKeyConstraint("brand_id", "payment_no", "message_id"),
        schema="costcenter",
    )
    op.create_table(
        "release_request",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("release_no", sa.Text(collation="C"), nullable=False),
        sa.Column("order_no", sa.Text(collation="C"), nullable=False),
        sa.Column("segments", sa.BigInteger(), nullable=False),
        sa.Column("released", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.CheckConstraint("(applied_at is null) = (next_at is not null)", name="release_request_pending_is_due"),
        sa.CheckConstraint("segments >= 0 and released >= 0", name="release_request_not_negative"),
        sa.PrimaryKeyConstraint("brand_id", "release_no"),
        schema="costcenter",
    )
    op.create_index(
        "release_request_pending",
        "release_request",
        ["next_at"],
        unique=False,
        schema="costcenter",
        postgresql_where=sa.text("next_at is not null"),
    )
    op.create_table(
        "token",
        sa.Column("token_id", sa.Text(collation="C"), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("roles", postgresql.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("all_brands", sa.Boolean(), nullable=False),
        sa.Column("brand_ids", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("all_brands = (cardinality(brand_ids) = 0)", name="token_brands"),
        sa.CheckConstraint("cardinality(roles) > 0", name="token_roles"),
        sa.PrimaryKeyConstraint("token_id"),
        sa.UniqueConstraint("secret_sha256"),
        schema="costcenter",
    )
    # A lane is one stream of transactions. Two keep two processors and the disk busy, and more make groups smaller;
    # their number is changed while nothing runs, because a brand's lane follows from it.
    op.execute("insert into costcenter.lane (lane_id) select generate_series(0, 1)")


def downgrade() -> None:
    op.drop_table("token", schema="costcenter")
    op.drop_index(
        "release_request_pending",
        table_name="release_request",
        schema="costcenter",
        postgresql_where=sa.text("next_at is not null"),
    )
    op.drop_table("release_request", schema="costcenter")
    op.drop_table("refund", schema="costcenter")
    op.drop_table("receipt", schema="costcenter")
    op.drop_table("payment_key", schema="costcenter")
    op.drop_index("payment_order", table_name="payment", schema="costcenter")
    op.drop_table("payment", schema="costcenter")
    op.drop_index(
        "package_queue_origin",
        table_name="package_queue",
        schema="costcenter",
        postgresql_where=sa.text("origin_package_id is not null"),
    )
    op.drop_index(
        "package_queue_live", table_name="package_queue", schema="costcenter", postgresql_where=sa.text("is_live")
    )
    op.drop_table("package_queue", schema="costcenter")
    op.drop_index(
        "package_order_unpaid", table_name="package_order", schema="costcenter", postgresql_where=sa.text("status = 1")
    )
    op.drop_table("package_order", schema="costcenter")
    op.drop_table("package_offer", schema="costcenter")
    op.drop_table("lane", schema="costcenter")
    op.drop_index(
        "idempotency_key_created_at", table_name="idempotency_key", schema="costcenter", postgresql_using="brin"
    )
    op.drop_table("idempotency_key", schema="costcenter")
    op.drop_index(
        "freeze_open",
        table_name="freeze",
        schema="costcenter",
        postgresql_where=sa.text("is_open"),
    )
    op.drop_table("freeze", schema="costcenter")
    op.drop_table("entry", schema="costcenter")
    op.drop_table("brand", schema="costcenter")
    op.drop_table("balance_history", schema="costcenter")
    op.drop_index(
        "balance_next_due_at",
        table_name="balance",
        schema="costcenter",
        postgresql_where=sa.text("next_due_at is not null"),
    )
    op.drop_table("balance", schema="costcenter")
    op.drop_table("adjustment", schema="costcenter")
