"""SQL that recomputes the ledger from its records: checks over a range of brands.

Every check gives (check, brand_id, subject, figure, expected, found) of what differs, and nothing else. The range is a
`between` and not a list, so that PostgreSQL can read whole tables in their order where a range is a large part of them:
a brand's rows lie scattered among those of all others. What several checks look at is read once for all of them.

Rows that fit are sorted out by one comparison of a few figures; only for those that do not are the figures set out one
by one. A freeze or payment out of a single package, as most are, is compared by its package's number; lines are laid
end to end only where there are several.
"""

from __future__ import annotations

from costcenter.model import EntryKind, OrderStatus, PackageSource, ReceiptState

# The records of a range as the checks see them. A freeze or payment has its package and segments in `package_id` and
# `lines` where it has but one line; else they are in `packages` and `counts`.
_RECORDS = {
    "f": """
f as materialized (
    select brand_id, order_no, sms_type, segments, paid, released, timed_out, created_at, expires_at,
        case when cardinality(line_packages) = 1 then line_packages[1] end as package_id,
        case when cardinality(line_packages) = 1 then line_segments[1]
            else (select sum(s) from unnest(line_segments) s)::bigint end as lines,
        case when cardinality(line_packages) <> 1 then line_packages end as packages,
        case when cardinality(line_packages) <> 1 then line_segments end as counts
    from costcenter.freeze where brand_id between %(first)s and %(last)s
)""",
    "y": """
y as materialized (
    select brand_id, payment_no, order_no, request_id, sms_type, segments, refunded, status, created_at, record_no,
        case when cardinality(line_packages) = 1 then line_packages[1] end as package_id,
        case when cardinality(line_packages) = 1 then line_segments[1]
            else (select sum(s) from unnest(line_segments) s)::bigint end as lines,
        case when cardinality(line_packages) <> 1 then line_packages end as packages,
        case when cardinality(line_packages) <> 1 then line_segments end as counts
    from costcenter.payment where brand_id between %(first)s and %(last)s
)""",
    "r": """
r as materialized (
    select * from costcenter.refund where brand_id between %(first)s and %(last)s
)""",
    "rl": """
rl as materialized (
    select r.brand_id, r.payment_no, r.message_id, r.created_at, l.package_id, l.segments, l.target
    from r, unnest(r.line_packages, r.line_segments, r.line_targets) as l(package_id, segments, target)
)""",
    "e": """
e as materialized (
    select * from costcenter.entry where brand_id between %(first)s and %(last)s
)""",
    "p": """
p as materialized (
    select * from costcenter.package_queue where brand_id between %(first)s and %(last)s
)""",
}
# Those of several lines alone.
_LINED_FREEZES = _RECORDS["f"].removesuffix(")") + "    and cardinality(line_packages) <> 1\n)"


def _small(column: str) -> str:
    """Segments of one record in four bytes, so that sums over millions of groups need no decimals.

    A record has at most a billion; one that does not fit is no right one, and cut short it is as wrong as before.
    """
    return f"greatest(least({column}, 2147483647), -2147483647)::int"


# What of lines, laid end to end, lies between two places; both in their order.
_CUT = """
select array_agg(part.package_id order by part.place) as packages,
    array_agg(part.segments order by part.place) as counts
from (
    select laid.package_id, laid.place,
        least(laid.upto, {end}) - greatest(laid.upto - laid.segments, {start}) as segments
    from (
        select u.package_id, u.segments, u.place, (sum(u.segments) over (order by u.place))::bigint as upto
        from unnest({packages}, {counts}) with ordinality as u(package_id, segments, place)
    ) laid
) part
where part.segments > 0
"""

# What every record says of each package, against the package's figures.
_PACKAGES = f"""
with
entries as (
    select brand_id, package_id,
        sum(segments) filter (where kind = {EntryKind.GRANT:d}) as granted,
        sum(segments) filter (where kind = {EntryKind.CLAW_BACK:d}) as clawed_back,
        sum(segments) filter (where kind in ({EntryKind.EXPIRE:d}, {EntryKind.EXPIRE_BACK:d})) as expired
    from e group by brand_id, package_id
),
paid as (
    select brand_id, package_id, sum(segments) as segments
    from (
        select brand_id, package_id, sum(lines) as segments from y where package_id is not null
        group by brand_id, package_id
        union all
        select y.brand_id, l.package_id, sum(l.segments)
        from y, unnest(y.packages, y.counts) as l(package_id, segments) where y.package_id is null
        group by y.brand_id, l.package_id
    ) lines
    group by brand_id, package_id
),
refunded as (
    -- What went to a package of its own is that package's grant.
    select brand_id, package_id, sum(segments) as segments from rl where coalesce(target, package_id) = package_id
    group by brand_id, package_id
),
held as (
    select brand_id, package_id, sum(segments) as segments
    from (
        select brand_id, package_id, segments - paid - released - timed_out as segments from f
        where package_id is not null and paid + released + timed_out < segments
        union all
        select f.brand_id, l.package_id,
            greatest(0, least(l.upto, f.segments - f.released - f.timed_out) - greatest(l.upto - l.segments, f.paid))
        from f
        cross join lateral (
            select u.package_id, u.segments, sum(u.segments) over (order by u.place) as upto
            from unnest(f.packages, f.counts) with ordinality as u(package_id, segments, place)
        ) l
        where f.package_id is null and f.paid + f.released + f.timed_out < f.segments
    ) lines
    group by brand_id, package_id
),
figures as (
    select p.*,
        coalesce(e.granted, 0) - coalesce(e.clawed_back, 0) as granted_expected,
        coalesce(y.segments, 0) as paid_expected,
        coalesce(r.segments, 0) as refunded_expected,
        coalesce(e.expired, 0) as expired_expected,
        coalesce(h.segments, 0) as held_expected
    from p
    left join entries e using (brand_id, package_id)
    left join paid y using (brand_id, package_id)
    left join refunded r using (brand_id, package_id)
    left join held h using (brand_id, package_id)
)
select 'package', brand_id, 'package ' || package_id, v.figure, v.expected::text, v.found::text
from figures cross join lateral (values
    ('granted', granted_expected, granted),
    ('paid', paid_expected, paid),
    ('refunded', refunded_expected, refunded),
    ('expired', expired_expected, expired),
    ('held', held_expected, held),
    ('remaining', granted_expected - paid_expected + refunded_expected - expired_expected, remaining)
) as v(figure, expected, found)
where v.expected <> v.found
union all
select 'record without package', brand_id, 'package ' || package_id, 'package', 'a package', 'none'
from (
    select brand_id, package_id from entries union select brand_id, package_id from paid
    union select brand_id, package_id from refunded union select brand_id, package_id from held
) named
where not exists (
    select from p where p.brand_id = named.brand_id and p.package_id = named.package_id
)
"""

# Payments, releases and ends of each freeze against its figures and lines, its time and its packages. Nothing is frozen
# from a package that has ended, is not there yet, or may not pay the type.
_FREEZES = f"""
with
settled as (
    select brand_id, order_no, sum(paid) as paid, sum(released) as released, sum(timed_out) as timed_out,
        sum(requested) as requested,
        min(package_id) as lowest, max(package_id) as highest, bool_or(has_lines) as has_lines,
        min(paid_at) as first_at, greatest(max(paid_at), max(released_at)) as last_at,
        max(timed_out_at) as timed_out_at, min(sms_type) as low_type, max(sms_type) as high_type,
        count(paid_at) as payments, count(*) filter (where released + timed_out > 0) as entries
    from (
        select brand_id, order_no, {_small("segments")} as paid, 0 as released, 0 as timed_out, 0 as requested,
            package_id, package_id is null as has_lines, created_at as paid_at, null::timestamptz as released_at,
            null::timestamptz as timed_out_at, sms_type
        from y
        union all
        select brand_id, reference, 0, case kind when {EntryKind.RELEASE:d} then {_small("segments")} else 0 end,
            case kind when {EntryKind.TIME_OUT:d} then {_small("segments")} else 0 end, 0, package_id, false, null,
            case kind when {EntryKind.RELEASE:d} then at end, case kind when {EntryKind.TIME_OUT:d} then at end, null
        from e where kind in ({EntryKind.RELEASE:d}, {EntryKind.TIME_OUT:d})
        union all
        select brand_id, order_no, 0, 0, 0, {_small("released")}, null, false, null, null, null, null
        from costcenter.release_request where brand_id between %(first)s and %(last)s
    ) records
    group by brand_id, order_no
),
-- What was released and what timed out of lines, by the freeze's figures and by the entries.
back_lines as (
    select f.brand_id, f.order_no, k.kind, l.package_id, l.segments
    from f
    cross join lateral (values
        ({EntryKind.TIME_OUT:d}, f.segments - f.released - f.timed_out, f.segments - f.released),
        ({EntryKind.RELEASE:d}, f.segments - f.released, f.segments)
    ) as k(kind, low, high)
    cross join lateral ({_CUT.format(packages="f.packages", counts="f.counts", start="k.low", end="k.high")}) cut
    cross join lateral unnest(cut.packages, cut.counts) as l(package_id, segments)
    where f.package_id is null and f.released + f.timed_out > 0
),
back_entries as (
    select e.brand_id, e.reference as order_no, e.kind, e.package_id, sum(e.segments)::bigint as segments
    from e join f on f.brand_id = e.brand_id and f.order_no = e.reference
    where e.kind in ({EntryKind.RELEASE:d}, {EntryKind.TIME_OUT:d}) and f.package_id is null
    group by e.brand_id, e.reference, e.kind, e.package_id
)
select v.what, coalesce(f.brand_id, s.brand_id), coalesce(f.order_no, s.order_no), v.figure, v.expected, v.found
from f
full join settled s on s.brand_id = f.brand_id and s.order_no = f.order_no
left join p on p.brand_id = f.brand_id and p.package_id = f.package_id
cross join lateral (values
    ('payment without freeze', 'freeze', 'a freeze', 'none', f.order_no is null and s.payments > 0),
    ('entry without freeze', 'freeze', 'a freeze', 'none', f.order_no is null and s.entries > 0),
    ('release request without freeze', 'freeze', 'a freeze', 'none',
        f.order_no is null and s.payments + s.entries = 0),
    ('freeze', 'paid', coalesce(s.paid, 0)::text, f.paid::text, f.paid <> coalesce(s.paid, 0)),
    ('freeze', 'released', coalesce(s.released, 0)::text, f.released::text, f.released <> coalesce(s.released, 0)),
    ('freeze', 'released on request', coalesce(s.requested, 0)::text, f.released::text,
        f.released <> coalesce(s.requested, 0)),
    ('freeze', 'timed_out', coalesce(s.timed_out, 0)::text, f.timed_out::text,
        f.timed_out <> coalesce(s.timed_out, 0)),
    ('freeze', 'lines', f.segments::text, f.lines::text, f.segments is distinct from f.lines),
    ('freeze', 'package of its records', f.package_id::text, 'another',
        s.has_lines and f.package_id is not null or s.lowest <> f.package_id or s.highest <> f.package_id),
    ('freeze', 'payments', 'from ' || f.created_at, 'at ' || s.first_at, s.first_at < f.created_at),
    ('freeze', 'payments and releases', 'before ' || f.expires_at, 'at ' || s.last_at, s.last_at >= f.expires_at),
    ('freeze', 'end', 'at ' || f.expires_at, 'at ' || s.timed_out_at, s.timed_out_at <> f.expires_at),
    ('freeze', 'type of its payments', f.sms_type::text, 'another',
        s.low_type <> f.sms_type or s.high_type <> f.sms_type),
    ('freeze', 'package ' || f.package_id, 'one that may be frozen from', 'ended at ' || p.expires_at,
        p.expires_at <= f.created_at),
    ('freeze', 'package ' || f.package_id, 'one that may be frozen from', 'made at ' || p.created_at,
        p.created_at > f.created_at),
    ('freeze', 'package ' || f.package_id, 'one that may be frozen from', 'of other types',
        cardinality(p.sms_types) > 0 and f.sms_type <> all(p.sms_types))
) as v(what, figure, expected, found, wrong)
where v.wrong and (f.order_no is not null or v.what <> 'freeze')
  and (f.order_no is null
    or (f.paid, f.released, f.released, f.timed_out) is distinct from
        (coalesce(s.paid, 0), coalesce(s.released, 0), coalesce(s.requested, 0), coalesce(s.timed_out, 0))
    or f.segments is distinct from f.lines
    or s.lowest <> f.package_id or s.highest <> f.package_id or (s.has_lines and f.package_id is not null)
    or s.first_at < f.created_at or s.last_at >= f.expires_at or s.timed_out_at <> f.expires_at
    or s.low_type <> f.sms_type or s.high_type <> f.sms_type
    or p.expires_at <= f.created_at or p.created_at > f.created_at or cardinality(p.sms_types) > 0)
union all
select 'freeze', coalesce(l.brand_id, b.brand_id), coalesce(l.order_no, b.order_no),
    case coalesce(l.kind, b.kind) when {EntryKind.RELEASE:d} then 'released' else 'timed out' end
        || ' of package ' || coalesce(l.package_id, b.package_id),
    coalesce(b.segments, 0)::text, coalesce(l.segments, 0)::text
from back_lines l
full join back_entries b on b.brand_id = l.brand_id and b.order_no = l.order_no and b.kind = l.kind
    and b.package_id = l.package_id
where l.segments is distinct from b.segments
union all
select 'freeze', l.brand_id, l.order_no, 'package ' || l.package_id, 'one that may be frozen from', v.found
from (
    select f.brand_id, f.order_no, f.sms_type, f.created_at, u.package_id
    from f, unnest(f.packages) as u(package_id) where f.package_id is null
) l
join p on p.brand_id = l.brand_id and p.package_id = l.package_id
cross join lateral (values
    ('ended at ' || p.expires_at, p.expires_at <= l.created_at),
    ('made at ' || p.created_at, p.created_at > l.created_at),
    ('of other types', cardinality(p.sms_types) > 0 and l.sms_type <> all(p.sms_types))
) as v(found, wrong)
where v.wrong
"""

# Refunds, lines, keys and status of each payment. Payments take from the front of their freeze, refunds from the back
# of their payment, each in the order of the records.
_PAYMENTS = f"""
with
refunded as (
    select brand_id, payment_no, sum(segments)::bigint as segments, min(line_packages[1]) as lowest,
        max(line_packages[1]) as highest, max(cardinality(line_packages)) as lines, min(created_at) as first_at
    from r group by brand_id, payment_no
),
keys as (
    select brand_id, request_id,
        -- The reply that is kept begins with the payment's number (SmsSendPayResponse, field 1).
        encode(substring(reply from 3 for 32), 'escape') as payment_no
    from costcenter.payment_key where brand_id between %(first)s and %(last)s
),
laid as (
    select y.brand_id, y.payment_no, coalesce(y.packages, array[y.package_id]) as packages,
        coalesce(y.counts, array[y.lines]) as counts, f.packages as of_packages, f.counts as of_counts,
        (sum(y.segments) over w)::bigint - y.segments as low, (sum(y.segments) over w)::bigint as high
    from y join f using (brand_id, order_no)
    where f.package_id is null
    window w as (partition by y.brand_id, y.order_no order by y.record_no)
),
laid_refunds as (
    select r.brand_id, r.payment_no, r.message_id, r.line_packages as packages, r.line_segments as counts,
        y.packages as of_packages, y.counts as of_counts,
        y.segments - (sum(r.segments) over w)::bigint as low,
        y.segments - (sum(r.segments) over w)::bigint + r.segments as high
    from r join y using (brand_id, payment_no)
    where y.package_id is null
    window w as (partition by r.brand_id, r.payment_no order by r.record_no)
)
select v.what, coalesce(y.brand_id, k.brand_id), coalesce(y.payment_no, k.payment_no), v.figure, v.expected, v.found
from y
full join keys k on k.brand_id = y.brand_id and k.request_id = y.request_id
left join refunded r on r.brand_id = y.brand_id and r.payment_no = y.payment_no
cross join lateral (
    select case when coalesce(r.segments, 0) = y.segments then 4 when r.segments > 0 then 3
        when y.status = 1 then 1 else 2 end as status
) s
cross join lateral (values
    ('payment without key', 'payment_key', y.request_id, 'none', k.request_id is null),
    ('key without payment', 'payment', k.request_id, 'none', y.request_id is null),
    ('payment key', 'payment_no of its reply', y.payment_no, k.payment_no, y.payment_no <> k.payment_no),
    ('payment', 'refunded', coalesce(r.segments, 0)::text, y.refunded::text, y.refunded <> coalesce(r.segments, 0)),
    ('payment', 'lines', y.segments::text, y.lines::text, y.segments is distinct from y.lines),
    ('payment', 'status', s.status::text, y.status::text, y.status <> s.status),
    ('payment', 'package of its refunds', y.package_id::text, 'another',
        r.lowest <> y.package_id or r.highest <> y.package_id or (r.lines <> 1 and y.package_id is not null)),
    ('payment', 'refunds', 'after ' || y.created_at, 'at ' || r.first_at, r.first_at < y.created_at)
) as v(what, figure, expected, found, wrong)
where v.wrong
  and (y.payment_no is distinct from k.payment_no or y.refunded <> coalesce(r.segments, 0)
    or y.segments is distinct from y.lines or y.status <> s.status
    or r.lowest <> y.package_id or r.highest <> y.package_id or r.lines <> 1 or r.first_at < y.created_at)
union all
select 'payment', l.brand_id, l.payment_no, 'packages',
    array_to_string(cut.packages, ',') || ' with ' || array_to_string(cut.counts, ','),
    array_to_string(l.packages, ',') || ' with ' || array_to_string(l.counts, ',')
from laid l
cross join lateral ({_CUT.format(packages="l.of_packages", counts="l.of_counts", start="l.low", end="l.high")}) cut
where (cut.packages, cut.counts) is distinct from (l.packages, l.counts)
union all
select 'refund', l.brand_id, l.payment_no || ' ' || l.message_id, 'packages',
    array_to_string(cut.packages, ',') || ' with ' || array_to_string(cut.counts, ','),
    array_to_string(own.packages, ',') || ' with ' || array_to_string(own.counts, ',')
from laid_refunds l
cross join lateral ({_CUT.format(packages="l.of_packages", counts="l.of_counts", start="l.low", end="l.high")}) cut
cross join lateral (
    -- A refund's lines are written last first.
    select array_agg(u.package_id order by u.place desc) as packages,
        array_agg(u.segments order by u.place desc) as counts
    from unnest(l.packages, l.counts) with ordinality as u(package_id, segments, place)
) own
where (cut.packages, cut.counts) is distinct from (own.packages, own.counts)
union all
select 'refund', r.brand_id, r.payment_no || ' ' || r.message_id, 'lines', r.segments::text, s.lines::text
from r cross join lateral (select sum(n) as lines from unnest(r.line_segments) n) s
where r.segments is distinct from s.lines
union all
select 'refund without payment', r.brand_id, r.payment_no || ' ' || r.message_id, 'payment', 'a payment', 'none'
from r left join y on y.brand_id = r.brand_id and y.payment_no = r.payment_no where y.payment_no is null
"""

# Where refunds and what came back went, and what time took.
_ENTRIES = f"""
with
placed as (
    select rl.*, p.package_id as known, p.expires_at, t.package_id as target_known, t.origin_package_id as origin
    from rl
    left join p on p.brand_id = rl.brand_id and p.package_id = rl.package_id
    left join p t on t.brand_id = rl.brand_id and t.package_id = rl.target
),
moved as (
    select brand_id, target as package_id, payment_no as reference, sum(segments) as segments from rl
    where target <> package_id group by brand_id, target, payment_no
),
granted as (
    select e.brand_id, e.package_id, e.reference, sum(e.segments) as segments
    from e join p using (brand_id, package_id)
    where e.kind = {EntryKind.GRANT:d} and p.source = {PackageSource.REFUND:d}
    group by e.brand_id, e.package_id, e.reference
),
lost as (
    select brand_id, package_id, reference, sum(segments) as segments from (
        select brand_id, package_id, payment_no as reference, segments from rl where target is null
        union all
        select e.brand_id, e.package_id, e.reference, e.segments from e join p using (brand_id, package_id)
        where e.kind in ({EntryKind.RELEASE:d}, {EntryKind.TIME_OUT:d}) and p.expires_at <= e.at
    ) came_back
    group by brand_id, package_id, reference
),
expired_back as (
    select brand_id, package_id, reference, sum(segments) as segments from e
    where kind = {EntryKind.EXPIRE_BACK:d} group by brand_id, package_id, reference
)
select 'refund', brand_id, payment_no || ' ' || message_id, 'target of package ' || package_id,
    case when expires_at is null or expires_at > created_at then 'the package itself'
        else 'its package of refunds, or none' end,
    coalesce('package ' || target, 'none')
from placed
where known is not null and case
    when expires_at is null or expires_at > created_at then target is distinct from package_id
    else target is not null and (target_known is null or origin is distinct from package_id) end
union all
select 'refund package', coalesce(m.brand_id, g.brand_id), 'package ' || coalesce(m.package_id, g.package_id),
    'granted for ' || coalesce(m.reference, g.reference), coalesce(m.segments, 0)::text, coalesce(g.segments, 0)::text
from moved m full join granted g on g.brand_id = m.brand_id and g.package_id = m.package_id
    and g.reference = m.reference
where m.segments is distinct from g.segments
union all
select 'expired on return', coalesce(l.brand_id, b.brand_id), 'package ' || coalesce(l.package_id, b.package_id),
    'expired for ' || coalesce(l.reference, b.reference), coalesce(l.segments, 0)::text, coalesce(b.segments, 0)::text
from lost l full join expired_back b on b.brand_id = l.brand_id and b.package_id = l.package_id
    and b.reference = l.reference
where l.segments is distinct from b.segments
union all
select 'entry', e.brand_id, 'record ' || e.record_no, v.figure, v.expected, v.found
from e join p using (brand_id, package_id)
cross join lateral (values
    ('moment', coalesce(p.expires_at::text, 'none'), e.at::text),
    ('reference', '', e.reference::text)
) as v(figure, expected, found)
where e.kind = {EntryKind.EXPIRE:d} and v.expected <> v.found
"""

# Every package comes from what its source says, and once; every paid order and adjustment has done what it says.
_SOURCES = f"""
with
o as materialized (
    select * from costcenter.package_order where brand_id between %(first)s and %(last)s
),
a as materialized (
    select * from costcenter.adjustment where brand_id between %(first)s and %(last)s
),
grants as (
    select brand_id, package_id, count(*) as entries, min(reference) as reference, min(at) as at,
        sum(segments) as segments
    from e where kind = {EntryKind.GRANT:d} group by brand_id, package_id
),
first_grants as (
    select distinct on (brand_id, package_id) brand_id, package_id, reference, at, segments from e
    where kind = {EntryKind.GRANT:d} order by brand_id, package_id, record_no
),
adjusted as (
    select e.brand_id, e.reference, e.kind, e.package_id, e.segments, e.at, e.record_no from e
    left join p using (brand_id, package_id)
    where e.kind = {EntryKind.CLAW_BACK:d} or (e.kind = {EntryKind.GRANT:d} and p.source = {PackageSource.GRANT:d})
)
select 'package', p.brand_id, 'package ' || p.package_id, v.figure, v.expected, v.found
from p
left join grants g using (brand_id, package_id)
left join first_grants t using (brand_id, package_id)
cross join lateral (values
    ('grants', '1', case when p.source <> {PackageSource.REFUND:d} then coalesce(g.entries, 0)::text else '1' end),
    ('source_no', t.reference, p.source_no::text),
    ('created_at', t.at::text, p.created_at::text)
) as v(figure, expected, found)
where t.reference is not null and v.expected is distinct from v.found
union all
select 'order', o.brand_id, o.package_order_no, v.figure, v.expected, v.found
from o
left join first_grants t on t.brand_id = o.brand_id and t.package_id = o.package_id
left join p on p.brand_id = o.brand_id and p.package_id = o.package_id
cross join lateral (values
    ('credited', o.segments::text, case when t.reference = o.package_order_no then t.segments::text else '0' end),
    ('package', o.package_order_no::text, coalesce(p.source_no::text, 'none')),
    ('paid_at', o.paid_at::text, p.created_at::text)
) as v(figure, expected, found)
where o.status = {OrderStatus.PAID:d} and v.expected is distinct from v.found
union all
select 'package without order', p.brand_id, 'package ' || p.package_id, 'order', p.source_no, 'none'
from p left join o on o.brand_id = p.brand_id and o.package_order_no = p.source_no
    and o.status = {OrderStatus.PAID:d} and o.package_id = p.package_id
where p.source = {PackageSource.ORDER:d} and o.package_order_no is null
union all
select v.what, coalesce(a.brand_id, t.brand_id), coalesce(a.adjustment_no, t.reference), v.figure, v.expected, v.found
from a full join adjusted t on t.brand_id = a.brand_id and t.reference = a.adjustment_no
cross join lateral (values
    ('adjustment without entry', 'entry', 'an entry', case when t.reference is null then 'none' else 'an entry' end),
    ('entry without adjustment', 'adjustment', 'an adjustment',
        case when a.adjustment_no is null then 'none' else 'an adjustment' end),
    ('adjustment', 'kind', t.kind::text, a.kind::text),
    ('adjustment', 'package', t.package_id::text, a.package_id::text),
    ('adjustment', 'segments', t.segments::text, a.segments::text),
    ('adjustment', 'created_at', t.at::text, a.created_at::text)
) as v(what, figure, expected, found)
where v.expected <> v.found
union all
select 'package', p.brand_id, 'package ' || p.package_id, 'origin', 'a package that has ended',
    coalesce('package ' || t.package_id, 'none')
from p left join p t on t.brand_id = p.brand_id and t.package_id = p.origin_package_id
where p.source = {PackageSource.REFUND:d} and (t.package_id is null or t.expires_at is null
    or t.expires_at > p.created_at)
"""

# The sums over packages, the last record and the last point of the history, against each balance; and that nothing can
# become due unseen.
_BALANCES = """
with sums as (
    select brand_id, sum(remaining) as total, sum(held) as frozen, max(package_id) as last_package,
        count(*) as packages, min(expires_at) filter (where remaining > held) as next_end
    from p group by brand_id
),
ends as (
    select brand_id, min(expires_at) as next_end from costcenter.freeze
    where brand_id between %(first)s and %(last)s and is_open group by brand_id
)
select 'balance', l.brand_id, 'balance', v.figure, v.expected, v.found
from costcenter.balance l
left join sums s using (brand_id)
left join ends n using (brand_id)
left join lateral (
    select h.at, h.total, h.frozen from costcenter.balance_history h
    where h.brand_id = l.brand_id order by h.at desc limit 1
) h on true
cross join lateral (values
    ('total', coalesce(s.total, 0)::text, l.total::text),
    ('frozen', coalesce(s.frozen, 0)::text, l.frozen::text),
    ('total in the history', coalesce(h.total, 0)::text, l.total::text),
    ('frozen in the history', coalesce(h.frozen, 0)::text, l.frozen::text),
    ('next_package_id', (coalesce(s.packages, 0) + 1)::text, l.next_package_id::text),
    ('last package', coalesce(s.packages, 0)::text, coalesce(s.last_package, 0)::text),
    ('next_due_at', 'at most ' || least(s.next_end, n.next_end),
        case when least(s.next_end, n.next_end) < coalesce(l.next_due_at, 'infinity')
            then coalesce(l.next_due_at::text, 'none') else 'at most ' || least(s.next_end, n.next_end) end)
) as v(figure, expected, found)
where l.brand_id between %(first)s and %(last)s and v.expected is distinct from v.found
union all
select case when l.brand_id is null then 'brand without balance' else 'balance without brand' end,
    coalesce(b.brand_id, l.brand_id), 'brand', v.figure, 'one', 'none'
from (select brand_id from costcenter.brand where brand_id between %(first)s and %(last)s) b
full join (select brand_id from costcenter.balance where brand_id between %(first)s and %(last)s) l using (brand_id)
cross join lateral (select case when l.brand_id is null then 'balance' else 'brand' end as figure) v
where b.brand_id is null or l.brand_id is null
"""

# A delivered message is not refunded but at the house's loss.
_RECEIPTS = f"""
select v.what, c.brand_id, c.payment_no || ' ' || c.message_id, v.figure, v.expected, v.found
from costcenter.receipt c
left join r on r.brand_id = c.brand_id and r.payment_no = c.payment_no and r.message_id = c.message_id
left join y on y.brand_id = c.brand_id and y.payment_no = c.payment_no
cross join lateral (
    select case when c.state = {ReceiptState.DELIVERED:d} then coalesce(r.segments, 0) else 0 end as house_loss
) s
cross join lateral (values
    ('receipt', 'house_loss', s.house_loss::text, c.house_loss::text, c.house_loss <> s.house_loss),
    ('receipt without payment', 'payment', 'a payment', 'none', y.payment_no is null)
) as v(what, figure, expected, found, wrong)
where c.brand_id between %(first)s and %(last)s and v.wrong
  and (y.payment_no is null or c.house_loss <> s.house_loss)
"""

# The replies that are kept name what their calls made: an order, a freeze, a release request, an adjustment. Keys go
# after their time, so what was made may have none any more.
_KEYS = """
with keys as materialized (
    select brand_id, operation, request_id, encode(substring(reply from 3 for 32), 'escape') as number
    from costcenter.idempotency_key where brand_id between %(first)s and %(last)s and operation in (1, 2, 4, 8)
),
named as (
    select k.brand_id, k.request_id, 'order' as what, k.number, o.package_order_no as found
    from keys k left join costcenter.package_order o on o.brand_id = k.brand_id and o.package_order_no = k.number
        and o.brand_id between %(first)s and %(last)s
    where k.operation = 1
    union all
    select k.brand_id, k.request_id, 'freeze', k.number, f.order_no
    from keys k left join costcenter.freeze f on f.brand_id = k.brand_id and f.order_no = k.number
        and f.request_id = k.request_id and f.brand_id between %(first)s and %(last)s
    where k.operation = 2
    union all
    select k.brand_id, k.request_id, 'release request', k.number, q.release_no
    from keys k left join costcenter.release_request q on q.brand_id = k.brand_id and q.release_no = k.number
        and q.brand_id between %(first)s and %(last)s
    where k.operation = 4
    union all
    select k.brand_id, k.request_id, 'adjustment', k.number, a.adjustment_no
    from keys k left join costcenter.adjustment a on a.brand_id = k.brand_id and a.adjustment_no = k.number
        and a.brand_id between %(first)s and %(last)s
    where k.operation = 8
)
select 'key', brand_id, request_id, what, number, 'none' from named where found is null
"""

# By how much each record changes the total and what is frozen.
_CHANGES = f"""
select brand_id, created_at as at, record_no, 0::bigint as total, segments as frozen
from costcenter.freeze where brand_id between %(first)s and %(last)s
union all
select brand_id, created_at, record_no, -segments, -segments
from costcenter.payment where brand_id between %(first)s and %(last)s
union all
select brand_id, created_at, record_no,
    case when cardinality(line_packages) = 1 then
        case when coalesce(line_targets[1], line_packages[1]) = line_packages[1] then line_segments[1] else 0 end
    else (
        select coalesce(sum(l.segments), 0)::bigint
        from unnest(line_packages, line_segments, line_targets) as l(package_id, segments, target)
        where coalesce(l.target, l.package_id) = l.package_id
    ) end, 0
from costcenter.refund where brand_id between %(first)s and %(last)s
union all
select brand_id, at, record_no,
    case when kind = {EntryKind.GRANT:d} then segments
        when kind in ({EntryKind.RELEASE:d}, {EntryKind.TIME_OUT:d}) then 0 else -segments end,
    case when kind in ({EntryKind.RELEASE:d}, {EntryKind.TIME_OUT:d}) then -segments else 0 end
from costcenter.entry where brand_id between %(first)s and %(last)s
"""

# The records of each brand played in the order of time, against every point of its history and its balance: the brands
# where anything does not fit, for `RECORDS` to name it. At each moment come its records, by number, and then its point;
# last of all comes the balance.
REPLAY = f"""
select distinct brand_id
from (
    select brand_id, at, record_no, total, frozen, last_record, last_at,
        sum(total_change) over w as played_total, sum(frozen_change) over w as played_frozen,
        count(record_no) over w as records, lag(at) over w as at_before, lag(record_no) over w as record_before
    from (
        select brand_id, at, record_no, null::bigint as total, null::bigint as frozen, null::bigint as last_record,
            null::timestamptz as last_at,
            {_small("total")} as total_change, {_small("frozen")} as frozen_change
        from ({_CHANGES}) changes
        union all
        select brand_id, at, null, total, frozen, null, null, 0, 0
        from costcenter.balance_history where brand_id between %(first)s and %(last)s
        union all
        select brand_id, 'infinity', null, total, frozen, next_record_no - 1, last_at, 0, 0
        from costcenter.balance where brand_id between %(first)s and %(last)s
    ) merged
    window w as (partition by brand_id order by at, record_no rows unbounded preceding)
) played
where case
    when record_no is not null then record_no <> records or (record_before is not null and at_before <> at)
    when total <> played_total or frozen <> played_frozen then true
    when last_record is null then at_before is distinct from at
    else last_record <> records or record_before is not null or at_before is distinct from last_at end
"""

# What does not fit in the records and the history of one brand. A record that is wrong or missing puts all points
# behind it out by the same amount, so a point counts when it is out by another amount than the one before it.
RECORDS = f"""
with changes as materialized (
    {_CHANGES}
),
points as (
    select *, lag(total_out, 1, 0) over w as total_before, lag(frozen_out, 1, 0) over w as frozen_before
    from (
        select brand_id, at, total, frozen, total - played_total as total_out, frozen - played_frozen as frozen_out,
            happened
        from (
            select brand_id, at, record_no, total, frozen, sum(total_change) over w as played_total,
                sum(frozen_change) over w as played_frozen,
                count(record_no) over (partition by brand_id, at) > 0 as happened
            from (
                select brand_id, at, record_no, null::bigint as total, null::bigint as frozen, total as total_change,
                    frozen as frozen_change
                from changes
                union all
                select brand_id, at, null, total, frozen, 0, 0
                from costcenter.balance_history where brand_id between %(first)s and %(last)s
            ) merged
            window w as (partition by brand_id order by at, record_no rows unbounded preceding)
        ) played
        where record_no is null
    ) compared
    window w as (partition by brand_id order by at)
)
select 'history', brand_id, at::text, v.figure, v.expected, v.found
from points
cross join lateral (values
    ('total', (total - total_out)::text, total::text, total_out <> 0 and total_out <> total_before),
    ('frozen', (frozen - frozen_out)::text, frozen::text, frozen_out <> 0 and frozen_out <> frozen_before),
    ('records', 'some', 'none', not happened)
) as v(figure, expected, found, wrong)
where v.wrong
union all
select 'history', c.brand_id, c.at::text, 'point', 'a point', 'none'
from (select distinct brand_id, at from changes) c
left join costcenter.balance_history h on h.brand_id = c.brand_id and h.at = c.at
where h.at is null
union all
select 'record', brand_id, 'record ' || record_no, 'number', expected::text, record_no::text
from (
    select brand_id, record_no, coalesce(lag(record_no) over (partition by brand_id order by at, record_no), 0) + 1
        as expected
    from changes
) numbered
where record_no <> expected
union all
select 'balance', l.brand_id, 'balance', v.figure, v.expected, v.found
from costcenter.balance l
left join (
    select brand_id, max(record_no) as record_no, max(at) as at from changes group by brand_id
) c using (brand_id)
cross join lateral (values
    ('next_record_no', (coalesce(c.record_no, 0) + 1)::text, l.next_record_no::text),
    ('last_at', coalesce(c.at::text, 'none'), coalesce(l.last_at::text, 'none'))
) as v(figure, expected, found)
where l.brand_id between %(first)s and %(last)s and v.expected <> v.found
"""

# All checks of what the records say of one another. A statement reads each table once for all of its checks; there are
# two, because the memory of each of its sorts and hash tables is the statement's until its end.
FIGURES = tuple(
    f"with {','.join(records)}\n" + "\nunion all\n".join(f"({check})" for check in checks)
    for records, checks in (
        (_RECORDS.values(), (_PACKAGES, _FREEZES, _ENTRIES, _SOURCES, _BALANCES, _KEYS)),
        ((_LINED_FREEZES, _RECORDS["y"], _RECORDS["r"]), (_PAYMENTS, _RECEIPTS)),
    )
)
