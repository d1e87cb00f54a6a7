"""Tells brands what became of their messages: what waits for a webhook goes to its receiver, oldest first.

Each webhook is told by one worker at a time, one request after another, so that a receiver hears of a message's states
in order, and one that is slow or dead holds up itself alone. An event goes only after the receiver's answer, so it is
told at least once.

A request that fails lets the webhook rest, longer each time. What has waited too long is parked at a failure; so is an
event that the receiver refuses for its content again and again, when it stands alone (a request of several that is
refused so is halved until it does).
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from functools import partial

import structlog

from infra.crash_points import reach
from infra.database import Database
from smsgateway.carriers.http_calls import HttpAnswer
from smsgateway.store import webhooks as store
from smsgateway.store.webhooks import Key, Turn, Waiting, Webhook
from smsgateway.webhook_calls import GONE, WebhookCalls, is_refused_for_content, told, wanted_wait_s
from smsgateway.webhooks import body_of, headers_of, request_id_of
from workers.backoff import delay_seconds
from workers.loops import OUTAGES
from workers.metrics import WEBHOOK_EVENTS, WEBHOOK_REQUESTS, WEBHOOK_SECONDS
from workers.settings import Settings

log = structlog.get_logger(__name__)

# What a turn lasts beyond a request: the statements around it.
_TURN_MARGIN_SECONDS = 5.0
_ERROR_CHARACTERS_MAX = 200
_PARKED_AT_ONCE = 10_000


class WebhookRelay:
    """Delivers to all webhooks that are due, each in a task of its own.

    Parameters: `worker` the name of this process.
    """

    def __init__(self, database: Database, worker: str, settings: Settings) -> None:
        self._database = database
        self._worker = worker
        self._settings = settings
        self._calls = WebhookCalls(
            timeout_s=settings.webhook_call_seconds,
            connections_max=settings.webhook_connections,
            private_allowed=settings.webhook_private_addresses,
        )
        self._turn_seconds = settings.webhook_call_seconds + _TURN_MARGIN_SECONDS
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._stopping = False

    async def step(self) -> None:
        """Begin to deliver to webhooks that are due, as far as connections are free. Raises the database's errors."""
        free = self._settings.webhook_connections - len(self._tasks)
        if free <= 0 or self._stopping:
            return
        async with self._database.connection() as connection:
            # Those in hand may be among them: a turn taken is seen as due for a moment.
            keys = await store.due(connection, limit=free + len(self._tasks))
        for key in [key for key in keys if key not in self._tasks][:free]:
            task = asyncio.create_task(self._deliver(key), name="webhook")
            self._tasks[key] = task
            task.add_done_callback(partial(self._ended, key))

    async def close(self, seconds: float) -> None:
        """Begin nothing new, wait so long for the requests under way, then give them up: they are told again."""
        self._stopping = True
        tasks = list(self._tasks.values())
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=max(0.0, seconds))
            for task in pending:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._calls.aclose()

    def _ended(self, key: Key, _: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)

    async def _deliver(self, key: Key) -> None:
        """One turn of a webhook: request after request while more waits."""
        try:
            async with self._database.connection() as connection:
                turn = await store.take_turn(
                    connection,
                    key,
                    self._worker,
                    seconds=self._turn_seconds,
                    events_max=self._settings.webhook_events_max,
                )
            if turn is None:
                return
            for _ in range(self._settings.webhook_turn_requests):
                turn = await self._request(key, turn)
                if turn is None or self._stopping:
                    break
            async with self._database.connection() as connection:
                await store.end_turn(connection, key, self._worker)
        except OUTAGES as error:
            # The turn ends by itself.
            log.warning("webhook not served", brand_id=key[0], webhook_id=key[1], error=type(error).__name__)
        except Exception:
            log.exception("webhook not served", brand_id=key[0], webhook_id=key[1])

    async def _request(self, key: Key, turn: Turn) -> Turn | None:
        """Send one request; the turn as it is then, or None when nothing waits or the webhook has to rest."""
        async with self._database.connection() as connection:
            webhook = await store.load(connection, key)
            waiting = [] if webhook is None else await store.waiting(connection, webhook, limit=turn.events_max)
        if webhook is None or not waiting:
            return None
        error = ""
        answer: HttpAnswer | None = None
        started = time.perf_counter()
        reach("worker.webhook.calling")
        try:
            answer = await self._post(webhook, waiting)
        except Exception as failure:
            error = told(failure)
        WEBHOOK_SECONDS.observe(time.perf_counter() - started)
        reach("worker.webhook.called")
        if answer is not None and answer.success:
            return await self._delivered(key, turn, waiting)
        await self._failed(key, webhook, turn, waiting, answer, error)
        return None

    async def _post(self, webhook: Webhook, waiting: list[Waiting]) -> HttpAnswer:
        at = datetime.now(UTC)
        events = [each.event for each in waiting]
        body = body_of(webhook.brand_id, events, at, full_number=webhook.full_number)
        headers = headers_of(request_id_of(events), at, body, webhook.secrets_at(at))
        return await self._calls.post(webhook.url, headers, body)

    async def _delivered(self, key: Key, turn: Turn, waiting: list[Waiting]) -> Turn | None:
        events_max = self._settings.webhook_events_max
        async with self._database.connection() as connection:
            await store.delivered(
                connection,
                key,
                self._worker,
                [each.event.event_id for each in waiting],
                events_max=events_max,
                seconds=self._turn_seconds,
            )
        reach("worker.webhook.removed")
        WEBHOOK_REQUESTS.labels("taken").inc()
        WEBHOOK_EVENTS.labels("taken").inc(len(waiting))
        if len(waiting) < turn.events_max:
            return None
        return Turn(0, min(turn.events_max * 2, events_max))

    async def _failed(
        self, key: Key, webhook: Webhook, turn: Turn, waiting: list[Waiting], answer: HttpAnswer | None, error: str
    ) -> None:
        settings = self._settings
        content = answer is not None and is_refused_for_content(answer)
        gone = answer is not None and answer.status == GONE
        if answer is not None:
            error = f"HTTP status {answer.status}"
        WEBHOOK_REQUESTS.labels("gone" if gone else "refused" if answer is not None else "unanswered").inc()
        delay = delay_seconds(
            turn.failures + 1, base=settings.webhook_retry_base_seconds, longest=settings.webhook_retry_seconds_max
        )
        if answer is not None:
            delay = min(max(delay, wanted_wait_s(answer)), settings.webhook_retry_seconds_max)
        events_max, park = turn.events_max, ""
        if content and len(waiting) > 1:
            # One of them may be what it does not take.
            events_max = len(waiting) // 2
        elif content and waiting[0].attempts + 1 >= settings.webhook_tries_max:
            park = waiting[0].event.event_id
        async with self._database.connection() as connection:
            if gone:
                await store.disable(connection, key, webhook.url)
            await store.rest(
                connection,
                key,
                self._worker,
                [each.event.event_id for each in waiting],
                error=error[:_ERROR_CHARACTERS_MAX],
                delay_seconds=delay,
                events_max=events_max,
                park=park,
            )
            parked = await store.park_old(
                connection,
                key,
                age_seconds=settings.webhook_hours * 3_600,
                error=error[:_ERROR_CHARACTERS_MAX],
                limit=_PARKED_AT_ONCE,
            )
        parked += bool(park)
        if parked:
            WEBHOOK_EVENTS.labels("parked").inc(parked)
        write = log.error if parked or gone else log.warning
        write(
            "webhook disabled, its receiver is gone" if gone else "webhook rests",
            brand_id=key[0],
            webhook_id=key[1],
            error=error,
            failures=turn.failures + 1,
            seconds=round(delay, 1),
            parked=parked,
        )
