"""Aim: operators set up accounts, rules and limits, are told what is wrong with them, and never see a secret again.
Method: the gateway's own RPCs and the real database."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from fake_cost_center import FakeCostCenter
from gateway_harness import SECONDS, Gateway, eventually, running_gateway

from infra.authorization import Role
from infra.grpc_server import bearer
from infra.grpc_status import from_error
from protos.costcenter.v1.types_pb2 import SMS_TYPE_MARKETING
from protos.smsgateway.v1 import routing_pb2 as pb
from protos.smsgateway.v1 import routing_pb2_grpc

ADMIN, BRAND_ADMIN = "admin", "admin of a brand"
SETTINGS = {"url": "http://127.0.0.1:9", "account": "N1", "password": "hush-hush"}


@pytest.fixture
async def gateway(fake_costcenter: FakeCostCenter, database_url: str, redis_url: str) -> AsyncIterator[Gateway]:
    fake_costcenter.add_token(ADMIN, [Role.ADMIN], None)
    fake_costcenter.add_token(BRAND_ADMIN, [Role.ADMIN], [7])
    async with running_gateway(fake_costcenter, database_url, redis_url, routing_poll_seconds=0.05) as running:
        yield running


@pytest.fixture
async def stub(gateway: Gateway) -> AsyncIterator[routing_pb2_grpc.RoutingAsyncStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.process.grpc_port}") as channel:
        yield routing_pb2_grpc.RoutingStub(channel)


async def call(method: Any, request: Any, token: str = ADMIN) -> Any:
    return await method(request, metadata=bearer(token), timeout=SECONDS)


async def refused(method: Any, request: Any, token: str = ADMIN) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(method, request, token)
    return from_error(caught.value)


async def test_an_account_is_put_changed_listed_and_removed(
    gateway: Gateway, stub: routing_pb2_grpc.RoutingAsyncStub, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not given stays; values are told by nothing: no reply, no log."""
    caplog.set_level(logging.DEBUG)
    made = await call(
        stub.PutCarrierAccount,
        pb.PutCarrierAccountRequest(account_id="second", kind="chuanglan", settings=SETTINGS, rate=100, calls_max=4),
    )
    assert made.account.description == "Chuanglan account at http://127.0.0.1:9"
    assert list(made.account.setting_names) == ["account", "password", "url"]
    changed = await call(
        stub.PutCarrierAccount,
        pb.PutCarrierAccountRequest(
            account_id="second", settings={"receiver": "r"}, unset_settings=["url"], paused=True, rate=0
        ),
    )
    account = changed.account
    assert list(account.setting_names) == ["account", "password", "receiver"]
    assert (account.paused, account.rate, account.calls_max) == (True, 0, 4)
    listed = await call(stub.ListCarrierAccounts, pb.ListCarrierAccountsRequest())
    assert [each.account_id for each in listed.accounts] == ["second"]
    assert "hush-hush" not in f"{made}{changed}{listed}{caplog.text}"
    await call(stub.RemoveCarrierAccount, pb.RemoveCarrierAccountRequest(account_id="second"))
    again = await refused(stub.RemoveCarrierAccount, pb.RemoveCarrierAccountRequest(account_id="second"))
    assert (again.code, again.reason) == (grpc.StatusCode.NOT_FOUND, "ACCOUNT_NOT_FOUND")
    assert await gateway.rows("select version from routing_version") == [(3,)]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"account_id": "a/b"}, "account_id"),
        ({"kind": "smoke-signals"}, "kind"),
        ({"kind": ""}, "kind"),
        ({"rate": -1}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"burst": -1}, "burst"),
        ({"calls_max": 2_000_000}, "calls_max"),
        ({"balance_alert": -1}, "balance_alert"),
        ({"settings": {**SETTINGS, "colour": "red"}}, "settings.colour"),
        ({"settings": {**SETTINGS, "batch_max": "many"}}, "settings.batch_max"),
        ({"settings": {**SETTINGS, "url": "no address"}}, "settings"),
        ({"settings": {"url": "http://127.0.0.1:9"}}, "settings"),
        ({"settings": {**SETTINGS, "password": "env:SMSBILL_TEST_IS_NOT_SET"}}, "settings.password"),
        ({"settings": {**SETTINGS, "password": "env:SMSBILL_SERVICE_TOKEN"}}, "settings.password"),
        ({"settings": {**SETTINGS, "password": "file:/etc/hostname"}}, "settings.password"),
        ({"kind": "smpp", "settings": {"host": "smsc.example", "port": "99999"}}, "settings.port"),
        ({"kind": "smpp", "settings": {"host": "smsc.example", "password": "much too long"}}, "settings.password"),
    ],
)
async def test_a_bad_account_is_refused_by_field_and_rule(
    stub: routing_pb2_grpc.RoutingAsyncStub, changes: dict[str, Any], field: str
) -> None:
    """Nothing is stored, and no value is told."""
    fields = {"account_id": "second", "kind": "chuanglan", "settings": SETTINGS, **changes}
    refusal = await refused(stub.PutCarrierAccount, pb.PutCarrierAccountRequest(**fields))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refusal.fields) == [field]
    assert "hush" not in refusal.message
    assert "much too long" not in refusal.message
    assert not (await call(stub.ListCarrierAccounts, pb.ListCarrierAccountsRequest())).accounts


async def test_secrets_are_looked_up_where_they_are_used(
    gateway: Gateway, stub: routing_pb2_grpc.RoutingAsyncStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that names a variable is stored as that; once the variable is gone the account has a problem."""
    monkeypatch.setenv("SECOND_PASSWORD", "hush")
    settings = {**SETTINGS, "password": "env:SECOND_PASSWORD"}
    request = pb.PutCarrierAccountRequest(account_id="second", kind="chuanglan", settings=settings)
    assert not (await call(stub.PutCarrierAccount, request)).account.problem
    assert await gateway.rows("select settings ->> 'password' from carrier_account") == [("env:SECOND_PASSWORD",)]
    monkeypatch.delenv("SECOND_PASSWORD")
    (account,) = (await call(stub.ListCarrierAccounts, pb.ListCarrierAccountsRequest())).accounts
    assert "SECOND_PASSWORD is not set" in account.problem


async def test_a_kind_stays_and_an_account_in_use_too(stub: routing_pb2_grpc.RoutingAsyncStub) -> None:
    """Another kind is another account; rules go before the account that they lead to."""
    await call(stub.PutCarrierAccount, pb.PutCarrierAccountRequest(account_id="b", kind="chuanglan", settings=SETTINGS))
    other = await refused(stub.PutCarrierAccount, pb.PutCarrierAccountRequest(account_id="b", kind="smpp"))
    assert (other.code, other.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KIND_FIXED")
    rule = pb.RoutingRule(account_id="b", enabled=True, weight=1)
    await call(stub.PutRoutingRule, pb.PutRoutingRuleRequest(rule=rule))
    used = await refused(stub.RemoveCarrierAccount, pb.RemoveCarrierAccountRequest(account_id="b"))
    assert (used.reason, used.metadata) == ("ACCOUNT_IN_USE", {"rules": "1"})
    await call(stub.RemoveRoutingRule, pb.RemoveRoutingRuleRequest(account_id="b"))
    missing = await refused(stub.RemoveRoutingRule, pb.RemoveRoutingRuleRequest(account_id="b"))
    assert missing.reason == "RULE_NOT_FOUND"
    await call(stub.RemoveCarrierAccount, pb.RemoveCarrierAccountRequest(account_id="b"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"brand_id": -1}, "rule.brand_id"),
        ({"sms_type": 9}, "rule.sms_type"),
        ({"prefix": "138"}, "rule.prefix"),
        ({"prefix": "+861380013800013800"}, "rule.prefix"),
        ({"account_id": ""}, "rule.account_id"),
        ({"priority": -1}, "rule.priority"),
        ({"weight": 2_000_000}, "rule.weight"),
    ],
)
async def test_a_bad_rule_is_refused_by_field_and_rule(
    stub: routing_pb2_grpc.RoutingAsyncStub, changes: dict[str, Any], field: str
) -> None:
    """As an unknown account is."""
    rule = pb.RoutingRule(**{"account_id": "chuanglan", "weight": 1, **changes})
    refusal = await refused(stub.PutRoutingRule, pb.PutRoutingRuleRequest(rule=rule))
    assert (refusal.code, list(refusal.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    stranger = pb.PutRoutingRuleRequest(rule=pb.RoutingRule(account_id="stranger"))
    assert (await refused(stub.PutRoutingRule, stranger)).reason == "ACCOUNT_NOT_FOUND"


async def test_a_route_is_explained(stub: routing_pb2_grpc.RoutingAsyncStub) -> None:
    """By tiers and shares, with what cannot be used; without a rule that fits it is the environment's account."""
    explain = pb.ExplainRouteRequest(brand_id=7, sms_type=SMS_TYPE_MARKETING, mobile="13800138000")
    reply = await call(stub.ExplainRoute, explain)
    assert (reply.default_account, [step.account_id for step in reply.steps]) == (True, ["chuanglan"])
    for account in ("a", "b"):
        await call(
            stub.PutCarrierAccount,
            pb.PutCarrierAccountRequest(account_id=account, kind="chuanglan", settings=SETTINGS, paused=account == "b"),
        )
    for account, weight, brand in (("a", 3, 7), ("b", 1, 7), ("chuanglan", 1, 0)):
        rule = pb.RoutingRule(account_id=account, brand_id=brand, weight=weight, enabled=True)
        await call(stub.PutRoutingRule, pb.PutRoutingRuleRequest(rule=rule))
    reply = await call(stub.ExplainRoute, explain)
    assert [(s.account_id, s.tier, s.share, s.usable, s.problem) for s in reply.steps] == [
        ("a", 1, 0.75, True, ""),
        ("b", 1, 0.25, False, "paused"),
        ("chuanglan", 2, 1.0, True, ""),
    ]
    assert not reply.default_account
    bad = await refused(stub.ExplainRoute, pb.ExplainRouteRequest(mobile="12"))
    assert set(bad.fields) == {"brand_id", "sms_type", "mobile"}


async def test_limits_are_put_listed_and_removed(stub: routing_pb2_grpc.RoutingAsyncStub) -> None:
    """One for a brand and type; what breaks its rule is refused by field."""
    await call(stub.PutSendingLimit, pb.PutSendingLimitRequest(limit=pb.SendingLimit(brand_id=7, rate=50)))
    await call(stub.PutSendingLimit, pb.PutSendingLimitRequest(limit=pb.SendingLimit(brand_id=7, rate=20.5, burst=9)))
    (limit,) = (await call(stub.ListSendingLimits, pb.ListSendingLimitsRequest())).limits
    assert (limit.brand_id, limit.sms_type, limit.rate, limit.burst) == (7, 0, 20.5, 9)
    bad = await refused(stub.PutSendingLimit, pb.PutSendingLimitRequest(limit=pb.SendingLimit(rate=-1, burst=-1)))
    assert set(bad.fields) == {"limit.brand_id", "limit.rate", "limit.burst"}
    await call(stub.RemoveSendingLimit, pb.RemoveSendingLimitRequest(brand_id=7))
    missing = await refused(stub.RemoveSendingLimit, pb.RemoveSendingLimitRequest(brand_id=7))
    assert missing.reason == "LIMIT_NOT_FOUND"


async def test_only_an_admin_of_all_brands_may(stub: routing_pb2_grpc.RoutingAsyncStub) -> None:
    """A route of one brand concerns the accounts of all."""
    request = pb.ListCarrierAccountsRequest()
    assert (await refused(stub.ListCarrierAccounts, request, "sender")).reason == "ROLE_NOT_ALLOWED"
    assert (await refused(stub.ListCarrierAccounts, request, BRAND_ADMIN)).reason == "BRAND_NOT_ALLOWED"


async def test_receipts_are_pushed_to_a_path_of_their_account(
    gateway: Gateway, stub: routing_pb2_grpc.RoutingAsyncStub
) -> None:
    """It is there soon after the account and gone soon after it; each account has credentials of its own."""
    url = f"http://127.0.0.1:{gateway.process.http_port}/callbacks/chuanglan/second/report"
    receipt = {
        "receiver": "r2",
        "pswd": "p2",
        "msgid": "1",
        "reportTime": "2601021530",
        "mobile": "13800138000",
        "status": "DELIVRD",
        "uid": "stranger",
    }

    async def answers(status: int) -> bool:
        async with aiohttp.ClientSession() as session, session.get(url, params=receipt) as response:
            return response.status == status

    assert await answers(404)
    settings = {**SETTINGS, "receiver": "r2", "push_password": "p2"}
    await call(
        stub.PutCarrierAccount, pb.PutCarrierAccountRequest(account_id="second", kind="chuanglan", settings=settings)
    )
    await eventually(lambda: answers(200))
    assert await gateway.rows("select distinct account from receipt_inbox") == [("second",)]
    changed = pb.PutCarrierAccountRequest(account_id="second", settings={"push_password": "p3"})
    await call(stub.PutCarrierAccount, changed)
    await eventually(lambda: answers(403))
    await call(stub.RemoveCarrierAccount, pb.RemoveCarrierAccountRequest(account_id="second"))
    await eventually(lambda: answers(404))


async def test_the_commands_do_the_same(gateway: Gateway) -> None:
    """`smsbill carrier` and `smsbill route` put, explain and refuse, in one line; a value read from standard input is
    told by nothing."""
    environment = {
        **os.environ,
        "SMSBILL_TOKEN": ADMIN,
        "SMSBILL_GATEWAY_TARGET": f"127.0.0.1:{gateway.process.grpc_port}",
        "SMSBILL_COSTCENTER_TARGET": "127.0.0.1:9",
    }

    async def smsbill(*arguments: str, given: str = "") -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "smsbill",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )
        output, _ = await asyncio.wait_for(process.communicate(given.encode()), 60)
        return process.returncode or 0, output.decode()

    put = [
        "carrier",
        "put",
        "second",
        "--kind",
        "chuanglan",
        "--set",
        "account=N1",
        "--set",
        "password=-",
        "--rate",
        "9",
    ]
    code, told = await smsbill(*put, "--json", given="hush-hush\n")
    assert code == 0, told
    assert (json.loads(told)["setting_names"], json.loads(told)["rate"]) == (["account", "password"], 9.0)
    assert "hush" not in told
    assert await gateway.rows("select settings ->> 'password' from carrier_account") == [("hush-hush",)]
    code, told = await smsbill("route", "put", "second", "--brand", "7", "--type", "marketing", "--prefix", "+86")
    assert code == 0, told
    asked = ["route", "explain", "--brand", "7", "--type", "marketing", "--to", "13800138000", "--json"]
    code, told = await smsbill(*asked)
    assert (code, [step["account_id"] for step in json.loads(told)["steps"]]) == (0, ["second"])
    code, told = await smsbill("route", "put", "second", "--prefix", "138")
    assert code == 1
    assert "rule.prefix" in told
    assert len(told.splitlines()) == 1
