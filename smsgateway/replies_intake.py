"""Taking in replies: stored with their brand, their opt-out and what webhooks are told of them, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from infra.crash_points import reach
from infra.database import Connection, Database
from infra.grouping import Grouper
from infra.heartbeat import Watchdog
from infra.identifiers import IdentifierSource, time_prefix
from smsgateway.carriers.base import CarrierReply
from smsgateway.metrics import GROUP_SIZE, REPLIES
from smsgateway.replies import OptOutWords, brand_by_extension
from smsgateway.schema import SuppressionKind
from smsgateway.settings import Settings
from smsgateway.settling import now_ms
from smsgateway.store import replies as store
from smsgateway.store import suppressions, webhooks
from smsgateway.store.replies import NewReply, Reference
from smsgateway.store.suppressions import Suppression

log = structlog.get_logger(__name__)

_GROUP = "replies"
_DAY_MS = 86_400_000
_SOURCE = "reply"
_NO_BRAND = 0


class ReplyIntake:
    """Stores replies, in groups. The same reply a second time changes nothing."""

    def __init__(
        self, database: Database, identifiers: IdentifierSource, settings: Settings, watchdog: Watchdog
    ) -> None:
        self._database = database
        self._identifiers = identifiers
        self._settings = settings
        self._words = OptOutWords(settings.reply_opt_out_words)
        self._grouper: Grouper[CarrierReply, str] = Grouper(
            self._store,
            group_max=settings.reply_group_max,
            queue_max=settings.reply_queue_max,
            name="queue of replies",
            heartbeat=watchdog.heartbeat("reply-groups"),
        )

    async def take(self, reply: CarrierReply) -> str:
        """Store a reply durably; return its id, empty when it was stored before.

        Raises the database's errors and RESOURCE_EXHAUSTED (OVERLOADED) when `reply_queue_max` replies wait; then the
        carrier is to send it again.
        """
        return await self._grouper.submit(reply)

    async def close(self) -> None:
        """Store what waits, and nothing new."""
        await self._grouper.close()

    async def _store(self, taken: list[CarrierReply]) -> Sequence[str]:
        GROUP_SIZE.labels(_GROUP).observe(len(taken))
        first = {_reference(reply): reply for reply in reversed(taken)}
        reach("gateway.reply.storing")
        async with self._database.connection() as connection:
            new = await store.take_new(connection, list(first), repeat_seconds=self._settings.reply_repeat_seconds)
            rows = await self._rows(connection, [reply for key, reply in first.items() if key in new])
            if rows:
                await store.insert(connection, rows)
                await suppressions.add(connection, self._suppressions(rows))
                await webhooks.tell_replies(
                    connection, [(row.brand_id, row.reply_id, row.received_at) for row in rows if row.brand_id]
                )
            reach("gateway.reply.committing")
        reach("gateway.reply.stored")
        stored = {(row.account, row.reference): row for row in rows}
        results = [stored.pop(_reference(reply), None) for reply in taken]
        for row in results:
            REPLIES.labels("repeated" if row is None else "assigned" if row.brand_id else "unassigned").inc()
            if row is not None and row.opt_out:
                log.info("opt-out stored", brand_id=row.brand_id, reply_id=row.reply_id, account=row.account)
        return ["" if row is None else row.reply_id for row in results]

    async def _rows(self, connection: Connection, replies: Sequence[CarrierReply]) -> list[NewReply]:
        if not replies:
            return []
        answered = await self._answered(connection, [(reply.mobile, reply.account_id) for reply in replies])
        at_ms = now_ms()
        rows = []
        for reply in replies:
            last_brand, message_id = answered.get((reply.mobile, reply.account_id), (_NO_BRAND, None))
            # An extension code says it for sure; the last message is a guess.
            by_code = brand_by_extension(reply.destination, self._settings.reply_extensions)
            brand_id = by_code or last_brand
            rows.append(
                NewReply(
                    brand_id=brand_id,
                    reply_id=self._identifiers.new(brand_id, at_ms),
                    account=reply.account_id,
                    reference=reply.reply_id,
                    mobile=reply.mobile,
                    destination=reply.destination,
                    text=reply.text,
                    part=reply.part,
                    opt_out=not reply.part and self._words.asks(reply.text),
                    message_id=message_id if brand_id == last_brand else None,
                    received_at=reply.received_at,
                )
            )
        return rows

    async def _answered(self, connection: Connection, asked: Sequence[Reference]) -> dict[Reference, tuple[int, str]]:
        settings = self._settings
        brand_ids = await store.brands(connection, limit=settings.reply_brands_max + 1)
        if len(brand_ids) > settings.reply_brands_max:
            log.warning("more brands than a reply's brand is looked for in", brands=settings.reply_brands_max)
            brand_ids = brand_ids[: settings.reply_brands_max]
        if not brand_ids:
            return {}
        since = time_prefix(max(0, now_ms() - round(settings.reply_days * _DAY_MS)))
        return await store.last_sent(connection, sorted(set(asked)), brand_ids, since=since)

    def _suppressions(self, rows: Sequence[NewReply]) -> list[Suppression]:
        unassigned = self._settings.reply_opt_out_unassigned
        return [
            Suppression(row.brand_id, row.mobile, SuppressionKind.OPT_OUT, _SOURCE, f"reply {row.reply_id}")
            for row in rows
            # Brand 0 of a suppression stands for all brands.
            if row.opt_out and (row.brand_id or unassigned)
        ]


def _reference(reply: CarrierReply) -> Reference:
    return reply.account_id, reply.reply_id
