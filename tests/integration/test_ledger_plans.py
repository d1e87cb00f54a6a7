"""The ledger's statements stay look-ups as tables grow, although they are planned while the tables are empty."""

from __future__ import annotations

import pytest
from plan_harness import require_look_ups, statements_of

from costcenter import store, store_statement
from infra.bulk import Bulk

# What a group of operations runs. Queries of pages and the jobs walk an index in order, up to a limit.
_HOT = {
    name: text
    for name, text in statements_of(store).items()
    # The offers are few and belong to no brand.
    if name.startswith("LOAD_") and name != "LOAD_OFFERS"
}
_HOT |= {
    f"{name}.{kind}": getattr(bulk, kind)
    for name, bulk in vars(store).items()
    if isinstance(bulk, Bulk)
    for kind in ("update", "upsert")
}
# What a statement reads of the large tables; the clock's lock is of the small table of lanes.
_STATEMENT = {name: text for name, text in statements_of(store_statement).items() if name != "SETTLED_CLOCK"}


@pytest.mark.parametrize("name", sorted(_HOT))
def test_statement_is_a_look_up(known_empty_database_url: str, name: str) -> None:
    """Every scan of a table goes through an index with a condition on it."""
    require_look_ups(known_empty_database_url, _HOT[name])


@pytest.mark.parametrize("name", sorted(_STATEMENT))
def test_a_statement_reads_its_brand_only(known_empty_database_url: str, name: str) -> None:
    """Every scan of a table goes through an index by the brand."""
    require_look_ups(known_empty_database_url, _STATEMENT[name])
