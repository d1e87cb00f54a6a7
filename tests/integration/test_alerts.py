"""Aim: people hear of what a rule watches once when it begins and once when it is over, by webhook and by mail, however
many processes look and whenever one dies. Method: a real stack, a real receiver and a real mail server on the loopback
address; looks are made one by one, but for the last test, in which workers do all of it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from gateway_harness import eventually
from google.protobuf.timestamp_pb2 import Timestamp
from mail_server import PASSWORD, USER, MailServer, mail_server, make_certificate
from redis.asyncio import Redis
from webhook_receiver import Receiver, receiver
from worker_harness import ADMIN, BRAND, GRANTED, OTHER_BRAND, ScriptedCarrier, Stack, Tools, running_stack, tools

from infra.embedded import EmbeddedServers
from infra.errors import Refusal
from infra.grpc_server import bearer
from infra.grpc_status import from_error
from infra.paging import encode_token
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.smsgateway.v1 import alerts_pb2, alerts_pb2_grpc, webhooks_pb2, webhooks_pb2_grpc
from scripts import databases
from smsgateway.alert_board import BUCKET_SECONDS, AlertBoard
from smsgateway.carriers.base import CallOutcome, Verdict
from smsgateway.queues import open_redis
from smsgateway.store import alerts as store
from smsgateway.store import webhooks as webhook_store
from workers import alert_watch
from workers.alert_mailer import AlertMailer
from workers.alert_watch import AlertWatch
from workers.outcomes import OUTCOMES
from workers.webhook_relay import WebhookRelay

pytestmark = pytest.mark.asyncio(loop_scope="module")

_numbers = itertools.count(1)
OPS, FINANCE = "ops@example.com", "finance@example.com"
LOW, EXPIRING, FAILURES, DOWN, CARRIER_LOW, AGE, PARKED = alerts_pb2.AlertKind.values()[1:]
ADMIN_ROLE, VIEWER_ROLE = admin_pb.ROLE_ADMIN, admin_pb.ROLE_VIEWER
QUICK: dict[str, Any] = {
    "webhook_http": True,
    "webhook_private_addresses": True,
    "webhook_poll_seconds": 0.05,
    "alert_seconds": 0.001,
    "alert_count_seconds": 0.05,
    "mail_poll_seconds": 0.05,
    "mail_retry_base_seconds": 0.01,
    "smtp_host": "127.0.0.1",
    "smtp_user": USER,
    "smtp_password": PASSWORD,
    "smtp_from": "sms@example.com",
}


@dataclass
class _Account:
    """What a watch asks of an account."""

    account_id: str
    gate: Any
    paused: bool = False


@dataclass
class _Accounts:
    all: list[_Account] = field(default_factory=list)


@dataclass
class _Gate:
    state: str


@dataclass
class Stage:
    """The stack with everybody who hears of alerts."""

    stack: Stack
    tools: Tools
    mail: MailServer
    house: Receiver
    brand: Receiver
    rules: Any
    webhooks: Any
    redis: Redis
    brand_id: int
    other: int

    @property
    def board(self) -> AlertBoard:
        """What workers tell each other."""
        return AlertBoard(self.redis)

    def watch(self, *accounts: _Account, worker: str = "w1") -> AlertWatch:
        """A watch as a new process has it."""
        return AlertWatch(
            database=self.tools.database,
            queues=self.tools.queues,
            board=self.board,
            ledger=self.tools.ledger,
            accounts=_Accounts(list(accounts)),  # type: ignore[arg-type] # what it asks of them
            identifiers=self.tools.identifiers,
            worker=worker,
            settings=self.stack.settings(),
        )

    async def put(self, kind: int, *, token: str = ADMIN, **fields: Any) -> alerts_pb2.AlertRule:
        """A rule without a hold time that tells OPS, but for `fields`."""
        values: dict[str, Any] = {"kind": kind, "recipients": [OPS], "hold_seconds": 0, **fields}
        request = alerts_pb2.PutAlertRuleRequest(rule=alerts_pb2.AlertRule(**values))
        made: alerts_pb2.AlertRule = (await self.call("PutAlertRule", request, token=token)).rule
        return made

    async def call(self, method: str, request: Any, *, token: str = ADMIN) -> Any:
        """Call a method of the service."""
        return await getattr(self.rules, method)(request, metadata=bearer(token), timeout=20)

    async def listed(self, **fields: Any) -> list[alerts_pb2.Alert]:
        """ListAlerts."""
        return list((await self.call("ListAlerts", alerts_pb2.ListAlertsRequest(**fields))).alerts)

    async def look(self, *accounts: _Account) -> None:
        """One look of a new process on duty, and everything delivered that is to be told."""
        watch = self.watch(*accounts)
        # A duty of a millisecond: the one before is over.
        await asyncio.sleep(0.002)
        await watch.step()
        await self.deliver()

    async def deliver(self) -> None:
        """Letters and webhooks, until nothing waits."""
        settings = self.stack.settings()
        await AlertMailer(self.tools.database, settings).step()
        relay = WebhookRelay(self.tools.database, "w1", settings)
        await relay.step()
        await relay.close(10)

    @property
    def told(self) -> list[dict[str, Any]]:
        """What the brand's webhooks were told of alerts."""
        return [each for each in self.brand.taken if each["type"].startswith("alert.")]

    def heard(self) -> tuple[list[str], list[str], int]:
        """What the house's webhooks and the brand's were told of alerts, and how many letters came."""
        of_house, of_brand = ([each["type"] for each in told] for told in (self.house.taken, self.told))
        return of_house, of_brand, len(self.mail.letters)

    async def leave(self, brand_id: int, segments: int) -> None:
        """Have a brand own so many segments."""
        total, _ = await self.stack.balance(brand_id)
        key = f"leave-{brand_id}-{total}-{segments}"
        if segments < total:
            change = admin_pb.ClawBackAdjustment(package_id=1, segments=total - segments)
            await self.stack.adjust(brand_id, request_id=key, claw_back=change)
        elif segments > total:
            await self.stack.adjust(brand_id, request_id=key, grant=admin_pb.GrantAdjustment(segments=segments - total))


@dataclass
class Shared:
    """What all tests use: to start it takes longer than a test."""

    stack: Stack
    tools: Tools
    mail: MailServer
    house: Receiver
    brand: Receiver
    rules: Any
    webhooks: Any
    redis: Redis

    async def put_brand(self, brand_id: int, **fields: Any) -> None:
        """PutBrand."""
        request = admin_pb.PutBrandRequest(brand_id=brand_id, **fields)
        await self.stack.admin.PutBrand(request, metadata=bearer(ADMIN), timeout=20)

    async def put_webhooks(self, brand_id: int, url: str) -> None:
        """A webhook that is told of alerts, and one that is not."""
        for name, alerts in (("main", True), ("plain", False)):
            request = webhooks_pb2.PutWebhookRequest(brand_id=brand_id, webhook_id=name, url=url, alerts=alerts)
            await self.webhooks.PutWebhook(request, metadata=bearer(ADMIN), timeout=20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    servers: EmbeddedServers, database_template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shared]:
    redis_url = servers.redis_url.replace("db=0", "db=2")
    folder = tmp_path_factory.mktemp("mail")
    certificate = make_certificate(folder)
    with databases.fresh(servers.database_url, database_template) as url, pytest.MonkeyPatch.context() as patch:
        # As an installation trusts an authority of its own.
        patch.setenv("SSL_CERT_FILE", str(folder / "certificate.pem"))
        async with (
            mail_server(certificate) as mail,
            receiver() as house,
            receiver() as brand,
            running_stack(url, redis_url, **QUICK, smtp_port=mail.port) as stack,
            tools(stack) as parts,
            grpc.aio.insecure_channel(f"127.0.0.1:{stack.gateway.grpc_port}") as channel,
            _redis(redis_url) as redis,
        ):
            webhooks = webhooks_pb2_grpc.WebhooksStub(channel)
            made = Shared(stack, parts, mail, house, brand, alerts_pb2_grpc.AlertsStub(channel), webhooks, redis)
            await made.put_webhooks(0, house.url)
            for brand_id in (BRAND, OTHER_BRAND):
                await made.put_brand(brand_id, status=3)
            yield made


@pytest_asyncio.fixture(loop_scope="module")
async def stage(shared: Shared) -> AsyncIterator[Stage]:
    """Two brands of this test, nothing told yet; those of other tests are closed, so no rule looks at them."""
    first = 10 * next(_numbers)
    made = Stage(
        shared.stack,
        shared.tools,
        shared.mail,
        shared.house,
        shared.brand,
        shared.rules,
        shared.webhooks,
        shared.redis,
        first,
        first + 1,
    )
    for brand_id in (made.brand_id, made.other):
        await shared.stack.grant(brand_id)
    await shared.put_webhooks(made.brand_id, shared.brand.url)
    yield made
    for brand_id in (made.brand_id, made.other):
        await shared.put_brand(brand_id, status=3)
    for worker in list(shared.stack.workers):
        await shared.stack.stop(worker)
    await shared.redis.flushdb()
    for table in ("alert_rule", "alert", "alert_mail", "webhook_event", "outbox", "dispatch", "message"):
        await shared.stack.rows(f"delete from {table}")
    OUTCOMES.take()
    OUTCOMES.wanted = shared.mail.busy = False
    shared.mail.refused = set()
    for heard in (shared.mail.letters, shared.house.taken, shared.brand.taken):
        heard.clear()


@asynccontextmanager
async def _redis(url: str) -> AsyncIterator[Redis]:
    redis = open_redis(url, connections_max=4, timeout_seconds=5)
    await redis.flushdb()
    try:
        yield redis
    finally:
        await redis.aclose()


async def test_a_drained_brand_is_told_once_and_so_is_its_recovery(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One webhook each to the house and the brand and one letter, whoever dies and however many look; a grant recovers.

    The other brand has plenty and is never told of. Killed before the notices are written, nothing was told and the
    alert is not open; killed between the mail server's answer and its record, the letter comes again as the same one.
    """
    await stage.put(LOW, segments=100, days=0)
    await stage.look()
    assert stage.heard() == ([], [], 0)
    await stage.leave(stage.brand_id, 60)
    # Killed between the change of the alert and its notices: both are of one transaction.
    with monkeypatch.context() as patch:
        patch.setattr(webhook_store, "tell_alerts", _killed)
        with pytest.raises(KilledError):
            await stage.watch().step()
    assert await stage.listed() == []
    # Two processes that both believe to be on duty, and have both seen that nothing is open.
    with monkeypatch.context() as patch:
        patch.setattr(AlertWatch, "_on_duty", _always)
        patch.setattr(AlertWatch, "_write", _together(asyncio.Barrier(2), AlertWatch._write))
        async with asyncio.timeout(20):
            await asyncio.gather(stage.watch(worker="w1").step(), stage.watch(worker="w2").step())
    # Killed before it is recorded that the mail server has the letter.
    with monkeypatch.context() as patch:
        patch.setattr(store, "mail_sent", _killed)
        with pytest.raises(KilledError):
            await stage.deliver()
    (first,) = stage.mail.letters
    # What has come to wait meanwhile goes as a letter of its own.
    await stage.stack.rows(
        "insert into alert_mail (brand_id, mail_id, recipient, title, body, next_at, created_at)"
        " values (1, 'another', %s, 'another', 'another', now(), now())",
        OPS,
    )
    await stage.stack.rows("update alert_mail set next_at = now()")
    await stage.deliver()
    assert sorted(letter["Subject"] == first["Subject"] for letter in stage.mail.letters) == [False, True, True]
    assert sum(letter["Message-ID"] == first["Message-ID"] for letter in stage.mail.letters) == 2
    stage.mail.letters[:] = [first]
    # After that nobody hears of it again, whoever looks.
    for _ in range(3):
        await stage.look()
    assert stage.heard() == (["alert.opened"], ["alert.opened"], 1)
    _check_opened(stage, first)
    (alert,) = await stage.listed()
    assert (alert.brand_id, alert.kind, alert.withdrawn) == (stage.brand_id, LOW, False)
    assert {figure.name: figure.value for figure in alert.figures}["available"] == "60"
    # Just enough is not clearly more.
    await stage.leave(stage.brand_id, 105)
    await stage.look()
    assert len(await stage.listed()) == 1
    await stage.leave(stage.brand_id, 10_000)
    for _ in range(3):
        await stage.look()
    assert stage.heard() == (["alert.opened", "alert.recovered"],) * 2 + (2,)
    assert stage.house.taken[1]["alert_id"] == alert.alert_id
    assert "over" in stage.mail.letters[1]["Subject"]
    assert await stage.listed() == []
    (over,) = await stage.listed(include_recovered=True, brand_id=stage.brand_id)
    assert (over.alert_id, over.HasField("recovered_at"), over.withdrawn) == (alert.alert_id, True, False)


def _check_opened(stage: Stage, letter: Any) -> None:
    (event,) = stage.told
    assert (event["brand_id"], event["kind"], event["state"]) == (stage.brand_id, "low_balance", "opened")
    assert event["figures"]["available"] == 60
    assert stage.house.taken[0]["alert_id"] == event["alert_id"]
    assert (letter["To"], letter["From"], letter["Subject"]) == (
        OPS,
        "sms@example.com",
        f"[smsbill] Brand {stage.brand_id}: balance is low",
    )
    body = letter.get_content()
    for part in ("60 segments are available", "100 segments", "Since 20", f"smsbill buy --brand {stage.brand_id}"):
        assert part in body, body


class KilledError(BaseException):
    """A process ends here."""


async def _killed(*_: Any, **__: Any) -> None:
    raise KilledError


async def _always(_: AlertWatch) -> bool:
    return True


def _together(barrier: asyncio.Barrier, write: Any) -> Any:
    """Writing that begins once two have something to write."""

    async def wait(watch: AlertWatch, changes: Any, now: Any) -> None:
        if changes.count:
            await barrier.wait()
        await write(watch, changes, now)

    return wait


async def test_rules_of_brands_types_and_the_house(stage: Stage) -> None:
    """A brand's own rule replaces the house's; a rule that goes withdraws what it has open; ends, queues, failures,
    parked work and carriers are told by what is really there.
    """
    await stage.put(LOW, segments=2 * GRANTED, days=0, recipients=["a@example.com", OPS])
    await stage.put(LOW, brand_id=stage.brand_id, segments=100, days=0, recipients=[FINANCE])
    await stage.look()
    assert [alert.brand_id for alert in await stage.listed()] == [stage.other]
    assert [len(stage.mail.to(each)) for each in (OPS, "a@example.com", FINANCE)] == [1, 1, 0]
    await stage.call("RemoveAlertRule", alerts_pb2.RemoveAlertRuleRequest(kind=LOW))
    await stage.look()
    assert [alert.withdrawn for alert in await stage.listed(include_recovered=True)] == [True]
    assert "not watched any more" in stage.mail.to(OPS)[1].get_content()
    # The end of a package; then of the next one, which is another alert.
    await stage.put(EXPIRING)
    soon = await _grant_until(stage, hours=20)
    await stage.look()
    await stage.stack.adjust(
        stage.brand_id, request_id="gone", return_package=admin_pb.ReturnAdjustment(package_id=soon)
    )
    await _grant_until(stage, hours=40)
    await stage.look()
    ends = await stage.listed(kind=EXPIRING, include_recovered=True)
    assert [alert.HasField("recovered_at") for alert in ends] == [True, False]
    # A queue without a worker.
    await stage.put(AGE, minutes=1)
    await stage.stack.send(brand_id=stage.brand_id)
    await stage.look()
    assert await stage.listed(kind=AGE) == []
    await _make_queues_older(stage)
    await stage.look()
    (age,) = await stage.listed(kind=AGE)
    assert (age.brand_id, age.subject) == (stage.brand_id, "verification")
    # Outcomes that workers counted: of one brand too many failed, of the other too few are known.
    await stage.put(FAILURES, percent=30, count=10)
    watch = stage.watch()
    await stage.board.add_outcomes({(stage.brand_id, 3): (10, 3), (stage.other, 3): (9, 9)}, now=time.time())
    await watch.step()
    (spike,) = await stage.listed(kind=FAILURES)
    assert (spike.brand_id, spike.subject) == (stage.brand_id, "marketing")
    # Parked work, and a carrier: what one worker says is enough.
    await stage.put(PARKED)
    await stage.put(DOWN)
    await stage.stack.rows(
        "insert into outbox (brand_id, outbox_id, kind, payload, created_at) values (1, 'x', 1, '', now())"
    )
    await stage.board.tell_carriers("w9", {"main": "is stopped"}, now=time.time())
    await stage.look(_Account("main", _Gate("works")))
    of_house = await stage.listed(brand_id=0)
    assert sorted((each.kind, each.subject) for each in of_house) == [(DOWN, "main"), (PARKED, "outbox")]
    await stage.board.tell_carriers("w9", {"main": "works"}, now=time.time())
    await stage.look(_Account("main", _Gate("works")))
    assert [each.kind for each in await stage.listed(brand_id=0)] == [PARKED]


async def _grant_until(stage: Stage, *, hours: int) -> int:
    grant = admin_pb.GrantAdjustment(segments=50, expires_at=Timestamp(seconds=int(time.time()) + hours * 3_600))
    return await stage.stack.adjust(stage.brand_id, request_id=f"until-{hours}", grant=grant)


async def test_counts_of_a_part_that_is_over_are_read_once_more(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted after a look at the part of time that was the current one then is not forgotten."""
    await stage.put(FAILURES, percent=50, count=10, minutes=60)
    now = [time.time()]
    monkeypatch.setattr(alert_watch, "time", SimpleNamespace(time=lambda: now[0], time_ns=time.time_ns))
    watch = stage.watch()
    await stage.board.add_outcomes({(stage.brand_id, 1): (5, 5)}, now=now[0])
    await watch.step()
    await stage.board.add_outcomes({(stage.brand_id, 1): (5, 5)}, now=now[0])
    now[0] += 3 * BUCKET_SECONDS
    for _ in range(2):
        await asyncio.sleep(0.002)
        await watch.step()
    (alert,) = await stage.listed(kind=FAILURES)
    assert {figure.name: figure.value for figure in alert.figures}["final"] == "10"


async def _make_queues_older(stage: Stage) -> None:
    """Put entries of ten minutes ago in the place of those that are there."""
    redis: Any = stage.redis
    for key in [key async for key in redis.scan_iter("sms:{*")]:
        ((_, fields),) = await redis.xrange(key)
        await redis.delete(key)
        await redis.xadd(key, fields, id=f"{int((time.time() - 600) * 1_000)}-0")


async def test_a_flapping_carrier_is_told_when_it_lasts(stage: Stage) -> None:
    """With a hold time a change that does not last is not told, neither the beginning nor the end."""
    await stage.put(DOWN, hold_seconds=3_600)
    good, bad = _Account("main", _Gate("works")), _Account("main", _Gate("rests"))
    for account in (bad, good, bad, bad):
        await stage.look(account)
    assert await stage.listed() == []
    await stage.stack.rows("update alert set since = since - interval '1 hour'")
    await stage.look(bad)
    for account in (good, bad, good, good):
        await stage.look(account)
    assert stage.heard() == (["alert.opened"], [], 1)
    await stage.stack.rows("update alert set good_since = good_since - interval '1 hour'")
    await stage.look(good)
    assert stage.heard() == (["alert.opened", "alert.recovered"], [], 2)


async def test_a_mail_server_that_is_busy_and_one_that_refuses(stage: Stage) -> None:
    """What it does not take for now comes later; whom it does not know is given up; many to one come as one letter."""
    await stage.put(LOW, segments=2 * GRANTED, days=0, recipients=[OPS, FINANCE])
    stage.mail.busy = True
    stage.mail.refused = {FINANCE}
    await stage.look()
    rows = await stage.stack.rows(
        "select recipient, attempts > 0, next_at is null, last_error <> '' from alert_mail order by brand_id, mail_id"
    )
    assert sorted(rows) == [(FINANCE, True, True, True)] * 2 + [(OPS, True, False, True)] * 2
    stage.mail.busy = False
    await stage.stack.rows("update alert_mail set next_at = now() where next_at is not null")
    await stage.deliver()
    (letter,) = stage.mail.letters
    assert (letter["To"], letter["Subject"]) == (OPS, "[smsbill] 2 alerts")
    assert all(f"Brand {brand_id}" in letter.get_content() for brand_id in (stage.brand_id, stage.other))
    assert await stage.stack.rows("select count(*) from alert_mail where next_at is not null") == [(0,)]


_BAD_RULES: list[tuple[dict[str, Any], str]] = [
    ({"kind": 0}, "rule.kind"),
    ({"kind": 99}, "rule.kind"),
    ({"brand_id": -1}, "rule.brand_id"),
    ({"kind": DOWN, "brand_id": 7}, "rule.brand_id"),
    ({"sms_type": 2}, "rule.sms_type"),
    ({"percent": 10}, "rule.percent"),
    ({"days": 366}, "rule.days"),
    ({"segments": 0, "days": 0}, "rule.days"),
    ({"hold_seconds": -1}, "rule.hold_seconds"),
    ({"kind": FAILURES, "minutes": 61}, "rule.minutes"),
    ({"recipients": ["nobody"]}, "rule.recipients"),
    ({"recipients": ["a@example.com\nSubject: x"]}, "rule.recipients"),
]


async def test_bad_input_and_rights(stage: Stage) -> None:
    """Each refusal names the field, and nothing is stored; a brand's token sees and changes its own only."""
    for fields, name in _BAD_RULES:
        rule = alerts_pb2.AlertRule(**{"kind": LOW, **fields})
        refused = await _refusal(stage.call("PutAlertRule", alerts_pb2.PutAlertRuleRequest(rule=rule)))
        assert (refused.code, list(refused.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, [name]), fields
    bad_pages: list[dict[str, Any]] = [
        {"page_size": -1},
        {"page_size": 1_001},
        {"page_token": "?"},
        {"page_token": encode_token("x")},
    ]
    lists: list[tuple[str, Any, Sequence[dict[str, Any]]]] = [
        ("ListAlertRules", alerts_pb2.ListAlertRulesRequest, [*bad_pages, {"brand_id": -1}]),
        ("ListAlerts", alerts_pb2.ListAlertsRequest, [*bad_pages, {"brand_id": -1}, {"kind": 99}]),
        (
            "RemoveAlertRule",
            alerts_pb2.RemoveAlertRuleRequest,
            [{}, {"kind": 1, "brand_id": -1}, {"kind": 3, "sms_type": 9}],
        ),
    ]
    for method, request, bad in lists:
        for fields in bad:
            refused = await _refusal(stage.call(method, request(**fields)))
            assert refused.code == grpc.StatusCode.INVALID_ARGUMENT, (method, fields)
    missing = await _refusal(stage.call("RemoveAlertRule", alerts_pb2.RemoveAlertRuleRequest(kind=LOW)))
    assert missing.reason == "ALERT_RULE_NOT_FOUND"
    for brand_id, name in ((-1, "webhook_id"), (0, "Upper")):
        request = webhooks_pb2.PutWebhookRequest(brand_id=brand_id, webhook_id=name, url=stage.house.url, alerts=True)
        call = stage.webhooks.PutWebhook(request, metadata=bearer(ADMIN), timeout=20)
        assert (await _refusal(call)).code == grpc.StatusCode.INVALID_ARGUMENT
    assert await stage.stack.rows("select * from alert_rule") == []
    await _check_rights(stage)


async def _check_rights(stage: Stage) -> None:
    request = admin_pb.CreateTokenRequest(name="theirs", roles=[ADMIN_ROLE], brand_ids=[stage.brand_id])
    theirs = (await stage.stack.admin.CreateToken(request, metadata=bearer(ADMIN), timeout=20)).secret
    viewer_request = admin_pb.CreateTokenRequest(name="viewer", roles=[VIEWER_ROLE], brand_ids=[stage.brand_id])
    viewer = (await stage.stack.admin.CreateToken(viewer_request, metadata=bearer(ADMIN), timeout=20)).secret
    await stage.put(LOW, segments=2 * GRANTED, days=0)
    own = await stage.put(LOW, token=theirs, brand_id=stage.brand_id, days=5)
    assert (own.segments, own.days, own.hold_seconds, own.HasField("percent")) == (0, 5, 0, False)
    for call in (
        stage.put(LOW, token=theirs),
        stage.put(LOW, token=theirs, brand_id=stage.other),
        stage.put(LOW, token=viewer, brand_id=stage.brand_id),
        stage.call("ListAlertRules", alerts_pb2.ListAlertRulesRequest(), token=viewer),
        stage.call("ListAlerts", alerts_pb2.ListAlertsRequest(brand_id=0), token=viewer),
        stage.call("RemoveAlertRule", alerts_pb2.RemoveAlertRuleRequest(kind=LOW), token=theirs),
    ):
        assert (await _refusal(call)).code == grpc.StatusCode.PERMISSION_DENIED
    rules = alerts_pb2.ListAlertRulesRequest(brand_id=stage.brand_id)
    assert [rule.days for rule in (await stage.call("ListAlertRules", rules, token=viewer)).rules] == [5]
    page = alerts_pb2.ListAlertRulesRequest(page_size=1)
    first = await stage.call("ListAlertRules", page)
    page.page_token = first.next_page_token
    second = await stage.call("ListAlertRules", page)
    assert [rule.brand_id for rule in (*first.rules, *second.rules)] == [0, stage.brand_id]
    assert second.next_page_token == ""
    await stage.look()
    assert [each.brand_id for each in await stage.listed()] == [stage.other]
    theirs_alone = await stage.call("ListAlerts", alerts_pb2.ListAlertsRequest(), token=viewer)
    assert list(theirs_alone.alerts) == []


async def _refusal(call: Any) -> Refusal:
    try:
        reply = await call
    except grpc.aio.AioRpcError as error:
        return from_error(error)
    raise AssertionError(f"not refused: {reply}")


async def test_workers_do_all_of_it(stage: Stage) -> None:
    """Two workers, nobody helps: a carrier stops the account and takes calls again, texts fail; each is told once."""
    await stage.put(DOWN)
    await stage.put(FAILURES, percent=50, count=1)
    carrier = ScriptedCarrier()
    carrier.outcomes = [
        CallOutcome(Verdict.REFUSED, code="7"),
        CallOutcome(Verdict.STOP_ACCOUNT, code="109"),
    ]
    quick: dict[str, Any] = {"alert_seconds": 0.1, "account_pause_seconds": 0.5, "circuit_trial_calls": 1}
    await stage.stack.worker(carrier=carrier, **quick)
    await stage.stack.worker(carrier=carrier, **quick)
    # Once a worker has seen the rule, outcomes are counted.
    await eventually(_counts_outcomes)
    await stage.stack.send("13800138001", brand_id=stage.brand_id)
    await stage.stack.send("13800138002", brand_id=stage.brand_id)

    async def told() -> bool:
        return len(stage.house.taken) == 3 and len(stage.mail.letters) >= 1

    await eventually(told)
    kinds = sorted((each["type"], each["kind"]) for each in stage.house.taken)
    assert kinds == [
        ("alert.opened", "carrier_down"),
        ("alert.opened", "failures"),
        ("alert.recovered", "carrier_down"),
    ]
    assert [each["kind"] for each in stage.told] == ["failures"]
    assert len({each["id"] for each in stage.house.taken}) == 3


async def _counts_outcomes() -> bool:
    return OUTCOMES.wanted
