"""Following a batch: its counts by state, and each message's end as it comes, until all messages are final.

Nothing announces what other processes change, so the records are looked at now and then: at most a tenth of the time of
each follower, however large its batch is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from infra import paging
from infra.database import Database
from infra.errors import not_found, overloaded, unavailable
from smsgateway.schema import MessageState
from smsgateway.settings import Settings
from smsgateway.store import listing
from smsgateway.store.listing import SeenEnd

FINAL_STATES: Final = frozenset(
    {
        MessageState.DELIVERED,
        MessageState.UNDELIVERED,
        MessageState.EXPIRED,
        MessageState.FAILED,
        MessageState.CANCELLED,
    }
)
_PAGE: Final = 1_000
# A look that took so long is followed by ten times as long without one.
_REST_PART: Final = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What is told at once. `ends` are messages that are final, each told once while a call lasts; `resume_token` where
    another call goes on; `done` that all are final and told.
    """

    accepted: int
    states: list[tuple[int, int]]
    ends: list[SeenEnd]
    resume_token: str
    done: bool


@dataclass(slots=True)
class _Page:
    """Messages between two ids that lie side by side; `told` has a bit for each that was told."""

    after: str
    last: str
    messages: int
    told: int = 0

    @property
    def complete(self) -> bool:
        return self.told.bit_count() == self.messages


class BatchFollower:
    """Follows batches for callers, `followers_max` at a time."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._followers = 0
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End all calls: they hear UNAVAILABLE and go on elsewhere."""
        self._stopping.set()

    async def follow(self, brand_id: int, batch_id: str, *, with_messages: bool, after: str) -> AsyncIterator[Progress]:
        """Tell how far a batch is, whenever that has changed, until it is done.

        `after`: the message id of a `resume_token`; empty begins. Raises NOT_FOUND (BATCH_NOT_FOUND),
        RESOURCE_EXHAUSTED (OVERLOADED), and UNAVAILABLE when this process stops.
        """
        with self._place():
            ends = _Ends(self._database, brand_id, batch_id, after)
            before: list[tuple[int, int]] | None = None
            while True:
                started = time.monotonic()
                accepted, states = await self._counted(brand_id, batch_id)
                done = all(state in FINAL_STATES for state, _ in states)
                if states != before:
                    # What is counted as final was final before the messages are read: none is missed at the end.
                    if with_messages:
                        async for page in ends.new():
                            yield Progress(accepted, states, page, ends.token, done=False)
                    yield Progress(accepted, states, [], ends.token, done)
                    before = states
                if done:
                    return
                await self._pause(time.monotonic() - started)

    async def _counted(self, brand_id: int, batch_id: str) -> tuple[int, list[tuple[int, int]]]:
        async with self._database.snapshot() as connection:
            batch = await listing.find_batch(connection, brand_id, batch_id)
            if batch is None:
                raise not_found("BATCH_NOT_FOUND", "there is no such batch")
            return batch.accepted, await listing.count_batch(connection, brand_id, batch_id)

    async def _pause(self, spent_seconds: float) -> None:
        try:
            async with asyncio.timeout(max(self._settings.follow_seconds, _REST_PART * spent_seconds)):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise unavailable("the service stops; call again with the resume_token")

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._followers >= self._settings.followers_max:
            raise overloaded("the room for followers", self._settings.followers_max)
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1


class _Ends:
    """The messages of a batch that are final, each once: pages that are told whole are read no more."""

    def __init__(self, database: Database, brand_id: int, batch_id: str, after: str) -> None:
        self._database = database
        self._brand_id = brand_id
        self._batch_id = batch_id
        self._begin = after
        self._pages: list[_Page] | None = None

    @property
    def token(self) -> str:
        """Where another call goes on: behind the first messages that are all told. Of those behind it some may be told
        again there.
        """
        last = self._begin
        for page in self._pages or ():
            if not page.complete:
                break
            last = page.last
        return paging.next_token(last)

    async def new(self) -> AsyncIterator[list[SeenEnd]]:
        """Those that were not told before, page by page."""
        if self._pages is None:
            self._pages = []
            async for page in self._found():
                self._pages.append(page)
        for page in self._pages:
            if page.complete:
                continue
            async with self._database.connection() as connection:
                ends = await listing.ends_of(
                    connection, self._brand_id, self._batch_id, after=page.after, last=page.last
                )
            new = [end for place, end in ends if not page.told >> place & 1]
            for place, _ in ends:
                page.told |= 1 << place
            if new:
                yield new

    async def _found(self) -> AsyncIterator[_Page]:
        after = self._begin
        while True:
            async with self._database.connection() as connection:
                messages, last = await listing.page_of_batch(
                    connection, self._brand_id, self._batch_id, after=after, limit=_PAGE
                )
            if not messages:
                return
            yield _Page(after, last, messages)
            after = last
