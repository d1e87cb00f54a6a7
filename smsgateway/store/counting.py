"""SQL of counting what becomes of messages.

A statement that changes the state of messages writes what it counts, in the same statement: nothing is counted that is
not so, and nothing is so that is not counted, whoever is killed. Rows are added, never changed, so nobody waits; a
sweeper folds them into `smsgateway.usage_hour` (`smsgateway.store.usage`).

A message is counted when it leaves its queue: sent, failed or cancelled. `sent_at` tells then and later whether it was
counted before, so that its record alone says how it is counted. The hour is that of its `created_at`.
"""

from __future__ import annotations

from collections.abc import Sequence

from infra import arrays
from infra.database import Connection
from smsgateway.schema import MessageState

# Of rows of a message `m` after the change.
COUNTED = f"(m.state = {MessageState.SENT:d} or m.sent_at is null)"
GIVEN_BACK = f"(m.state in ({MessageState.FAILED:d}, {MessageState.CANCELLED:d}) and m.payment_no is not null)"

# What a statement must return of each message `m` that it changes for `counting`.
FIGURES = f"""
m.created_at as usage_at, m.sms_type as usage_type, m.account as usage_account, m.segments as usage_segments,
{COUNTED} as usage_counted, {GIVEN_BACK} as usage_refunded
"""


def counting(changed: str, state: str = "state") -> str:
    """An INSERT that counts the rows of a common table expression with brand_id and `FIGURES`.

    Parameters: `changed` what to select them from; `state` the column of their new state, or a number.
    """
    return f"""
insert into smsgateway.usage_change
  (brand_id, change_id, hour, sms_type, account, state, counted, refunded, messages, segments)
select brand_id, gen_random_uuid(), hour, usage_type, account, usage_state, usage_counted, usage_refunded, count(*),
       sum(usage_segments)
from (
  select brand_id, date_trunc('hour', usage_at, 'UTC') as hour, usage_type, coalesce(usage_account, '') as account,
         {state} as usage_state, usage_counted, usage_refunded, usage_segments
  from {changed}
) as figures
group by brand_id, hour, usage_type, account, usage_state, usage_counted, usage_refunded
"""


_RECORD_REFUNDS = f"""
with changed as (
  update smsgateway.message as m
  set refunded = asked.segments
  from unnest(%s::bigint[], %s::text[], %s::int[]) as asked (brand_id, message_id, segments)
  where m.brand_id = asked.brand_id and m.message_id = asked.message_id and m.refunded is null and not {GIVEN_BACK}
  returning m.brand_id, m.created_at as usage_at, m.sms_type as usage_type, m.account as usage_account,
            m.refunded as usage_segments, false as usage_counted, true as usage_refunded
)
{counting("changed", "0")}
"""


async def record_refunds(connection: Connection, refunds: Sequence[tuple[int, str, int]]) -> None:
    """Record what the cost centre gave back for messages that were sent: brand, message, segments. Once per message.

    In the transaction that forgets the receipt or the outbox row, so that it is asked again when this is lost.
    """
    await connection.execute(
        _RECORD_REFUNDS,
        (
            arrays.integers([refund[0] for refund in refunds]),
            arrays.texts([refund[1] for refund in refunds]),
            arrays.integers([refund[2] for refund in refunds]),
        ),
    )
