"""The rules of all brands as a gateway knows them: kept in memory, read again within seconds when they change.

Bounds: at most `rules_kept_max` brands, signatures and templates are kept, those used last. Every
`rules_refresh_seconds` the next call that needs rules asks which brands' rules have changed, and waits for the answer;
so a change holds for every call that begins so long after it was committed. Changes that were
committed up to `_OVERLAP_SECONDS` after their moment are still seen; whatever happens, nothing is kept for longer than
`_KEPT_SECONDS`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from infra.database import Connection, Database
from infra.errors import StartError
from smsgateway.rules import (
    MARKETING,
    NOTIFICATION,
    VERIFICATION,
    Approval,
    BrandRules,
    Limits,
    QuietHours,
    SuffixRule,
    Template,
    minutes_of,
)
from smsgateway.sensitive_words import NO_WORDS, SensitiveWords
from smsgateway.settings import Settings
from smsgateway.store import sender_rules as store
from smsgateway.store.sender_rules import OwnRules
from smsgateway.store.suppressions import ALL_BRANDS
from smsgateway.templates import parse

log = structlog.get_logger(__name__)

_OVERLAP_SECONDS = 60.0
_KEPT_SECONDS = 600.0
# More changes than this between two looks: everything is read anew.
_CHANGES_MAX = 10_000
_WORDS_BYTES_MAX = 64 * 1024 * 1024


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Kept:
    rules: BrandRules
    changed_at: datetime | None
    weight: int
    until: float


class RuleBook:
    """Rules by brand, and the list of sensitive words.

    Parameters: `clock` tells the moment by which quiet hours and schedules are judged.
    """

    def __init__(self, database: Database, settings: Settings, clock: Callable[[], datetime] = _utc_now) -> None:
        self.clock = clock
        self._database = database
        self._settings = settings
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._loading: dict[int, asyncio.Task[_Kept]] = {}
        self._weight = 0
        self._everywhere = False
        self._seen: datetime | None = None
        self._fresh_until = 0.0
        self._look = asyncio.Lock()
        self._words = NO_WORDS
        self._words_version: tuple[int, int, int] | None = None

    @property
    def words(self) -> SensitiveWords:
        """The list of sensitive words as it was at the last look."""
        return self._words

    async def open(self) -> None:
        """Read the list of sensitive words. Raises `StartError` when it cannot be read."""
        path = self._settings.sensitive_words_file
        if path is None:
            return
        try:
            await self._read_words(path)
        except (OSError, ValueError) as error:
            raise StartError(
                f"the list of sensitive words cannot be read: {_told(error)}; correct SMSBILL_SENSITIVE_WORDS_FILE"
            ) from None

    async def rules_of(self, brand_id: int) -> BrandRules:
        """What holds for a brand. Raises the database's errors."""
        if time.monotonic() >= self._fresh_until:
            await self._refresh()
        kept = self._kept.get(brand_id)
        if kept is None or kept.until < time.monotonic():
            kept = await self._loaded(brand_id)
        else:
            self._kept.move_to_end(brand_id)
        return kept.rules

    # Looking for changes.

    async def _refresh(self) -> None:
        async with self._look:
            if time.monotonic() < self._fresh_until:
                return
            started = time.monotonic()
            async with self._database.connection() as connection:
                found = await store.changed(
                    connection, self._seen, overlap_seconds=_OVERLAP_SECONDS, limit=_CHANGES_MAX
                )
                everywhere = (await store.find(connection, ALL_BRANDS)).suppressed
            many = self._seen is not None and len(found) >= _CHANGES_MAX
            if many or everywhere != self._everywhere:
                self._everywhere = everywhere
                self._kept.clear()
                self._weight = 0
            for brand_id, changed_at in found:
                kept = self._kept.get(brand_id)
                if kept is not None and kept.changed_at != changed_at:
                    self._drop(brand_id)
            if found:
                self._seen = found[-1][1]
            if self._settings.sensitive_words_file is not None:
                await self._look_at_words(self._settings.sensitive_words_file)
            # From its start: what was committed after it is seen by the next look.
            self._fresh_until = started + self._settings.rules_refresh_seconds

    async def _loaded(self, brand_id: int) -> _Kept:
        """What is stored of a brand, read once for all calls that want it meanwhile."""
        task = self._loading.get(brand_id)
        if task is None:
            task = asyncio.ensure_future(self._load(brand_id))
            self._loading[brand_id] = task
            task.add_done_callback(lambda _: self._loading.pop(brand_id, None))
        return await asyncio.shield(task)

    async def _load(self, brand_id: int) -> _Kept:
        limit = self._settings.rules_per_brand_max
        async with self._database.snapshot() as connection:
            own = await store.find(connection, brand_id)
            kept = await _read(connection, brand_id, own, self._settings, limit)
        if self._everywhere and not kept.rules.suppressed:
            kept = replace(kept, rules=replace(kept.rules, suppressed=True))
        self._drop(brand_id)
        self._kept[brand_id] = kept
        self._weight += kept.weight
        while self._weight > self._settings.rules_kept_max and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))
        return kept

    def _drop(self, brand_id: int) -> None:
        kept = self._kept.pop(brand_id, None)
        if kept is not None:
            self._weight -= kept.weight

    # Sensitive words.

    async def _look_at_words(self, path: Path) -> None:
        """Read the list again when its file has changed; one that cannot be read leaves the old list in force."""
        try:
            version = await asyncio.to_thread(_version, path)
            if version != self._words_version:
                await self._read_words(path)
                log.info("sensitive words read", words=len(self._words))
        except (OSError, ValueError) as error:
            log.warning("the list of sensitive words cannot be read; the old one holds", error=_told(error))

    async def _read_words(self, path: Path) -> None:
        version = await asyncio.to_thread(_version, path)
        self._words = await asyncio.to_thread(_words_of, path, self._settings.sensitive_words_max)
        self._words_version = version


async def _read(connection: Connection, brand_id: int, own: OwnRules, settings: Settings, limit: int) -> _Kept:
    signatures: list[str] = []
    templates: dict[str, Template] = {}
    if own.changed_at is not None:
        signatures = [
            row.signature
            for row in await store.signatures(connection, brand_id, limit=limit)
            if row.approval == Approval.APPROVED
        ]
        templates = {
            row.template_id: Template(row.template_id, row.sms_type, parse(row.text), Approval(row.approval))
            for row in await store.templates(connection, brand_id, limit=limit)
        }
    rules = effective(own, settings, frozenset(signatures), templates)
    weight = 1 + len(signatures) + len(templates)
    return _Kept(rules, own.changed_at, weight, time.monotonic() + _KEPT_SECONDS)


def effective(
    own: OwnRules,
    settings: Settings,
    signatures: frozenset[str] = frozenset(),
    templates: dict[str, Template] | None = None,
) -> BrandRules:
    """What holds for a brand with these settings of its own.

    Parameters: `signatures` those that are approved; `templates` by id, in their order.
    """
    default = settings.sender_rules == "on"

    def holds(value: bool | None) -> bool:
        return default if value is None else value

    suffix = SuffixRule(own.suffix) if own.suffix else SuffixRule.APPENDED if default else SuffixRule.OFF
    limits = {}
    if holds(own.frequency):
        limits = {
            VERIFICATION: limits_from(own.verification_limits, settings.verification_limits),
            NOTIFICATION: limits_from(own.notification_limits, settings.notification_limits),
            MARKETING: limits_from(own.marketing_limits, settings.marketing_limits),
        }
    return BrandRules(
        signatures=signatures if holds(own.signatures) else None,
        must_match=holds(own.templates),
        templates=templates or {},
        suffix=suffix,
        suffix_text=settings.marketing_suffix,
        limits=limits,
        quiet=quiet_from(own, settings) if holds(own.quiet) else None,
        suppressed=own.suppressed,
    )


def limits_from(own: list[int] | None, default: str) -> Limits:
    """A brand's limits of a type, or those of the setting, such as `1,5,10`."""
    return Limits(*(own or [int(part) for part in default.split(",")]))


def quiet_from(own: OwnRules, settings: Settings) -> QuietHours:
    """A brand's quiet hours, each end its own or the setting's."""
    start = minutes_of(settings.quiet_from) if own.quiet_from is None else own.quiet_from
    end = minutes_of(settings.quiet_until) if own.quiet_until is None else own.quiet_until
    assert start is not None, "settings are checked when they are read"
    assert end is not None, "settings are checked when they are read"
    return QuietHours(start, end)


def _version(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_ino


def _words_of(path: Path, words_max: int) -> SensitiveWords:
    if path.stat().st_size > _WORDS_BYTES_MAX:
        raise ValueError(f"the file has more than {_WORDS_BYTES_MAX} bytes")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"the file is not UTF-8 (byte {error.start})") from None
    if len(lines) > words_max:
        raise ValueError(f"the file has more than {words_max} lines")
    return SensitiveWords(enumerate(lines, 1))


def _told(error: Exception) -> str:
    """What an operator is told; a word of the list is never part of it."""
    return f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error)
