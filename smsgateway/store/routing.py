"""SQL of carrier accounts, routing rules and sending limits: few rows, read whole whenever their version has changed.

Whoever changes one raises the version in the same transaction, so whoever sees a version sees all that it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg.types.json import Jsonb

from infra.database import Connection
from smsgateway.routing import Rule

# The row's lock has changes follow each other.
_RAISE_VERSION = """
insert into smsgateway.routing_version as v (id, version) values (1, 1)
on conflict (id) do update set version = v.version + 1
returning version
"""

_FIND_VERSION = "select version from smsgateway.routing_version where id = 1"

_ACCOUNT_COLUMNS = """
account_id, kind, settings, paused, rate::double precision, burst, calls_max, balance_alert, balance, balance_at,
balance_low, version, updated_at
"""
_FIND_ACCOUNT = f"select {_ACCOUNT_COLUMNS} from smsgateway.carrier_account where account_id = %s"
_LIST_ACCOUNTS = f"select {_ACCOUNT_COLUMNS} from smsgateway.carrier_account order by account_id"

_PUT_ACCOUNT = f"""
insert into smsgateway.carrier_account
  (account_id, kind, settings, paused, rate, burst, calls_max, balance_alert, version, updated_at)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s, now())
on conflict (account_id) do update
set settings = excluded.settings, paused = excluded.paused, rate = excluded.rate, burst = excluded.burst,
    calls_max = excluded.calls_max, balance_alert = excluded.balance_alert, version = excluded.version,
    updated_at = excluded.updated_at
returning {_ACCOUNT_COLUMNS}
"""

_REMOVE_ACCOUNT = "delete from smsgateway.carrier_account where account_id = %s"

_COUNT_RULES_OF = "select count(*) from smsgateway.routing_rule where account_id = %s"

# What was low before the statement is known by asking in it: told once, whoever asks at the same time.
_SET_BALANCE = """
update smsgateway.carrier_account as a
set balance = %(balance)s, balance_at = now(), balance_low = a.balance_alert > 0 and %(balance)s < a.balance_alert
from (select account_id, balance_low from smsgateway.carrier_account where account_id = %(account)s for update) as old
where a.account_id = old.account_id
returning old.balance_low, a.balance_low, a.balance_alert
"""

_RULE_COLUMNS = "brand_id, sms_type, prefix, account_id, priority, weight, enabled, updated_at"
_LIST_RULES = f"""
select {_RULE_COLUMNS} from smsgateway.routing_rule
order by brand_id, sms_type, prefix, priority, account_id
"""
_PUT_RULE = f"""
insert into smsgateway.routing_rule (brand_id, sms_type, prefix, account_id, priority, weight, enabled, updated_at)
values (%s, %s, %s, %s, %s, %s, %s, now())
on conflict (brand_id, sms_type, prefix, account_id) do update
set priority = excluded.priority, weight = excluded.weight, enabled = excluded.enabled, updated_at = excluded.updated_at
returning {_RULE_COLUMNS}
"""
_REMOVE_RULE = """
delete from smsgateway.routing_rule where brand_id = %s and sms_type = %s and prefix = %s and account_id = %s
"""

_LIMIT_COLUMNS = "brand_id, sms_type, rate::double precision, burst, updated_at"
_LIST_LIMITS = f"select {_LIMIT_COLUMNS} from smsgateway.sending_limit order by brand_id, sms_type"
_PUT_LIMIT = f"""
insert into smsgateway.sending_limit (brand_id, sms_type, rate, burst, updated_at)
values (%s, %s, %s, %s, now())
on conflict (brand_id, sms_type) do update
set rate = excluded.rate, burst = excluded.burst, updated_at = excluded.updated_at
returning {_LIMIT_COLUMNS}
"""
_REMOVE_LIMIT = "delete from smsgateway.sending_limit where brand_id = %s and sms_type = %s"


@dataclass(frozen=True, slots=True)
class AccountRow:
    """A carrier account. Its settings are texts by name and may hold secrets."""

    account_id: str
    kind: str
    settings: Mapping[str, str]
    paused: bool
    rate: float
    burst: int
    calls_max: int
    balance_alert: int
    balance: int | None = None
    balance_at: datetime | None = None
    balance_low: bool = False
    version: int = 0
    updated_at: datetime | None = None

    def __repr__(self) -> str:
        # Settings may hold secrets, and a log shows what it is given.
        return f"AccountRow({self.account_id!r}, {self.kind!r})"


@dataclass(frozen=True, slots=True)
class RuleRow:
    """A routing rule, and whether it counts."""

    brand_id: int
    sms_type: int
    prefix: str
    account_id: str
    priority: int
    weight: int
    enabled: bool
    updated_at: datetime | None = None

    @property
    def rule(self) -> Rule:
        """The rule as routing knows it."""
        return Rule(self.brand_id, self.sms_type, self.prefix, self.account_id, self.priority, self.weight)


@dataclass(frozen=True, slots=True)
class LimitRow:
    """How fast a brand may send, by type or (type 0) in all. `burst` 0: chosen by the rate."""

    brand_id: int
    sms_type: int
    rate: float
    burst: int
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Tables:
    """All of it at one version."""

    version: int
    accounts: Sequence[AccountRow]
    rules: Sequence[RuleRow]
    limits: Sequence[LimitRow]


async def find_version(connection: Connection) -> int:
    """The version of what is there; 0: nothing ever was."""
    row = await (await connection.execute(_FIND_VERSION)).fetchone()
    return 0 if row is None else int(row[0])


async def load(connection: Connection) -> Tables:
    """Everything, on a connection whose statements see one moment (`Database.snapshot`)."""
    return Tables(
        await find_version(connection),
        await list_accounts(connection),
        await list_rules(connection),
        await list_limits(connection),
    )


async def raise_version(connection: Connection) -> int:
    """The next version; others who change something wait for the end of the transaction."""
    row = await (await connection.execute(_RAISE_VERSION)).fetchone()
    assert row is not None
    return int(row[0])


async def list_accounts(connection: Connection) -> list[AccountRow]:
    """Every account, by name."""
    return [AccountRow(*row) for row in await (await connection.execute(_LIST_ACCOUNTS)).fetchall()]


async def find_account(connection: Connection, account_id: str) -> AccountRow | None:
    """One account."""
    row = await (await connection.execute(_FIND_ACCOUNT, (account_id,))).fetchone()
    return None if row is None else AccountRow(*row)


async def put_account(connection: Connection, account: AccountRow) -> AccountRow:
    """Create an account or replace one of the same name, under a version just raised."""
    cursor = await connection.execute(
        _PUT_ACCOUNT,
        (
            account.account_id,
            account.kind,
            Jsonb(dict(account.settings)),
            account.paused,
            account.rate,
            account.burst,
            account.calls_max,
            account.balance_alert,
            account.version,
        ),
    )
    row = await cursor.fetchone()
    assert row is not None
    return AccountRow(*row)


async def remove_account(connection: Connection, account_id: str) -> bool:
    """Remove an account; False when there is none."""
    return (await connection.execute(_REMOVE_ACCOUNT, (account_id,))).rowcount > 0


async def count_rules_of(connection: Connection, account_id: str) -> int:
    """Rules that lead to an account."""
    row = await (await connection.execute(_COUNT_RULES_OF, (account_id,))).fetchone()
    assert row is not None
    return int(row[0])


async def set_balance(connection: Connection, account_id: str, balance: int) -> tuple[bool, bool, int] | None:
    """Record what the carrier told: whether it was low before, whether it is, and below what; None: no such account."""
    row = await (await connection.execute(_SET_BALANCE, {"account": account_id, "balance": balance})).fetchone()
    return None if row is None else (row[0], row[1], row[2])


async def list_rules(connection: Connection) -> list[RuleRow]:
    """Every rule, by what it is for."""
    return [RuleRow(*row) for row in await (await connection.execute(_LIST_RULES)).fetchall()]


async def put_rule(connection: Connection, rule: RuleRow) -> RuleRow:
    """Create a rule or replace the one for the same messages and account."""
    cursor = await connection.execute(
        _PUT_RULE,
        (
            rule.brand_id,
            rule.sms_type,
            rule.prefix,
            rule.account_id,
            rule.priority,
            rule.weight,
            rule.enabled,
        ),
    )
    row = await cursor.fetchone()
    assert row is not None
    return RuleRow(*row)


async def remove_rule(connection: Connection, brand_id: int, sms_type: int, prefix: str, account_id: str) -> bool:
    """Remove a rule; False when there is none."""
    return (await connection.execute(_REMOVE_RULE, (brand_id, sms_type, prefix, account_id))).rowcount > 0


async def list_limits(connection: Connection) -> list[LimitRow]:
    """Every limit of a brand."""
    return [LimitRow(*row) for row in await (await connection.execute(_LIST_LIMITS)).fetchall()]


async def put_limit(connection: Connection, limit: LimitRow) -> LimitRow:
    """Create a limit or replace the one of the same brand and type."""
    cursor = await connection.execute(_PUT_LIMIT, (limit.brand_id, limit.sms_type, limit.rate, limit.burst))
    row = await cursor.fetchone()
    assert row is not None
    return LimitRow(*row)


async def remove_limit(connection: Connection, brand_id: int, sms_type: int) -> bool:
    """Remove a limit; False when there is none."""
    return (await connection.execute(_REMOVE_LIMIT, (brand_id, sms_type))).rowcount > 0
