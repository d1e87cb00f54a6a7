"""The oracle itself, on what docs/ledger.md works out by hand."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta

import pytest
from ledger_oracle import Oracle, Refused

YEAR = 2026


def at(month: int, day: int, hour: int = 0) -> datetime:
    """A moment of the example's year."""
    return datetime(YEAR, month, day, hour, tzinfo=UTC)


def adjust(oracle: Oracle, name: str, **adjustment: object) -> int:
    """AdjustPackage for brand 1; the package's number."""
    reply = oracle.call("AdjustPackage", brand_id=1, request_id=name, author="a", reason="r", **adjustment)
    number: int = reply["package"]["package_id"]
    return number


def test_worked_example() -> None:
    """Every line of the worked example comes out as written, and the invariants hold after each."""
    oracle = Oracle(at(1, 1))
    oracle.call("PutBrand", brand_id=1, name="Brand", time_zone="UTC")
    adjust(oracle, "g1", grant={"segments": 100, "expires_at": at(2, 1)})
    adjust(oracle, "g2", grant={"segments": 200, "expires_at": at(4, 1)})

    def figures() -> list[object]:
        oracle.check()
        brand = oracle.brands[1]
        balance = oracle.call("GetBalance", brand_id=1)
        packages = [(package.remaining, package.held) for package in brand.packages[:2]]
        return [*packages, balance["total"], balance["frozen"]]

    def status(name: str, payment_no: str, *failed: tuple[str, int]) -> None:
        messages = [{"message_id": message, "segments": segments} for message, segments in failed]
        oracle.call("SmsSendStatusCallBack", brand_id=1, request_id=name, payment_no=payment_no, failed=messages)

    assert figures() == [(100, 0), (200, 0), 300, 0]
    oracle.pass_to(at(1, 31, 20))
    freeze = oracle.call("SmsSendPrePay", brand_id=1, request_id="f", sms_type=1, segments=150)["order_no"]
    assert figures() == [(100, 100), (200, 50), 300, 150]
    oracle.pass_to(at(1, 31, 21))
    first = oracle.call("SmsSendPay", brand_id=1, request_id="p1", order_no=freeze, segments=60)["payment_no"]
    assert figures() == [(40, 40), (200, 50), 240, 90]
    oracle.pass_to(at(1, 31, 22))
    second = oracle.call("SmsSendPay", brand_id=1, request_id="p2", order_no=freeze, segments=70)["payment_no"]
    assert figures() == [(0, 0), (170, 20), 170, 20]
    oracle.call("SmsReleaseFreezeNum", brand_id=1, request_id="r", order_no=freeze, segments=15)
    assert oracle.call("ApplyReleases") == {"applied": 1, "put_back": 0, "segments": 15}
    assert figures() == [(0, 0), (170, 5), 170, 5]
    oracle.pass_to(at(1, 31, 23))
    status("s1", second, ("m1", 2), ("m2", 1))
    assert figures() == [(0, 0), (173, 5), 173, 5]
    oracle.pass_to(at(2, 1, 20))
    assert figures() == [(0, 0), (173, 0), 173, 0]
    oracle.pass_to(at(2, 2))
    status("s2", first, ("m9", 4))
    assert figures() == [(0, 0), (173, 0), 177, 0]
    assert oracle.brands[1].package(3).expires_at == at(3, 3)
    oracle.pass_to(at(3, 3))
    assert figures() == [(0, 0), (173, 0), 173, 0]
    oracle.pass_to(at(3, 4))
    status("s3", first, ("m8", 3))
    assert figures() == [(0, 0), (173, 0), 173, 0]
    package = oracle.brands[1].package(1)
    assert (package.granted, package.remaining, package.paid, package.refunded, package.expired) == (100, 0, 100, 3, 3)
    past = oracle.call("GetBalance", brand_id=1, as_of=at(1, 31, 21))
    assert (past["total"], past["frozen"], past["available"]) == (240, 90, 150)


def test_same_key() -> None:
    """The same content gets the first reply, other content a conflict, and after its clean-up the key is free."""
    oracle = Oracle(at(1, 1))
    oracle.call("PutBrand", brand_id=1, name="Brand")
    adjust(oracle, "g", grant={"segments": 10})
    request = {"brand_id": 1, "request_id": "f", "sms_type": 1, "segments": 4}
    first = oracle.call("SmsSendPrePay", **request)
    assert oracle.call("SmsSendPrePay", **request) == first
    with pytest.raises(Refused) as refused:
        oracle.call("SmsSendPrePay", **{**request, "segments": 5})
    assert (refused.value.status, refused.value.reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_CONFLICT")
    oracle.pass_to(oracle.now + timedelta(days=30))
    assert oracle.call("CleanUp") == {"orders_cancelled": 0, "keys_deleted": 2}
    assert oracle.call("SmsSendPrePay", **request) != first


def test_copy_goes_its_own_way() -> None:
    """What is tried on a copy leaves the original alone."""
    oracle = Oracle(at(1, 1))
    oracle.call("PutBrand", brand_id=1, name="Brand")
    adjust(oracle, "g", grant={"segments": 10})
    copied = copy.deepcopy(oracle)
    copied.call("SmsSendPrePay", brand_id=1, request_id="f", sms_type=1, segments=4)
    assert oracle.call("GetBalance", brand_id=1)["frozen"] == 0
    assert copy.deepcopy(Refused("FREEZE_INSUFFICIENT", requested=2, open=1)).figures == {"requested": "2", "open": "1"}
