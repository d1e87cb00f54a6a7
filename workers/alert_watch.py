"""Looks for what people are to be alerted of, and has them told: once when it opens, once when it is over.

One worker at a time looks, now and then, beside the hot path. Should two look at once, each change is conditional
(`smsgateway.store.alerts`): whoever makes it writes the notices in the same transaction. What is written is delivered
by the relay of webhooks and by the mailer.

What cannot be seen for now (the cost centre or Redis is away) is not judged, so nothing opens and nothing recovers.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar
from zoneinfo import ZoneInfo

import structlog
from redis.exceptions import RedisError

from infra.database import Connection, Database
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_admin_pb2
from smsgateway import alerts
from smsgateway.alert_board import AlertBoard, Counts, bucket_of
from smsgateway.alert_texts import Notice, Text, tell
from smsgateway.alerts import HOUSE, Alert, AlertKind, Move, Observation, Rule, RuleBook, Verdict
from smsgateway.queues import Queues
from smsgateway.schema import ALERT_OPENED, ALERT_RECOVERED
from smsgateway.store import alerts as store
from smsgateway.store import outbox, parked, receipts, routing, webhooks
from smsgateway.store.alerts import Change
from workers.account import CARRIER_WORKS
from workers.accounts import Accounts
from workers.loops import OUTAGES
from workers.metrics import ALERT_NOTICES, ALERTS_OPEN, TYPE_NAMES
from workers.outcomes import OUTCOMES
from workers.settings import Settings

log = structlog.get_logger(__name__)

# Few enough to be judged in some milliseconds: messages of this worker wait for no longer than that.
_BRANDS_PER_PAGE = 250
_SLICE = 250
_BRAND_MAX = 2**63 - 1
# A worker that has told nothing for so many looks, and so many seconds, is gone.
_FRESH_LOOKS = 3
_FRESH_SECONDS_MIN = 10.0
_DELETED_AT_ONCE = 10_000
# Changes that one transaction makes, each with some letters and events.
_CHANGES_AT_ONCE = 250
_BalancePage = cost_center_admin_pb2.ListBalancesResponse
# What an alert that nothing was seen of is judged by; None: it is not watched any more.
T = TypeVar("T")
_Unseen = Callable[[Alert], Observation | None]


class BalanceLedger(Protocol):
    """What of the cost centre is called (`smsgateway.ledger_client.LedgerClient`)."""

    async def list_balances(self, *, page_size: int, page_token: str) -> _BalancePage: ...


@dataclass(slots=True)
class _Changes:
    """What one look changes, by how it is written."""

    begun: list[tuple[Change, bool]] = field(default_factory=list)
    opened: list[tuple[Change, Alert]] = field(default_factory=list)
    dropped: list[Change] = field(default_factory=list)
    eased: list[Change] = field(default_factory=list)
    worse: list[Change] = field(default_factory=list)
    recovered: list[tuple[Change, Alert]] = field(default_factory=list)
    withdrawn: list[tuple[Change, Alert]] = field(default_factory=list)
    count: int = 0

    def add(self, where: list[T], change: T) -> None:
        """Add one, so that they are counted."""
        where.append(change)
        self.count += 1


class AlertWatch:
    """Judges everything that rules watch. `step` is one look, `count` hands the counts of outcomes on.

    Parameters: `accounts` of this worker; `worker` the name of this process.
    """

    def __init__(
        self,
        *,
        database: Database,
        queues: Queues,
        board: AlertBoard,
        ledger: BalanceLedger,
        accounts: Accounts,
        identifiers: IdentifierSource,
        worker: str,
        settings: Settings,
    ) -> None:
        self._database = database
        self._queues = queues
        self._board = board
        self._ledger = ledger
        self._accounts = accounts
        self._identifiers = identifiers
        self._worker = worker
        self._settings = settings
        self._zone = ZoneInfo(settings.alert_time_zone)
        # Where the next look at balances goes on: a page, and the last brand before it.
        self._balances_from = ("", HOUSE)
        # Outcomes of buckets that nobody adds to any more.
        self._closed: dict[int, Counts] = {}

    async def count(self) -> None:
        """Hand on how messages of this process ended. Raises Redis' errors; what was counted is lost then."""
        await self._board.add_outcomes(OUTCOMES.take(), now=time.time())

    async def step(self) -> None:
        """One look. Raises the database's errors; what else is away is left out."""
        async with self._database.connection() as connection:
            OUTCOMES.wanted = await store.watches_failures(connection)
        await self._source("carriers told", self._tell_carriers())
        if not await self._on_duty():
            # Who looked before must not go on to tell what it saw then.
            ALERTS_OPEN.clear()
            return
        async with self._database.connection() as connection:
            book = RuleBook(await store.all_rules(connection))
            now = await store.clock(connection)
            await store.delete_old(connection, days=self._settings.alert_days, limit=_DELETED_AT_ONCE)
        await self._source("balances", self._balances(book, now))
        await self._source("failures", self._failures(book, now))
        await self._source("queues", self._queue_ages(book, now))
        await self._source("parked", self._parked(book, now))
        await self._source("carriers", self._carriers(book, now))
        async with self._database.connection() as connection:
            counts = await store.count_open(connection)
        for kind in AlertKind:
            ALERTS_OPEN.labels(kind.name.lower()).set(counts.get(kind, 0))

    async def _source(self, name: str, work: Awaitable[None]) -> None:
        """One thing that is away says nothing about the others."""
        try:
            await work
        except OUTAGES as error:
            log.warning("alerts not judged", source=name, error=type(error).__name__)

    async def _on_duty(self) -> bool:
        try:
            # A bit less than the time between two looks, so that who had it may have it again.
            seconds = self._settings.alert_seconds
            return await self._queues.take_duty("alerts", self._worker, ttl_ms=max(1, int(seconds * 900)))
        except (RedisError, OSError, TimeoutError):
            return True

    # What is seen.

    async def _balances(self, book: RuleBook, now: datetime) -> None:
        kinds = (AlertKind.LOW_BALANCE, AlertKind.EXPIRING)
        if not book.watches(*kinds):
            await self._judge([], kinds, now, unseen=_not_watched)
            return
        for _ in range(self._settings.alert_brand_pages_max):
            token, after = self._balances_from
            page = await self._ledger.list_balances(page_size=_BRANDS_PER_PAGE, page_token=token)
            last = page.balances[-1].brand_id if page.next_page_token and page.balances else _BRAND_MAX
            seen = _BalancesSeen(book, page)
            await self._judge(seen.observations, kinds, now, unseen=seen.unseen, after=after, last=last)
            self._balances_from = (page.next_page_token, last) if page.next_page_token else ("", HOUSE)
            if not page.next_page_token:
                return

    async def _failures(self, book: RuleBook, now: datetime) -> None:
        kind = AlertKind.FAILURES
        counts = await self._recent_outcomes() if book.watches(kind) else {}
        seen: list[Observation] = []
        for place, ((brand_id, sms_type), buckets) in enumerate(counts.items()):
            await _breathe(place)
            rule = book.find(brand_id, kind, sms_type)
            if rule is not None:
                within = bucket_of(time.time() - rule.minutes * 60)
                final, failed = (sum(each[place] for at, each in buckets if at >= within) for place in (0, 1))
                subject = TYPE_NAMES[sms_type]
                seen.append(alerts.failures(rule, brand_id=brand_id, final=final, failed=failed, subject=subject))

        def unseen(alert: Alert) -> Observation | None:
            rule = book.find(alert.brand_id, kind, _type_of(alert))
            if rule is None:
                return None
            return alerts.failures(rule, brand_id=alert.brand_id, final=0, failed=0, subject=alert.subject)

        await self._judge(seen, (kind,), now, unseen=unseen)

    async def _recent_outcomes(self) -> dict[tuple[int, int], list[tuple[int, tuple[int, int]]]]:
        """Outcomes by brand and type: (bucket, (final, failed)) of the longest window."""
        current = bucket_of(time.time())
        first = bucket_of(time.time() - 3_600)
        self._closed = {at: counts for at, counts in self._closed.items() if at >= first}
        recent: dict[int, Counts] = {}
        for at in range(first, current + 1):
            recent[at] = self._closed[at] if at in self._closed else await self._board.outcomes(at)
            # Another worker's clock may be a little behind.
            if at < current - 1:
                self._closed[at] = recent[at]
        found: defaultdict[tuple[int, int], list[tuple[int, tuple[int, int]]]] = defaultdict(list)
        for at, counts in recent.items():
            for place, (key, count) in enumerate(counts.items()):
                await _breathe(place)
                found[key].append((at, count))
        return found

    async def _queue_ages(self, book: RuleBook, now: datetime) -> None:
        kind = AlertKind.QUEUE_AGE
        oldest: defaultdict[tuple[int, int], float] = defaultdict(float)
        if book.watches(kind):
            queues = await self._queues.walk(limit=self._settings.walk_limit)
            for depth in await self._queues.depths(queues, now_ms=time.time_ns() // 1_000_000):
                key = depth.queue.brand_id, depth.queue.sms_type
                oldest[key] = max(oldest[key], depth.oldest_seconds)

        def of(brand_id: int, sms_type: int, seconds: float) -> Observation | None:
            rule = book.find(brand_id, kind, sms_type)
            if rule is None:
                return None
            return alerts.queue_age(rule, brand_id=brand_id, oldest_seconds=seconds, subject=TYPE_NAMES[sms_type])

        seen = [of(brand_id, sms_type, seconds) for (brand_id, sms_type), seconds in oldest.items()]
        await self._judge(
            [each for each in seen if each is not None],
            (kind,),
            now,
            unseen=lambda alert: of(alert.brand_id, _type_of(alert), 0.0),
        )

    async def _parked(self, book: RuleBook, now: datetime) -> None:
        rule = book.find(HOUSE, AlertKind.PARKED)
        seen: list[Observation] = []
        if rule is not None:
            async with self._database.connection() as connection:
                counts = {
                    "dispatch": await parked.count_dispatches(connection),
                    "outbox": await outbox.count_parked(connection),
                    "receipt": await receipts.count_parked(connection),
                    "webhook": await parked.count_webhook_events(connection),
                }
            seen = [alerts.parked(rule, what=what, count=count) for what, count in counts.items()]
        await self._judge(seen, (AlertKind.PARKED,), now, unseen=_not_watched)

    async def _tell_carriers(self) -> None:
        # Who is paused is not called because somebody wants it so.
        states = {each.account_id: CARRIER_WORKS if each.paused else each.gate.state for each in self._accounts.all}
        await self._board.tell_carriers(self._worker, states, now=time.time())

    async def _carriers(self, book: RuleBook, now: datetime) -> None:
        seen: list[Observation] = []
        low = book.find(HOUSE, AlertKind.CARRIER_LOW)
        if low is not None:
            async with self._database.connection() as connection:
                accounts = await routing.list_accounts(connection)
            seen = [
                alerts.carrier_low(
                    low,
                    account=each.account_id,
                    low=each.balance_low,
                    balance=each.balance,
                    alert=each.balance_alert,
                )
                for each in accounts
            ]
        await self._judge(seen, (AlertKind.CARRIER_LOW,), now, unseen=_not_watched)
        seen = []
        down = book.find(HOUSE, AlertKind.CARRIER_DOWN)
        if down is not None:
            fresh = max(self._settings.alert_seconds * _FRESH_LOOKS, _FRESH_SECONDS_MIN)
            states = await self._board.carriers(now=time.time(), fresh_seconds=fresh)
            seen = [
                alerts.carrier_down(down, account=account, states=workers, works=CARRIER_WORKS)
                for account, workers in states.items()
            ]
        await self._judge(seen, (AlertKind.CARRIER_DOWN,), now, unseen=_not_watched)

    # What is made of it.

    async def _judge(
        self,
        seen: Iterable[Observation],
        kinds: Sequence[AlertKind],
        now: datetime,
        *,
        unseen: _Unseen,
        after: int = -1,
        last: int = _BRAND_MAX,
    ) -> None:
        """Change the alerts of some kinds, and of the brands behind `after` up to `last`, to what was seen."""
        async with self._database.connection() as connection:
            current = {alert.key: alert for alert in await store.current(connection, kinds, after=after, last=last)}
        changes = _Changes()
        for place, observation in enumerate(seen):
            await _breathe(place)
            self._sort(changes, current.pop(observation.key, None), observation, now)
            changes = await self._write_many(changes, now)
        for alert in current.values():
            judged = unseen(alert)
            if judged is not None:
                self._sort(changes, alert, judged, now)
            elif alert.opened_at is None:
                changes.add(changes.dropped, _change_of(alert))
            else:
                changes.add(changes.withdrawn, (_change_of(alert), alert))
            changes = await self._write_many(changes, now)
        await self._write(changes, now)

    async def _write_many(self, changes: _Changes, now: datetime) -> _Changes:
        """Write changes once they are many; where the next ones are added."""
        if changes.count < _CHANGES_AT_ONCE:
            return changes
        await self._write(changes, now)
        return _Changes()

    def _sort(self, changes: _Changes, alert: Alert | None, seen: Observation, now: datetime) -> None:
        """Add what an observation changes."""
        move = alerts.move(alert, seen.verdict, now, seen.rule.hold)
        if move is Move.NOTHING:
            return
        if alert is None:
            alert_id = self._identifiers.new(seen.brand_id, int(now.timestamp() * 1_000))
            changes.add(changes.begun, (_change_to(seen, alert_id, seen.rule), move is Move.OPEN_NEW))
        elif move is Move.OPEN:
            changes.add(changes.opened, (_change_to(seen, alert.alert_id, seen.rule), alert))
        elif move is Move.DROP:
            changes.add(changes.dropped, _change_of(alert))
        elif move is Move.EASE:
            changes.add(changes.eased, _change_of(alert))
        elif move is Move.WORSEN:
            changes.add(changes.worse, _change_of(alert))
        else:
            changes.add(changes.recovered, (_change_to(seen, alert.alert_id, alert), alert))

    async def _write(self, changes: _Changes, now: datetime) -> None:
        """Write changes and, of those that this process made, what people are told."""
        notices: list[tuple[Change, Notice]] = []
        async with self._database.connection() as connection:
            if changes.begun:
                ours = await store.begin(connection, changes.begun, now)
                notices += [
                    (change, _notice(change, now)) for change, opened in changes.begun
                    if opened and change.alert_id in ours
                ]  # fmt: skip
            if changes.opened:
                ours = await store.open_begun(connection, [each for each, _ in changes.opened], now)
                notices += [
                    (change, _notice(change, alert.since))
                    for change, alert in changes.opened
                    if change.alert_id in ours
                ]
            if changes.dropped:
                await store.drop(connection, changes.dropped)
            if changes.eased:
                await store.ease(connection, changes.eased, now)
            if changes.worse:
                await store.worsen(connection, changes.worse)
            for ended, withdrawn in ((changes.recovered, False), (changes.withdrawn, True)):
                if ended:
                    ours = await store.recover(connection, [each for each, _ in ended], now, withdrawn=withdrawn)
                    notices += [
                        (change, _notice(change, alert.since, over_at=now, withdrawn=withdrawn))
                        for change, alert in ended
                        if change.alert_id in ours
                    ]
            if notices:
                await self._tell(connection, notices, now)
        for _, notice in notices:
            _report(notice)

    async def _tell(self, connection: Connection, notices: Sequence[tuple[Change, Notice]], now: datetime) -> None:
        events, letters = [], []
        for change, notice in notices:
            text = tell(notice, language=self._settings.alert_language, zone=self._zone)
            kind = ALERT_OPENED if notice.over_at is None else ALERT_RECOVERED
            if change.webhooks:
                told = _told(notice, text)
                events += [
                    (audience, change.alert_id, kind, now, told) for audience in sorted({HOUSE, change.brand_id})
                ]
            if self._settings.smtp_host:
                letters += [
                    (change.brand_id, f"{change.alert_id}-{kind}-{recipient}", recipient, text.title, text.body)
                    for recipient in change.recipients
                ]
            elif change.recipients:
                log.error("alert not told by mail: SMSBILL_SMTP_HOST is not set", alert_id=change.alert_id)
        if events:
            await webhooks.tell_alerts(connection, events)
        if letters:
            await store.add_mail(connection, letters)


class _BalancesSeen:
    """What a page of balances says."""

    def __init__(self, book: RuleBook, page: _BalancePage) -> None:
        self._book = book
        self._now = page.as_of.ToDatetime(tzinfo=UTC)
        self._brands = {balance.brand_id: balance.status for balance in page.balances}
        self.observations = [each for balance in page.balances for each in self._of(balance)]

    def _of(self, balance: cost_center_admin_pb2.BrandBalance) -> Iterable[Observation]:
        if balance.status == cost_center_admin_pb2.BRAND_STATUS_CLOSED:
            return
        low = self._book.find(balance.brand_id, AlertKind.LOW_BALANCE)
        if low is not None:
            age: timedelta = self._now - balance.created_at.ToDatetime(tzinfo=UTC)
            seen = alerts.low_balance(
                low,
                brand_id=balance.brand_id,
                available=balance.available,
                paid=balance.paid_last_7_days,
                age=age,
            )
            yield self._unless_suspended(seen)
        expiring = self._book.find(balance.brand_id, AlertKind.EXPIRING)
        if expiring is not None and balance.HasField("next_expiry_at"):
            seen = alerts.expiring(
                expiring,
                brand_id=balance.brand_id,
                expires_at=balance.next_expiry_at.ToDatetime(tzinfo=UTC),
                segments=balance.next_expiry_segments,
                now=self._now,
            )
            yield self._unless_suspended(seen)

    def _unless_suspended(self, seen: Observation) -> Observation:
        """Who may not send need not buy: nothing opens meanwhile, and nothing has got better."""
        if self._brands[seen.brand_id] != cost_center_admin_pb2.BRAND_STATUS_SUSPENDED:
            return seen
        return Observation(seen.brand_id, seen.kind, seen.subject, Verdict.NEITHER, seen.rule, seen.figures)

    def unseen(self, alert: Alert) -> Observation | None:
        """Of another end than the next one of a brand that is there: it came, or nothing is left of it."""
        rule = self._book.find(alert.brand_id, alert.kind)
        status = self._brands.get(alert.brand_id, cost_center_admin_pb2.BRAND_STATUS_CLOSED)
        if alert.kind is not AlertKind.EXPIRING or rule is None or status == cost_center_admin_pb2.BRAND_STATUS_CLOSED:
            return None
        return Observation(alert.brand_id, alert.kind, alert.subject, Verdict.GOOD, rule)


async def _breathe(place: int) -> None:
    """Let others go on after each slice of what may be long."""
    if place % _SLICE == _SLICE - 1:
        await asyncio.sleep(0)


def _not_watched(_: Alert) -> None:
    return None


def _type_of(alert: Alert) -> int:
    return next(number for number, name in TYPE_NAMES.items() if name == alert.subject)


def _change_to(seen: Observation, alert_id: str, heard: Rule | Alert) -> Change:
    return Change(
        seen.brand_id, alert_id, seen.kind, seen.subject, seen.figures, tuple(heard.recipients), heard.webhooks
    )


def _change_of(alert: Alert) -> Change:
    return Change(alert.brand_id, alert.alert_id, alert.kind, alert.subject, {}, alert.recipients, alert.webhooks)


def _notice(
    change: Change, since: datetime, *, over_at: datetime | None = None, withdrawn: bool = False
) -> Notice:  # fmt: skip
    return Notice(
        change.brand_id, change.kind, change.subject, since, change.figures, over_at=over_at, withdrawn=withdrawn
    )


def _what(notice: Notice) -> str:
    if notice.over_at is None:
        return "opened"
    return "withdrawn" if notice.withdrawn else "recovered"


def _told(notice: Notice, text: Text) -> dict[str, object]:
    over = notice.over_at
    return {
        "brand_id": notice.brand_id,
        "kind": notice.kind.name.lower(),
        "subject": notice.subject,
        "state": _what(notice),
        "since": notice.since.astimezone(UTC).isoformat(),
        "over_at": None if over is None else over.astimezone(UTC).isoformat(),
        "figures": dict(notice.figures),
        "title": text.title,
        "text": text.body,
    }


def _report(notice: Notice) -> None:
    what = _what(notice)
    ALERT_NOTICES.labels(notice.kind.name.lower(), what).inc()
    log.warning(
        f"alert {what}",
        brand_id=notice.brand_id,
        kind=notice.kind.name.lower(),
        subject=notice.subject,
        figures=dict(notice.figures),
    )
