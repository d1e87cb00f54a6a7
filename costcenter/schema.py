"""Tables of the ledger. SQL that reads and writes them is in `costcenter.store`.

`brand_id` leads every key, so that every table can be sharded by it; `lane`, `package_offer` and `token` are small and
shared by all brands. What must hold of a row by itself is a constraint here; what concerns several rows is asserted
where they are changed and recomputed by `costcenter.reconciliation`.

Records (`freeze`, `payment`, `refund`, `entry`) carry a `record_no`: the order in which they happened to their brand.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

SCHEMA = "costcenter"
metadata = MetaData(schema=SCHEMA)


def _moment(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _identifier(name: str, *, nullable: bool = False) -> Column[str]:
    # Identifiers sort by time as bytes, not by a language's rules.
    return Column(name, Text(collation="C"), nullable=nullable)


def _brand() -> Column[int]:
    # Where it is the whole key, SQLAlchemy would have the database number rows that name no brand.
    return Column("brand_id", BigInteger, nullable=False, autoincrement=False)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


def _big_array(name: str) -> Column[object]:
    return Column(name, ARRAY(BigInteger), nullable=False)


# A brand belongs to the lane brand_id mod (number of lanes); whoever changes anything of a lane's brands locks its row.
lane = Table(
    "lane",
    metadata,
    Column("lane_id", Integer, primary_key=True, autoincrement=False),
    # Raised by each of those transactions, so that a process knows whether what it remembers still holds.
    Column("version", BigInteger, nullable=False, server_default="0"),
)

brand = Table(
    "brand",
    metadata,
    _brand(),
    Column("name", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("refund_undelivered", Boolean, nullable=False),
    _moment("created_at"),
    PrimaryKeyConstraint("brand_id"),
    CheckConstraint("brand_id > 0", name="brand_id_positive"),
    CheckConstraint("status between 1 and 3", name="brand_status_known"),
)

# 短信账户余额表. One row a brand: the sums over its packages, and the counters of its records.
balance = Table(
    "balance",
    metadata,
    _brand(),
    _count("total"),
    _count("frozen"),
    _moment("last_at", nullable=True),
    _moment("next_due_at", nullable=True),
    Column("next_package_id", BigInteger, nullable=False, server_default="1"),
    Column("next_record_no", BigInteger, nullable=False, server_default="1"),
    PrimaryKeyConstraint("brand_id"),
    CheckConstraint("0 <= frozen and frozen <= total", name="balance_frozen_within_total"),
    Index("balance_next_due_at", "next_due_at", postgresql_where=text("next_due_at is not null")),
    postgresql_with={"fillfactor": "50"},
)

# The balance of a brand from a moment on: answers what it was at any past moment.
balance_history = Table(
    "balance_history",
    metadata,
    _brand(),
    _moment("at"),
    Column("total", BigInteger, nullable=False),
    Column("frozen", BigInteger, nullable=False),
    PrimaryKeyConstraint("brand_id", "at"),
    CheckConstraint("0 <= frozen and frozen <= total", name="balance_history_frozen_within_total"),
)

# 套餐包队列表.
package_queue = Table(
    "package_queue",
    metadata,
    _brand(),
    Column("package_id", BigInteger, nullable=False),
    Column("source", SmallInteger, nullable=False),
    _identifier("source_no"),
    _count("granted"),
    _count("remaining"),
    _count("held"),
    _count("paid"),
    _count("refunded"),
    _count("expired"),
    Column("sms_types", ARRAY(SmallInteger), nullable=False),
    _moment("expires_at", nullable=True),
    _moment("created_at"),
    Column("origin_package_id", BigInteger, nullable=True),
    # A column that an index names only changes when its value does; the figures change all the time, and an update
    # that touches no index stays within its page.
    Column("is_live", Boolean, Computed("remaining > 0", persisted=True), nullable=False),
    PrimaryKeyConstraint("brand_id", "package_id"),
    CheckConstraint("granted = remaining + paid - refunded + expired", name="package_adds_up"),
    CheckConstraint("0 <= held and held <= remaining", name="package_held_within_remaining"),
    CheckConstraint(
        "granted >= 0 and refunded >= 0 and expired >= 0 and refunded <= paid", name="package_not_negative"
    ),
    CheckConstraint("source between 1 and 3", name="package_source_known"),
    CheckConstraint("(source = 3) = (origin_package_id is not null)", name="package_refund_has_origin"),
    # What can be spent or is held: all that an operation on a brand looks at.
    Index("package_queue_live", "brand_id", "package_id", postgresql_where=text("is_live")),
    # One package takes the refunds of an expired one.
    Index(
        "package_queue_origin",
        "brand_id",
        "origin_package_id",
        unique=True,
        postgresql_where=text("origin_package_id is not null"),
    ),
    postgresql_with={"fillfactor": "50"},
)

package_offer = Table(
    "package_offer",
    metadata,
    _identifier("offer_id"),
    Column("name", Text, nullable=False),
    Column("segments", BigInteger, nullable=False),
    Column("price", Numeric(18, 4), nullable=False),
    Column("currency", Text, nullable=False),
    Column("validity_days", Integer, nullable=True),
    Column("validity_months", Integer, nullable=True),
    Column("sms_types", ARRAY(SmallInteger), nullable=False),
    Column("active", Boolean, nullable=False),
    PrimaryKeyConstraint("offer_id"),
    CheckConstraint("segments > 0 and price >= 0", name="package_offer_positive"),
    CheckConstraint("validity_days is null or validity_months is null", name="package_offer_one_validity"),
)

package_order = Table(
    "package_order",
    metadata,
    _brand(),
    _identifier("package_order_no"),
    _identifier("offer_id"),
    Column("segments", BigInteger, nullable=False),
    Column("price", Numeric(18, 4), nullable=False),
    Column("currency", Text, nullable=False),
    Column("validity_days", Integer, nullable=True),
    Column("validity_months", Integer, nullable=True),
    Column("sms_types", ARRAY(SmallInteger), nullable=False),
    Column("status", SmallInteger, nullable=False),
    _moment("created_at"),
    _moment("pay_before"),
    _moment("paid_at", nullable=True),
    Column("payment_reference", Text, nullable=True),
    Column("package_id", BigInteger, nullable=True),
    PrimaryKeyConstraint("brand_id", "package_order_no"),
    CheckConstraint("status between 1 and 3", name="package_order_status_known"),
    CheckConstraint(
        "(status = 3) = (paid_at is not null and payment_reference is not null and package_id is not null)",
        name="package_order_paid_is_credited",
    ),
    Index("package_order_unpaid", "pay_before", postgresql_where=text("status = 1")),
)

# A freeze with its lines. Payments take from their front and releases from their back (costcenter.lines), so the three
# totals tell what became of every segment of every line.
freeze = Table(
    "freeze",
    metadata,
    _brand(),
    _identifier("order_no"),
    _identifier("request_id"),
    Column("sms_type", SmallInteger, nullable=False),
    Column("segments", BigInteger, nullable=False),
    _count("paid"),
    _count("released"),
    _count("timed_out"),
    _big_array("line_packages"),
    _big_array("line_segments"),
    _moment("created_at"),
    _moment("expires_at"),
    Column("record_no", BigInteger, nullable=False),
    Column("is_open", Boolean, Computed("paid + released + timed_out < segments", persisted=True), nullable=False),
    PrimaryKeyConstraint("brand_id", "order_no"),
    CheckConstraint("segments > 0", name="freeze_positive"),
    CheckConstraint("paid >= 0 and released >= 0 and timed_out >= 0", name="freeze_not_negative"),
    CheckConstraint("paid + released + timed_out <= segments", name="freeze_settles_at_most_once"),
    CheckConstraint("expires_at > created_at", name="freeze_lasts"),
    CheckConstraint("cardinality(line_packages) = cardinality(line_segments)", name="freeze_lines_whole"),
    # Those that can still end by themselves.
    Index("freeze_open", "brand_id", "expires_at", postgresql_where=text("is_open")),
    postgresql_with={"fillfactor": "80"},
)

# 短信支付记录表: charge detail records.
payment = Table(
    "payment",
    metadata,
    _brand(),
    _identifier("payment_no"),
    _identifier("order_no"),
    _identifier("request_id"),
    Column("sms_type", SmallInteger, nullable=False),
    Column("segments", BigInteger, nullable=False),
    _count("refunded"),
    _big_array("line_packages"),
    _big_array("line_segments"),
    Column("status", SmallInteger, nullable=False),
    _moment("created_at"),
    Column("record_no", BigInteger, nullable=False),
    PrimaryKeyConstraint("brand_id", "payment_no"),
    CheckConstraint("segments > 0", name="payment_positive"),
    CheckConstraint("0 <= refunded and refunded <= segments", name="payment_refunded_within_segments"),
    CheckConstraint("status between 1 and 4", name="payment_status_known"),
    CheckConstraint("(status = 4) = (refunded = segments)", name="payment_status_refunded"),
    CheckConstraint("cardinality(line_packages) = cardinality(line_segments)", name="payment_lines_whole"),
    Index("payment_order", "brand_id", "order_no", "payment_no"),
    postgresql_with={"fillfactor": "80"},
)

# Its key is what makes a message refunded at most once, for ever.
refund = Table(
    "refund",
    metadata,
    _brand(),
    _identifier("payment_no"),
    _identifier("message_id"),
    Column("segments", BigInteger, nullable=False),
    _big_array("line_packages"),
    _big_array("line_segments"),
    # Where each line went: a package, or null: booked as expired.
    _big_array("line_targets"),
    Column("cause", SmallInteger, nullable=False),
    _moment("created_at"),
    Column("record_no", BigInteger, nullable=False),
    PrimaryKeyConstraint("brand_id", "payment_no", "message_id"),
    CheckConstraint("segments > 0", name="refund_positive"),
    CheckConstraint(
        "cardinality(line_packages) = cardinality(line_segments)"
        " and cardinality(line_targets) = cardinality(line_segments)",
        name="refund_lines_whole",
    ),
    CheckConstraint("cause between 1 and 2", name="refund_cause_known"),
    # In the order of the records, for statements. Freezes and payments have that by their numbers.
    Index("refund_at", "brand_id", "created_at", "record_no"),
)

receipt = Table(
    "receipt",
    metadata,
    _brand(),
    _identifier("payment_no"),
    _identifier("message_id"),
    Column("segments", BigInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("carrier_code", Text, nullable=False),
    _moment("reported_at", nullable=True),
    _moment("recorded_at"),
    _count("house_loss"),
    PrimaryKeyConstraint("brand_id", "payment_no", "message_id"),
    CheckConstraint("state between 1 and 4", name="receipt_state_known"),
    CheckConstraint("house_loss >= 0", name="receipt_loss_not_negative"),
)

# Every other change of a balance: append-only, one row per package and cause.
entry = Table(
    "entry",
    metadata,
    _brand(),
    Column("record_no", BigInteger, nullable=False),
    _moment("at"),
    _moment("booked_at"),
    Column("kind", SmallInteger, nullable=False),
    Column("package_id", BigInteger, nullable=False),
    Column("segments", BigInteger, nullable=False),
    _identifier("reference"),
    PrimaryKeyConstraint("brand_id", "record_no"),
    CheckConstraint("segments > 0", name="entry_positive"),
    CheckConstraint("kind between 1 and 6", name="entry_kind_known"),
    CheckConstraint("at <= booked_at", name="entry_booked_after"),
    # By moment, for statements.
    Index("entry_at", "brand_id", "at", "record_no"),
    # Those that change the total. What is given back to a package changes only what is held, and there is a lot of it.
    Index("entry_of_total", "brand_id", "at", postgresql_where=text("kind not in (4, 5)")),
)

adjustment = Table(
    "adjustment",
    metadata,
    _brand(),
    _identifier("adjustment_no"),
    Column("kind", SmallInteger, nullable=False),
    Column("package_id", BigInteger, nullable=False),
    Column("segments", BigInteger, nullable=False),
    Column("author", Text, nullable=False),
    Column("reason", Text, nullable=False),
    _moment("created_at"),
    PrimaryKeyConstraint("brand_id", "adjustment_no"),
    CheckConstraint("segments > 0", name="adjustment_positive"),
)

# 取消冻结队列: applied by a consumer; what fails gets a later next_at.
release_request = Table(
    "release_request",
    metadata,
    _brand(),
    _identifier("release_no"),
    _identifier("order_no"),
    Column("segments", BigInteger, nullable=False),
    _count("released"),
    _moment("created_at"),
    _moment("applied_at", nullable=True),
    _moment("next_at", nullable=True),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("last_error", Text, nullable=True),
    PrimaryKeyConstraint("brand_id", "release_no"),
    CheckConstraint("segments >= 0 and released >= 0", name="release_request_not_negative"),
    CheckConstraint("(applied_at is null) = (next_at is not null)", name="release_request_pending_is_due"),
    Index("release_request_pending", "next_at", postgresql_where=text("next_at is not null")),
)

idempotency_key = Table(
    "idempotency_key",
    metadata,
    _brand(),
    Column("operation", SmallInteger, nullable=False),
    _identifier("request_id"),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("reply", LargeBinary, nullable=False),
    _moment("created_at"),
    PrimaryKeyConstraint("brand_id", "operation", "request_id"),
    # Keys come in the order of time, so a block range index finds the old ones at next to no cost.
    Index("idempotency_key_created_at", "created_at", postgresql_using="brin"),
)

# What was paid for, for ever: a message or a chunk is charged at most once.
payment_key = Table(
    "payment_key",
    metadata,
    _brand(),
    _identifier("request_id"),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("reply", LargeBinary, nullable=False),
    PrimaryKeyConstraint("brand_id", "request_id"),
)

token = Table(
    "token",
    metadata,
    _identifier("token_id"),
    Column("secret_sha256", LargeBinary, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("roles", ARRAY(SmallInteger), nullable=False),
    Column("all_brands", Boolean, nullable=False),
    _big_array("brand_ids"),
    _moment("created_at"),
    _moment("expires_at", nullable=True),
    _moment("revoked_at", nullable=True),
    PrimaryKeyConstraint("token_id"),
    CheckConstraint("all_brands = (cardinality(brand_ids) = 0)", name="token_brands"),
    CheckConstraint("cardinality(roles) > 0", name="token_roles"),
)
