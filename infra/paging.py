"""Pages by key: a token is the last key of the page before."""

from __future__ import annotations

import base64
import binascii

from infra.errors import Refusal, invalid, invalid_fields

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000


def page_size(asked: int) -> int:
    """Rows of a page. Raises INVALID_ARGUMENT for a negative size or one over 1,000."""
    if asked < 0 or asked > PAGE_SIZE_MAX:
        raise invalid(page_size=f"must be 0 (for {PAGE_SIZE_DEFAULT}) to {PAGE_SIZE_MAX}")
    return asked or PAGE_SIZE_DEFAULT


def encode_token(key: str) -> str:
    """The token of a page that starts after `key`."""
    return base64.urlsafe_b64encode(key.encode()).decode()


def decode_token(token: str) -> str:
    """The key of a token; empty for an empty token. Raises INVALID_ARGUMENT for a token that is none of ours."""
    if not token:
        return ""
    try:
        key = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise not_ours() from None
    # Every key of ours can be printed; PostgreSQL takes no NUL.
    if not key or not key.isprintable():
        raise not_ours()
    return key


def not_ours() -> Refusal:
    """INVALID_ARGUMENT for a token that no page of the call has given."""
    return invalid_fields({"page_token": "must be a next_page_token of this call"})


def decode_number(token: str) -> int:
    """The number that a token holds; 0 for an empty token. Raises INVALID_ARGUMENT for a token that is none of ours."""
    numbers = decode_numbers(token, 1)
    return numbers[0] if numbers else 0


def decode_numbers(token: str, count: int) -> tuple[int, ...]:
    """The numbers, divided by dots, that a token holds; none for an empty token. Raises as `decode_number` does."""
    if not token:
        return ()
    parts = decode_token(token).split(".")
    if len(parts) != count or not all(part.isdecimal() and len(part) <= 18 for part in parts):
        raise not_ours()
    return tuple(map(int, parts))


def next_token(key: str) -> str:
    """The token of the page after `key`; empty for an empty key: there is none."""
    return encode_token(key) if key else ""
