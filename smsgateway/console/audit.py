"""The log of changes: who changed what through the console, why, when, and what came of it.

A change is written down before it is tried and finished after. So none is made without a line, a line without an end is
one whose process died, and a form that is sent twice is one change.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import grpc
import structlog

from infra.authorization import Principal
from infra.database import TRANSIENT, Database
from infra.errors import Refusal
from infra.identifiers import IdentifierSource
from smsgateway.console.forms import Form
from smsgateway.store import console as store

log = structlog.get_logger(__name__)

# After an answer with one of these nobody knows whether the change was made; the same form settles it.
UNSETTLED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)
_TOLD_MAX = 500


class Outcome(enum.IntEnum):
    """What came of a change."""

    BEGUN = 1
    DONE = 2
    REFUSED = 3
    UNKNOWN = 4


class Action(enum.StrEnum):
    """What can be changed through the console, as the log names it."""

    SALE = "package sale"
    GRANT = "grant"
    CLAW_BACK = "claw back"
    RETURN = "package return"
    BRAND_CREATE = "brand create"
    BRAND_CHANGE = "brand change"
    TOKEN_CREATE = "token create"  # noqa: S105 - a name
    TOKEN_REVOKE = "token revoke"  # noqa: S105
    PARKED_RETRY = "parked retry"
    PARKED_DROP = "parked drop"
    BATCH_CANCEL = "batch cancel"
    BATCH_PAUSE = "batch pause"
    BATCH_RESUME = "batch resume"
    CAMPAIGN_CANCEL = "campaign cancel"
    CAMPAIGN_PAUSE = "campaign pause"
    CAMPAIGN_RESUME = "campaign resume"


@dataclass(frozen=True, slots=True)
class Made:
    """A change that was made; `before` when by an earlier send of the same form."""

    brand_id: int
    audit_id: str
    before: bool = False

    @property
    def path(self) -> str:
        """The page that tells of it."""
        return f"/audit/{self.brand_id}/{self.audit_id}"


class Audit:
    """Makes changes and writes the log."""

    def __init__(self, database: Database, identifiers: IdentifierSource) -> None:
        self._database = database
        self._identifiers = identifiers

    async def change(
        self,
        form: Form,
        who: Principal,
        action: Action,
        brand_id: int,
        asked: Mapping[str, str],
        call: Callable[[], Awaitable[Mapping[str, str]]],
        *,
        repeatable: bool = True,
    ) -> Made:
        """Make a change once, however often its form is sent.

        Parameters: `form` carries `request_id` and `reason`, read with the form's other fields before this; `brand_id`
        0 for what belongs to no brand; `asked` what is wanted, in words; `call` makes the change and tells what came of
        it; `repeatable` whether it may be made again with the same `request_id` to the same effect.

        Raises INVALID_ARGUMENT with all fields of the form that break their rules; ALREADY_EXISTS (FORM_SENT) when the
        form was sent before with other content, or cannot be tried again; what `call` raises; the database's errors,
        with nothing changed.
        """
        reason, request_id = form.reason(), form.identifier("request_id")
        form.check()
        wish = store.Wish(brand_id, request_id, who.token_id, who.name, action, asked, reason)
        audit_id = self._identifiers.new(brand_id, round(time.time() * 1_000))
        async with self._database.connection() as connection:
            begun = await store.begin_change(connection, audit_id, wish)
        if not begun.same:
            raise _sent("this form was sent before with other content; open it anew")
        if begun.outcome == Outcome.DONE:
            return Made(brand_id, begun.audit_id, before=True)
        if begun.attempts > 1 and not repeatable and begun.outcome != Outcome.REFUSED:
            raise _sent("this form was sent before; look whether it was done, and open it anew if not")
        try:
            told = await call()
        except Refusal as refusal:
            outcome = Outcome.UNKNOWN if refusal.code in UNSETTLED else Outcome.REFUSED
            await self._end(wish, begun.audit_id, outcome, {refusal.reason: refusal.message})
            raise
        await self._end(wish, begun.audit_id, Outcome.DONE, told)
        return Made(brand_id, begun.audit_id)

    async def _end(self, wish: store.Wish, audit_id: str, outcome: Outcome, told: Mapping[str, str]) -> None:
        short = {name: value[:_TOLD_MAX] for name, value in told.items()}
        log.info(
            "console change",
            action=wish.action,
            outcome=outcome.name.lower(),
            brand_id=wish.brand_id,
            token_id=wish.token_id,
            audit_id=audit_id,
        )
        try:
            async with self._database.connection() as connection:
                await store.end_change(connection, wish.brand_id, audit_id, outcome, short)
        except TRANSIENT as error:
            # The change stands as it is; its line says that it was begun.
            log.error("end of a change not written", audit_id=audit_id, error=type(error).__name__)


def _sent(why: str) -> Refusal:
    return Refusal(grpc.StatusCode.ALREADY_EXISTS, "FORM_SENT", why)
