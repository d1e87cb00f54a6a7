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
_KEPT = tuple(
    name for counted in _COUNTED for name in (counted, "segments" if counted == "messages" else f"{counted}_segments")
)
_CONDITIONS = {
    "messages": "counted",
    "segments": "counted",
    "delivered": "state = 7",
    "undelivered": "state = 8",
    "expired": "state = 9",
    "failed": "state = 10",
    "cancelled": "state = 11",
    "refunded": "refunded",
}


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)


# For those who only read (docs/grafana.md). What is not folded yet and what is on its way is in it, as in GetUsage.
_REPORT_USAGE = f"""
create view smsgateway.report_usage_hour as
with figures as (
  select brand_id, hour, sms_type, account, messages, segments, 0::bigint as waiting, 0::bigint as unknown,
         {", ".join(name for name in _KEPT if name not in ("messages", "segments"))}
  from smsgateway.usage_hour
  union all
  select brand_id, hour, sms_type, account, {
    ", ".join(
        f"case when {_CONDITIONS[name.removesuffix('_segments')]} then "
        f"{'segments' if name.endswith('segments') else 'messages'} else 0 end::bigint"
        + (", 0, 0" if name == "segments" else "")
        for name in _KEPT
    )
}
  from smsgateway.usage_change
  union all
  -- Of a chunk's parts the batch knows when they were accepted.
  select d.brand_id, date_trunc('hour', coalesce(b.accepted_at, d.created_at), 'UTC'), d.sms_type,
         case when d.state in (4, 5) then coalesce(d.account, '') else '' end,
         d.messages, d.segments,
         case when d.state = 5 then 0 else d.messages end, case when d.state = 5 then d.messages else 0 end,
         {", ".join("0" for name in _KEPT if name not in ("messages", "segments"))}
  from smsgateway.dispatch as d
  left join smsgateway.batch as b on b.brand_id = d.brand_id and b.batch_id = d.batch_id
  where d.state not in (1, 6)
)
select brand_id, hour,
       (array['verification', 'notification', 'marketing'])[sms_type] collate "C" as sms_type,
       account collate "C" as account,
       {", ".join(f"sum({name})::bigint as {name}" for name in (*_KEPT[:2], "waiting", "unknown"))},
       (sum(messages) - sum(waiting) - sum(unknown) - sum(delivered) - sum(undelivered) - sum(expired) - sum(failed)
        - sum(cancelled))::bigint as sent,
       {", ".join(f"sum({name})::bigint as {name}" for name in _KEPT[2:])}
from figures
group by brand_id, hour, figures.sms_type, figures.account
"""

_REPORT_RECIPIENTS = """
create view smsgateway.report_recipients_day as
select brand_id, day,
       case when sms_type = 0 then 'all' else (array['verification', 'notification', 'marketing'])[sms_type] end
         collate "C" as sms_type,
       recipients, counted_at
from smsgateway.usage_day
where recipients is not null
"""


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
        *(_counter(name) for name in _KEPT),
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
    op.execute(_REPORT_USAGE)
    op.execute(_REPORT_RECIPIENTS)


def downgrade() -> None:
    op.execute("drop view smsgateway.report_recipients_day, smsgateway.report_usage_hour")
    for table in ("usage_day", "usage_hour", "usage_change"):
        op.drop_table(table, schema=SCHEMA)
    op.drop_column("message", "refunded", schema=SCHEMA)
