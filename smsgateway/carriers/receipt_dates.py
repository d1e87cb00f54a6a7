"""The date of a receipt, which decides about nothing: one that cannot be costs the receipt nothing but its date."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from smsgateway.metrics import RECEIPT_DATES_ODD

_AHEAD_MAX: Final = timedelta(minutes=2)
"""How far the carrier's clock may be ahead of ours, or its minute rounded up, without a word about it."""


def reported(account_id: str, told: datetime | None) -> datetime:
    """When the network reported, as far as the carrier's word can be believed.

    Args:
        account_id: our name of the account, for the metric.
        told: the carrier's date, aware; None when it told none that can be.

    Returns:
        The date, or the time of arrival instead of one that is impossible, missing or in the future (a zone set
        wrongly, a clock that is wrong): no message may end in the future. Those are counted.
    """
    now = datetime.now(UTC)
    if told is not None and told <= now + _AHEAD_MAX:
        return min(told, now)
    RECEIPT_DATES_ODD.labels(account_id).inc()
    return now
