"""Views for those who only read: Grafana, reports (docs/grafana.md)."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TYPES = "array['verification', 'notification', 'marketing']"

_BRAND = """
create view costcenter.report_brand as
select brand_id, name, (array['active', 'suspended', 'closed'])[status] collate "C" as status, time_zone,
       refund_undelivered, created_at
from costcenter.brand
"""

# What has expired is not available at once, booked or not.
_BALANCE = """
create view costcenter.report_balance as
select brand.brand_id, brand.name, balance.total, balance.frozen, coalesce(spendable.segments, 0) as available,
       spendable.next_expiry_at
from costcenter.brand
join costcenter.balance on balance.brand_id = brand.brand_id
left join lateral (
  select sum(p.remaining - p.held)::bigint as segments, min(p.expires_at) as next_expiry_at
  from costcenter.package_queue as p
  where p.brand_id = brand.brand_id and p.is_live and (p.expires_at is null or p.expires_at > now())
) as spendable on true
"""

_HISTORY = """
create view costcenter.report_balance_history as
select brand_id, at, total, frozen, total - frozen as available from costcenter.balance_history
"""

_PACKAGE = f"""
create view costcenter.report_package as
select brand_id, package_id, (array['order', 'grant', 'refund'])[source] collate "C" as source, granted, remaining,
       held, paid, refunded, expired,
       case when sms_types = '{{}}' then array['all'] else array(select ({_TYPES})[t] from unnest(sms_types) as t) end
         as sms_types,
       expires_at, created_at
from costcenter.package_queue
"""

_SALE = """
create view costcenter.report_sale as
select brand_id, package_order_no, offer_id, segments, price, currency, paid_at, package_id
from costcenter.package_order
where status = 3
"""


def _number_prefix(moment: str) -> str:
    """What payment numbers of a moment begin with (`infra.identifiers.time_prefix`): ten digits of base 32."""
    return f"""(
      select string_agg(
        substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ',
               ((floor(extract(epoch from {moment}) * 1000)::bigint >> (45 - 5 * digit)) & 31)::int + 1, 1),
        '' order by digit
      )
      from generate_series(0, 9) as digit
    ) collate "C"
"""


# A day's payments are a range of their numbers, so a day is read by itself, of a brand's millions.
_PAYMENT_DAY = f"""
create view costcenter.report_payment_day as
select brand.brand_id, day.start as day, ({_TYPES})[paid.sms_type] collate "C" as sms_type, paid.payments,
       paid.segments, paid.refunded
from costcenter.brand
cross join lateral (
  select (midnight - n * interval '1 day') at time zone brand.time_zone as start,
         (midnight - (n - 1) * interval '1 day') at time zone brand.time_zone as "end"
  from (select date_trunc('day', now() at time zone brand.time_zone)) as today (midnight),
       generate_series(0, 399) as n
) as day
cross join lateral (
  select payment.sms_type, count(*) as payments, sum(payment.segments)::bigint as segments,
         sum(payment.refunded)::bigint as refunded
  from costcenter.payment
  where payment.brand_id = brand.brand_id
    and payment.payment_no >= {_number_prefix("day.start")}
    and payment.payment_no < {_number_prefix('day."end"')}
  group by payment.sms_type
) as paid
"""

_VIEWS = {
    "report_brand": _BRAND,
    "report_balance": _BALANCE,
    "report_balance_history": _HISTORY,
    "report_package": _PACKAGE,
    "report_sale": _SALE,
    "report_payment_day": _PAYMENT_DAY,
}


def upgrade() -> None:
    for view in _VIEWS.values():
        op.execute(view)


def downgrade() -> None:
    for name in _VIEWS:
        op.execute(f"drop view costcenter.{name}")
