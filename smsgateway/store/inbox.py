"""SQL of taking in receipts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from infra import arrays
from infra.database import Connection

_INSERT = """
insert into smsgateway.receipt_inbox
  (account, reference, inbox_id, call_id, mobile, state, carrier_code, detail, billed_segments, reported_at,
   received_at, next_at)
select receipt.*, now(), now() + make_interval(secs => %s)
from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::smallint[], %s::text[], %s::text[],
            %s::smallint[], %s::timestamptz[]) as receipt
"""


@dataclass(frozen=True, slots=True)
class NewReceipt:
    """A receipt as it came. `reference` is the carrier's id, or our call id where it has none."""

    account: str
    reference: str
    inbox_id: str
    call_id: str | None
    mobile: str
    state: int  # costcenter.v1.ReceiptState
    carrier_code: str
    detail: str | None
    billed_segments: int | None
    reported_at: datetime | None


async def insert_receipts(connection: Connection, receipts: Sequence[NewReceipt], *, requeue_seconds: float) -> None:
    """Store receipts; what nobody settles is due to be queued again after `requeue_seconds`."""
    await connection.execute(
        _INSERT,
        (
            requeue_seconds,
            arrays.texts([receipt.account for receipt in receipts]),
            arrays.texts([receipt.reference for receipt in receipts]),
            arrays.texts([receipt.inbox_id for receipt in receipts]),
            arrays.texts([receipt.call_id for receipt in receipts]),
            arrays.texts([receipt.mobile for receipt in receipts]),
            arrays.integers([receipt.state for receipt in receipts]),
            arrays.texts([receipt.carrier_code for receipt in receipts]),
            arrays.texts([receipt.detail for receipt in receipts]),
            arrays.integers([receipt.billed_segments for receipt in receipts]),
            arrays.moments([receipt.reported_at for receipt in receipts]),
        ),
    )
