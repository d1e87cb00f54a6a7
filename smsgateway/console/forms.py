"""Forms: read whole and bounded, fields with their rules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TypeVar
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

from google.protobuf.timestamp_pb2 import Timestamp
from starlette.exceptions import HTTPException
from starlette.requests import Request

from infra.errors import invalid_fields

REASON_CHARACTERS_MAX = 500
_FIELDS_MAX = 1_000
_ENCODED = "application/x-www-form-urlencoded"
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_CURRENCY = re.compile(r"[A-Z]{3}")
_INTEGER = re.compile(r"[0-9]{1,19}")
_INT64_MAX = 2**63 - 1

T = TypeVar("T")


class Form:
    """What a form holds. Reading a field that breaks its rule notes that; `check` then names them all at once."""

    def __init__(self, fields: Sequence[tuple[str, str]] = ()) -> None:
        self._fields: dict[str, list[str]] = {}
        for name, value in fields:
            self._fields.setdefault(name, []).append(value)
        self._violations: dict[str, str] = {}

    @property
    def values(self) -> Mapping[str, str]:
        """The last value of each field, to fill the form again."""
        return {name: values[-1] for name, values in self._fields.items()}

    def get(self, name: str) -> str:
        """A field without the blanks around it; empty when it is not there."""
        values = self._fields.get(name)
        return values[-1].strip() if values else ""

    def all(self, name: str) -> list[str]:
        """Every value of a field that may be there several times."""
        return list(self._fields.get(name, ()))

    def violate(self, name: str, rule: str) -> None:
        """Note that a field breaks a rule."""
        self._violations.setdefault(name, rule)

    def check(self) -> None:
        """Raise INVALID_ARGUMENT with every field that broke its rule."""
        if self._violations:
            raise invalid_fields(self._violations)

    def text(self, name: str, longest: int, *, needed: bool = True) -> str:
        """A text of 1 to `longest` printable characters; may be empty unless `needed`."""
        text = self.get(name)
        if (needed and not text) or len(text) > longest or not text.isprintable():
            self.violate(name, f"must be {1 if needed else 0} to {longest} printable characters")
        return text

    def reason(self) -> str:
        """Why a change is made."""
        return self.text("reason", REASON_CHARACTERS_MAX)

    def identifier(self, name: str) -> str:
        """A text of 1 to 64 of the letters that identifiers have."""
        text = self.get(name)
        if not _IDENTIFIER.fullmatch(text):
            self.violate(name, "must be 1 to 64 letters, digits, or any of _ . : -")
        return text

    def number(self, name: str, least: int, most: int = _INT64_MAX) -> int:
        """A whole number."""
        text = self.get(name).replace(",", "")
        number = int(text) if _INTEGER.fullmatch(text) else None
        if number is None or not least <= number <= most:
            self.violate(name, f"must be a whole number from {least} to {most}")
            return least
        return number

    def price(self, name: str) -> str:
        """A decimal of at least 0 with at most four places."""
        text = self.get(name).replace(",", "")
        try:
            value = Decimal(text) if re.fullmatch(r"[0-9]{1,14}(\.[0-9]{1,4})?", text) else None
        except InvalidOperation:
            value = None
        if value is None:
            self.violate(name, "must be a decimal such as 4500.00 with at most four places")
            return "0"
        return text

    def currency(self, name: str) -> str:
        """A code of three capital letters (ISO 4217)."""
        text = self.get(name).upper()
        if not _CURRENCY.fullmatch(text):
            self.violate(name, "must be a code of three letters such as CNY")
        return text

    def choice(self, name: str, known: Mapping[str, T]) -> T:
        """One of what is offered."""
        text = self.get(name)
        if text not in known:
            self.violate(name, f"must be one of {', '.join(known)}")
            return next(iter(known.values()))
        return known[text]

    def choices(self, name: str, known: Mapping[str, T]) -> list[T]:
        """Some, or none, of what is offered."""
        texts = self.all(name)
        if not set(texts) <= set(known):
            self.violate(name, f"must be some of {', '.join(known)}")
        return [known[text] for text in known if text in texts]

    def day(self, name: str, zone: str) -> date | None:
        """A day (YYYY-MM-DD) that is not over in the time zone; None when none is given."""
        text = self.get(name)
        if not text:
            return None
        try:
            day = date.fromisoformat(text) if len(text) == 10 else None
        except ValueError:
            day = None
        if day is None or not datetime.now(UTC).astimezone(ZoneInfo(zone)).date() <= day < date(9999, 12, 31):
            self.violate(name, "must be a day from today on, such as 2027-12-31")
            return None
        return day


def end_of(day: date, zone: str) -> Timestamp:
    """The moment at which a day is over in a time zone."""
    following = day + timedelta(days=1)
    moment = Timestamp()
    moment.FromDatetime(datetime(following.year, following.month, following.day, tzinfo=ZoneInfo(zone)))
    return moment


async def read_form(request: Request, bytes_max: int) -> Form:
    """The form of a request. Raises `HTTPException`: 413 for one that is too large, 415 for what is no form, 400 for
    one that cannot be read.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _ENCODED:
        raise HTTPException(415)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > bytes_max:
            raise HTTPException(413)
    try:
        fields = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            encoding="utf-8",
            errors="strict",
            max_num_fields=_FIELDS_MAX,
        )
    except ValueError:
        raise HTTPException(400) from None
    if any("\0" in name or "\0" in value for name, value in fields):
        raise HTTPException(400)
    return Form(fields)
