"""SQL of telling webhooks, and of counting: events are written by the statement that makes them true, so neither is
without the other.

There is no look-up before and no cache: the statement joins `smsgateway.webhook` by brand, which costs a probe of an
index for each message that changes, of an empty index where no brand has a webhook.
"""

from __future__ import annotations

from smsgateway.schema import MessageState
from smsgateway.store.counting import FIGURES, counting

# An event is written once, however often what it tells of is recorded: its id says it all.
_INSERT = """
  insert into smsgateway.webhook_event
    (brand_id, event_id, webhook_id, subject_id, kind, result_code, happened_at, created_at)
"""


def telling(update: str, *, more: str = "", returning: str, before: str = "") -> str:
    """A statement that changes the state of messages, counts them and tells the webhooks that want to hear of it.

    Parameters: `update` an update of `smsgateway.message as m` without its RETURNING; `more` columns that it returns
    beside brand_id, message_id and state; `returning` what the statement returns of them; `before` further common
    table expressions, each with a comma behind it.
    """
    return f"""
with {before}changed as (
  {update}
  returning m.brand_id, m.message_id, m.state, m.result_code, coalesce(m.finished_at, m.sent_at) as happened_at,
            {FIGURES} {f", {more}" if more else ""}
), counted as ({counting("changed")}
), told as ({_INSERT}
  select changed.brand_id, changed.message_id || '-' || changed.state || '-' || webhook.webhook_id, webhook.webhook_id,
         changed.message_id, changed.state, changed.result_code, changed.happened_at, now()
  from changed
  join smsgateway.webhook on webhook.brand_id = changed.brand_id and webhook.enabled
    and (webhook.kinds >> changed.state::int) & 1 = 1
  on conflict (brand_id, event_id) do nothing
)
select {returning} from changed
"""


# For a statement whose dispatches are gone and whose messages are sent: rows of `gone` with brand_id, dispatch_id,
# batch_id and code. Webhooks first: their messages are looked up only where somebody wants to hear. The statement sees
# them as they were before it.
TOLD_OF_SENT = f"""
told as ({_INSERT}
  select wanted.brand_id, message.message_id || '-{MessageState.SENT:d}-' || wanted.webhook_id, wanted.webhook_id,
         message.message_id, {MessageState.SENT:d}, wanted.code, now(), now()
  from (
    select gone.brand_id, gone.dispatch_id, gone.batch_id, gone.code, webhook.webhook_id
    from gone
    join smsgateway.webhook on webhook.brand_id = gone.brand_id and webhook.enabled
      and (webhook.kinds >> {MessageState.SENT:d}) & 1 = 1
    offset 0
  ) as wanted
  cross join lateral (
    select m.message_id from smsgateway.message as m
    where wanted.batch_id is null and m.brand_id = wanted.brand_id and m.message_id = wanted.dispatch_id
      and m.state + 0 = {MessageState.QUEUED:d}
    union all
    select m.message_id from smsgateway.message as m
    where wanted.batch_id is not null and m.brand_id = wanted.brand_id and m.dispatch_id = wanted.dispatch_id
      and m.batch_id is not null and m.state + 0 = {MessageState.QUEUED:d}
  ) as message
  on conflict (brand_id, event_id) do nothing
)
"""
