"""What is left at the carriers: asked now and then, stored, told, and an alert once when it is little."""

from __future__ import annotations

import structlog
from redis.exceptions import RedisError

from infra.database import Database
from smsgateway.carriers.base import CarrierError, loggable
from smsgateway.queues import Queues
from smsgateway.store import routing as store
from workers.accounts import Account, Accounts
from workers.metrics import CARRIER_BALANCE, CARRIER_BALANCE_LOW
from workers.settings import Settings

log = structlog.get_logger(__name__)


class BalanceWatch:
    """Asks for the balances of the accounts of the table. One worker at a time; should two do, the alert is one."""

    def __init__(self, accounts: Accounts, database: Database, queues: Queues, worker: str, settings: Settings) -> None:
        self._accounts = accounts
        self._database = database
        self._queues = queues
        self._worker = worker
        self._seconds = settings.balance_seconds

    async def step(self) -> None:
        """One round. Raises the database's errors; the rest of the round is for the next."""
        if not await self._on_duty():
            # Who asked before must not go on to tell what it saw then.
            CARRIER_BALANCE.clear()
            CARRIER_BALANCE_LOW.clear()
            return
        for account in self._accounts.all:
            if account.version:
                await self._ask(account)

    async def _ask(self, account: Account) -> None:
        name = account.account_id
        try:
            balance = await account.carrier.balance()
        except CarrierError as error:
            log.warning("carrier tells no balance", account=name, code=error.code, error=loggable(str(error)))
            return
        async with self._database.connection() as connection:
            told = await store.set_balance(connection, name, balance)
        if told is None:
            return
        was_low, is_low, alert = told
        CARRIER_BALANCE.labels(name).set(balance)
        CARRIER_BALANCE_LOW.labels(name).set(is_low)
        if is_low and not was_low:
            log.error("CARRIER BALANCE LOW: buy more before it is empty", account=name, balance=balance, alert=alert)
        elif was_low and not is_low:
            log.warning("carrier balance is enough again", account=name, balance=balance, alert=alert)

    async def _on_duty(self) -> bool:
        try:
            # A bit less than the time between two rounds, so that who had it may have it again.
            return await self._queues.take_duty("balance", self._worker, ttl_ms=max(1, int(self._seconds * 900)))
        except (RedisError, OSError, TimeoutError):
            return True
