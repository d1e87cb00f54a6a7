"""Calls to every RPC of the cost centre made from the descriptors of their requests, half of them with something wrong.

A caller has brands of its own and an oracle that makes the same calls, so every reply and every refusal is known
beforehand. Moments are those of the running clock, so they are compared to the minute; nothing ends within the minutes
of a run but freezes of some microseconds, which have ended when the next call comes.
"""

from __future__ import annotations

import base64
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from ledger_oracle import BATCHES, RELEASE, TIME_OUT, Oracle, Refused, Reply, Request
from ledger_processes import CostCenterProcess
from ledger_service import METHODS, number, request_of
from ledger_wire import difference, outcome_of

from infra.errors import Refusal

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CLOSE = timedelta(minutes=1)
# Longer than a round takes.
_NEAR = timedelta(minutes=15)
# Those that brands of the calls have, the first one unless they have another.
_ZONES = ("Asia/Shanghai", "UTC", "America/New_York")
_DURATION_MAX = 10**9
_BATCH_MAX = 5_000
# What a viewer may read, and what can be read at all.
VIEWS = {"GetBalance", "GetBalanceHistory", "ListPackages", "GetFreeze", "GetPayment", "ListPayments", "GetBrand"}
VIEWS |= {"ListFreezes"}
READS = {*VIEWS, "GetStatement"}
# What the jobs do concerns all brands, so callers only ask for it in vain; a round ends with the real thing.
JOBS = {"ApplyReleases": ("limit", 5_000), "BookDue": ("brand_limit", 10_000), "CleanUp": ("limit", 100_000)}
_WEIGHTS = {
    "SmsSendPrePay": 14,
    "SmsSendPay": 14,
    "SmsReleaseFreezeNum": 5,
    "ExtendFreeze": 5,
    "SmsSendStatusCallBack": 8,
    "SmsReceiptStatusCallBack": 8,
    "AdjustPackage": 5,
    "PutBrand": 1,
    "CreatePackageOrder": 4,
    "PackagePaidCallBack": 6,
    **dict.fromkeys(BATCHES, 3),
}
_NUMBERS = ("order_no", "payment_no", "release_no", "package_order_no", "adjustment_no")
_BRAND_IDS = (0, -1, 2**31, 2**31 - 1, 2**53, 2**63 - 1, -(2**63))
_INTEGERS = (*_BRAND_IDS, 1, 2, 5_001, 10**9, 10**9 + 1)
_TEXTS = (
    *(
        "",
        " ",
        " x ",
        "x" * 64,
        "x" * 65,
        "x" * 5_000,
        "a\0b",
        "\0",
        "\n",
        "a\tb",
        "\u2028",
        "\u200b",
        "\ufffd",
        "\x7f",
    ),
    *("é" * 64, "汉" * 65, "😀" * 64, "e\u0301", "٣", "'; drop table brand; --", '{"}\\', "NULL", "-1", "1e9", "UTC"),
    *("2024-02", "2024-13", "2024-2", "0000-01", "0001-12", "9998-12", "9999-01"),
    *("0" * 32, "Z" * 32, "7" * 32, "0.0001", "999999999999.9999", "9999999999999", "1.00001", "+1", "CNY", "cny"),
    *(base64.urlsafe_b64encode(each).decode() for each in (b"1", b"abc", b"\0", b"1.2", b"9" * 19, b"-1", b"\xff")),
)
_BYTES = (b"", b"\0" * 31, b"\0" * 32, b"\xff" * 33)
_ENUMS = (0, 1, 2, 3, 4, 5, 7, -1, 2**31 - 1, -(2**31))
_MOMENTS = (
    (0, 0),
    (-62_135_596_800, 0),
    (-62_135_596_801, 0),
    (253_402_300_799, 999_999_999),
    (253_402_300_800, 0),
    (2**63 - 1, 0),
    (-(2**63), 0),
    (0, -1),
    (0, 2**31 - 1),
    (0, -(2**31)),
)
_DURATIONS = (
    *((0, 0), (-1, 0), (0, 1), (0, 999), (0, 1_000), (0, -1), (1, -1), (-1, 1), (0, 2**31 - 1)),
    *((7 * 86_400, 0), (7 * 86_400, 1_000), (10**9, 0), (10**9 + 1, 0), (315_576_000_001, 0), (2**63 - 1, 0)),
)


def documented_reasons() -> dict[str, set[str]]:
    """For each RPC the reasons that docs/rpcs.md lists for it; those of any call under the empty name."""
    page = (Path(__file__).parents[1] / "docs/rpcs.md").read_text().partition("\n## Refusals\n")[2]
    found: dict[str, set[str]] = {"": set()}
    for reason, calls in re.findall(r"^\| `\w+` \| `(\w+)` \| (.+) \|$", page.partition("\n## ")[0], re.MULTILINE):
        for name in re.findall(r"\[(\w+)\]", calls) or [""]:
            found.setdefault(name, set()).add(reason)
    return found


@dataclass
class Tokens:
    """Secrets that callers come with."""

    reader: str
    other_brand: str
    foreign_brand: int
    foreign_numbers: dict[str, str]
    # What makes the foreign brand: (method, request, reply), for the oracles.
    opening: list[tuple[str, Request, Reply]]


@dataclass
class _Numbers:
    """Hands the oracle the numbers that the service gave, in their order."""

    new: list[str] = field(default_factory=list)

    def __call__(self, kind: str, brand_id: int) -> str:
        return self.new.pop(0) if self.new else "a number of no one"


class Fuzz:
    """One caller.

    Parameters: `process` the cost centre; `choices` all that is random; `tokens` what others prepared; `counts` where
    outcomes are counted.
    """

    def __init__(
        self, process: CostCenterProcess, choices: random.Random, tokens: Tokens, counts: Counter[str]
    ) -> None:
        self._process = process
        self._choices = choices
        self._tokens = tokens
        self._counts = counts
        self._reasons = documented_reasons()
        self._numbers = _Numbers()
        self.oracle = Oracle(datetime.now(UTC), numbers=self._numbers)
        for method, request, reply in tokens.opening:
            self._numbers.new = [reply[name] for name in _NUMBERS if name in reply]
            self.oracle.call(method, **request)
        self._seen: set[str] = set()
        self._brands = [number(), number()]
        self._offers = [f"offer-{number()}" for _ in range(3)]
        self._freezes: list[tuple[int, str]] = []
        self._payments: list[tuple[int, str]] = []
        self._orders: list[tuple[int, str, str]] = []
        self._token_ids: list[str] = []
        self._secrets: list[str] = []
        self._sent: list[tuple[str, Message]] = []
        self._weight = 1
        self.methods: Counter[str] = Counter()

    async def open(self) -> None:
        """Brands with segments and offers."""
        for brand_id in self._brands:
            name = {"brand_id": brand_id, "name": "Brand", "refund_undelivered": brand_id % 2 == 0}
            await self.call("PutBrand", request_of("PutBrand", **name))
            for sms_types in ([], [1], [2, 3]):
                grant = {"segments": 2_000, "sms_types": sms_types}
                fields = {"brand_id": brand_id, "request_id": self._id(), "author": "a", "reason": "r", "grant": grant}
                await self.call("AdjustPackage", request_of("AdjustPackage", **fields))
        for offer_id in [*self._offers]:
            request = request_of("PutPackageOffer")
            self._fill(request.offer, {"offer_id": offer_id, "active": True})
            await self.call("PutPackageOffer", request)

    async def run(self, calls: int) -> None:
        """Make so many calls, an item of a batch counting as one."""
        while calls > 0:
            self._weight = 1
            await self.step()
            calls -= self._weight

    def pass_time(self) -> None:
        """Bring the oracle to the present."""
        self.oracle.pass_to(max(self.oracle.now, datetime.now(UTC)))

    async def step(self) -> None:
        """One call, right or wrong, with a right or a wrong token."""
        choices = self._choices
        if self._sent and choices.random() < 0.08:
            method, request = choices.choice(self._sent[-40:])
            request = _copy(request)
            wrong = choices.random() < 0.5
            if wrong:
                # The same key with other content, most of the time.
                self._mutate(request, keep={"brand_id", "request_id"})
        else:
            method = self._method()
            if method in JOBS:
                await self._vain_job(method)
                return
            request = self._valid(method)
            if choices.random() < 0.5:
                for _ in range(choices.choice((1, 1, 2))):
                    self._mutate(request)
                if method == "PutBrand" and request.brand_id > 0:
                    request.brand_id = self._brands[0]
                wrong = True
            else:
                wrong = False
        if self._is_harmful(request):
            return
        if choices.random() < 0.06:
            self._counts["wrong"] += 1
            await self._call_with_a_wrong_token(method, request)
        else:
            await self.call(method, request)
            self._counts["wrong" if wrong else "valid"] += self._weight

    # Calls.

    async def call(self, method: str, request: Message) -> None:
        """Make a call and compare what comes. Raises AssertionError."""
        actual = await outcome_of(self._process.send(method, request))
        self._weight = max(1, len(actual.get("results", ()))) if isinstance(actual, dict) else 1
        self._count(method, actual)
        self._note_new(method, actual)
        self.pass_time()
        expected = self._expected(method, request)
        found = self._difference(method, request, expected, actual)
        assert not found, f"{method}({_short(request)})\n  {found}\n  expected {expected!r:.500}\n  got {actual!r:.500}"
        self._learn(method, request, actual)
        if method not in READS:
            self._sent.append((method, _copy(request)))

    async def compare_all(self) -> None:
        """Read what there is at the end; a sample of the freezes and payments."""
        for brand_id in self._brands:
            for method in ("GetBrand", "GetBalance", "ListPackages", "ListFreezes", "ListPayments"):
                await self.call(method, request_of(method, brand_id=brand_id))
        for _, order_no in self._choices.sample(self._freezes, min(15, len(self._freezes))):
            await self.call("GetFreeze", request_of("GetFreeze", order_no=order_no))
        for _, payment_no in self._choices.sample(self._payments, min(15, len(self._payments))):
            await self.call("GetPayment", request_of("GetPayment", payment_no=payment_no))
        self.oracle.check()

    async def compare_statements(self) -> None:
        """All pages of the statements of the brands' whole lives."""
        for brand_id in self._brands:
            fields = {"brand_id": brand_id, "from": _stamp(-5_400), "page_size": self._choice(70, 300, 1_000)}
            pages: list[Reply] = []
            while not pages or pages[-1]["next_page_token"]:
                token = pages[-1]["next_page_token"] if pages else ""
                reply = await outcome_of(self._process.call("GetStatement", page_token=token, **fields))
                assert isinstance(reply, dict), reply
                assert (reply["statement"] is None) == bool(pages), "the sums are in the first page"
                pages.append(reply)
            self.methods["GetStatement"] += len(pages)
            self.pass_time()
            expected: Any = self._expected("GetStatement", request_of("GetStatement", **fields))
            lines = [line for page in pages for line in page["lines"]]
            assert pages[0]["statement"]["records"] == len(lines)
            outcomes = [
                _without_order(each["statement"], each["lines"]) for each in (expected, {**pages[0], "lines": lines})
            ]
            found = difference(_aligned(*outcomes), outcomes[1])
            assert not found, f"statement of {brand_id}{found}"

    async def _vain_job(self, method: str) -> None:
        name, longest = JOBS[method]
        value = self._choices.choice((-1, longest + 1, 2**31 - 1, -(2**31)))
        actual = await outcome_of(self._process.send(method, request_of(method, **{name: value})))
        self._count(method, actual)
        assert isinstance(actual, Refusal), f"{method}({value}): {actual}"
        assert actual.reason == "BAD_REQUEST", actual

    async def _call_with_a_wrong_token(self, method: str, request: Message) -> None:
        """Nothing comes of it, so the oracle is not told."""
        kind = self._choices.choice(("none", "rubbish", "reader", "other brand"))
        if kind == "reader" and (method in VIEWS or (method.startswith("List") and method != "ListTokens")):
            return
        of_any_brand = method in {"ListBrands", "ListBalances", "ListPackageOffers"}
        if kind == "other brand" and (of_any_brand or self._names_foreign(request)):
            return
        secret = {"none": None, "rubbish": "sb_rubbish", "reader": self._tokens.reader}.get(
            kind, self._tokens.other_brand
        )
        actual = await outcome_of(self._process.send(method, request, token=secret))
        self._count(method, actual)
        reasons = {
            "none": {"UNAUTHENTICATED"},
            "rubbish": {"UNAUTHENTICATED"},
            "reader": {"ROLE_NOT_ALLOWED"},
            # Rules of the fields come first, but for what concerns all brands.
            "other brand": {"BRAND_NOT_ALLOWED", "BAD_REQUEST", "FREEZE_NOT_FOUND", "PAYMENT_NOT_FOUND"},
        }[kind]
        refusals = _refusals(actual)
        assert refusals or (isinstance(actual, dict) and actual.get("results") == []), f"{method} with {kind}: {actual}"
        assert set(refusals) <= reasons, f"{method}({_short(request)}) with {kind}: {refusals}"

    def _count(self, method: str, actual: Reply | Refusal) -> None:
        self.methods[method] += 1
        for reason in _refusals(actual):
            self._counts[reason] += 1
            known = self._reasons.get(method, set()) | self._reasons[""]
            assert reason in known, f"{method}: {reason} is not listed for it: {actual!r:.500}"
            assert reason not in {"INTERNAL", "UNKNOWN"}, f"{method}: {actual!r:.500}"
        if isinstance(actual, dict):
            oks = [result for result in actual.get("results", [{}]) if result.get("refusal") is None]
            self._counts["OK"] += len(oks)

    def _difference(self, method: str, request: Message, expected: Reply | Refused | None, actual: Any) -> str:
        if expected is None:
            return "" if isinstance(actual, dict) else f"refused: {actual!r}"
        if isinstance(expected, Refused) and isinstance(actual, Refusal):
            # The moment of a freeze's end is known to the minute only.
            expected.figures.pop("expires_at", None)
        elif isinstance(expected, dict) and isinstance(actual, dict):
            expected, actual = _paged(method, request, expected, actual)
            for result in expected.get("results", ()):
                if isinstance(result.get("refusal"), Refused):
                    result["refusal"].figures.pop("expires_at", None)
            if method == "GetBalance" and not actual["available_by_type"]:
                expected = {**expected, "available_by_type": []}
        return difference(_aligned(expected, actual), actual)

    # What is expected.

    def _expected(self, method: str, request: Message) -> Reply | Refused | None:
        """The oracle's outcome; None for a reply of which only that it is one is known."""
        bad = Refused("BAD_REQUEST")
        if hasattr(request, "page_size"):
            has_pages = not getattr(request, "summary_only", False)
            if (has_pages and not 0 <= request.page_size <= 1_000) or not _is_page(method, request):
                return bad
        if method in _RULES:
            return _RULES[method](self, request)
        if method in BATCHES:
            if len(request.items) > _BATCH_MAX:  # type: ignore[attr-defined]
                return bad
            items = [self._expected(BATCHES[method], item) for item in request.items]  # type: ignore[attr-defined]
            return {"results": [{"refusal": each} if isinstance(each, Refused) else {"ok": each} for each in items]}
        try:
            fields = _fields(request)
        except OverflowError:
            return bad
        if method == "PutPackageOffer" and not (fields["offer"] or {}).get("offer_id"):
            # The oracle takes it that an offer is given and has an id.
            return bad
        return self.oracle.outcome(method, **fields)

    def _expect_list(self, _: Any) -> None:
        return None

    def _expect_balances(self, request: Any) -> Refused | None:
        below_is_right = not request.HasField("available_below") or request.available_below >= 1
        prefix_is_right = len(request.name_prefix) <= 100 and request.name_prefix.isprintable()
        is_right = request.status in {0, 1, 2, 3} and below_is_right and prefix_is_right
        return None if is_right else Refused("BAD_REQUEST")

    def _expect_figures(self, request: Any) -> Refused | None:
        return None if 0 <= request.brands_max <= 1_000 else Refused("BAD_REQUEST")

    def _expect_created(self, request: Any) -> Refused | None:
        rules = (
            1 <= len(request.name.strip()) <= 100,
            "\0" not in request.name,
            bool(request.roles) and set(request.roles) <= {1, 2, 3, 4, 5},
            request.all_brands != bool(request.brand_ids),
            len(request.brand_ids) <= 1_000 and all(brand_id >= 1 for brand_id in request.brand_ids),
        )
        try:
            end = _moment(request.expires_at) if request.HasField("expires_at") else None
        except OverflowError:
            return Refused("BAD_REQUEST")
        return None if all(rules) and (end is None or end > datetime.now(UTC)) else Refused("BAD_REQUEST")

    def _expect_revoked(self, request: Any) -> Reply | Refused | None:
        token_id = request.token_id
        if not 1 <= len(token_id) <= 64 or not token_id.isprintable():
            return Refused("BAD_REQUEST")
        return None if token_id in self._token_ids else _TokenNotFound()

    def _expect_checked(self, request: Any) -> Reply | Refused | None:
        if len(request.secret_sha256) != 32:
            return Refused("BAD_REQUEST")
        known = {sha256(secret.encode()).digest() for secret in self._secrets if secret != "revoked"}
        return None if request.secret_sha256 in known else _TokenNotFound()

    # What is learnt.

    def _note_new(self, method: str, actual: Any) -> None:
        """The numbers that this call was the first to tell, in their order, for the oracle."""
        results = actual.get("results", [{"ok": actual}]) if isinstance(actual, dict) else []
        found = [result["ok"][name] for result in results if result["ok"] for name in _NUMBERS if name in result["ok"]]
        if method in READS:
            found = []
        self._numbers.new = [each for each in dict.fromkeys(found) if each not in self._seen]
        self._seen.update(found)

    def _learn(self, method: str, request: Any, actual: Any) -> None:
        if not isinstance(actual, dict):
            return
        if method in BATCHES:
            for item, result in zip(request.items, actual["results"], strict=True):
                self._learn(BATCHES[method], item, result["ok"])
        elif method == "SmsSendPrePay":
            self._freezes.append((request.brand_id, actual["order_no"]))
        elif method == "SmsSendPay":
            self._payments.append((request.brand_id, actual["payment_no"]))
        elif method == "CreatePackageOrder":
            self._orders.append((request.brand_id, actual["package_order_no"], actual["price"]))
        elif method == "PutPackageOffer":
            self._offers.append(request.offer.offer_id)
        elif method == "CreateToken":
            self._token_ids.append(actual["token"]["token_id"])
            self._secrets.append(actual["secret"])
        elif method == "RevokeToken":
            place = self._token_ids.index(request.token_id)
            # It may be revoked again, but not be found by its secret.
            self._secrets[place] = "revoked"

    # Requests.

    def _method(self) -> str:
        """A method for which there is something to call it for."""
        known = {"order_no": self._freezes, "payment_no": self._payments, "package_order_no": self._orders}
        while True:
            method: str = self._choices.choices([*METHODS], [_WEIGHTS.get(name, 2) for name in METHODS])[0]
            request = METHODS[BATCHES.get(method, method)][1].input_type
            names = {each.name for each in request.fields}
            if method == "ListPayments" or all(known[name] for name in names & set(known)):
                return method

    def _choice(self, *options: Any) -> Any:
        return self._choices.choice(options)

    def _id(self) -> str:
        return f"request-{number()}"

    def _valid(self, method: str) -> Any:
        request = request_of(method)
        if method in BATCHES:
            size = self._choices.choice((0, 1, 5, 40, 100))
            request.items.extend(self._valid(BATCHES[method]) for _ in range(size))
            return request
        given: dict[str, Any] = {}
        names = {each.name for each in request.DESCRIPTOR.fields}
        for name, known in (("order_no", self._freezes), ("payment_no", self._payments)):
            if name in names and known and method != "ListPayments":
                given["brand_id"], given[name] = self._choices.choice(known[-20:])
        if "package_order_no" in names and self._orders:
            given["brand_id"], given["package_order_no"], given["amount"] = self._choices.choice(self._orders[-4:])
            if self._choices.random() < 0.15:
                given["amount"] = "1.00"
        if "offer_id" in names:
            given["offer_id"] = self._choices.choice(self._offers)
        self._fill(request, given)
        if method == "GetStatement":
            # A month, or a period in its place.
            for name in self._choice(["month"], ["from", "to"]):
                request.ClearField(name)
        return request

    def _fill(self, request: Any, given: dict[str, Any]) -> None:
        """Give every field a value that its rules allow; of a oneof one."""
        chosen = {
            self._choices.choice(oneof.fields).name: True
            for oneof in request.DESCRIPTOR.oneofs
            if not oneof.name.startswith("_")
        }
        is_loose = request.DESCRIPTOR.name not in {"PackageOffer", "CreateTokenRequest"}
        for each in request.DESCRIPTOR.fields:
            if each.containing_oneof is not None and not each.containing_oneof.name.startswith("_"):
                if each.name not in chosen:
                    continue
            elif each.name in _SELDOM - set(given) and is_loose and self._choices.random() < 0.7:
                continue
            self._set(request, each, given)

    def _set(self, request: Any, each: Any, given: dict[str, Any]) -> None:
        name = each.name
        if name in given:
            setattr(request, name, given[name])
        elif name in _VALUES:
            value = _VALUES[name](self)
            if each.is_repeated:
                getattr(request, name).extend(value)
            elif each.message_type is not None:
                getattr(request, name).CopyFrom(value)
            else:
                setattr(request, name, value)
        elif each.message_type is not None and each.is_repeated:
            for place in range(self._choices.randint(0, 3)):
                self._fill(getattr(request, name).add(), {"message_id": f"m{place}"})
        elif each.message_type is not None:
            getattr(request, name).SetInParent()
            self._fill(getattr(request, name), {})
        elif each.enum_type is not None:
            setattr(request, name, self._choices.choice(each.enum_type.values[1:]).number)
        elif each.type == FieldDescriptor.TYPE_BOOL:
            setattr(request, name, self._choices.random() < 0.5)
        else:
            raise AssertionError(f"what is a right value of {each.full_name}?")

    def _package_id(self) -> int:
        brand = self.oracle.brands.get(self._brands[0])
        return self._choices.randint(1, max(1, len(brand.packages) if brand else 1))

    def _mutate(self, request: Any, keep: frozenset[str] | set[str] = frozenset()) -> None:
        """Put something wrong, or at a bound, somewhere."""
        choices = self._choices
        fields = [each for each in request.DESCRIPTOR.fields if each.name not in keep]
        if not fields:
            return
        each = choices.choice(fields)
        name = each.name
        if each.is_repeated:
            self._mutate_list(getattr(request, name), each, keep)
        elif each.message_type is not None:
            if choices.random() < 0.15:
                request.ClearField(name)
            elif each.message_type.full_name in _WELL_KNOWN:
                seconds, nanos = choices.choice(_WELL_KNOWN[each.message_type.full_name])
                getattr(request, name).CopyFrom(each.message_type._concrete_class(seconds=seconds, nanos=nanos))
            else:
                getattr(request, name).SetInParent()
                self._mutate(getattr(request, name))
        elif choices.random() < 0.1:
            request.ClearField(name)
        else:
            setattr(request, name, self._wrong(each))

    def _mutate_list(self, values: Any, each: Any, keep: frozenset[str] | set[str]) -> None:
        choices = self._choices
        kind = choices.random()
        if each.message_type is not None:
            if not values or kind < 0.1:
                values.add()
            elif kind < 0.2:
                values.append(values[0])
            elif kind < 0.22:
                # Beyond the bound of batches and of named messages; equal ones are made fast.
                values.extend([values[0]] * 10_001)
            elif each.name == "items":
                for value in choices.sample([*values], max(1, len(values) // 2)):
                    self._mutate(value, keep)
            else:
                self._mutate(choices.choice(values), keep)
        elif kind < 0.2:
            values.extend([1] * 1_001)
        elif kind < 0.4:
            del values[:]
        else:
            values.append(self._wrong(each))

    def _wrong(self, each: Any) -> Any:
        choices = self._choices
        numbers = self._tokens.foreign_numbers
        if each.name in numbers and choices.random() < 0.3:
            return numbers[each.name]
        if each.name == "brand_id":
            return choices.choice((*_BRAND_IDS, self._tokens.foreign_brand, *self._brands))
        if each.enum_type is not None:
            return choices.choice(_ENUMS)
        if each.type == FieldDescriptor.TYPE_STRING:
            return choices.choice(_TEXTS)
        if each.type == FieldDescriptor.TYPE_BYTES:
            return choices.choice(_BYTES)
        if each.type == FieldDescriptor.TYPE_BOOL:
            return choices.random() < 0.5
        bits = 31 if each.type == FieldDescriptor.TYPE_INT32 else 63
        return choices.choice([value for value in _INTEGERS if -(2**bits) <= value < 2**bits])

    def _is_harmful(self, request: Any) -> bool:
        """Whether a call would change what other callers see too."""
        if hasattr(request, "items"):
            return any(map(self._is_harmful, request.items))
        numbers = [getattr(request, name, "") for name in self._tokens.foreign_numbers]
        foreign = getattr(request, "brand_id", 0) == self._tokens.foreign_brand
        return (foreign and (bool(set(numbers) & set(self._tokens.foreign_numbers.values())))) or (
            hasattr(request, "offer")
            and request.offer.offer_id != ""
            and len(request.offer.offer_id) <= 64
            and request.offer.offer_id.isprintable()
            and not request.offer.offer_id.startswith("offer-")
        )

    def _names_foreign(self, request: Any) -> bool:
        if hasattr(request, "items"):
            return any(map(self._names_foreign, request.items))
        numbers = {getattr(request, name, "") for name in self._tokens.foreign_numbers}
        return getattr(request, "brand_id", 0) == self._tokens.foreign_brand or bool(
            numbers & set(self._tokens.foreign_numbers.values())
        )


class _TokenNotFound(Refused):
    """The oracle knows no tokens."""

    def __init__(self) -> None:
        super().__init__("BRAND_NOT_FOUND")
        self.reason = "TOKEN_NOT_FOUND"


_RULES: dict[str, Callable[[Fuzz, Any], Reply | Refused | None]] = {
    "ListBrands": Fuzz._expect_list,
    "ListBalances": Fuzz._expect_balances,
    "ListPackageOffers": Fuzz._expect_list,
    "ListTokens": Fuzz._expect_list,
    "GetLedgerFigures": Fuzz._expect_figures,
    "CreateToken": Fuzz._expect_created,
    "RevokeToken": Fuzz._expect_revoked,
    "CheckToken": Fuzz._expect_checked,
}
_WELL_KNOWN = {"google.protobuf.Timestamp": _MOMENTS, "google.protobuf.Duration": _DURATIONS}
_SELDOM = {
    *("time_to_live", "as_of", "to", "price", "currency", "page_size", "page_token", "reported_at", "status"),
    *("time_zone", "refund_undelivered", "expires_at", "sms_types", "name", "available_below", "name_prefix"),
}
# Right values by the names of fields.
_VALUES: dict[str, Callable[[Fuzz], Any]] = {
    "brand_id": lambda fuzz: fuzz._choices.choice(fuzz._brands),
    "request_id": lambda fuzz: fuzz._id(),
    "segments": lambda fuzz: fuzz._choices.choices((1, 2, 5, 20, 400), (4, 4, 4, 4, 1))[0],
    "time_to_live": lambda fuzz: fuzz._choices.choice((Duration(nanos=1_000), Duration(seconds=3_600))),
    "order_no": lambda fuzz: fuzz._freezes[-1][1] if fuzz._freezes else "none yet",
    "payment_no": lambda fuzz: "none yet",
    "package_order_no": lambda fuzz: "none yet",
    "message_id": lambda fuzz: fuzz._choice("m1", "m2", "m3", "m4"),
    "carrier_code": lambda fuzz: "DELIVRD",
    "reported_at": lambda fuzz: _stamp(),
    "offer_id": lambda fuzz: f"offer-{number()}",
    "price": lambda fuzz: fuzz._choice("45.00", "0", "0.0001"),
    "amount": lambda fuzz: "45.00",
    "currency": lambda fuzz: "CNY",
    "payment_reference": lambda fuzz: f"paid-{fuzz._choices.randint(1, 3)}",
    "as_of": lambda fuzz: _stamp(fuzz._choice(-86_400, 86_400)),
    "from": lambda fuzz: _stamp(-5_400),
    "to": lambda fuzz: _stamp(-600),
    "step": lambda fuzz: Duration(seconds=3_600),
    "available_below": lambda fuzz: fuzz._choice(1, 100, 10**12),
    "brands_max": lambda fuzz: fuzz._choice(0, 1, 1_000),
    "page_size": lambda fuzz: fuzz._choice(0, 1, 5, 1_000),
    "page_token": lambda fuzz: "",
    "name_prefix": lambda fuzz: fuzz._choice("", "b", "Brand"),
    "month": lambda fuzz: _month(),
    "name": lambda fuzz: fuzz._choice("Name", " 名 "),
    "status": lambda fuzz: fuzz._choices.choices((1, 2, 3), (30, 10, 1))[0],
    "time_zone": lambda fuzz: fuzz._choice(*_ZONES[1:]),
    "validity_days": lambda fuzz: fuzz._choice(1, 30, 36_500),
    "validity_months": lambda fuzz: fuzz._choice(1, 12, 1_200),
    "sms_types": lambda fuzz: fuzz._choice([], [1], [3, 2]),
    "author": lambda fuzz: "author",
    "reason": lambda fuzz: "reason",
    "package_id": lambda fuzz: fuzz._package_id(),
    "expires_at": lambda fuzz: _stamp(fuzz._choice(86_400, 10**9)),
    "roles": lambda fuzz: [fuzz._choices.randint(1, 5)],
    "all_brands": lambda fuzz: False,
    "brand_ids": lambda fuzz: [fuzz._brands[0]],
    "token_id": lambda fuzz: fuzz._choices.choice(fuzz._token_ids or ["none yet"]),
    "secret_sha256": lambda fuzz: sha256(fuzz._choices.choice(fuzz._secrets or ["none"]).encode()).digest(),
}


def _month() -> str:
    """The month that it is, unless it is about to change somewhere."""
    moments = [datetime.now(ZoneInfo(zone)) + near for zone in _ZONES for near in (-_NEAR, _NEAR)]
    months = {f"{moment:%Y-%m}" for moment in moments}
    return months.pop() if len(months) == 1 else "2024-02"


def _stamp(seconds: int = 0) -> Timestamp:
    return Timestamp(seconds=int(datetime.now(UTC).timestamp()) + seconds)


def _copy(request: Any) -> Any:
    copied = type(request)()
    copied.CopyFrom(request)
    return copied


def _short(request: Message) -> str:
    return " ".join(str(request).split())[:500]


def _moment(value: Timestamp) -> datetime:
    if not 0 <= value.nanos < 10**9:
        raise OverflowError
    return _EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1_000)


def _fields(message: Message) -> Request:
    """A request as the oracle takes it. Raises OverflowError for a moment or a duration out of range."""
    found: Request = {}
    for each in message.DESCRIPTOR.fields:
        value = getattr(message, each.name)
        if each.message_type is None:
            found[each.name] = (
                None
                if each.has_presence and not message.HasField(each.name)
                else list(value)
                if each.is_repeated
                else value
            )
        elif each.is_repeated:
            found[each.name] = [_fields(part) for part in value]
        elif not message.HasField(each.name):
            found[each.name] = None
        elif isinstance(value, Timestamp):
            found[each.name] = _moment(value)
        elif isinstance(value, Duration):
            if not (0 <= value.seconds <= _DURATION_MAX and 0 <= value.nanos < 10**9):
                raise OverflowError
            found[each.name] = timedelta(seconds=value.seconds, microseconds=value.nanos // 1_000)
        else:
            found[each.name] = _fields(value)
    return found


def _refusals(actual: Reply | Refusal) -> list[str]:
    """The reasons of a call that was refused, or of the items of a batch that were."""
    if isinstance(actual, Refusal):
        return [actual.reason]
    return [result["refusal"]["reason"] for result in actual.get("results", ()) if result.get("refusal")]


def _is_page(method: str, request: Any) -> bool:
    """Whether a page_token may be one of ours."""
    token: str = request.page_token
    if not token:
        return True
    try:
        key = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except ValueError:
        return False
    packages = 1 if getattr(request, "include_spent", False) else 2
    parts = {"ListBrands": 1, "ListBalances": 1, "ListPackages": packages, "GetStatement": 5}.get(method)
    if method == "ListFreezes" and request.open_only:
        end = key.partition(" ")[0]
        # Microseconds up to the year 9999.
        return key.isprintable() and re.fullmatch(r"\d{1,18}", end) is not None and int(end) < 253_402_300_800_000_000
    if parts is None:
        return key != "" and key.isprintable()
    return re.fullmatch(r"\d{1,18}" + r"\.\d{1,18}" * (parts - 1), key) is not None


def _paged(method: str, request: Any, expected: Reply, actual: Reply) -> tuple[Reply, Reply]:
    """Both replies cut to what can be compared of a page."""
    name = {
        "ListPackages": "packages",
        "ListFreezes": "freezes",
        "ListPayments": "payments",
        "GetStatement": "lines",
    }.get(method)
    if name is None:
        return expected, actual
    size = 0 if getattr(request, "summary_only", False) else request.page_size or 100
    assert len(actual[name]) <= size, f"{len(actual[name])} on a page of {size}"
    if request.page_token:
        return {}, {}
    assert bool(actual["next_page_token"]) == (len(expected[name]) > size), "next_page_token"
    ours, theirs = expected[name], actual[name]
    if method == "ListPackages":
        return {name: ours[:size]}, {name: theirs}
    if method == "GetStatement":
        pages = [_in_order(each, is_cut=len(ours) > size) for each in (ours[:size], theirs)]
        return {**expected, name: pages[0]}, {**actual, name: pages[1], "next_page_token": ""}
    # Numbers of one millisecond have no order among them.
    if len(ours) > size:
        return {}, {}
    number = "payment_no" if method == "ListPayments" else "order_no"
    order = [sorted(each, key=lambda record: str(record[number])) for each in (ours, theirs)]
    return {name: order[0]}, {name: order[1]}


def _in_order(lines: list[Reply], is_cut: bool = False) -> list[Reply]:
    """Lines with freezes that end at the same moment, which have no order, in that of their numbers.

    Where they are the last of a page that is not the last (`is_cut`), they are left out.
    """
    found: list[Reply] = []
    for kind, run in itertools.groupby(lines, key=lambda line: (line["kind"] == TIME_OUT, line["at"])):
        part = [*run]
        if kind[0]:
            if is_cut and part[-1] is lines[-1]:
                break
            part = [{**line, "record_no": 0, "frozen": 0} for line in part]
            part.sort(key=lambda line: (line["number"], line["lines"][0]["package_id"]))
        found += part
    return found


def _without_order(statement: Reply, lines: list[Reply]) -> Reply:
    """A statement without what depends on which of several releases of one transaction is applied first.

    They are the last that happens to a brand. Together they give back the same, in more or fewer records.
    """
    first = next((place for place, line in enumerate(lines) if line["kind"] == RELEASE), len(lines))
    back: Counter[str] = Counter()
    for line in lines[first:]:
        back[f"{line['kind']} {line['number']} {line['lines'][0]['package_id']}"] += line["segments"]
    last = {name: line[name] for line in lines[-1:] for name in ("total", "frozen")}
    return {
        "statement": {**statement, "records": 0},
        "lines": _in_order(lines[:first]),
        "back": dict(back),
        "last": last,
    }


def _aligned(expected: Any, actual: Any) -> Any:
    """What is expected, with the actual moments where they are close."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return {name: _aligned(value, actual.get(name)) for name, value in expected.items()}
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        return [_aligned(one, other) for one, other in zip(expected, actual, strict=True)]
    if isinstance(expected, datetime) and isinstance(actual, datetime) and abs(expected - actual) < _CLOSE:
        return actual
    return expected


def rounds(calls: int, size: int) -> Iterator[int]:
    """A number of calls in rounds of a size at most."""
    while calls > 0:
        yield min(calls, size)
        calls -= size


async def open_foreign(process: CostCenterProcess) -> Tokens:
    """A brand that is no caller's, which nothing changes any more, and tokens that may not do everything."""
    brand_id = number()
    opening: list[tuple[str, Request, Reply]] = []

    async def make(method: str, **request: Any) -> Reply:
        reply = await outcome_of(process.call(method, **request))
        assert isinstance(reply, dict), reply
        opening.append((method, request, reply))
        return reply

    own: dict[str, Any] = {"brand_id": brand_id}
    await make("PutBrand", name="Foreign", **own)
    grant = {"segments": 10}
    await make("AdjustPackage", request_id="a", author="a", reason="r", grant=grant, **own)
    order_no = (await make("SmsSendPrePay", request_id="f", sms_type=1, segments=10, **own))["order_no"]
    payment_no = (await make("SmsSendPay", request_id="p", order_no=order_no, segments=10, **own))["payment_no"]
    await make("PutBrand", status=3, **own)
    secrets = []
    for fields in ({"roles": [2], "all_brands": True}, {"roles": [5], "brand_ids": [brand_id]}):
        reply = await outcome_of(process.call("CreateToken", name="token", **fields))
        assert isinstance(reply, dict), reply
        secrets.append(reply["secret"])
    numbers = {"order_no": order_no, "payment_no": payment_no}
    return Tokens(secrets[0], secrets[1], brand_id, numbers, opening)
