"""Options that many subcommands share."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Brand = Annotated[int, typer.Option(min=1, max=2**63 - 1, help="Number of the brand.", show_default=False)]
RequestId = Annotated[
    str,
    typer.Option(help="Idempotency key: the same again repeats nothing. Else a new one.", show_default=False),
]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="Rows at most.")]


class SmsType(enum.StrEnum):
    """What a message is for."""

    VERIFICATION = "verification"
    NOTIFICATION = "notification"
    MARKETING = "marketing"

    @property
    def number(self) -> int:
        """Its number in the protos."""
        return list(SmsType).index(self) + 1


class Role(enum.StrEnum):
    """What a token may do."""

    VIEWER = "viewer"
    SENDER = "sender"
    BILLER = "biller"
    FINANCE = "finance"
    ADMIN = "admin"
    OPERATOR = "operator"

    @property
    def number(self) -> int:
        """Its number in the protos."""
        return list(Role).index(self) + 1


class Status(enum.StrEnum):
    """Whether a brand may send."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    CLOSED = "closed"

    @property
    def number(self) -> int:
        """Its number in the protos."""
        return list(Status).index(self) + 1


class Form(enum.StrEnum):
    """How a statement is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def new_request_id(prefix: str) -> str:
    """An idempotency key that nobody used before."""
    import secrets  # noqa: PLC0415
    import time  # noqa: PLC0415

    return f"{prefix}-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(6)}"
