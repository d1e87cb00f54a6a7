"""The gateway's statements stay look-ups as tables grow, although they are planned while the tables are empty."""

from __future__ import annotations

import pytest
from plan_harness import require_look_ups, statements_of

from smsgateway.store import (
    accepting,
    finding,
    listing,
    outbox,
    overview,
    receipts,
    rule_checks,
    sender_rules,
    sending,
    suppressions,
)

pytestmark = pytest.mark.timeout(60)

# What sweeps by age instead of looking up: it walks an index in order, up to a limit.
_SWEEPS = {"_ABANDONED_MESSAGES", "_ABANDONED_BATCHES", "_DELETE_EXPIRED"}


def _statements() -> dict[str, str]:
    found = {name: text for name, text in statements_of(accepting, listing).items() if name not in _SWEEPS}
    for kind, module in {"checks": rule_checks, "rules": sender_rules, "suppressions": suppressions}.items():
        # Which brands have changed is asked by time.
        left_out = _SWEEPS | {"_CHANGED"}
        found |= {f"{kind} {name}": text for name, text in statements_of(module).items() if name not in left_out}
    # What the console asks about one thing; a carrier's id is looked for in one account after another.
    found |= {f"console {name}": text for name, text in statements_of(finding).items() if name != "_BY_REFERENCE"}
    found |= {f"console {name}": statements_of(overview)[name] for name in ("_DISPATCHED", "_DISPATCHED_OF_CAMPAIGN")}
    # Those of `Database.statement`: planned once and for all.
    for name in ("_CLAIM_SINGLE", "_CLAIM_BATCH", "_MARK", "_ACCEPT_WHOLE"):
        found[name] = statements_of(sending)[name]
    for name in ("_LOAD", "_SETTLE"):
        found[name] = statements_of(receipts)[name]
    found["_DELETE"] = statements_of(outbox)["_DELETE"]
    found["message"] = found.pop("_SELECT") + "and message.message_id = %(message)s"
    for name, condition in {"batch": "batch_id", "mobile": "mobile"}.items():
        found[f"list by {name}"] = (
            f"{found['message']}\nand message.{condition} = %(x)s order by message.message_id desc limit 100"
        ).replace("message.message_id = ", "message.message_id < ")
    return found


@pytest.mark.parametrize("name", sorted(_statements()))
def test_statement_is_a_look_up(migrated_database_url: str, name: str) -> None:
    """Every scan of a table goes through an index with a condition on it."""
    require_look_ups(migrated_database_url, _statements()[name])
