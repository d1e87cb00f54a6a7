"""The IANA time zones that this machine knows."""

from __future__ import annotations

from functools import lru_cache
from zoneinfo import available_timezones

RULE = "must be an IANA time zone such as Asia/Shanghai"


@lru_cache(maxsize=1)
def known() -> frozenset[str]:
    """Names of all zones. Finding them reads a file for each, so it is done once, when somebody asks."""
    return frozenset(available_timezones())
