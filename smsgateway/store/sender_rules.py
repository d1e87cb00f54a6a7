"""SQL of brands' rules, signatures and templates. Whoever changes any of them touches the brand's row of `sender_rules`
first, which both serializes the changes and tells the gateways to read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from infra.database import Connection

# The moment is the clock's, not the transaction's: a gateway looks back for those that were committed late.
_TOUCH = """
insert into smsgateway.sender_rules (brand_id, changed_at) values (%s, clock_timestamp())
on conflict (brand_id) do update set changed_at = clock_timestamp()
"""

_PUT = """
insert into smsgateway.sender_rules
  (brand_id, signatures, templates, suffix, frequency, verification_limits, notification_limits, marketing_limits,
   quiet, quiet_from, quiet_until, changed_at)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp())
on conflict (brand_id) do update
set signatures = excluded.signatures, templates = excluded.templates, suffix = excluded.suffix,
    frequency = excluded.frequency, verification_limits = excluded.verification_limits,
    notification_limits = excluded.notification_limits, marketing_limits = excluded.marketing_limits,
    quiet = excluded.quiet, quiet_from = excluded.quiet_from, quiet_until = excluded.quiet_until,
    changed_at = excluded.changed_at
"""

_FIND = """
select signatures, templates, suffix, frequency, verification_limits, notification_limits, marketing_limits, quiet,
       quiet_from, quiet_until, suppressed, changed_at
from smsgateway.sender_rules
where brand_id = %s
"""

_CHANGED = """
select brand_id, changed_at from smsgateway.sender_rules
where changed_at > %s::timestamptz - make_interval(secs => %s)
order by changed_at
limit %s
"""

_PUT_SIGNATURE = """
insert into smsgateway.signature (brand_id, signature, approval, created_at, changed_at)
values (%s, %s, %s, now(), now())
on conflict (brand_id, signature) do update set approval = excluded.approval, changed_at = excluded.changed_at
returning brand_id, signature, approval, created_at, changed_at
"""
_LIST_SIGNATURES = """
select brand_id, signature, approval, created_at, changed_at from smsgateway.signature
where brand_id = %s and signature > %s
order by signature
limit %s
"""
_COUNT_SIGNATURES = "select count(*) from smsgateway.signature where brand_id = %s and signature <> %s"
_DELETE_SIGNATURE = "delete from smsgateway.signature where brand_id = %s and signature = %s"

_PUT_TEMPLATE = """
insert into smsgateway.template (brand_id, template_id, sms_type, text, approval, created_at, changed_at)
values (%s, %s, %s, %s, %s, now(), now())
on conflict (brand_id, template_id) do update
set sms_type = excluded.sms_type, text = excluded.text, approval = excluded.approval, changed_at = excluded.changed_at
returning brand_id, template_id, sms_type, text, approval, created_at, changed_at
"""
_TEMPLATE_COLUMNS = "brand_id, template_id, sms_type, text, approval, created_at, changed_at"
_FIND_TEMPLATE = f"select {_TEMPLATE_COLUMNS} from smsgateway.template where brand_id = %s and template_id = %s"
_LIST_TEMPLATES = f"""
select {_TEMPLATE_COLUMNS} from smsgateway.template
where brand_id = %s and template_id > %s
order by template_id
limit %s
"""
_COUNT_TEMPLATES = "select count(*) from smsgateway.template where brand_id = %s and template_id <> %s"
_DELETE_TEMPLATE = "delete from smsgateway.template where brand_id = %s and template_id = %s"


@dataclass(frozen=True, slots=True)
class OwnRules:
    """A brand's own settings; None: as the installation has it. Limits are messages in any minute, hour and day."""

    signatures: bool | None = None
    templates: bool | None = None
    suffix: int | None = None
    frequency: bool | None = None
    verification_limits: list[int] | None = None
    notification_limits: list[int] | None = None
    marketing_limits: list[int] | None = None
    quiet: bool | None = None
    quiet_from: int | None = None
    quiet_until: int | None = None
    suppressed: bool = False
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StoredSignature:
    """A signature as it stands in the table."""

    brand_id: int
    signature: str
    approval: int
    created_at: datetime
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class StoredTemplate:
    """A template as it stands in the table."""

    brand_id: int
    template_id: str
    sms_type: int
    text: str
    approval: int
    created_at: datetime
    changed_at: datetime


async def touch(connection: Connection, brand_id: int) -> None:
    """Lock a brand's rules until the caller commits, and have gateways read them again."""
    await connection.execute(_TOUCH, (brand_id,))


async def put(connection: Connection, brand_id: int, rules: OwnRules) -> None:
    """Replace a brand's own settings. The caller commits."""
    await connection.execute(
        _PUT,
        (
            brand_id,
            rules.signatures,
            rules.templates,
            rules.suffix,
            rules.frequency,
            rules.verification_limits,
            rules.notification_limits,
            rules.marketing_limits,
            rules.quiet,
            rules.quiet_from,
            rules.quiet_until,
        ),
    )


async def find(connection: Connection, brand_id: int) -> OwnRules:
    """A brand's own settings; all None for a brand without any."""
    row = await (await connection.execute(_FIND, (brand_id,))).fetchone()
    return OwnRules() if row is None else OwnRules(*row)


async def changed(
    connection: Connection, since: datetime | None, *, overlap_seconds: float, limit: int
) -> list[tuple[int, datetime]]:
    """(brand, moment) of rules changed since a moment less the overlap, oldest first; None: since ever."""
    cursor = await connection.execute(_CHANGED, (since or "-infinity", overlap_seconds, limit))
    return [(row[0], row[1]) for row in await cursor.fetchall()]


async def put_signature(connection: Connection, brand_id: int, signature: str, approval: int) -> StoredSignature:
    """Register a signature, or change whether it is approved. The caller commits."""
    row = await (await connection.execute(_PUT_SIGNATURE, (brand_id, signature, approval))).fetchone()
    assert row is not None
    return StoredSignature(*row)


async def signatures(connection: Connection, brand_id: int, *, after: str = "", limit: int) -> list[StoredSignature]:
    """A page of a brand's signatures by name."""
    cursor = await connection.execute(_LIST_SIGNATURES, (brand_id, after, limit))
    return [StoredSignature(*row) for row in await cursor.fetchall()]


async def other_signatures(connection: Connection, brand_id: int, signature: str) -> int:
    """How many signatures a brand has beside this one."""
    return await _count(connection, _COUNT_SIGNATURES, (brand_id, signature))


async def delete_signature(connection: Connection, brand_id: int, signature: str) -> bool:
    """Forget a signature; whether there was one. The caller commits."""
    return (await connection.execute(_DELETE_SIGNATURE, (brand_id, signature))).rowcount > 0


async def put_template(
    connection: Connection, brand_id: int, template_id: str, sms_type: int, text: str, approval: int
) -> StoredTemplate:
    """Register a template, or replace it. The caller commits."""
    cursor = await connection.execute(_PUT_TEMPLATE, (brand_id, template_id, sms_type, text, approval))
    row = await cursor.fetchone()
    assert row is not None
    return StoredTemplate(*row)


async def find_template(connection: Connection, brand_id: int, template_id: str) -> StoredTemplate | None:
    """One template, or None."""
    row = await (await connection.execute(_FIND_TEMPLATE, (brand_id, template_id))).fetchone()
    return None if row is None else StoredTemplate(*row)


async def templates(connection: Connection, brand_id: int, *, after: str = "", limit: int) -> list[StoredTemplate]:
    """A page of a brand's templates by id."""
    cursor = await connection.execute(_LIST_TEMPLATES, (brand_id, after, limit))
    return [StoredTemplate(*row) for row in await cursor.fetchall()]


async def other_templates(connection: Connection, brand_id: int, template_id: str) -> int:
    """How many templates a brand has beside this one."""
    return await _count(connection, _COUNT_TEMPLATES, (brand_id, template_id))


async def delete_template(connection: Connection, brand_id: int, template_id: str) -> bool:
    """Forget a template; whether there was one. The caller commits."""
    return (await connection.execute(_DELETE_TEMPLATE, (brand_id, template_id))).rowcount > 0


async def _count(connection: Connection, query: str, parameters: Sequence[object]) -> int:
    row = await (await connection.execute(query, parameters)).fetchone()
    assert row is not None
    return int(row[0])
