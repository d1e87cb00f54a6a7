"""Callbacks of the carrier accounts of the table, and how large the chunks of their batches are: both as the tables say
now.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import structlog

from infra.database import TRANSIENT, Database
from infra.errors import StartError
from infra.heartbeat import Heartbeat
from smsgateway.carrier_directory import NOTHING, TablesReader
from smsgateway.carriers.accounts import ChunkSizes, TableAccount
from smsgateway.http_app import ReceiptCallback, ReplyCallback
from smsgateway.receipts_intake import ReceiptIntake
from smsgateway.replies_intake import ReplyIntake
from smsgateway.route_keeping import routing_of
from smsgateway.routing import Routing
from smsgateway.settings import Settings
from smsgateway.store.routing import AccountRow, Tables

log = structlog.get_logger(__name__)

# An account that cannot be set up is tried again so often: the secret that it names may come later.
_TRY_AGAIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Made:
    """What was made of an account as it was at a version: its callbacks by path, and messages of a chunk."""

    version: int
    by_path: dict[str, ReceiptCallback]
    chunk: ChunkSizes


class AccountCallbacks:
    """Keeps up with the tables in a task of its own.

    Parameters: `default_chunk` what holds for a chunk that goes to the environment's account.
    """

    def __init__(
        self,
        database: Database,
        intake: ReceiptIntake,
        replies: ReplyIntake,
        settings: Settings,
        default_chunk: ChunkSizes,
        heartbeat: Heartbeat,
    ) -> None:
        self._reader = TablesReader(database)
        self._intake = intake
        self._replies = replies
        self._settings = settings
        self._default_chunk = default_chunk
        self._heartbeat = heartbeat
        self._tables: Tables = NOTHING
        self._routing = Routing()
        self._by_path: dict[str, ReceiptCallback] = {}
        self._chunks: dict[str, ChunkSizes] = {}
        # What each account was made of, so that one that has not changed stays as it is.
        self._made: dict[str, _Made] = {}
        self._failed_until = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read once, and keep up from then on; a database that is away is asked again."""
        await self._try_to_keep_up()
        self._task = asyncio.create_task(self._run(), name="carrier-accounts")

    async def close(self) -> None:
        """Stop keeping up."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._heartbeat.rest()

    def find(self, path: str) -> ReceiptCallback | None:
        """The callback of a path; None when it belongs to no account."""
        return self._by_path.get(path)

    def chunk_sizes(self, brand_id: int, sms_type: int) -> ChunkSizes:
        """Messages of a chunk of a brand's batch: as many as each account that it may take has in one call."""
        if not self._chunks:
            return self._default_chunk
        accounts = self._routing.accounts(brand_id, sms_type)
        sizes = [self._chunks.get(each, self._default_chunk) for each in accounts] or [self._default_chunk]
        return ChunkSizes(min(each.plain for each in sizes), min(each.personalised for each in sizes))

    async def _run(self) -> None:
        while True:
            self._heartbeat.touch()
            await asyncio.sleep(self._settings.routing_poll_seconds)
            await self._try_to_keep_up()

    async def _try_to_keep_up(self) -> None:
        try:
            await self._keep_up()
        except (*TRANSIENT, TimeoutError) as error:
            log.warning("carrier accounts not read", error=type(error).__name__)
        except Exception:
            log.exception("carrier accounts not read")

    async def _keep_up(self) -> None:
        changed = await self._reader.changed()
        now = asyncio.get_running_loop().time()
        if changed is None and not (self._failed_until and now >= self._failed_until):
            return
        self._tables = tables = changed or self._tables
        self._failed_until = 0.0
        made: dict[str, _Made] = {}
        for row in tables.accounts:
            known = self._made.get(row.account_id)
            if known is not None and known.version == row.version:
                made[row.account_id] = known
                continue
            try:
                made[row.account_id] = await asyncio.to_thread(self._make, row)
            except StartError as error:
                self._failed_until = now + _TRY_AGAIN_SECONDS
                log.error("carrier account cannot be set up", account=row.account_id, why=str(error))
            except Exception:
                # A kind of another package may raise anything; the other accounts need not suffer.
                self._failed_until = now + _TRY_AGAIN_SECONDS
                log.exception("carrier account cannot be set up", account=row.account_id)
        self._made = made
        self._routing = routing_of(tables, self._settings.carrier_account)
        self._chunks = {account_id: each.chunk for account_id, each in made.items()}
        self._by_path = {path: callback for each in made.values() for path, callback in each.by_path.items()}

    def _make(self, row: AccountRow) -> _Made:
        account = TableAccount(self._settings, row.kind, row.account_id, row.settings)
        path = f"/callbacks/{row.kind}/{row.account_id}"
        by_path: dict[str, ReceiptCallback] = {}
        if (receipts := account.callback()) is not None:
            by_path[f"{path}/report"] = ReceiptCallback(self._settings, row.kind, receipts, self._intake)
        if (replies := account.reply_callback()) is not None:
            by_path[f"{path}/reply"] = ReplyCallback(self._settings, row.kind, replies, self._replies)
        most = self._settings.batch_chunk_messages
        chunk = ChunkSizes(min(account.chunk_messages(), most), min(account.personalised_messages(), most))
        return _Made(row.version, by_path, chunk)
