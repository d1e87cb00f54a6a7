"""The sender's rules over a real channel: each refuses for its reason, freezes nothing, and repeats are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import grpc.aio
import pytest
from fake_cost_center import FakeCostCenter
from gateway_harness import BRAND, SECONDS, Gateway, abandoned_calls, eventually, metric, numbers, running_gateway

from infra.authorization import Role
from infra.errors import Refusal, StartError
from infra.grpc_server import bearer
from infra.grpc_status import from_error
from protos.smsgateway.v1 import sender_rules_pb2, sender_rules_pb2_grpc

pytestmark = pytest.mark.timeout(60)

# Untyped, for what is no valid request.
pb: Any = sender_rules_pb2

ADMIN, VERIFICATION, NOTIFICATION, MARKETING = "admin", 1, 2, 3
ON, OFF = pb.SWITCH_ON, pb.SWITCH_OFF
QUICK: dict[str, Any] = {"rules_refresh_seconds": 0.001}
MOBILE = "+8613800138000"


class Admin:
    """An admin's view of the rules."""

    def __init__(self, channel: grpc.aio.Channel, token: str = ADMIN) -> None:
        self._stub: Any = sender_rules_pb2_grpc.SenderRulesStub(channel)
        self._token = token

    async def call(self, name: str, request: Any) -> Any:
        """Call an RPC."""
        return await getattr(self._stub, name)(request, metadata=bearer(self._token), timeout=SECONDS)

    async def rules(self, **fields: Any) -> Any:
        """PutBrandRules of the brand."""
        rules = pb.BrandRules(**{"brand_id": BRAND, **fields})
        return await self.call("PutBrandRules", pb.PutBrandRulesRequest(rules=rules))

    async def suppress(self, *mobiles: str, kind: int = 1, brand_id: int = BRAND) -> int:
        """AddSuppressions."""
        request = pb.AddSuppressionsRequest(brand_id=brand_id, kind=kind, mobiles=mobiles, reason="asked for it")
        return int((await self.call("AddSuppressions", request)).added)

    async def template(self, template_id: str, text: str, sms_type: int = VERIFICATION, approval: int = 2) -> None:
        """PutTemplate."""
        request = pb.PutTemplateRequest(
            brand_id=BRAND,
            template_id=template_id,
            sms_type=sms_type,
            text=text,
            approval=approval,
        )
        await self.call("PutTemplate", request)


@asynccontextmanager
async def ruled(
    costcenter: FakeCostCenter, database_url: str, redis_url: str, **changes: Any
) -> AsyncIterator[tuple[Gateway, Admin]]:
    """A gateway that looks at changed rules at once, and its admin."""
    costcenter.add_token(ADMIN, [Role.ADMIN])
    async with (
        running_gateway(costcenter, database_url, redis_url, **{**QUICK, **changes}) as gateway,
        grpc.aio.insecure_channel(f"127.0.0.1:{gateway.process.grpc_port}") as channel,
    ):
        yield gateway, Admin(channel)


async def reason(gateway: Gateway, request_id: str, **changes: Any) -> str:
    """Why a call is refused."""
    return (await gateway.refusal(gateway.send(request_id=request_id, **changes))).reason


async def test_each_rule_of_a_text_refuses_and_freezes_nothing(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Every reason, over the channel; then no record, key or freeze is there. The same texts went before the rules."""
    words = tmp_path / "words"
    words.write_text("赌博\n", encoding="utf-8")
    async with ruled(fake_costcenter, database_url, redis_url, sensitive_words_file=words) as (gateway, admin):
        await admin.rules(signatures=ON, templates=ON, suffix=pb.SUFFIX_RULE_REQUIRED)
        await admin.call("PutSignature", pb.PutSignatureRequest(brand_id=BRAND, signature="示例", approval=2))
        await admin.call("PutSignature", pb.PutSignatureRequest(brand_id=BRAND, signature="未批"))
        await admin.template("code", "【示例】验证码 {code}")
        await admin.template("word", "【示例】来{what}")
        await admin.template("sale", "{what}大促", MARKETING)
        await admin.template("late", "【示例】{code}", approval=1)
        cases: list[tuple[str, dict[str, Any]]] = [
            ("SIGNATURE_REQUIRED", {"text": "验证码 1"}),
            ("SIGNATURE_NOT_ALLOWED", {"text": "【未批】验证码 1"}),
            ("SIGNATURE_NOT_ALLOWED", {"text": "验证码 1", "signature": "别家"}),
            ("TEMPLATE_MISMATCH", {"text": "【示例】别的"}),
            ("TEMPLATE_MISMATCH", {"text": "", "template_id": "sale", "template_values": {"what": "x"}}),
            ("TEMPLATE_NOT_FOUND", {"text": "", "template_id": "none"}),
            ("TEMPLATE_NOT_APPROVED", {"text": "", "template_id": "late", "template_values": {"code": "1"}}),
            ("VARIABLE_MISSING", {"text": "", "template_id": "code"}),
            ("VARIABLE_UNKNOWN", {"text": "", "template_id": "code", "template_values": {"code": "1", "x": "1"}}),
            ("VARIABLE_INVALID", {"text": "", "template_id": "code", "template_values": {"code": "\n"}}),
            ("SENSITIVE_WORD", {"text": "【示例】来赌博"}),
            ("SUFFIX_REQUIRED", {"text": "【示例】春季大促", "sms_type": MARKETING}),
            ("BAD_REQUEST", {"text": "【示例】验证码 1", "template_id": "code"}),
            ("BAD_REQUEST", {"text": "【示例】验证码 1", "valid_for": {"seconds": 8 * 86_400}}),
        ]
        before = metric("smsbill_rule_refusals_total", type="verification", reason="SENSITIVE_WORD")
        for number, (expected, changes) in enumerate(cases):
            assert (expected, await reason(gateway, f"r-{number}", **changes)) == (expected, expected)
            header = {**changes, "request_id": f"b-{number}", "sms_type": changes.get("sms_type", VERIFICATION)}
            refusal = await gateway.refusal(gateway.send_batch(numbers(2), **header))
            assert refusal.reason == expected, "and of a batch before its recipients are read"
        assert metric("smsbill_rule_refusals_total", type="verification", reason="SENSITIVE_WORD") == before + 2
        assert await gateway.counts() == (0, 0, 0, 0, 0)
        assert fake_costcenter.frozen == 0
        # What keeps the rules goes, made of a template too.
        reply = await gateway.send(request_id="good", text="", template_id="code", template_values={"code": "42"})
        assert (await gateway.message(reply.message_id)).text == "【示例】验证码 42"
        sale: dict[str, Any] = {
            "sms_type": MARKETING,
            "template_id": "sale",
            "template_values": {"what": "春季"},
            "signature": "示例",
        }
        await admin.rules(signatures=ON, templates=ON, suffix=pb.SUFFIX_RULE_APPENDED)
        reply = await gateway.send(request_id="sale", text="", **sale)
        assert (await gateway.message(reply.message_id)).text == "【示例】春季大促拒收请回复R"
        batch = await gateway.send_batch(numbers(2), request_id="sale", text="", **sale)
        assert (await gateway.batch(batch.batch_id)).text == "【示例】春季大促拒收请回复R"
        # The list of words is read again; one that is broken leaves the old one in force.
        words.write_text("没有\n", encoding="utf-8")
        await gateway.send(request_id="word", text="【示例】来赌博")
        words.write_bytes(b"\xff\xfe")
        assert await reason(gateway, "word 2", text="【示例】来没有") == "SENSITIVE_WORD"


async def test_a_list_of_words_that_cannot_be_read_stops_the_start(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """With a line that names the setting."""
    with pytest.raises(StartError, match="SMSBILL_SENSITIVE_WORDS_FILE"):
        async with ruled(fake_costcenter, database_url, redis_url, sensitive_words_file=tmp_path / "none"):
            pass


async def test_a_repeat_is_answered_whatever_the_rules_are_by_now(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """The same reply for a text, a number and a batch that would be refused today; other content is a conflict."""
    async with ruled(fake_costcenter, database_url, redis_url) as (gateway, admin):
        first = await gateway.send(text="plain")
        batch = await gateway.send_batch(numbers(3), text="plain")
        await admin.rules(signatures=ON, frequency=ON, verification={"per_day": 1})
        await admin.suppress(MOBILE, kind=2)
        assert await gateway.send(text="plain") == first
        assert await gateway.send_batch(numbers(3), text="plain") == batch
        assert await reason(gateway, "request-2", text="plain") == "SIGNATURE_REQUIRED"
        assert await reason(gateway, "request-1", text="other") == "SIGNATURE_REQUIRED"
        assert await reason(gateway, "request-1", text="【】") == "SIGNATURE_REQUIRED"
        await admin.rules(frequency=ON, verification={"per_day": 1})
        assert await gateway.send(text="plain") == first
        assert await reason(gateway, "request-1", text="other") == "IDEMPOTENCY_CONFLICT"
        assert await reason(gateway, "request-3") == "BLACK_LISTED"


async def test_a_number_gets_just_as_many_as_it_may_from_two_gateways(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """Forty calls at once for one number and a limit of five: five, and the others are told when to try again. Repeats
    and what the ledger refuses do not count; a window that has passed is free again.
    """
    async with (
        ruled(fake_costcenter, database_url, redis_url) as (first, admin),
        ruled(fake_costcenter, database_url, redis_url) as (second, _),
    ):
        await admin.rules(frequency=ON, verification={"per_hour": 5})
        balance, fake_costcenter.balances[BRAND] = fake_costcenter.balances[BRAND], 0
        for number in range(6):
            assert await reason(first, f"poor-{number}") == "INSUFFICIENT_BALANCE"
        fake_costcenter.balances[BRAND] = balance
        calls = [(first, second)[number % 2].send(request_id=f"r-{number}") for number in range(40)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        accepted = [number for number, result in enumerate(results) if not isinstance(result, BaseException)]
        assert len(accepted) == 5
        refusals = [from_error(result) for result in results if isinstance(result, grpc.aio.AioRpcError)]
        assert {refusal.reason for refusal in refusals} == {"FREQUENCY_LIMITED"}
        assert all(3_500 < (refusal.retry_seconds or 0) <= 3_600 for refusal in refusals)
        assert refusals[0].metadata == {"per_minute": "0", "per_hour": "5", "per_day": "0"}
        assert [await first.send(request_id=f"r-{number}") for number in accepted] == [results[n] for n in accepted]
        assert len(fake_costcenter.freezes) == 5
        assert (await first.counts())[:2] == (5, 5)
        # As if an hour had passed for two of them.
        await first.rows(
            "update frequency set sent_at[1] = sent_at[1] - interval '1 h', sent_at[2] = sent_at[1] - interval '1 h'"
        )
        for request_id, expected in (("s-1", ""), ("s-2", ""), ("s-3", "FREQUENCY_LIMITED")):
            if expected:
                assert await reason(second, request_id) == expected
            else:
                await second.send(request_id=request_id)
        assert await first.rows("select cardinality(sent_at), cardinality(targets) from frequency") == [(5, 5)]
        # Another number, type or brand is another matter.
        await first.send(request_id="t-1", mobile="13800138001")
        await first.send(request_id="t-2", sms_type=NOTIFICATION)


async def test_numbers_are_left_out_of_a_batch_for_their_reasons(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """Suppressed, limited, bad and double ones by their place in the stream; the rest is sent. An opt-out holds for
    marketing alone. When nothing is left, nothing is recorded, and no count stays of what was refused.
    """
    async with ruled(fake_costcenter, database_url, redis_url) as (gateway, admin):
        await admin.rules(frequency=ON, marketing={"per_day": 1}, notification={"per_day": 50})
        await admin.suppress("13800000001")
        await admin.suppress("13800000002", kind=2, brand_id=0)
        mobiles = [*numbers(4), "bad", "13800000000"]
        reply = await gateway.send_batch(mobiles)
        assert (reply.accepted, reply.bad_recipient_count, reply.segments) == (2, 4, 2)
        assert [(bad.index, bad.reason) for bad in reply.bad_recipients] == [
            (1, "OPTED_OUT"),
            (2, "BLACK_LISTED"),
            (4, "INVALID_NUMBER"),
            (5, "DUPLICATE_NUMBER"),
        ]
        assert "13800000001" not in str(reply)
        assert await gateway.send_batch(mobiles) == reply
        again = await gateway.send_batch([*numbers(4), "13800000009"], request_id="batch-2")
        assert [(bad.index, bad.reason) for bad in again.bad_recipients] == [
            (0, "FREQUENCY_LIMITED"),
            (1, "OPTED_OUT"),
            (2, "BLACK_LISTED"),
            (3, "FREQUENCY_LIMITED"),
        ]
        refusal = await gateway.refusal(gateway.send_batch(numbers(4), request_id="batch-3"))
        assert (refusal.reason, refusal.metadata) == ("NO_VALID_RECIPIENT", {"bad_recipients": "4"})
        assert await reason(gateway, "s-1", mobile="13800000001", sms_type=MARKETING) == "OPTED_OUT"
        assert await reason(gateway, "s-2", mobile="13800000002") == "BLACK_LISTED"
        await gateway.send(request_id="s-3", mobile="13800000001", sms_type=NOTIFICATION)
        before = await gateway.rows("select count(*), sum(cardinality(sent_at)) from frequency")
        fake_costcenter.balances[BRAND] = 0
        refusal = await gateway.refusal(gateway.send_batch(numbers(3, 100), request_id="batch-4"))
        assert refusal.reason == "INSUFFICIENT_BALANCE"
        after = await gateway.rows(
            "select count(*) filter (where sent_at <> '{}'), sum(cardinality(sent_at)) from frequency"
        )
        assert after == before
        assert (await gateway.counts())[2] == 2


async def test_what_a_dead_gateway_left_is_counted_once_or_not_at_all(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """A batch that hangs at its freeze is undone with its counts; one that its caller takes up again is the same."""
    async with ruled(fake_costcenter, database_url, redis_url, accepting_seconds=0.001) as (gateway, admin):
        await admin.rules(frequency=ON, marketing={"per_day": 1}, verification={"per_day": 1})
        fake_costcenter.down = True
        assert (await gateway.refusal(gateway.send_batch(numbers(3)))).reason == "UNAVAILABLE"
        assert await reason(gateway, "request-1") == "UNAVAILABLE"
        fake_costcenter.down = False
        assert (await gateway.send_batch(numbers(3))).accepted == 3
        assert (await gateway.send()).segments == 1
        fake_costcenter.down = True
        assert (await gateway.refusal(gateway.send_batch(numbers(3, 50), request_id="batch-2"))).reason == "UNAVAILABLE"
        fake_costcenter.down = False
        async with abandoned_calls(gateway) as calls:
            assert await calls.undo_batches(10) == 1
        assert (await gateway.send_batch(numbers(3, 50), request_id="batch-3")).accepted == 3


async def test_marketing_is_held_by_zone_and_schedules_wait(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """In quiet hours a chunk for each zone waits for its morning, nothing is in Redis, and it is cancelled like all."""
    shanghai = datetime.now(ZoneInfo("Asia/Shanghai"))
    start, end = shanghai - timedelta(hours=1), (shanghai + timedelta(hours=2)).replace(second=0, microsecond=0)
    async with ruled(fake_costcenter, database_url, redis_url) as (gateway, admin):
        await admin.rules(quiet_hours=ON, quiet_from=f"{start:%H:%M}", quiet_until=f"{end:%H:%M}")
        # It is as late in Manila as in Shanghai, and an hour less in Bangkok: quiet, for an hour longer.
        mobiles = [*numbers(2), "+639171234567", "+66812345678", "+358401234567"]
        batch = await gateway.send_batch(mobiles)
        chunks = await gateway.rows(
            "select messages, not_before, due_at, valid_until, state from dispatch order by not_before nulls first"
        )
        bangkok = end + timedelta(hours=1)
        assert [row[0] for row in chunks] == [1, 3, 1]
        assert [row[1] for row in chunks] == [None, end, bangkok]
        assert {row[4] for row in chunks} == {2}
        night = (start.replace(second=0, microsecond=0) + timedelta(days=1), end + timedelta(days=1))
        manila = "select night_from, night_until from dispatch where messages = 3"
        assert await gateway.rows(manila) == [night]
        assert await gateway.rows("select held from batch") == [(True,)]
        # A text that is scheduled past the night goes at its time, a verification code at once.
        later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=5)
        at = {"seconds": int(later.timestamp())}
        one = await gateway.send(sms_type=MARKETING, send_at=at, valid_for={"seconds": 60})
        found = await gateway.rows(
            "select not_before, valid_until from dispatch where dispatch_id = %s", one.message_id
        )
        assert found == [(later, later + timedelta(seconds=60))]
        two = await gateway.send(request_id="request-2")
        found = await gateway.rows(
            "select not_before, stream_entry is null from dispatch where dispatch_id = %s", two.message_id
        )
        assert found[0][0] is None

        async def noted() -> bool:
            rows = await gateway.rows("select dispatch_id from dispatch where stream_entry is not null")
            return len(rows) == 2

        # The code and the chunk that is not held are in Redis, nothing else.
        await eventually(noted)
        async with abandoned_calls(gateway, accepting_seconds=0.0) as calls:
            await gateway.rows("update dispatch set state = 1, order_no = null where dispatch_id = %s", one.message_id)
            await gateway.rows("update request_key set reply = null where target_id = %s", one.message_id)
            assert await calls.finish_messages(10) == 1
        assert await noted()
        assert (await gateway.cancel(batch.batch_id)).cancelled == 5
        far = {"seconds": int((datetime.now(UTC) + timedelta(days=6, hours=1)).timestamp())}
        refusal = await gateway.refusal(gateway.send(request_id="far", send_at=far))
        assert set(refusal.fields) == {"send_at"}


async def test_all_rules_hold_with_one_setting(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """For a brand that has set none; each may still be turned off for a brand."""
    async with ruled(fake_costcenter, database_url, redis_url, sender_rules="on") as (gateway, admin):
        assert await reason(gateway, "r-1") == "SIGNATURE_NOT_ALLOWED"
        reply = await admin.rules(signatures=OFF)
        assert reply.effective.templates == ON
        assert reply.effective.suffix == pb.SUFFIX_RULE_APPENDED
        assert reply.effective.quiet_from == "22:00"
        assert (reply.effective.verification.per_minute, reply.effective.marketing.per_day) == (1, 50)
        assert await reason(gateway, "r-1") == "TEMPLATE_MISMATCH"
        await admin.rules(signatures=OFF, templates=OFF)
        await gateway.send(request_id="r-1")
        refusal = await gateway.refusal(gateway.send(request_id="r-2"))
        assert (refusal.reason, 0 < (refusal.retry_seconds or 0) <= 60) == ("FREQUENCY_LIMITED", True)


async def refusal_of(call: Any) -> Refusal:
    """The refusal that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_error(caught.value)


async def test_rules_are_put_listed_by_page_and_removed(
    fake_costcenter: FakeCostCenter, database_url: str, redis_url: str
) -> None:
    """Each RPC with its bounds, violations and roles."""
    fake_costcenter.add_token("all", [Role.VIEWER])
    async with ruled(fake_costcenter, database_url, redis_url, rules_per_brand_max=3) as (gateway, admin):
        for name in "丙甲乙":
            await admin.call("PutSignature", pb.PutSignatureRequest(brand_id=BRAND, signature=name))
            await admin.template(f"t-{name.encode().hex()}", "text {v}")
        more = await refusal_of(admin.call("PutSignature", pb.PutSignatureRequest(brand_id=BRAND, signature="丁")))
        assert more.reason == "TOO_MANY_SIGNATURES"
        assert (await refusal_of(admin.template("t-9", "x"))).reason == "TOO_MANY_TEMPLATES"
        await admin.call("PutSignature", pb.PutSignatureRequest(brand_id=BRAND, signature="甲", approval=3))
        listed = await admin.call("ListSignatures", pb.ListSignaturesRequest(brand_id=BRAND, page_size=2))
        rest = pb.ListSignaturesRequest(brand_id=BRAND, page_size=2, page_token=listed.next_page_token)
        both = [*listed.signatures, *(await admin.call("ListSignatures", rest)).signatures]
        assert [(each.signature, each.approval) for each in both] == [("丙", 1), ("乙", 1), ("甲", 3)]
        gone = pb.RemoveSignatureRequest(brand_id=BRAND, signature="甲")
        assert [(await admin.call("RemoveSignature", gone)).removed for _ in range(2)] == [True, False]
        templates = await admin.call("ListTemplates", pb.ListTemplatesRequest(brand_id=BRAND))
        assert len(templates.templates) == 3
        kept = templates.templates[0]
        found = await admin.call("GetTemplate", pb.GetTemplateRequest(brand_id=BRAND, template_id=kept.template_id))
        assert found.template == kept
        drop = pb.RemoveTemplateRequest(brand_id=BRAND, template_id=kept.template_id)
        assert [(await admin.call("RemoveTemplate", drop)).removed for _ in range(2)] == [True, False]
        missing = pb.GetTemplateRequest(brand_id=BRAND, template_id=kept.template_id)
        assert (await refusal_of(admin.call("GetTemplate", missing))).reason == "TEMPLATE_NOT_FOUND"
        assert await admin.suppress("13800000000", "13800000001", "+13800000000") == 3
        page = await admin.call("ListSuppressions", pb.ListSuppressionsRequest(brand_id=BRAND, page_size=2))
        after = pb.ListSuppressionsRequest(brand_id=BRAND, page_size=2, page_token=page.next_page_token)
        last = await admin.call("ListSuppressions", after)
        assert [each.mobile for each in (*page.suppressions, *last.suppressions)] == [
            "+13800000000",
            "+8613800000000",
            "+8613800000001",
        ]
        assert last.next_page_token == ""
        assert {each.source for each in page.suppressions} == {"admin"}
        off = pb.RemoveSuppressionsRequest(brand_id=BRAND, kind=1, mobiles=["13800000000"])
        assert [(await admin.call("RemoveSuppressions", off)).removed for _ in range(2)] == [1, 0]

        violations: list[tuple[str, Any, set[str]]] = [
            ("PutBrandRules", pb.PutBrandRulesRequest(), {"rules.brand_id"}),
            (
                "PutBrandRules",
                pb.PutBrandRulesRequest(
                    rules=pb.BrandRules(
                        brand_id=BRAND, signatures=9, suffix=9, quiet_from="24:00", marketing={"per_day": 1_001}
                    )
                ),
                {"rules.signatures", "rules.suffix", "rules.quiet_from", "rules.marketing"},
            ),
            (
                "PutSignature",
                pb.PutSignatureRequest(brand_id=BRAND, signature="【x】", approval=4),
                {"signature", "approval"},
            ),
            (
                "PutTemplate",
                pb.PutTemplateRequest(brand_id=BRAND, template_id="a b", text="{", approval=9),
                {"template_id", "sms_type", "text", "approval"},
            ),
            ("AddSuppressions", pb.AddSuppressionsRequest(brand_id=BRAND), {"kind", "mobiles"}),
            (
                "AddSuppressions",
                pb.AddSuppressionsRequest(brand_id=BRAND, kind=1, mobiles=["13800000000", "1"], source="a b"),
                {"mobiles[1]", "source"},
            ),
            ("ListSuppressions", pb.ListSuppressionsRequest(brand_id=BRAND, mobile="1"), {"mobile"}),
            ("ListSuppressions", pb.ListSuppressionsRequest(brand_id=BRAND, page_token="eA=="), {"page_token"}),
            ("ListTemplates", pb.ListTemplatesRequest(brand_id=BRAND, page_size=1_001), {"page_size"}),
        ]
        for name, request, fields in violations:
            refusal = await refusal_of(admin.call(name, request))
            assert (refusal.reason, set(refusal.fields)) == ("BAD_REQUEST", fields)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.process.grpc_port}") as channel:
            viewer, everywhere = Admin(channel, "viewer"), Admin(channel, "all")
            assert (await refusal_of(viewer.rules())).reason == "ROLE_NOT_ALLOWED"
            own = await viewer.call("GetBrandRules", pb.GetBrandRulesRequest(brand_id=BRAND))
            assert own.effective.signatures == OFF
            other = pb.GetBrandRulesRequest(brand_id=BRAND + 1)
            assert (await refusal_of(viewer.call("GetBrandRules", other))).reason == "BRAND_NOT_ALLOWED"
            global_page = pb.ListSuppressionsRequest(brand_id=0)
            assert (await refusal_of(viewer.call("ListSuppressions", global_page))).reason == "BRAND_NOT_ALLOWED"
            assert not (await everywhere.call("ListSuppressions", global_page)).suppressions
