"""Ids of carrier calls: made of the id of their dispatch, so that a receipt that carries one leads back by itself."""

from __future__ import annotations

from functools import lru_cache

from infra.identifiers import LENGTH, brand_of


def call_id_of(dispatch_id: str, attempts: int) -> str:
    """The id of a dispatch's call after so many attempts: one for each mark."""
    return dispatch_id if attempts == 0 else f"{dispatch_id}-{attempts}"


@lru_cache(maxsize=4_096)
def dispatch_of(call_id: str) -> tuple[int, str] | None:
    """Brand and dispatch of a call's id, or None for what is none of ours."""
    dispatch_id, dash, attempts = call_id[:LENGTH], call_id[LENGTH : LENGTH + 1], call_id[LENGTH + 1 :]
    if dash and (dash != "-" or not (attempts.isascii() and attempts.isdigit())):
        return None
    brand_id = brand_of(dispatch_id)
    return None if brand_id is None else (brand_id, dispatch_id)
