"""The history of calls to a ledger by many callers at once, and whether one caller after another could have had it.

A call is done, refused or unknown, each at a moment between its beginning and its end. The ledger's records have an
order for each brand (`record_no`) and a moment; what was done is replayed in that order on the oracle, whose clock is
set to the records' moments. Then

- each reply must be the oracle's, to the microsecond, and each operation must make the records that are there;
- each refusal must have a moment between its call's beginning and end at which the oracle refuses so, with the same
  figures; likewise each balance that was read;
- each operation has happened within the time of its calls, and what has no reply has happened once or not at all;
- at the end every package, freeze, payment, refund and balance is the oracle's.

Moments of the callers and of the database are of one machine's clock.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ledger_oracle import ACTIVE, SUSPENDED, Oracle, Refused, Reply, Request
from ledger_processes import CostCenterProcess
from ledger_service import rows
from ledger_wire import difference, is_unknown, outcome_of

from infra.errors import Refusal

# The numbers of the kinds of operations in idempotency keys.
_CODES = {
    "SmsSendPrePay": 2,
    "SmsReleaseFreezeNum": 4,
    "ExtendFreeze": 5,
    "SmsSendStatusCallBack": 6,
    "SmsReceiptStatusCallBack": 7,
    "AdjustPackage": 8,
}
_KINDS = {1: "grant", 2: "claw back", 3: "expire", 4: "release", 5: "time out", 6: "expire"}
_RELEASE = 4
_NUMBERS = ("order_no", "payment_no", "release_no", "adjustment_no")
# The database rounds its clock to microseconds, and so do the callers.
_SLACK = timedelta(milliseconds=1)
# A transaction that is not known to be done may be under way for so long, whatever holds it up.
_TOLD = timedelta(seconds=5)
# How long an unknown outcome is asked for again; longer than a lane is held by a process that stands still.
SETTLE_SECONDS = 30.0


@dataclass
class Attempt:
    """One call over the wire."""

    begun: datetime
    ended: datetime
    outcome: Reply | Refusal

    @property
    def is_unknown(self) -> bool:
        """Whether it leaves open what became of it."""
        return is_unknown(self.outcome)


@dataclass
class Call:
    """A call with one content, and every attempt at it."""

    method: str
    request: Request
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def reply(self) -> Reply | None:
        """What it was answered when it was done, at its first time and ever after."""
        return next((each.outcome for each in self.attempts if isinstance(each.outcome, dict)), None)

    @property
    def key(self) -> tuple[int, int, str]:
        """Brand, kind and request_id."""
        return self.request["brand_id"], _CODES.get(self.method, 0), self.request.get("request_id", "")

    def __str__(self) -> str:
        return f"{self.method}({self.request})"


@dataclass
class History:
    """All calls, and the callers' way to make more."""

    processes: list[CostCenterProcess]
    calls: list[Call] = field(default_factory=list)

    def new(self, method: str, **request: Any) -> Call:
        """A call that is yet to be made."""
        call = Call(method, request)
        self.calls.append(call)
        return call

    async def attempt(self, call: Call, process: CostCenterProcess, timeout: float = 20) -> Reply | Refusal:
        """Make a call once."""
        begun = datetime.now(UTC)
        outcome = await outcome_of(process.call(call.method, timeout=timeout, **call.request))
        call.attempts.append(Attempt(begun, datetime.now(UTC), outcome))
        return outcome

    async def settle(self, call: Call, process: CostCenterProcess, timeout: float = 20) -> Reply | Refusal:
        """Make a call, again and again at each process in turn until it is known what became of it."""
        others = itertools.cycle([*(each for each in self.processes if each is not process), process])
        outcome = await self.attempt(call, process, timeout)
        async with asyncio.timeout(SETTLE_SECONDS):
            while is_unknown(outcome):
                process = next(others)
                outcome = await self.attempt(call, process)
                # A process that is gone refuses at once.
                await asyncio.sleep(0.01)
        return outcome

    async def settle_all(self) -> None:
        """Ask again for all that was refused after an attempt of which nobody knows: that may have come late."""
        late = [call for call in self.calls if call.reply is None and any(each.is_unknown for each in call.attempts)]
        await asyncio.gather(*(self.settle(call, self.processes[0]) for call in late))


@dataclass
class _Done:
    """Something that was done: at a moment, and where it has records of its own, as of the first one's number."""

    at: datetime
    record_no: int | None
    call: Call | None = None
    release_no: str = ""
    released: int = 0
    # (payment_no, message_id) that it names: two that name the same one have no order by the records alone.
    messages: frozenset[tuple[str, str]] = frozenset()

    @property
    def told_at(self) -> datetime:
        """When somebody was told first that it was done; of a release that was applied nobody is told by name."""
        if self.call is None:
            return self.at + _TOLD
        return min(each.ended for each in self.call.attempts if isinstance(each.outcome, dict))


@dataclass
class _Numbers:
    """Hands the oracle the numbers that the service gave."""

    given: Reply = field(default_factory=dict)

    def __call__(self, kind: str, brand_id: int) -> str:
        return str(self.given.get(kind, "a number of no one"))


@dataclass
class _Probe:
    """An answer that changed nothing and needs a moment at which it is right."""

    call: Call
    attempt: Attempt
    nearest: str = "no moment was tried"

    def is_open(self, at: datetime) -> bool:
        """Whether its call was under way."""
        return self.attempt.begun - _SLACK <= at <= self.attempt.ended + _SLACK


Record = tuple[int, datetime, tuple[tuple[str, int, int], ...]]


class Check:
    """Checks a history against the oracle, and the ledger's records against both."""

    def __init__(self, history: History, database_url: str) -> None:
        self._history = history
        self._url = database_url

    async def run(self) -> Counter[str]:
        """Check everything; how many outcomes of each kind there were. Raises AssertionError."""
        self._check_replies()
        self.keys: dict[tuple[int, int, str], datetime] = {
            row[:3]: row[3]
            for row in await self._rows("select brand_id, operation, request_id, created_at from idempotency_key")
        }
        self.payments = {
            (row[0], 0, row[1]): row[2:]
            for row in await self._rows("select brand_id, request_id, payment_no, created_at, record_no from payment")
        }
        self._check_keys()
        brands = sorted({call.request["brand_id"] for call in self._history.calls if "brand_id" in call.request})
        for brand_id in brands:
            await self._check_brand(brand_id)
        return Counter(
            "unknown" if each.is_unknown else each.outcome.reason if isinstance(each.outcome, Refusal) else "OK"
            for call in self._history.calls
            for each in call.attempts
        )

    async def _rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        return await rows(self._url, query, *parameters)

    def _check_replies(self) -> None:
        """A call has one reply, however often it is made, and a key has one content that was done."""
        contents: dict[tuple[str, tuple[int, int, str]], Call] = {}
        for call in self._history.calls:
            replies = [each.outcome for each in call.attempts if isinstance(each.outcome, dict)]
            if call.request.get("request_id") and replies:
                assert all(reply == replies[0] for reply in replies), f"{call}: {replies}"
                other = contents.setdefault((call.method, call.key), call)
                assert other.request == call.request, f"both were done: {other} and {call}"

    def _check_keys(self) -> None:
        """What was done has a key, and nothing else has; so what is unknown or refused had no effect."""
        done = {call.key for call in self._history.calls if call.method in _CODES and call.reply is not None}
        assert done == set(self.keys), f"{done - set(self.keys)} have no keys, {set(self.keys) - done} no replies"
        paid = {call.key for call in self._history.calls if call.method == "SmsSendPay" and call.reply is not None}
        assert paid == set(self.payments), "payments"

    # One brand.

    async def _check_brand(self, brand_id: int) -> None:
        calls = [call for call in self._history.calls if call.request.get("brand_id") == brand_id]
        records = await self._records(brand_id)
        done = await self._done(brand_id, calls)
        replay = _Replay(brand_id, calls, records, done)
        replay.run()
        await self._compare_figures(replay.oracle, brand_id)
        replay.check_end()

    async def _records(self, brand_id: int) -> list[Record]:
        """All records of a brand in their order, as the oracle notes them."""
        found: list[Record] = []
        for kind, table in (("freeze", "freeze"), ("pay", "payment")):
            columns = "record_no, created_at, line_packages, line_segments"
            query = f"select {columns} from costcenter.{table} where brand_id = %s"
            for record_no, at, packages, segments in await self._rows(query, brand_id):
                lines = zip(packages, segments, strict=True)
                found.append((record_no, at, tuple((kind, package, count) for package, count in lines)))
        query = (
            "select record_no, created_at, line_packages, line_segments, line_targets from refund where brand_id = %s"
        )
        for record_no, at, packages, segments, targets in await self._rows(query, brand_id):
            # What went to a package of its own is an entry of that package.
            back = [line for line in zip(packages, segments, targets, strict=True) if line[2] in {None, line[0]}]
            found.append((record_no, at, tuple(("refund", package, count) for package, count, _ in back)))
        query = "select record_no, at, kind, package_id, segments from entry where brand_id = %s"
        for record_no, at, number, package, count in await self._rows(query, brand_id):
            found.append((record_no, at, ((_KINDS[number], package, count),)))
        found.sort(key=lambda record: record[0])
        assert [record[0] for record in found] == list(range(1, len(found) + 1)), "numbers of records"
        for one, other in itertools.pairwise(found):
            assert one[1] <= other[1], f"the order of the records is not that of time: {one}, {other}"
        return found

    async def _done(self, brand_id: int, calls: list[Call]) -> list[_Done]:
        """What was done, with moments and places from the records."""
        freezes = dict(
            await self._rows("select order_no, record_no from costcenter.freeze where brand_id = %s", brand_id)
        )
        query = "select reference, min(record_no) from entry where brand_id = %s and kind in (1, 2) group by reference"
        adjustments = dict(await self._rows(query, brand_id))
        query = "select payment_no, message_id, created_at, record_no from refund where brand_id = %s"
        refunds = {row[:2]: row[2:] for row in await self._rows(query, brand_id)}
        done = []
        for call in calls:
            reply = call.reply
            if reply is None or (call.method not in _CODES and call.method != "SmsSendPay"):
                continue
            if call.method == "SmsSendPay":
                payment_no, at, record_no = self.payments[call.key]
                assert payment_no == reply["payment_no"], call
                done.append(_Done(at, record_no, call))
                continue
            at = self.keys[call.key]
            messages = frozenset(_messages(call))
            place = None
            if call.method == "SmsSendPrePay":
                place = freezes[reply["order_no"]]
            elif call.method == "AdjustPackage":
                place = adjustments[reply["adjustment_no"]]
            elif reply.get("refunded"):
                place = _first_refund(
                    call, reply, {each: number for each, (made, number) in refunds.items() if made == at}
                )
            done.append(_Done(at, place, call, messages=messages))
        return done + await self._applied(brand_id)

    async def _applied(self, brand_id: int) -> list[_Done]:
        query = (
            "select r.release_no, r.applied_at, r.released, (select min(e.record_no) from entry e"
            " where e.brand_id = r.brand_id and e.reference = r.order_no and e.at = r.applied_at and e.kind = %s)"
            " from release_request r where r.brand_id = %s"
        )
        found = await self._rows(query, _RELEASE, brand_id)
        assert all(row[1] is not None for row in found), "all releases are applied at the end"
        return [_Done(row[1], row[3] if row[2] else None, release_no=row[0], released=row[2]) for row in found]

    async def _compare_figures(self, oracle: Oracle, brand_id: int) -> None:
        """Everything that can be read is the oracle's."""
        brand = oracle.brands[brand_id]
        reads: list[tuple[str, Request]] = [
            ("ListPackages", {"brand_id": brand_id, "include_spent": True, "page_size": 1_000})
        ]
        reads += [("GetFreeze", {"order_no": number}) for number in brand.freezes]
        reads += [("GetPayment", {"payment_no": number}) for number in brand.payments]
        async with asyncio.timeout(SETTLE_SECONDS):
            while True:
                balance = await self._read("GetBalance", brand_id=brand_id)
                outcomes = await asyncio.gather(*(self._read(method, **request) for method, request in reads))
                oracle.pass_to(max(oracle.now, balance["as_of"]))
                now = (await self._read("GetBalance", brand_id=brand_id))["as_of"]
                if not any(end <= now for end in oracle.ends()):
                    # Nothing has ended between the first read and the last.
                    break
        oracle.check()
        found = difference(oracle.call("GetBalance", brand_id=brand_id), {**balance, "as_of": oracle.now})
        assert not found, f"balance of {brand_id}{found}"
        for (method, request), actual in zip(reads, outcomes, strict=True):
            found = difference(oracle.call(method, **request), actual)
            assert not found, f"{method}({request}){found}"
        history = await self._rows("select at, total, frozen from balance_history where brand_id = %s", brand_id)
        for at, total, frozen in history:
            point = brand.balance_at(at)
            assert (point.total, point.frozen) == (total, frozen), f"balance of {brand_id} at {at}"

    async def _read(self, method: str, **request: Any) -> Reply:
        outcome = await outcome_of(self._history.processes[0].call(method, **request))
        assert isinstance(outcome, dict), f"{method}({request}): {outcome!r}"
        return outcome


def _messages(call: Call) -> Iterator[tuple[str, str]]:
    return (message for message, _ in _named(call))


def _named(call: Call) -> Iterator[tuple[tuple[str, str], int]]:
    """The messages, each with its segments, that a call would have refunded."""
    request = call.request
    if call.method == "SmsSendStatusCallBack":
        for message in request.get("failed", ()):
            yield (request["payment_no"], message["message_id"]), message["segments"]
    elif call.method == "SmsReceiptStatusCallBack":
        yield (request["payment_no"], request["message_id"]), request["segments"]


def _first_refund(call: Call, reply: Reply, refunds: dict[tuple[str, str], int]) -> int:
    """The record of the first refund that a call made, of those (message: record) that its transaction made.

    What it names and another call had refunded has a lower number than its own: after it, nothing was left to refund.
    """
    missing = reply["refunded"]
    for record_no, segments in sorted(
        ((refunds[each], n) for each, n in _named(call) if each in refunds), reverse=True
    ):
        missing -= segments
        if missing <= 0:
            return record_no
    raise AssertionError(f"{call} refunded {reply['refunded']}, and there are no records of that")


class _Replay:
    """What was done to one brand, once more on the oracle, in the order of the records."""

    def __init__(self, brand_id: int, calls: list[Call], records: list[Record], done: list[_Done]) -> None:
        self._brand_id = brand_id
        self._calls = calls
        self._records = [record for _, _, lines in records for record in lines]
        self._done = done
        beginning = next(call for call in calls if call.method == "PutBrand")
        start = beginning.attempts[0].begun
        self.oracle = Oracle(start, numbers=_Numbers())
        self.oracle.call("PutBrand", **beginning.request)
        self._probes = [
            _Probe(call, attempt)
            for call in calls
            for attempt in call.attempts
            if not attempt.is_unknown and isinstance(attempt.outcome, Refusal)
        ]
        self._reads = [
            _Probe(call, attempt) for call in calls if call.method == "GetBalance" for attempt in call.attempts
        ]
        self._reads = [read for read in self._reads if isinstance(read.attempt.outcome, dict)]
        self._statuses = _statuses(calls, beginning, done)
        self._doubtful = False
        # Records that were compared.
        self._checked = 0

    def run(self) -> None:
        """Replay and probe. Raises AssertionError."""
        groups: dict[datetime, list[_Done]] = defaultdict(list)
        for each in self._done:
            groups[each.at].append(each)
        moments = {*groups, *(at for at, _, _ in self._statuses)}
        moments |= {each.attempt.begun for each in self._probes} | {each.attempt.ended for each in self._probes}
        later = iter(sorted(groups)[1:])
        for at in sorted(moment for moment in moments if moment >= self.oracle.now):
            self._pass_to(at)
            self._change_status(at)
            self._probe()
            if at in groups:
                self._replay_group(groups[at])
                following = next(later, None)
                self._compare_reads(min(each.told_at for each in groups[following]) if following else None)
        self._change_status(None)
        assert not self._probes + self._reads, "no moment explains:\n" + "\n".join(
            f"  {probe.call}\n    {probe.attempt.begun} to {probe.attempt.ended}: {probe.attempt.outcome!r}"
            f" {getattr(probe.attempt.outcome, 'metadata', '')}\n    nearest: {probe.nearest}"
            for probe in self._probes + self._reads
        )

    def _compare_reads(self, told_at: datetime | None) -> None:
        """Strike the reads that saw what there is now: the next transaction was told of at `told_at` (None: never)."""
        for read in [*self._reads]:
            outcome = read.attempt.outcome
            assert isinstance(outcome, dict)
            if (told_at is not None and read.attempt.begun > told_at) or outcome["as_of"] < self.oracle.now:
                continue
            copied = self._copy()
            # The next transaction may have begun before the read, which looks past what is not committed.
            copied.pass_to(outcome["as_of"])
            read.nearest = difference(copied.call("GetBalance", **read.call.request), {**outcome, "as_of": copied.now})
            if not read.nearest:
                self._reads.remove(read)

    def _pass_to(self, moment: datetime) -> None:
        """Let time pass, with a stop at every end while an answer waits for its moment."""
        if any(probe.attempt.begun <= moment and probe.attempt.ended >= self.oracle.now for probe in self._probes):
            for end in self.oracle.ends():
                if end > moment:
                    break
                self.oracle.pass_to(end)
                self._probe()
        self.oracle.pass_to(moment)

    def _replay_group(self, group: list[_Done]) -> None:
        """What one transaction did to the brand."""
        orders = [*_orders(group)]
        before, checked = pickle.dumps(self.oracle) if len(orders) > 1 else b"", self._checked
        for number, order in enumerate(orders, 1):
            try:
                for done in order:
                    self._redo(done)
            except AssertionError:
                if number == len(orders):
                    raise
                self.oracle, self._checked = pickle.loads(before), checked
            else:
                return

    def _redo(self, done: _Done) -> None:
        oracle, count = self.oracle, len(self.oracle.brands[self._brand_id].records)
        if done.call is None:
            releases = oracle.brands[self._brand_id].releases
            # The oracle applies all that waits; here it is one.
            oracle.brands[self._brand_id].releases = {done.release_no: releases[done.release_no]}
            released = oracle.call("ApplyReleases")["segments"]
            oracle.brands[self._brand_id].releases = releases
            assert released == done.released, f"release {done.release_no}: {released} expected, {done.released} there"
        else:
            reply = done.call.reply
            assert reply is not None
            oracle._numbers.given = _numbers_of(reply)  # type: ignore[union-attr]
            expected = oracle.outcome(done.call.method, **done.call.request)
            found = difference(expected, reply)
            assert not found, f"{done.call} at {done.at}{found}"
            known = [each for each in done.call.attempts if not each.is_unknown and isinstance(each.outcome, dict)]
            begun, ended = min(each.begun for each in done.call.attempts), min(each.ended for each in known)
            assert begun - _SLACK <= done.at <= ended + _SLACK, f"{done.call} at {done.at}, not {begun} to {ended}"
        self._check_records(count)
        self._check_records(len(self.oracle.brands[self._brand_id].records))
        self._probe()

    def check_end(self) -> None:
        """After the last operation there are the ends that somebody has booked since, and nothing else."""
        self._check_records(len(self._records))

    def _check_records(self, end: int) -> None:
        """The ledger has recorded what the oracle has noted, in its order but for the lines of one operation."""
        noted = self.oracle.brands[self._brand_id].records[self._checked : end]
        there = self._records[self._checked : end]
        assert Counter(noted) == Counter(there), f"records {self._checked + 1} on: expected {noted}, there {there}"
        self._checked = end

    def _change_status(self, until: datetime | None) -> None:
        brand = self.oracle.brands[self._brand_id]
        while self._statuses and (until is None or self._statuses[0][0] <= until):
            _, brand.status, self._doubtful = self._statuses.pop(0)

    def _probe(self) -> None:
        """Strike what the oracle answers so now."""
        waiting = [probe for probe in self._probes if probe.is_open(self.oracle.now)]
        if not waiting:
            return
        statuses = [self.oracle.brands[self._brand_id].status]
        if self._doubtful:
            statuses = [ACTIVE, SUSPENDED]
        for status in statuses:
            copied: Oracle | None = None
            for probe in waiting:
                if copied is None:
                    copied = self._copy()
                    copied.brands[self._brand_id].status = status
                expected = copied.outcome(probe.call.method, **probe.call.request)
                actual = probe.attempt.outcome
                found = difference(expected, actual)
                if found:
                    probe.nearest = found
                    if not isinstance(expected, Refused):
                        # It has done what the ledger has not.
                        copied = None
                elif probe in self._probes:
                    self._probes.remove(probe)

    def _copy(self) -> Oracle:
        """The oracle without its past, which no answer asks for."""
        brand = self.oracle.brands[self._brand_id]
        points, records, journal = brand.points, brand.records, brand.journal
        brand.points, brand.records, brand.journal = points[-1:], [], []
        try:
            copied: Oracle = pickle.loads(pickle.dumps(self.oracle))
        finally:
            brand.points, brand.records, brand.journal = points, records, journal
        return copied


def _numbers_of(reply: Reply) -> Reply:
    return {name: reply[name] for name in _NUMBERS if name in reply}


def _orders(group: list[_Done]) -> Iterator[list[_Done]]:
    """The orders in which one transaction may have done what it did, the likeliest first.

    What has records of its own is in their order. What has none goes where it is possible if it is anywhere: an
    extension and a request to release as soon as can be, a status or receipt that refunded nothing as late as can be.
    """
    early = [each for each in group if each.call and each.call.method in {"ExtendFreeze", "SmsReleaseFreezeNum"}]
    early.sort(key=lambda each: (each.call.reply or {}).get("expires_at", each.at) if each.call else each.at)
    recorded = sorted((each for each in group if each.record_no is not None), key=lambda each: each.record_no or 0)
    late = [each for each in group if each not in early and each not in recorded]
    late.sort(key=_lateness)
    yield [*early, *recorded, *late]
    named = Counter(message for each in group for message in each.messages)
    doubtful = [each for each in recorded + late if any(named[message] > 1 for message in each.messages)]
    for order in itertools.permutations(doubtful) if 1 < len(doubtful) <= 5 else ():
        following = iter(order)
        yield [*early, *(next(following) if each in doubtful else each for each in [*recorded, *late])]


def _lateness(done: _Done) -> int:
    if done.call is None or done.call.method == "SmsSendStatusCallBack":
        return 3
    # Pending, delivered, then the failures, which change nothing after these.
    return {4: 0, 1: 1}.get(done.call.request["state"], 2)


def _statuses(calls: Iterable[Call], beginning: Call, done: list[_Done]) -> list[tuple[datetime, int, bool]]:
    """(from when on, status, whether it may be the other one as well): no record tells when a status changed.

    It changed after the last freeze before a suspension, and before the first one after it.
    """
    frozen = sorted(each.at for each in done if each.call and each.call.method == "SmsSendPrePay")
    found: list[tuple[datetime, int, bool]] = []
    for call in calls:
        if call.method != "PutBrand" or call is beginning:
            continue
        status = call.request["status"]
        begun = min(each.begun for each in call.attempts)
        ended = max(each.ended for each in call.attempts)
        within = [at for at in frozen if begun <= at <= ended]
        if status == SUSPENDED:
            found.append(((within[-1] + timedelta(microseconds=1)) if within else begun, SUSPENDED, True))
            found.append((ended, SUSPENDED, False))
        else:
            found.append((begun, SUSPENDED, True))
            found.append((within[0] if within else ended, ACTIVE, False))
    return sorted(found, key=lambda change: change[0])
