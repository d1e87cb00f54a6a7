"""The carrier accounts of a worker: the environment's and those of the table, opened, changed and closed while it runs.

Each account has a carrier, a gate (circuit breaker), slots for the calls of each type and mode, and the limits that all
workers share. One that is changed is another one: the old takes no new call and is closed once its last has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from infra.database import TRANSIENT, Database
from infra.errors import StartError
from smsgateway.carrier_directory import NOTHING, TablesReader
from smsgateway.carriers.accounts import TableAccount
from smsgateway.carriers.base import Carrier
from smsgateway.queues import Queue
from smsgateway.route_keeping import routing_of
from smsgateway.routing import Routing
from smsgateway.schema import Mode
from smsgateway.store.routing import AccountRow, Tables
from workers.account import AccountGate
from workers.limits import CallLimit, RateLimit
from workers.metrics import TYPE_NAMES
from workers.settings import Settings
from workers.turns import Slots

log = structlog.get_logger(__name__)

# An account that cannot be set up is tried again so often: the secret that it names may come later.
_TRY_AGAIN_SECONDS = 30.0
# Calls still under way are waited for, and then this much longer.
_CLOSE_MARGIN_SECONDS = 30.0
# What is assumed of a call where no account tells it.
_CALL_SECONDS = 60.0


class Account:
    """An open account.

    Parameters: `kind` the name of its kind; `made_of` its settings, None: they are the environment's.
    """

    def __init__(
        self,
        carrier: Carrier,
        settings: Settings,
        *,
        kind: str,
        gate: AccountGate,
        made_of: Mapping[str, Any] | None = None,
    ) -> None:
        self.carrier = carrier
        self.kind = kind
        self.gate = gate
        self.made_of = made_of
        # Of its row; 0: the environment's.
        self.version = 0
        self.rate: RateLimit | None = None
        self.calls: CallLimit | None = None
        self.paused = False
        # Calls under way, and those about to be made.
        self.busy = 0
        self.retired_at: float | None = None
        self._settings = settings
        self._slots: dict[tuple[int, Mode], Slots[Queue]] = {}
        self._closed = False

    @property
    def account_id(self) -> str:
        """Our name of it."""
        return self.carrier.account_id

    @property
    def is_usable(self) -> bool:
        """Whether it is still what its row says, and not paused."""
        return self.retired_at is None and not self.paused

    def end_call(self) -> None:
        """A call has ended, or is not made after all."""
        self.busy -= 1

    @property
    def is_limited(self) -> bool:
        """Whether calls may have to wait for other workers' calls."""
        return self.rate is not None or self.calls is not None

    def slots(self, sms_type: int, mode: Mode) -> Slots[Queue]:
        """Calls of a type and mode in flight from this worker."""
        slots = self._slots.get((sms_type, mode))
        if slots is None:
            slots = self._slots[sms_type, mode] = Slots(self._settings.slots(sms_type))
            if self._closed:
                slots.close()
        return slots

    def close_slots(self) -> None:
        """Start no call any more."""
        self._closed = True
        for slots in self._slots.values():
            slots.close()

    def halt_limits(self) -> None:
        """Wait for no limit any more."""
        for limit in (self.rate, self.calls):
            if limit is not None:
                limit.halt()

    async def close_limits(self) -> None:
        """Wait for no limit any more, and leave them to others."""
        for limit in (self.rate, self.calls):
            if limit is not None:
                await limit.close()


Opened = Callable[[Account], None]
Closing = Callable[[Account], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Limits:
    """Limits of a brand, by the type that they are for."""

    rate: float
    burst: int
    limit: RateLimit


class Accounts:
    """Keeps up with the tables: `step` is a turn.

    Parameters: `worker` the name of this process; `default` the environment's account, None: there is none;
    `connections_max` calls of one account at a time; `opened` and `closing` are told of each account
    that comes and goes.
    """

    def __init__(
        self,
        database: Database,
        redis: Redis | RedisCluster,
        settings: Settings,
        *,
        worker: str,
        default: Carrier | None,
        connections_max: int,
        opened: Opened,
        closing: Closing,
    ) -> None:
        self._reader = TablesReader(database)
        self._redis = redis
        self._settings = settings
        self._worker = worker
        self._connections_max = connections_max
        self._opened = opened
        self._closing = closing
        self._tables: Tables = NOTHING
        self._default_carrier = default
        self._by_id: dict[str, Account] = {}
        self._retired: list[Account] = []
        self._limits: dict[tuple[int, int], _Limits] = {}
        self._failed_until = 0.0
        self._stopping = False
        # A carrier given instead of the settings' account has a name of its own.
        self._default = settings.carrier_account if default is None else default.account_id
        self.routing = Routing(default=self._default)

    async def begin(self) -> bool:
        """Open the environment's account and those of the table; False when the database does not answer: then `step`
        does it later, for without the rules nobody knows where a message belongs.
        """
        try:
            await self.step()
        except (*TRANSIENT, TimeoutError) as error:
            log.warning("carrier accounts not read yet", error=type(error).__name__)
            return False
        return True

    @property
    def all(self) -> list[Account]:
        """Every account that is open."""
        return list(self._by_id.values())

    @property
    def is_alone(self) -> bool:
        """Whether there is but one account, without limits or rules: nobody waits for anything that others need not."""
        if len(self._by_id) != 1 or self._limits or self.routing.has_rules:
            return False
        return not next(iter(self._by_id.values())).is_limited

    @property
    def call_seconds(self) -> float:
        """The longest time that a call may take."""
        return max((each.carrier.limits.call_timeout_s for each in self._by_id.values()), default=_CALL_SECONDS)

    @property
    def state(self) -> str:
        """For operators."""
        states = self.states
        if len(states) == 1 and "is paused" not in states.values():
            return next(iter(states.values()))
        return ", ".join(f"{account_id} {state}" for account_id, state in sorted(states.items()))

    @property
    def states(self) -> dict[str, str]:
        """The same of each account, by name."""
        return {each.account_id: "is paused" if each.paused else each.gate.state for each in self._by_id.values()}

    def usable(self, account_ids: Sequence[str]) -> list[Account]:
        """Of some accounts those that may be called, in their order, whether they rest or not."""
        return [
            account
            for account_id in account_ids
            if (account := self._by_id.get(account_id)) is not None and not account.paused
        ]

    def limits_of(self, brand_id: int, sms_type: int) -> list[RateLimit]:
        """The limits that a brand's messages of a type are under."""
        if not self._limits:
            return []
        return [
            found.limit for key in ((brand_id, sms_type), (brand_id, 0)) if (found := self._limits.get(key)) is not None
        ]

    async def step(self) -> None:
        """Look whether something has changed, and follow. Raises the database's errors."""
        changed = await self._reader.changed()
        if changed is not None or (self._failed_until and time.monotonic() >= self._failed_until):
            self._tables = changed or self._tables
            await self._follow(self._tables)
        await self._close_retired()

    def halt(self) -> None:
        """Start no call any more; who waits for one is told at once."""
        self._stopping = True
        for account in (*self._by_id.values(), *self._retired):
            account.close_slots()
            account.halt_limits()
        for found in self._limits.values():
            found.limit.halt()

    async def close(self) -> None:
        """Close every carrier but the environment's; calls under way end as UNKNOWN or RETRY."""
        self.halt()
        for found in self._limits.values():
            await found.limit.close()
        for account in (*self._by_id.values(), *self._retired):
            await account.close_limits()
            if account.carrier is not self._default_carrier:
                await account.carrier.aclose()
        self._by_id.clear()
        self._retired.clear()

    async def _follow(self, tables: Tables) -> None:
        self._failed_until = 0.0
        rows = {row.account_id: row for row in tables.accounts}
        known = dict(self._by_id)
        changed = [row for row in tables.accounts if _version(known.get(row.account_id)) != row.version]
        made = {row.account_id: await self._made(row, known.get(row.account_id)) for row in changed}
        # From here on nobody else runs until rules and accounts are those of one version.
        gone = [account for account in known.values() if account.version and account.account_id not in rows]
        for row in changed:
            account, old = made[row.account_id], known.get(row.account_id)
            if account is not None and account is old:
                old.halt_limits()
            elif old is not None:
                # Also when the new one cannot be set up: what is there is not what is wanted.
                gone.append(old)
        for account in gone:
            self._retire(account)
        for row in changed:
            account = made[row.account_id]
            if account is not None:
                account.version, account.paused = row.version, row.paused
                account.rate, account.calls = self._limits_of(row)
                self._add(account)
        default = self._default_carrier
        if default is not None and default.account_id not in self._by_id and default.account_id not in rows:
            self._add(self._environments(default))
        self._follow_limits(tables)
        self.routing = routing_of(tables, self._default)
        for account in gone:
            await account.close_limits()
            await self._closing(account)

    async def _made(self, row: AccountRow, known: Account | None) -> Account | None:
        """An account that is new or changed; the one known where its carrier stays the same; None: it cannot be."""
        try:
            described = await asyncio.to_thread(
                TableAccount, self._settings, row.kind, row.account_id, dict(row.settings)
            )
            if known is not None and known.made_of == described.resolved:
                return known
            carrier = described.open(connections_max=self._connections_max)
        except StartError as error:
            self._failed_until = time.monotonic() + _TRY_AGAIN_SECONDS
            log.error("CARRIER ACCOUNT CANNOT BE SET UP: nothing is sent by it", account=row.account_id, why=str(error))
            return None
        except Exception:
            # A kind of another package may raise anything; that is no reason to leave the other accounts behind.
            self._failed_until = time.monotonic() + _TRY_AGAIN_SECONDS
            log.exception("CARRIER ACCOUNT CANNOT BE SET UP: nothing is sent by it", account=row.account_id)
            return None
        gate = AccountGate(row.account_id, self._settings)
        return Account(carrier, self._settings, kind=row.kind, gate=gate, made_of=described.resolved)

    def _limits_of(self, row: AccountRow) -> tuple[RateLimit | None, CallLimit | None]:
        name = f"account:{row.account_id}"
        rate = calls = None
        if row.rate:
            rate = RateLimit(
                self._redis, name, rate=row.rate, burst=row.burst, lease_seconds=self._settings.limit_lease_seconds
            )
        if row.calls_max:
            calls = CallLimit(self._redis, name, worker=self._worker, limit=row.calls_max)
        return rate, calls

    def _environments(self, carrier: Carrier) -> Account:
        gate = AccountGate(carrier.account_id, self._settings)
        return Account(carrier, self._settings, kind=self._settings.carrier, gate=gate)

    def _add(self, account: Account) -> None:
        if self._stopping:
            account.close_slots()
            account.halt_limits()
        known = self._by_id.get(account.account_id)
        self._by_id[account.account_id] = account
        if known is not account:
            self._opened(account)

    def _retire(self, account: Account) -> None:
        del self._by_id[account.account_id]
        account.retired_at = time.monotonic()
        account.close_slots()
        account.halt_limits()
        account.gate.forget()
        self._retired.append(account)

    async def _close_retired(self) -> None:
        for account in list(self._retired):
            assert account.retired_at is not None
            patience = account.carrier.limits.call_timeout_s + _CLOSE_MARGIN_SECONDS
            if account.busy and time.monotonic() < account.retired_at + patience:
                continue
            self._retired.remove(account)
            if account.carrier is not self._default_carrier:
                await account.carrier.aclose()
            log.info("carrier account closed", account=account.account_id, calls=account.busy)

    def _follow_limits(self, tables: Tables) -> None:
        wanted = {(row.brand_id, row.sms_type): row for row in tables.limits}
        for key, found in list(self._limits.items()):
            row = wanted.get(key)
            if row is None or (row.rate, row.burst) != (found.rate, found.burst):
                del self._limits[key]
                found.limit.halt()
        for key, row in wanted.items():
            if key not in self._limits:
                limit = RateLimit(
                    self._redis,
                    f"brand:{row.brand_id}:{row.sms_type}",
                    rate=row.rate,
                    burst=row.burst,
                    lease_seconds=self._settings.limit_lease_seconds,
                )
                self._limits[key] = _Limits(row.rate, row.burst, limit)


def _version(account: Account | None) -> int | None:
    """The version of a row's account; of none, and of the environment's, none that a row has."""
    return None if account is None or not account.version else account.version


def connections_of(settings: Settings) -> int:
    """Calls of one account at a time: one for every slot, since a call that waits for a connection would be a slot of
    another type lost, and two to pull receipts and replies.
    """
    return 2 * sum(settings.slots(sms_type) for sms_type in TYPE_NAMES) + 2
