"""SQL of what follows a restore of the records to an earlier moment.

Whatever had not been submitted at that moment may have been submitted since: it is held. A held dispatch is QUEUED and
parked (`not_before` is infinity), so no worker can claim it, and its `last_error` says by which restore.
"""

from __future__ import annotations

from infra.database import ThreadConnection
from smsgateway.schema import DispatchState

_HELD = "held after the restore to "

_UNSUBMITTED = f"({DispatchState.ACCEPTING:d}, {DispatchState.QUEUED:d}, {DispatchState.CLAIMED:d})"

# A claim is given up: a worker takes over those of older epochs whether they are parked or not. Its epoch stays, as
# somebody may have paid.
_HOLD = f"""
update smsgateway.dispatch
set state = case state when {DispatchState.CLAIMED:d} then {DispatchState.QUEUED:d} else state end,
    not_before = 'infinity', last_error = %s
where state in {_UNSUBMITTED} and not_before is distinct from 'infinity'
"""


def held_by(moment: str) -> str:
    """What a dispatch held by the restore to a moment (ISO 8601) tells."""
    return _HELD + moment


def hold(connection: ThreadConnection, moment: str) -> int:
    """Hold everything that had not been submitted; how many dispatches. For a database that nobody else uses."""
    return connection.execute(_HOLD.encode(), (held_by(moment),)).rowcount
