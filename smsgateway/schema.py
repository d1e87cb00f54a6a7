"""Tables of the gateway. SQL that reads and writes them is in `smsgateway.store`.

`brand_id` leads every key. The exceptions are keyed by the carrier's account, because receipts and replies arrive
without a brand: `route`, `receipt_inbox`, `receipt_pull` and `reply_reference`; and what is small and shared by all:
`carrier_account`, `routing_version`, `console_session`.

A message's row is its record: written when it is accepted, when the carrier has answered and when its receipt comes.
What moves in between is in `dispatch`, the unit that is queued, paid and submitted: one row for a single message (with
its id), one for each chunk of a batch. It goes when the outcome is known, so it stays small however many messages
there are.
"""

from __future__ import annotations

import enum

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
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
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

SCHEMA = "smsgateway"
metadata = MetaData(schema=SCHEMA)


class Mode(enum.IntEnum):
    """Which of the carrier's interfaces a dispatch takes."""

    SINGLE = 1
    BATCH = 2


class DispatchState(enum.IntEnum):
    """accepting → queued → claimed → submitting → (gone: sent or failed) | unknown | partial.

    submitting → claimed when the carrier surely did not accept; queued → gone when cancelled.
    queued, claimed → paused and back to queued with the batch; a submitting one that comes back to a paused batch is
    paused as well (see `smsgateway.store.pausing`).
    unknown: the outcome of the call is not known; a receipt, a pull or time decides. partial: the carrier said that
    some failed but not which; time and the missing receipts decide.
    """

    ACCEPTING = 1
    QUEUED = 2
    CLAIMED = 3
    SUBMITTING = 4
    UNKNOWN = 5
    PARTIAL = 6
    PAUSED = 7


class MessageState(enum.IntEnum):
    """The numbers of `smsgateway.v1.MessageState`. A message that has a dispatch is stored as QUEUED; its state as
    seen is then the dispatch's. Stored states move QUEUED → SENT | FAILED | CANCELLED, SENT → DELIVERED | UNDELIVERED |
    EXPIRED | FAILED (partial only).
    """

    ACCEPTING = 1
    QUEUED = 2
    CLAIMED = 3
    SUBMITTING = 4
    SENT = 5
    UNKNOWN = 6
    DELIVERED = 7
    UNDELIVERED = 8
    EXPIRED = 9
    FAILED = 10
    CANCELLED = 11


class SuppressionKind(enum.IntEnum):
    """What a suppression keeps from a number; the numbers of `smsgateway.v1.SuppressionKind`."""

    OPT_OUT = 1  # marketing
    BLACK_LIST = 2  # everything


REPLY_EVENT = 32
"""The kind of a webhook event that tells of a reply; those of messages have the number of their `MessageState`."""
ALERT_OPENED, ALERT_RECOVERED = 33, 34
"""The kinds of webhook events that tell of alerts."""


class OutboxKind(enum.IntEnum):
    """What the gateway owes the cost centre; the payload is the serialized request."""

    SEND_STATUS = 1  # SmsSendStatusCallBackRequest
    RECEIPT = 2  # SmsReceiptStatusCallBackRequest
    RELEASE = 3  # SmsReleaseFreezeNumRequest


def _moment(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _identifier(name: str, *, nullable: bool = False) -> Column[str]:
    # Identifiers sort by time as bytes, not by a language's rules.
    return Column(name, Text(collation="C"), nullable=nullable)


request_key = Table(
    "request_key",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    Column("operation", SmallInteger, nullable=False),  # Mode: SendSms or SendBatchSms
    _identifier("request_id"),
    Column("fingerprint", LargeBinary, nullable=False),
    _identifier("target_id"),  # message_id or batch_id
    Column("reply", LargeBinary, nullable=True),  # the serialized reply; null while accepting
    _moment("created_at"),
    PrimaryKeyConstraint("brand_id", "operation", "request_id"),
    Index("request_key_created_at", "created_at"),
)

message = Table(
    "message",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _identifier("message_id"),
    _identifier("batch_id", nullable=True),
    _identifier("dispatch_id"),  # its own id for a single one
    _identifier("request_id"),
    Column("sms_type", SmallInteger, nullable=False),
    Column("mobile", Text(collation="C"), nullable=False),  # E.164
    Column("text", Text, nullable=True),  # null: the batch's
    Column("segments", Integer, nullable=False),
    Column("state", SmallInteger, nullable=False),
    _identifier("order_no", nullable=True),
    _identifier("payment_no", nullable=True),
    Column("account", Text, nullable=True),
    Column("call_id", Text, nullable=True),
    Column("carrier_message_id", Text, nullable=True),  # of several parts all, divided by spaces
    Column("result_code", Text, nullable=True),
    Column("result_detail", Text, nullable=True),
    _moment("created_at"),
    _moment("submitted_at", nullable=True),
    _moment("sent_at", nullable=True),
    _moment("finished_at", nullable=True),
    # Of a message in several parts the carrier's ids of those that no receipt has called delivered yet, empty for one
    # whose id nobody knows; null: one id for all.
    Column("parts_open", ARRAY(Text), nullable=True),
    Column("variables", Text, nullable=True),  # values for those of the batch's text (`smsgateway.variables`)
    # Segments that the cost centre gave back after a receipt, or after the time for one; null: none. What failed or
    # was cancelled is given back anyway.
    Column("refunded", Integer, nullable=True),
    PrimaryKeyConstraint("brand_id", "message_id"),
    CheckConstraint("segments > 0", name="message_segments_positive"),
    CheckConstraint("state between 1 and 11", name="message_state_known"),
    Index("message_batch", "brand_id", "batch_id", "message_id", postgresql_where=text("batch_id is not null")),
    Index(
        "message_dispatch",
        "brand_id",
        "dispatch_id",
        "mobile",
        postgresql_where=text("batch_id is not null"),
    ),
    Index("message_mobile", "brand_id", "mobile", "message_id"),
    # The sweeper of messages without a receipt walks this by time; it holds only what is on its way.
    Index("message_sent", "sent_at", postgresql_where=text("state = 5")),
)

batch = Table(
    "batch",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _identifier("batch_id"),
    _identifier("request_id"),
    Column("sms_type", SmallInteger, nullable=False),
    Column("text", Text, nullable=False),
    Column("accepted", Integer, nullable=False),
    Column("segments", BigInteger, nullable=False),
    _identifier("order_no", nullable=True),  # null while accepting
    _moment("created_at"),
    _moment("accepted_at", nullable=True),
    _moment("cancelled_at", nullable=True),
    Column("held", Boolean, nullable=False, server_default="false"),  # some of it is not due when it is accepted
    _identifier("subject", nullable=True),  # under which its numbers were counted; null: they were not
    Column("variables", Text, nullable=True),  # names of those in the text; null: the text goes out as it is
    _identifier("campaign_id", nullable=True),
    _moment("paused_at", nullable=True),
    PrimaryKeyConstraint("brand_id", "batch_id"),
    Index("batch_accepting", "created_at", postgresql_where=text("accepted_at is null")),
    Index("batch_campaign", "brand_id", "campaign_id", "batch_id", postgresql_where=text("campaign_id is not null")),
)

# What batches of one campaign share. Made with the first of them.
campaign = Table(
    "campaign",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _identifier("campaign_id"),
    _moment("created_at"),
    _moment("paused_at", nullable=True),
    _moment("cancelled_at", nullable=True),
    PrimaryKeyConstraint("brand_id", "campaign_id"),
    Index("campaign_created_at", "brand_id", "created_at", "campaign_id"),
)

dispatch = Table(
    "dispatch",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _identifier("dispatch_id"),  # a single message's id, or a chunk's
    Column("mode", SmallInteger, nullable=False),
    Column("sms_type", SmallInteger, nullable=False),
    _identifier("batch_id", nullable=True),
    Column("messages", Integer, nullable=False),
    Column("segments", Integer, nullable=False),
    _identifier("request_id"),  # for the logs of all processes
    Column("state", SmallInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False, server_default="0"),
    Column("stream_entry", Text, nullable=True),
    _identifier("order_no", nullable=True),
    _identifier("payment_no", nullable=True),
    Column("account", Text, nullable=True),
    Column("call_id", Text, nullable=True),
    Column("carrier_message_id", Text, nullable=True),
    Column("failed_count", Integer, nullable=False, server_default="0"),  # of a partial outcome
    Column("attempts", SmallInteger, nullable=False, server_default="0"),
    _moment("not_before", nullable=True),  # infinity: parked
    _moment("retry_since", nullable=True),  # first time that the carrier surely did not accept it
    _moment("created_at"),
    _moment("submitting_at", nullable=True),
    _moment("changed_at"),
    # Tries that met an error of ours. Attempts count marks as well and never go back: they name the calls.
    Column("failures", SmallInteger, nullable=False, server_default="0"),
    Column("last_error", Text, nullable=True),
    _moment("due_at", nullable=True),  # held or scheduled until then; stays when not_before goes
    _moment("valid_until", nullable=True),  # not to be sent from then on
    Column("tried", Boolean, nullable=False, server_default="false"),  # somebody may have paid before the claim
    _identifier("subject", nullable=True),  # under which its number was counted (see `frequency`); null: it was not
    _moment("night_from", nullable=True),  # the next hours in which it must not be sent, and every day after them
    _moment("night_until", nullable=True),
    # Whether its batch is paused; it may be submitting, unknown, partial, parked or held all the same.
    Column("paused", Boolean, nullable=False, server_default="false"),
    PrimaryKeyConstraint("brand_id", "dispatch_id"),
    CheckConstraint("messages > 0 and segments > 0", name="dispatch_not_empty"),
    CheckConstraint("state < 2 or order_no is not null", name="dispatch_frozen_before_queued"),
    CheckConstraint(
        "state < 4 or state = 7 or (payment_no is not null and call_id is not null and submitting_at is not null)",
        name="dispatch_paid_before_submitted",
    ),
    CheckConstraint("state <> 7 or paused", name="dispatch_paused_with_its_batch"),
    CheckConstraint("state <> 3 or not paused", name="dispatch_paused_is_not_claimed"),
    Index("dispatch_progress", "state", "changed_at"),
    Index("dispatch_not_before", "not_before", postgresql_where=text("not_before is not null")),
    Index(
        "dispatch_parked",
        "created_at",
        postgresql_where=text("not_before = 'infinity'::timestamp with time zone"),
    ),
    Index("dispatch_batch", "brand_id", "batch_id", postgresql_where=text("batch_id is not null")),
    postgresql_with={"fillfactor": "70"},
)

route = Table(
    "route",
    metadata,
    Column("account", Text, nullable=False),
    Column("reference", Text(collation="C"), nullable=False),  # our call id, or the carrier's id
    Column("brand_id", BigInteger, nullable=False),
    _identifier("dispatch_id"),
    _moment("created_at"),
    PrimaryKeyConstraint("account", "reference"),
    Index("route_created_at", "created_at"),
)

receipt_inbox = Table(
    "receipt_inbox",
    metadata,
    Column("account", Text, nullable=False),
    Column("reference", Text(collation="C"), nullable=False),  # the carrier's id, or our call id where it has none
    _identifier("inbox_id"),
    Column("call_id", Text, nullable=True),
    Column("mobile", Text(collation="C"), nullable=False),
    Column("state", SmallInteger, nullable=False),  # costcenter.v1.ReceiptState
    Column("carrier_code", Text, nullable=False),
    Column("detail", Text, nullable=True),
    Column("billed_segments", SmallInteger, nullable=True),
    _moment("reported_at", nullable=True),
    _moment("received_at"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    _moment("next_at", nullable=True),  # null: parked
    Column("last_error", Text, nullable=True),
    PrimaryKeyConstraint("account", "reference", "inbox_id"),
    Index("receipt_inbox_next_at", "next_at", postgresql_where=text("next_at is not null")),
    Index("receipt_inbox_parked", "received_at", postgresql_where=text("next_at is null")),
    Index("receipt_inbox_parked_id", "inbox_id", postgresql_where=text("next_at is null")),
)

# Whose turn it is to pull an account's receipts, and since when nothing is left there that we do not have.
receipt_pull = Table(
    "receipt_pull",
    metadata,
    Column("account", Text, nullable=False),
    _identifier("worker"),
    _moment("until"),  # the worker's turn
    _moment("started_at"),  # its last pull
    _moment("emptied_at", nullable=True),  # start of the last pull after which nothing more waited
    _moment("stored_at", nullable=True),  # when what that pull brought was stored
    PrimaryKeyConstraint("account"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _identifier("outbox_id"),  # the request_id of the call that it becomes
    Column("kind", SmallInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    _moment("next_at", nullable=True),  # null: parked
    Column("last_error", Text, nullable=True),
    _moment("created_at"),
    PrimaryKeyConstraint("brand_id", "outbox_id"),
    Index("outbox_next_at", "next_at", postgresql_where=text("next_at is not null")),
    Index("outbox_parked", "created_at", postgresql_where=text("next_at is null")),
    postgresql_with={"fillfactor": "80"},
)

# Numbers that a brand must not send to; brand 0: no brand may.
suppression = Table(
    "suppression",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    Column("mobile", Text(collation="C"), nullable=False),  # E.164
    Column("kind", SmallInteger, nullable=False),  # SuppressionKind
    Column("source", Text(collation="C"), nullable=False),  # who put it there: reply, admin, …
    Column("reason", Text, nullable=False),
    _moment("created_at"),
    PrimaryKeyConstraint("brand_id", "mobile", "kind"),
    CheckConstraint("brand_id >= 0", name="suppression_brand"),
    CheckConstraint("kind between 1 and 2", name="suppression_kind_known"),
)

# Carrier accounts beside the environment's. A rate of 0 is none, and so are a burst, calls at once and an alert of 0.
carrier_account = Table(
    "carrier_account",
    metadata,
    _identifier("account_id"),
    _identifier("kind"),
    Column("settings", JSONB, nullable=False),  # texts by name; never told to anybody
    Column("paused", Boolean, nullable=False, server_default="false"),
    Column("rate", Numeric(12, 3), nullable=False, server_default="0"),  # messages a second
    Column("burst", Integer, nullable=False, server_default="0"),
    Column("calls_max", Integer, nullable=False, server_default="0"),
    Column("balance_alert", BigInteger, nullable=False, server_default="0"),  # segments
    Column("balance", BigInteger, nullable=True),
    _moment("balance_at", nullable=True),
    Column("balance_low", Boolean, nullable=False, server_default="false"),  # an alert was told
    Column("version", BigInteger, nullable=False),  # of the routing at its last change
    _moment("updated_at"),
    PrimaryKeyConstraint("account_id"),
    CheckConstraint(
        "rate >= 0 and burst >= 0 and calls_max >= 0 and balance_alert >= 0", name="carrier_account_limits_positive"
    ),
)

# Which account messages take (`smsgateway.routing`); brand 0: all, type 0: any, prefix '': any.
routing_rule = Table(
    "routing_rule",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    Column("sms_type", SmallInteger, nullable=False),
    _identifier("prefix"),
    _identifier("account_id"),
    Column("priority", Integer, nullable=False),
    Column("weight", Integer, nullable=False),
    Column("enabled", Boolean, nullable=False),
    _moment("updated_at"),
    PrimaryKeyConstraint("brand_id", "sms_type", "prefix", "account_id"),
    CheckConstraint("priority >= 0 and weight >= 0", name="routing_rule_positive"),
)

# How fast a brand may send, by type or (type 0) in all.
sending_limit = Table(
    "sending_limit",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    Column("sms_type", SmallInteger, nullable=False),
    Column("rate", Numeric(12, 3), nullable=False),
    Column("burst", Integer, nullable=False, server_default="0"),
    _moment("updated_at"),
    PrimaryKeyConstraint("brand_id", "sms_type"),
    CheckConstraint("rate > 0 and burst >= 0", name="sending_limit_positive"),
)

# One row: what everybody looks at to learn that one of the three above has changed.
routing_version = Table(
    "routing_version",
    metadata,
    Column("id", SmallInteger, nullable=False, autoincrement=False),
    Column("version", BigInteger, nullable=False),
    PrimaryKeyConstraint("id"),
)

# A brand's own rules; null: as the installation has it. There is a row for each brand that has any of what follows, and
# for brand 0 when numbers are suppressed for all: gateways see by its moment that they must read again.
sender_rules = Table(
    "sender_rules",
    metadata,
    Column("brand_id", BigInteger, nullable=False, autoincrement=False),
    Column("signatures", Boolean, nullable=True),
    Column("templates", Boolean, nullable=True),
    Column("suffix", SmallInteger, nullable=True),  # smsgateway.rules.SuffixRule
    Column("frequency", Boolean, nullable=True),
    # Messages within any minute, hour and day; 0: any number.
    Column("verification_limits", ARRAY(Integer), nullable=True),
    Column("notification_limits", ARRAY(Integer), nullable=True),
    Column("marketing_limits", ARRAY(Integer), nullable=True),
    Column("quiet", Boolean, nullable=True),
    Column("quiet_from", SmallInteger, nullable=True),  # minutes of the day
    Column("quiet_until", SmallInteger, nullable=True),
    Column("suppressed", Boolean, nullable=False, server_default="false"),  # it has, or had, suppressions
    _moment("changed_at"),
    PrimaryKeyConstraint("brand_id"),
    CheckConstraint("suffix between 1 and 3", name="sender_rules_suffix_known"),
    Index("sender_rules_changed_at", "changed_at"),
)

signature = Table(
    "signature",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    Column("signature", Text(collation="C"), nullable=False),
    Column("approval", SmallInteger, nullable=False),  # smsgateway.rules.Approval
    _moment("created_at"),
    _moment("changed_at"),
    PrimaryKeyConstraint("brand_id", "signature"),
    CheckConstraint("approval between 1 and 3", name="signature_approval_known"),
)

template = Table(
    "template",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _identifier("template_id"),
    Column("sms_type", SmallInteger, nullable=False),
    Column("text", Text, nullable=False),
    Column("approval", SmallInteger, nullable=False),
    _moment("created_at"),
    _moment("changed_at"),
    PrimaryKeyConstraint("brand_id", "template_id"),
    CheckConstraint("approval between 1 and 3", name="template_approval_known"),
)

# What a number got lately: the moments of messages that were accepted and their ids, oldest first, as far as a window
# reaches back. A row is locked by whoever adds to it, so that limits are exact however many gateways there are.
frequency = Table(
    "frequency",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    Column("sms_type", SmallInteger, nullable=False),
    _identifier("subject"),  # smsgateway.rules.subject_of
    Column("mobile", Text(collation="C"), nullable=False),
    Column("sent_at", ARRAY(DateTime(timezone=True)), nullable=False),
    Column("targets", ARRAY(Text(collation="C")), nullable=False),  # message_id, or batch_id
    Column("granted", Integer, nullable=False),  # to the statement that wrote the row
    # What that statement was limited by; null: nothing.
    Column("per_minute", Integer, nullable=True),
    Column("per_hour", Integer, nullable=True),
    Column("per_day", Integer, nullable=True),
    Column("kept_seconds", Integer, nullable=False),  # the longest of the windows
    _moment("expires_at"),  # a full hour, so that the index is touched once an hour
    PrimaryKeyConstraint("brand_id", "sms_type", "subject", "mobile"),
    Index("frequency_expires_at", "expires_at"),
    postgresql_with={"fillfactor": "70"},
)

# What people sent back. Brand 0: nobody knows whose it is.
reply = Table(
    "reply",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _identifier("reply_id"),
    Column("account", Text, nullable=False),
    _identifier("reference"),  # the carrier's id of it, or a digest
    Column("mobile", Text(collation="C"), nullable=False),  # E.164
    Column("destination", Text(collation="C"), nullable=False),
    Column("text", Text, nullable=False),
    Column("part", Text(collation="C"), nullable=False),  # of several, such as 2/3
    Column("opt_out", Boolean, nullable=False),
    _identifier("message_id", nullable=True),  # the message that it most likely answers
    _moment("received_at"),
    _moment("created_at"),
    PrimaryKeyConstraint("brand_id", "reply_id"),
    CheckConstraint("brand_id >= 0", name="reply_brand"),
    Index("reply_mobile", "brand_id", "mobile", "reply_id"),
)

# Which replies are stored, by the carrier's reference: it comes before anybody knows the brand.
reply_reference = Table(
    "reply_reference",
    metadata,
    Column("account", Text, nullable=False),
    Column("reference", Text(collation="C"), nullable=False),
    _moment("created_at"),
    PrimaryKeyConstraint("account", "reference"),
    Index("reply_reference_created_at", "created_at"),
)

# Where a brand wants to hear what became of its messages. Statements that end messages join it, so it changes seldom:
# what changes with every request is in `webhook_turn`.
webhook = Table(
    "webhook",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _identifier("webhook_id"),  # a name given by an admin
    Column("url", Text, nullable=False),
    Column("kinds", BigInteger, nullable=False),  # bits 2^kind of the events that are wanted
    Column("full_number", Boolean, nullable=False),
    Column("reply_text", Boolean, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("secret", Text, nullable=False),
    Column("old_secret", Text, nullable=True),  # signs beside it until then
    _moment("old_secret_until", nullable=True),
    _moment("created_at"),
    _moment("updated_at"),
    PrimaryKeyConstraint("brand_id", "webhook_id"),
    CheckConstraint("brand_id >= 0", name="webhook_brand"),
)

# Whose turn it is to deliver to a webhook, and when next.
webhook_turn = Table(
    "webhook_turn",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _identifier("webhook_id"),
    _identifier("worker"),
    _moment("until"),
    Column("failures", Integer, nullable=False, server_default="0"),  # requests in a row
    Column("events_max", Integer, nullable=False),  # of the next request
    _moment("next_at"),
    Column("last_error", Text, nullable=True),
    _moment("succeeded_at", nullable=True),
    PrimaryKeyConstraint("brand_id", "webhook_id"),
    postgresql_with={"fillfactor": "50"},
)

# What a webhook is to be told. Written by the statement that makes it true; gone once the receiver has it.
webhook_event = Table(
    "webhook_event",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _identifier("event_id"),  # the subject's id, the kind and the webhook: the same event is written once
    _identifier("webhook_id"),
    _identifier("subject_id"),  # message_id, reply_id or alert_id
    Column("kind", SmallInteger, nullable=False),  # MessageState, REPLY_EVENT, ALERT_OPENED or ALERT_RECOVERED
    Column("result_code", Text, nullable=True),
    _moment("happened_at"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("last_error", Text, nullable=True),
    _moment("created_at"),
    _moment("parked_at", nullable=True),  # waits for an operator
    Column("details", JSONB, nullable=True),  # of an alert: what is told of it
    PrimaryKeyConstraint("brand_id", "event_id"),
    Index(
        "webhook_event_waiting",
        "brand_id",
        "webhook_id",
        "created_at",
        "event_id",
        postgresql_where=text("parked_at is null"),
    ),
    Index("webhook_event_parked", "created_at", postgresql_where=text("parked_at is not null")),
)

# Who is signed in to the console. The cookie's secret is not here, and without it the token cannot be read.
console_session = Table(
    "console_session",
    metadata,
    Column("session_hash", LargeBinary, nullable=False),
    _identifier("token_id"),
    Column("sealed_token", LargeBinary, nullable=False),
    _moment("created_at"),
    _moment("seen_at"),
    _moment("expires_at"),
    PrimaryKeyConstraint("session_hash"),
    Index("console_session_expires_at", "expires_at"),
    Index("console_session_token", "token_id", "created_at"),
    postgresql_with={"fillfactor": "80"},
)

# What was changed through the console; brand 0: what belongs to no brand, such as tokens. The row is there before the
# change is tried, so that nothing is changed without one.
console_audit = Table(
    "console_audit",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _identifier("audit_id"),
    _identifier("request_id"),  # of the form: sent twice, it is one change
    _identifier("token_id"),
    Column("name", Text, nullable=False),  # of the token
    _identifier("action"),  # smsgateway.console.audit.Action
    Column("asked", JSONB, nullable=False),  # texts by name
    Column("reason", Text, nullable=False),
    Column("outcome", SmallInteger, nullable=False),  # smsgateway.console.audit.Outcome
    Column("told", JSONB, nullable=False),  # what came of it, texts by name
    Column("attempts", Integer, nullable=False, server_default="1"),
    _moment("created_at"),
    _moment("finished_at", nullable=True),
    PrimaryKeyConstraint("brand_id", "audit_id"),
    UniqueConstraint("brand_id", "request_id", name="console_audit_request"),
    CheckConstraint("brand_id >= 0", name="console_audit_brand"),
    CheckConstraint("outcome between 1 and 4", name="console_audit_outcome_known"),
    Index("console_audit_newest", "audit_id"),
)

# What people are alerted of (`smsgateway.alerts`). Brand 0: of every brand without a rule of its own; type 0: any.
alert_rule = Table(
    "alert_rule",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    Column("kind", SmallInteger, nullable=False),  # smsgateway.alerts.AlertKind
    Column("sms_type", SmallInteger, nullable=False),
    Column("enabled", Boolean, nullable=False),
    # Figures that the kind does not have are 0.
    Column("segments", BigInteger, nullable=False),
    Column("days", Integer, nullable=False),
    Column("percent", Integer, nullable=False),
    Column("count", Integer, nullable=False),
    Column("minutes", Integer, nullable=False),
    Column("hold_seconds", Integer, nullable=False),
    Column("recipients", ARRAY(Text), nullable=False),
    Column("webhooks", Boolean, nullable=False),
    _moment("updated_at"),
    PrimaryKeyConstraint("brand_id", "kind", "sms_type"),
    CheckConstraint("brand_id >= 0", name="alert_rule_brand"),
    CheckConstraint("kind between 1 and 7 and sms_type between 0 and 3", name="alert_rule_known"),
)

# What people were told of, and what they may have to be told of. Brand 0: it concerns no brand.
alert = Table(
    "alert",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _identifier("alert_id"),
    Column("kind", SmallInteger, nullable=False),
    _identifier("subject"),  # a type, an account, …; empty where the brand and the kind say all
    _moment("since"),
    _moment("opened_at", nullable=True),  # and told; null: it has not held for long enough yet
    _moment("good_since", nullable=True),
    _moment("recovered_at", nullable=True),  # and told
    Column("withdrawn", Boolean, nullable=False, server_default="false"),  # nobody knows whether it got better
    Column("figures", JSONB, nullable=False),  # as they were told
    Column("recipients", ARRAY(Text), nullable=False),  # who was told
    Column("webhooks", Boolean, nullable=False),
    PrimaryKeyConstraint("brand_id", "alert_id"),
    CheckConstraint("brand_id >= 0", name="alert_brand"),
    CheckConstraint(
        "opened_at is not null or (good_since is null and recovered_at is null)", name="alert_told_before_over"
    ),
    # One at a time of a thing, however many processes look.
    Index("alert_open", "brand_id", "kind", "subject", unique=True, postgresql_where=text("recovered_at is null")),
    Index("alert_recovered_at", "recovered_at", postgresql_where=text("recovered_at is not null")),
)

# Letters that wait to be sent, one for each recipient of a notice; gone once the mail server has it.
alert_mail = Table(
    "alert_mail",
    metadata,
    Column("brand_id", BigInteger, nullable=False),  # the alert's
    _identifier("mail_id"),
    _identifier("recipient"),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    _moment("next_at", nullable=True),  # null: given up
    Column("last_error", Text, nullable=True),
    _moment("created_at"),
    PrimaryKeyConstraint("brand_id", "mail_id"),
    Index("alert_mail_next_at", "next_at", postgresql_where=text("next_at is not null")),
)


def _counter(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


# What became of messages and is not folded into `usage_hour` yet. Written by the statement that makes it true, a row
# for all messages of that statement that are counted alike; see `smsgateway.store.counting`.
usage_change = Table(
    "usage_change",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    Column("change_id", Uuid, nullable=False),
    _moment("hour"),
    Column("sms_type", SmallInteger, nullable=False),
    Column("account", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),  # MessageState; 0: only a refund
    Column("counted", Boolean, nullable=False),  # they are counted for the first time
    Column("refunded", Boolean, nullable=False),  # what they were charged is given back
    Column("messages", Integer, nullable=False),
    Column("segments", BigInteger, nullable=False),
    PrimaryKeyConstraint("brand_id", "change_id"),
    CheckConstraint("messages > 0 and segments > 0", name="usage_change_positive"),
)

# What became of the messages that a brand sent in an hour (UTC) of acceptance, as far as they have left their queues;
# by type and carrier account (empty: none was asked). What is neither delivered, undelivered, expired, failed nor
# cancelled of `messages` waits for its receipt.
usage_hour = Table(
    "usage_hour",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _moment("hour"),
    Column("sms_type", SmallInteger, nullable=False),
    _identifier("account"),
    *(
        _counter(name)
        for counted in ("messages", "delivered", "undelivered", "expired", "failed", "cancelled", "refunded")
        for name in (counted, "segments" if counted == "messages" else f"{counted}_segments")
    ),
    PrimaryKeyConstraint("brand_id", "hour", "sms_type", "account"),
    postgresql_with={"fillfactor": "70"},
)

# Different numbers that a brand's messages of a day went to; type 0: of all types. The day is named by its first moment
# in the installation's time zone. The row of type 0 says as well whether messages came since they were counted.
usage_day = Table(
    "usage_day",
    metadata,
    Column("brand_id", BigInteger, nullable=False),
    _moment("day"),
    Column("sms_type", SmallInteger, nullable=False),
    Column("recipients", BigInteger, nullable=True),  # null: not counted yet
    _moment("counted_at", nullable=True),
    _counter("changes"),  # folds that brought messages
    _counter("counted_changes"),  # how many of them the count knows
    _moment("due_at"),
    PrimaryKeyConstraint("brand_id", "day", "sms_type"),
    Index("usage_day_due", "due_at", postgresql_where=text("changes <> counted_changes")),
    postgresql_with={"fillfactor": "70"},
)
