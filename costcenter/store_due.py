"""SQL that books the ends of packages in sets: many brands at once, without their packages passing through Python.

It comes to what `Book.book_due` comes to for brands of which no freeze has ended; a test compares the two. Ended
freezes are the book's: their segments go back line by line.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from costcenter.model import EntryKind
from infra import arrays
from infra.database import ThreadConnection

# Everything is read as it was before the statement. A moment before the brand's last record becomes that record's own;
# the records of a brand follow the ends of its packages, those of one end the packages' numbers; of a moment's balances
# the last counts.
BOOK_ENDED_PACKAGES = f"""
with due as materialized (
    select l.*, greatest(k.now, l.last_at) as until, k.now
    from unnest(%s::bigint[]) as b(brand_id)
    cross join (select %s::timestamptz as now) k
    cross join lateral (select * from costcenter.balance l where l.brand_id = b.brand_id offset 0) l
    where l.next_due_at <= greatest(k.now, l.last_at) and not exists (
        select from costcenter.freeze f
        where f.brand_id = l.brand_id and f.is_open and f.expires_at <= greatest(k.now, l.last_at)
    )
),
ended as materialized (
    select d.brand_id, d.now, d.total, d.frozen, p.place, p.package_id, p.segments,
        greatest(p.expires_at, d.last_at) as at,
        d.next_record_no + row_number() over queue - 1 as record_no, sum(p.segments) over queue as gone
    from due d
    cross join lateral (
        select p.ctid as place, p.package_id, p.expires_at, p.remaining - p.held as segments
        from costcenter.package_queue p
        where p.brand_id = d.brand_id and p.is_live and p.expires_at <= d.until and p.held < p.remaining offset 0
    ) p
    window queue as (partition by d.brand_id order by p.expires_at, p.package_id)
),
packages as (
    update costcenter.package_queue t set remaining = t.held, expired = t.expired + e.segments
    from ended e where t.ctid = e.place
),
entries as (
    insert into costcenter.entry (brand_id, record_no, at, booked_at, kind, package_id, segments, reference)
    select brand_id, record_no, at, greatest(at, now), {EntryKind.EXPIRE:d}, package_id, segments, '' from ended
    order by brand_id, record_no
),
points as (
    insert into costcenter.balance_history (brand_id, at, total, frozen)
    select brand_id, at, total - max(gone), frozen from ended group by brand_id, at, total, frozen
    on conflict (brand_id, at) do update set total = excluded.total, frozen = excluded.frozen
),
sums as (
    select brand_id, count(*) as packages, sum(segments) as segments, max(at) as at from ended group by brand_id
)
update costcenter.balance t set
    total = t.total - coalesce(s.segments, 0), last_at = coalesce(s.at, t.last_at),
    next_record_no = t.next_record_no + coalesce(s.packages, 0), next_due_at = least(
        (select min(p.expires_at) from costcenter.package_queue p
         where p.brand_id = d.brand_id and p.is_live and p.expires_at > d.until and p.held < p.remaining),
        (select f.expires_at from costcenter.freeze f
         where f.brand_id = d.brand_id and f.is_open order by f.expires_at limit 1)
    )
from due d left join sums s on s.brand_id = d.brand_id
where t.brand_id = d.brand_id
returning t.brand_id, coalesce(s.packages, 0), coalesce(s.segments, 0)::bigint
"""


def book_ended_packages(
    connection: ThreadConnection, brand_ids: Sequence[int], now: datetime
) -> dict[int, tuple[int, int]]:
    """Book the ends of packages that have come by `now`, a transaction's moment under the lane's lock.

    Returns how many packages lost something and how many segments, by brand, for those brands that had something due
    and no ended freeze.
    """
    rows = connection.execute(BOOK_ENDED_PACKAGES, (arrays.integers(brand_ids), now)).fetchall()
    return {row[0]: (row[1], row[2]) for row in rows}
