"""Changes of carrier accounts, routing rules and sending limits, judged before they are stored."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from infra.database import Connection, Database
from infra.errors import SettingError, StartError, failed_precondition, invalid_fields, not_found
from smsgateway.carriers.accounts import ACCOUNT_ID, TableAccount
from smsgateway.carriers.registry import carrier_kind
from smsgateway.routing import PREFIX_DIGITS_MAX, Plan, Routing
from smsgateway.settings import Settings
from smsgateway.store import routing as store
from smsgateway.store.routing import AccountRow, LimitRow, RuleRow, Tables

T = TypeVar("T")

RATE_MAX = 1_000_000
"""Messages a second, and messages or calls at once, that a limit may say: beyond it there is none."""
NUMBER_MAX = 1_000_000
"""Largest priority and weight."""
_RATE_MIN = 0.001
_BALANCE_MAX = 10**15
_SETTINGS_MAX = 64
_SETTING_CHARACTERS_MAX = 8_192
_PREFIX = re.compile(rf"|\+[1-9][0-9]{{0,{PREFIX_DIGITS_MAX - 1}}}")
_TYPES = range(4)

Violations = dict[str, str]


@dataclass(frozen=True, slots=True)
class AccountChange:
    """What is given of an account; None stays as it is."""

    account_id: str
    kind: str
    settings: Mapping[str, str]
    unset_settings: Sequence[str]
    paused: bool | None
    rate: float | None
    burst: int | None
    calls_max: int | None
    balance_alert: int | None


@dataclass(frozen=True, slots=True)
class SeenAccount:
    """An account with what this process makes of it: `description`, or a `problem`."""

    row: AccountRow
    description: str
    problem: str


@dataclass(frozen=True, slots=True)
class Explained:
    """A plan, and why each of its accounts cannot be called, if it cannot."""

    plan: Plan
    problems: Mapping[str, str]
    is_default: bool


class RouteKeeper:
    """Changes what the tables say. Refusals name the field and its rule; values of settings are in none of them."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    async def put_account(self, change: AccountChange) -> SeenAccount:
        """Create or change an account. Raises INVALID_ARGUMENT, FAILED_PRECONDITION (KIND_FIXED)."""
        _raise(_violations_of_account(change))

        async def put(connection: Connection, version: int) -> SeenAccount:
            old = await store.find_account(connection, change.account_id)
            row = replace(_merged(old, change), version=version)
            seen = await self._checked(row)
            return replace(seen, row=await store.put_account(connection, row))

        return await self._change(put)

    async def accounts(self) -> list[SeenAccount]:
        """Every account."""
        async with self._database.connection() as connection:
            rows = await store.list_accounts(connection)
        return [await asyncio.to_thread(self._seen, row) for row in rows]

    async def remove_account(self, account_id: str) -> None:
        """Remove an account. Raises NOT_FOUND, FAILED_PRECONDITION (ACCOUNT_IN_USE)."""

        async def remove(connection: Connection, _version: int) -> None:
            rules = await store.count_rules_of(connection, account_id)
            if rules:
                raise failed_precondition(
                    "ACCOUNT_IN_USE", f"{rules} rules lead to this account; remove them first", rules=rules
                )
            if not await store.remove_account(connection, account_id):
                raise not_found("ACCOUNT_NOT_FOUND", "there is no such account")

        await self._change(remove)

    async def put_rule(self, rule: RuleRow) -> RuleRow:
        """Create or change a rule. Raises INVALID_ARGUMENT, NOT_FOUND (ACCOUNT_NOT_FOUND)."""
        _raise(_violations_of_rule(rule))

        async def put(connection: Connection, _version: int) -> RuleRow:
            known = await store.find_account(connection, rule.account_id)
            if known is None and rule.account_id != self.default_account():
                raise not_found(
                    "ACCOUNT_NOT_FOUND", "there is no such account; create it first, or name the environment's"
                )
            return await store.put_rule(connection, rule)

        return await self._change(put)

    async def rules(self) -> list[RuleRow]:
        """Every rule."""
        async with self._database.connection() as connection:
            return await store.list_rules(connection)

    async def remove_rule(self, brand_id: int, sms_type: int, prefix: str, account_id: str) -> None:
        """Remove a rule. Raises NOT_FOUND (RULE_NOT_FOUND)."""

        async def remove(connection: Connection, _version: int) -> None:
            if not _PREFIX.fullmatch(prefix) or not await store.remove_rule(
                connection, brand_id, sms_type, prefix, _storable(account_id)
            ):
                raise not_found("RULE_NOT_FOUND", "there is no such rule")

        await self._change(remove)

    async def put_limit(self, limit: LimitRow) -> LimitRow:
        """Create or change a limit. Raises INVALID_ARGUMENT."""
        _raise(_violations_of_limit(limit))
        return await self._change(lambda connection, _version: store.put_limit(connection, limit))

    async def limits(self) -> list[LimitRow]:
        """Every limit."""
        async with self._database.connection() as connection:
            return await store.list_limits(connection)

    async def remove_limit(self, brand_id: int, sms_type: int) -> None:
        """Remove a limit. Raises NOT_FOUND (LIMIT_NOT_FOUND)."""

        async def remove(connection: Connection, _version: int) -> None:
            if not await store.remove_limit(connection, brand_id, sms_type):
                raise not_found("LIMIT_NOT_FOUND", "there is no such limit")

        await self._change(remove)

    async def explain(self, brand_id: int, sms_type: int, mobile: str) -> Explained:
        """Where messages to a number in E.164 may go."""
        async with self._database.snapshot() as connection:
            tables = await store.load(connection)
        default = self.default_account(tables)
        plan = routing_of(tables, default).plan(brand_id, sms_type, mobile)
        rows = {row.account_id: row for row in tables.accounts}
        problems = {account_id: self._problem(rows.get(account_id), account_id) for account_id in plan.accounts}
        without = routing_of(replace(tables, rules=()), default).plan(brand_id, sms_type, mobile)
        fits = any(
            rule.enabled
            and rule.brand_id in (0, brand_id)
            and rule.sms_type in (0, sms_type)
            and mobile.startswith(rule.prefix)
            for rule in tables.rules
        )
        return Explained(plan, problems, not fits and plan == without)

    def default_account(self, tables: Tables | None = None) -> str | None:
        """The environment's account, or one of the table that has its name; None: there is none."""
        name = self._settings.carrier_account
        if tables is not None and any(row.account_id == name for row in tables.accounts):
            return name
        return name if carrier_kind(self._settings.carrier).describe(self._settings) is not None else None

    async def _change(self, change: Callable[[Connection, int], Awaitable[T]]) -> T:
        """Do a change under a version of its own; changes follow each other."""
        async with self._database.connection() as connection:
            version = await store.raise_version(connection)
            result = await change(connection, version)
        return result

    async def _checked(self, row: AccountRow) -> SeenAccount:
        # It may read a file.
        try:
            account = await asyncio.to_thread(
                TableAccount, self._settings, row.kind, row.account_id, dict(row.settings)
            )
            # Both processes' views of it: what a worker opens, and what a gateway answers to callbacks.
            carrier = await asyncio.to_thread(account.open, connections_max=1)
        except SettingError as error:
            raise invalid_fields({f"settings.{error.name}": error.rule}) from None
        except StartError as error:
            raise invalid_fields({"settings": _told(error)}) from None
        await carrier.aclose()
        return SeenAccount(row, account.description, "")

    def _seen(self, row: AccountRow) -> SeenAccount:
        try:
            return SeenAccount(
                row, TableAccount(self._settings, row.kind, row.account_id, row.settings).description, ""
            )
        except StartError as error:
            return SeenAccount(row, "", _told(error))

    def _problem(self, row: AccountRow | None, account_id: str) -> str:
        if row is None:
            return "" if account_id == self.default_account() else "there is no such account"
        return "paused" if row.paused else self._seen(row).problem


def routing_of(tables: Tables, default: str | None) -> Routing:
    """The rules that count."""
    return Routing((row.rule for row in tables.rules if row.enabled), default=default)


def _merged(old: AccountRow | None, change: AccountChange) -> AccountRow:
    if old is None and not change.kind:
        raise invalid_fields({"kind": "a new account needs one"})
    if old is not None and change.kind not in ("", old.kind):
        raise failed_precondition(
            "KIND_FIXED", f"the account is of the kind {old.kind}; create another for another kind", kind=old.kind
        )
    base = old or AccountRow(change.account_id, change.kind, {}, False, 0.0, 0, 0, 0)
    settings = {name: value for name, value in base.settings.items() if name not in change.unset_settings}
    return replace(
        base,
        settings=settings | dict(change.settings),
        paused=base.paused if change.paused is None else change.paused,
        rate=base.rate if change.rate is None else round(change.rate, 3),
        burst=base.burst if change.burst is None else change.burst,
        calls_max=base.calls_max if change.calls_max is None else change.calls_max,
        balance_alert=base.balance_alert if change.balance_alert is None else change.balance_alert,
    )


def _violations_of_account(change: AccountChange) -> Violations:
    found: Violations = {}
    if not ACCOUNT_ID.fullmatch(change.account_id):
        found["account_id"] = "must be 1 to 64 letters, digits, dots, dashes and underscores, the first no mark"
    if change.kind:
        try:
            carrier_kind(change.kind)
        except StartError as error:
            found["kind"] = _told(error).partition(": ")[2] or _told(error)
    if len(change.settings) > _SETTINGS_MAX:
        found["settings"] = f"must be at most {_SETTINGS_MAX}"
    for name, value in change.settings.items():
        if len(value) > _SETTING_CHARACTERS_MAX or "\0" in value or "\0" in name:
            found[f"settings.{name[:64]!r}"] = f"must be at most {_SETTING_CHARACTERS_MAX} characters, none of them NUL"
    if change.rate is not None and change.rate != 0 and not _is_rate(change.rate):
        found["rate"] = f"must be 0 (no limit), or {_RATE_MIN} to {RATE_MAX} messages a second"
    for name, number, top in (
        ("burst", change.burst, RATE_MAX),
        ("calls_max", change.calls_max, RATE_MAX),
        ("balance_alert", change.balance_alert, _BALANCE_MAX),
    ):
        if number is not None and not 0 <= number <= top:
            found[name] = f"must be from 0 to {top}"
    return found


def _violations_of_rule(rule: RuleRow) -> Violations:
    found: Violations = {}
    if rule.brand_id < 0:
        found["rule.brand_id"] = "must be a brand, or 0 for all"
    if rule.sms_type not in _TYPES:
        found["rule.sms_type"] = "must be a known type, or none for any"
    if not _PREFIX.fullmatch(rule.prefix):
        found["rule.prefix"] = f"must be empty, or + and up to {PREFIX_DIGITS_MAX} digits, such as +86138"
    if not ACCOUNT_ID.fullmatch(rule.account_id):
        found["rule.account_id"] = "must be the name of an account"
    for name, number in (("priority", rule.priority), ("weight", rule.weight)):
        if not 0 <= number <= NUMBER_MAX:
            found[f"rule.{name}"] = f"must be from 0 to {NUMBER_MAX}"
    return found


def _violations_of_limit(limit: LimitRow) -> Violations:
    found: Violations = {}
    if limit.brand_id < 1:
        found["limit.brand_id"] = "must be at least 1"
    if limit.sms_type not in _TYPES:
        found["limit.sms_type"] = "must be a known type, or none for all together"
    if not _is_rate(limit.rate):
        found["limit.rate"] = f"must be {_RATE_MIN} to {RATE_MAX} messages a second"
    if not 0 <= limit.burst <= RATE_MAX:
        found["limit.burst"] = f"must be from 0 to {RATE_MAX}"
    return found


def _is_rate(rate: float) -> bool:
    return math.isfinite(rate) and _RATE_MIN <= rate <= RATE_MAX


def _raise(violations: Violations) -> None:
    if violations:
        raise invalid_fields(violations)


def _storable(text: str) -> str:
    return text.replace("\0", "")


def _told(error: StartError) -> str:
    """What a kind says of settings, without the advice that belongs to the environment."""
    return str(error).partition("; correct")[0].removeprefix("settings ")
