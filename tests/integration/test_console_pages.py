"""The console's reading pages over HTTP, against everything real: cost centre, gateway, worker, simulated carrier.

One stack for all tests. What they send belongs to the stack's first brand but where a test says otherwise.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import orjson
import pytest
import pytest_asyncio
import redis
from console_harness import Browser, Page, signed_in
from gateway_harness import eventually
from worker_harness import ADMIN, BRAND, OTHER_BRAND, Stack, running_stack

from infra.authorization import Role
from infra.embedded import EmbeddedServers
from infra.grpc_server import bearer
from infra.identifiers import IdentifierSource
from infra.paging import encode_token
from protos.costcenter.v1 import cost_center_admin_pb2
from protos.smsgateway.v1 import sms_gateway_pb2
from scripts import databases
from smsgateway.console import batch_pages
from smsgateway.schema import MessageState

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

REFRESH_SECONDS = 1
MOBILE = "13800138001"
# The simulator refuses numbers that end so.
REFUSED = "13800131111"
ROWS = 5


@dataclass
class Scene:
    """A stack on which a message was delivered, one failed, and a batch is paused; and who looks at it."""

    stack: Stack
    operator: Browser
    viewer: Browser
    stranger: Browser
    delivered: sms_gateway_pb2.Message
    failed: sms_gateway_pb2.Message
    batch_id: str


async def _token(stack: Stack, *roles: Role, brand_ids: list[int] | None = None) -> str:
    request = cost_center_admin_pb2.CreateTokenRequest(
        name="test",
        roles=[cost_center_admin_pb2.Role.ValueType(role) for role in roles],
        all_brands=brand_ids is None,
        brand_ids=brand_ids or (),
    )
    return (await stack.admin.CreateToken(request, metadata=bearer(ADMIN), timeout=20)).secret


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(servers: EmbeddedServers, database_template: str) -> AsyncIterator[Scene]:
    redis_url = servers.redis_url.replace("db=0", "db=2")
    async with AsyncExitStack() as stack_of:
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
        url = stack_of.enter_context(databases.fresh(servers.database_url, database_template))
        stack = await stack_of.enter_async_context(
            running_stack(
                url,
                redis_url,
                console_refresh_seconds=REFRESH_SECONDS,
                console_rows=ROWS,
            )
        )
        await stack.worker()
        first = await stack.send(MOBILE, text="【示例】验证码 987654")
        delivered = await stack.wait_for_state(first, MessageState.DELIVERED)
        other = await stack.send(REFUSED)
        failed = await stack.wait_for_state(other, MessageState.FAILED)
        batch_id = await stack.send_batch([f"1390013{number:04d}" for number in range(12)], campaign_id="双11/A")
        await eventually(stack.quiet)
        port = stack.gateway.http_port
        browsers = [
            await stack_of.enter_async_context(signed_in(port, await _token(stack, *roles, brand_ids=brand_ids)))
            for roles, brand_ids in (
                ((Role.OPERATOR,), None),
                ((Role.VIEWER,), None),
                ((Role.VIEWER,), [OTHER_BRAND]),
            )
        ]
        operator, viewer, stranger = browsers
        yield Scene(stack, operator, viewer, stranger, delivered, failed, batch_id)


def told_as(page: Page, name: str) -> str:
    """The text of the element with that test id."""
    match = re.search(rf'data-testid="{name}"[^>]*>(.*?)</(?:dd|span|td)>', page.text, re.DOTALL)
    assert match is not None, f"{name} is not on {page.path}: {page.text}"
    return html.unescape(re.sub(r"<[^>]+>", "", match[1])).strip()


async def shown(browser: Browser, path: str) -> Page:
    """A page that must be there."""
    page = await browser.get(path)
    assert page.status == 200, (path, page.status, page.text)
    assert 'style="' not in page.text, path
    assert "<script>" not in page.text, path
    return page


async def test_the_overview_tells_what_goes_on(scene: Scene) -> None:
    """Rate, success, latency, queues by type, the carrier's state as workers say, parked work; a fragment that
    refreshes itself; a second browser within the same moment costs no second look.
    """
    # The rate is that of the last minute, which the first message may lie behind.
    await scene.stack.send("13700137009", request_id=f"lately-{time.time_ns()}")
    page = await shown(scene.viewer, "/")
    assert 'hx-get="/overview?live=1"' in page.text
    assert float(told_as(page, "rate")) > 0
    assert told_as(page, "success").endswith("%")
    assert told_as(page, "latency").endswith(" s")
    assert told_as(page, "parked") == "0"
    assert page.text.count('data-label="Oldest"') == 3

    async def told() -> bool:
        return "chuanglan" in (await scene.viewer.get("/overview?live=1")).text

    await eventually(told)
    part = await shown(scene.viewer, "/overview?live=1")
    assert "<html" not in part.text
    assert re.search(r"chuanglan</td>\s*<td[^>]*>\s*<span class=\"badge good\">works", part.text)


async def test_a_token_of_some_brands_sees_those_alone(scene: Scene) -> None:
    """The overview without what is everybody's, a list of its brands, and 403 for everything of another."""
    page = await shown(scene.stranger, "/")
    assert 'data-testid="rate"' not in page.text
    page = await shown(scene.stranger, "/brands")
    assert re.findall(r'data-brand="(\d+)"', page.text) == [str(OTHER_BRAND)]
    message, batch = scene.delivered.message_id, scene.batch_id
    for path in (
        f"/brands/{BRAND}",
        f"/brands/{BRAND}/live",
        f"/brands/{BRAND}/balance.json",
        f"/brands/{BRAND}/payments",
        f"/brands/{BRAND}/freezes",
        f"/brands/{BRAND}/messages",
        f"/brands/{BRAND}/batches",
        f"/brands/{BRAND}/campaigns",
        f"/messages/{message}",
        f"/messages/{message}/live",
        f"/batches/{batch}",
        f"/freezes/{scene.delivered.order_no}",
        f"/payments/{scene.delivered.payment_no}",
        f"/search?q={message}",
        f"/search?q={MOBILE}&brand={BRAND}",
    ):
        refused = await scene.stranger.get(path)
        assert (refused.status, refused.reason) == (403, "BRAND_NOT_ALLOWED"), path
    # By the carrier's id nobody learns whose it is.
    found = await scene.stranger.get(f"/search?q={scene.delivered.carrier_message_id}")
    assert message not in found.text


async def test_brands_are_found_by_number_and_by_name(scene: Scene) -> None:
    """Pages by key; a number leads to its brand; the beginning of a name finds, whatever its case."""
    for number in range(1_001, 1_001 + ROWS + 1):
        await scene.stack.grant(number, 100)
    page = await shown(scene.viewer, "/brands")
    first = re.findall(r'data-brand="(\d+)"', page.text)
    assert len(first) == ROWS
    following = html.unescape(re.search(r'href="([^"]+)" rel="next"', page.text)[1])  # type: ignore[index]
    page = await shown(scene.viewer, following)
    rest = re.findall(r'data-brand="(\d+)"', page.text)
    assert rest
    assert int(rest[0]) > int(first[-1])
    assert "first-page" in page.text
    assert (await shown(scene.viewer, "/brands?q=1001")).path == "/brands/1001"
    page = await shown(scene.viewer, "/brands?q=bRAND+100")
    assert set(re.findall(r'data-brand="(\d+)"', page.text)) == {str(1_000 + number) for number in range(1, ROWS + 1)}
    page = await shown(scene.viewer, "/brands?q=%25")
    assert "None." in page.text


async def test_a_brand_shows_what_it_has(scene: Scene) -> None:
    """The balance as the ledger has it, its forecast, its packages as bars, its latest messages and batches; the
    chart's figures end with the balance; the fragment follows a grant.
    """
    total, frozen = await scene.stack.balance()
    page = await shown(scene.viewer, f"/brands/{BRAND}")
    assert told_as(page, "balance-available") == f"{total - frozen:,}"
    assert told_as(page, "balance-frozen") == f"{frozen:,}"
    assert told_as(page, "forecast-days")
    assert page.text.count('data-testid="package-bar"') == 1
    assert "/messages/" in page.text
    assert scene.batch_id in page.text
    chart = re.search(r'data-testid="balance-chart" data-chart="([^"]+)"', page.text)
    assert chart is not None
    answer = await scene.viewer.get(html.unescape(chart[1]))
    assert answer.headers["content-type"] == "application/json"
    figures = orjson.loads(answer.text)
    moments, available, held, _coming = figures["data"]
    assert moments == sorted(moments)
    assert figures["available"] == total - frozen
    known = [value for value in available if value is not None]
    assert known[-1] == total - frozen
    assert known[0] == 0
    assert len(moments) == len(available) == len(held)
    await scene.stack.adjust(BRAND, request_id="more", grant=cost_center_admin_pb2.GrantAdjustment(segments=5_000))

    async def more() -> bool:
        part = await shown(scene.viewer, f"/brands/{BRAND}/live?live=1")
        return told_as(part, "balance-available") == f"{total - frozen + 5_000:,}"

    await eventually(more)


async def test_records_of_a_brand_page_by_key_and_by_day(scene: Scene) -> None:
    """Messages, freezes, payments, packages and batches: every one once over all pages; a day begins the list there."""
    listed: list[str] = []
    path = f"/brands/{BRAND}/messages"
    while path:
        page = await shown(scene.viewer, path)
        listed += re.findall(r'href="/messages/([0-9A-Z]{32})"', page.text)
        match = re.search(r'href="([^"]+)" rel="next"', page.text)
        path = html.unescape(match[1]) if match else ""
    rows = await scene.stack.rows("select message_id from message where brand_id = %s order by message_id desc", BRAND)
    assert listed == [row[0] for row in rows]
    for kind, minimum in (("freezes", 3), ("payments", 3), ("packages", 1), ("batches", 1), ("campaigns", 1)):
        page = await shown(scene.viewer, f"/brands/{BRAND}/{kind}")
        assert page.text.count("<tr>") + page.text.count("<li ") >= minimum, kind
    day_of = f"/brands/{BRAND}/messages?day="
    assert listed[0] in (await shown(scene.viewer, f"{day_of}2999-12-30")).text
    for kind in ("messages", "freezes", "payments", "batches"):
        assert "None." in (await shown(scene.viewer, f"/brands/{BRAND}/{kind}?day=2020-02-29")).text
    page = await shown(scene.viewer, f"/brands/{BRAND}/freezes?open=1")
    assert scene.delivered.order_no not in page.text


async def test_a_message_s_life_is_told(scene: Scene) -> None:
    """Every step with every id, until the receipt; then nothing is polled any more. One that failed: its end, and what
    was given back.
    """
    page = await shown(scene.viewer, f"/messages/{scene.delivered.message_id}")
    assert 'data-testid="message-state" data-state="delivered"' in page.text
    steps = re.findall(r'data-step="(\w+)" data-state="(\w+)"', page.text)
    names = ["accepted", "frozen", "queued", "paid", "submitted", "sent", "receipt"]
    assert steps == [(name, "done") for name in names]
    message = scene.delivered
    for number in (message.message_id, message.order_no, message.payment_no, message.carrier_message_id):
        assert number in page.text
    assert message.request_id in page.text
    failed = await shown(scene.viewer, f"/messages/{scene.failed.message_id}")
    ends = dict(re.findall(r'data-step="(\w+)" data-state="(\w+)"', failed.text))
    assert (ends["paid"], ends["sent"], ends["failed"], ends["refunded"]) == ("done", "skipped", "bad", "done")


async def test_numbers_and_codes_are_for_operators(scene: Scene) -> None:
    """A viewer sees neither the whole number nor the code in the text, wherever they stand; an operator does."""
    message_id = scene.delivered.message_id
    paths = (f"/messages/{message_id}", f"/brands/{BRAND}/messages?mobile={MOBILE}")
    for path in paths:
        masked, whole = await shown(scene.viewer, path), await shown(scene.operator, path)
        assert f"+86{MOBILE}" not in masked.text, path
        assert "+86138****8001" in masked.text, path
        assert f"+86{MOBILE}" in whole.text, path
    page = await shown(scene.viewer, f"/messages/{message_id}")
    assert "987654" not in page.text
    assert "987654" in (await shown(scene.operator, f"/messages/{message_id}")).text


async def test_a_freeze_and_a_payment_show_their_lines(scene: Scene) -> None:
    """Both lead to each other and to the message; a refund is told."""
    freeze = await shown(scene.viewer, f"/freezes/{scene.delivered.order_no}")
    assert f'href="/messages/{scene.delivered.message_id}"' in freeze.text
    assert f'href="/payments/{scene.delivered.payment_no}"' in freeze.text
    payment = await shown(scene.viewer, f"/payments/{scene.delivered.payment_no}")
    assert f'href="/freezes/{scene.delivered.order_no}"' in payment.text
    assert f'href="/messages/{scene.delivered.message_id}"' in payment.text
    refunded = await shown(scene.viewer, f"/payments/{scene.failed.payment_no}")
    assert 'data-testid="refunds"' in refunded.text


async def test_search_leads_to_what_it_names(scene: Scene) -> None:
    """Message, batch, order, payment, call and carrier's ids, a number with its brand, a brand: exactly one page."""
    message = scene.delivered
    (row,) = await scene.stack.rows("select call_id from message where message_id = %s", message.message_id)
    page_of = f"/messages/{message.message_id}"
    for asked, path in (
        (message.message_id, page_of),
        (message.message_id.lower(), page_of),
        (f"  {message.message_id} ", page_of),
        (scene.batch_id, f"/batches/{scene.batch_id}"),
        (message.order_no, f"/freezes/{message.order_no}"),
        (message.payment_no, f"/payments/{message.payment_no}"),
        (row[0], page_of),
        (message.carrier_message_id, page_of),
        (str(BRAND), f"/brands/{BRAND}"),
    ):
        page = await scene.viewer.get(f"/search?q={asked}")
        assert (page.status, page.path) == (200, path), asked
    page = await shown(scene.viewer, f"/search?q={MOBILE}&brand={BRAND}")
    assert page.path == page_of
    unnamed = await shown(scene.viewer, f"/search?q={MOBILE}")
    assert "name the brand as well" in unnamed.text
    assert "Nothing is called so." in (await shown(scene.viewer, "/search?q=nothing")).text
    await shown(scene.viewer, "/search")


async def test_a_batch_moves_until_it_is_done(scene: Scene) -> None:
    """Its progress while it is held, among the batches under way; when all is final, nothing is polled any more."""
    stack = scene.stack
    page = await shown(scene.viewer, f"/batches/{scene.batch_id}")
    assert 'data-final="yes"' in page.text
    assert "hx-get" not in page.text
    assert 'data-percent="100.0"' in page.text
    (paused,) = stack.workers
    await stack.stop(paused)
    waiting = await stack.send_batch(["13700137001", "13700137002"], request_id="batch-2", campaign_id="双11/A")
    page = await shown(scene.viewer, f"/batches/{waiting}")
    assert 'data-final="no"' in page.text
    assert "2 waiting" in page.text
    running = await shown(scene.viewer, "/batches")
    assert waiting in running.text
    assert scene.batch_id not in running.text
    assert waiting in (await shown(scene.viewer, "/batches?live=1")).text
    assert waiting not in (await shown(scene.stranger, "/batches")).text
    campaign = await shown(scene.viewer, f"/brands/{BRAND}/campaigns/%E5%8F%8C11/A")
    assert waiting in campaign.text
    assert scene.batch_id in campaign.text
    assert "12 of 14" in campaign.text
    control = f'href="/control?batch={waiting}"'
    assert control not in page.text
    assert control in (await shown(scene.operator, f"/batches/{waiting}")).text
    queues = await shown(scene.viewer, "/overview?live=1")
    assert re.search(r"marketing</td>\s*<td[^>]*>0</td>\s*<td[^>]*>1</td>", queues.text)
    await stack.worker()
    await eventually(stack.quiet)

    async def final() -> bool:
        return 'data-final="yes"' in (await scene.viewer.get(f"/batches/{waiting}/live?live=1")).text

    await eventually(final)


async def test_a_large_batch_is_counted_after_its_page(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its page comes without the counts and asks for them at once; they come, and then nothing is asked any more."""
    monkeypatch.setattr(batch_pages, "_COUNTED_WITH_PAGE_MAX", 11)
    page = await shown(scene.viewer, f"/batches/{scene.batch_id}")
    assert "counting …" in page.text
    assert f'hx-get="/batches/{scene.batch_id}/live?live=1" hx-trigger="load, every' in page.text
    part = await shown(scene.viewer, f"/batches/{scene.batch_id}/live?live=1")
    assert "counting" not in part.text
    assert 'data-final="yes"' in part.text


UNKNOWN = IdentifierSource().new(BRAND, 1_700_000_000_000)


BAD = [
    ("/brands/999999", 404, "BRAND_NOT_FOUND"),
    ("/brands/0", 404, ""),
    ("/brands/-1", 404, ""),
    ("/brands/99999999999999999999999999", 404, ""),
    ("/brands/٣", 404, ""),
    ("/brands/1%27%20or%201=1", 404, ""),
    ("/brands/9223372036854775807", 404, "BRAND_NOT_FOUND"),
    ("/brands?after=rubbish", 400, "BAD_REQUEST"),
    (f"/brands?after={'A' * 5_000}", 400, "BAD_REQUEST"),
    (f"/brands?q={'x' * 101}", 400, "BAD_REQUEST"),
    ("/brands?q=a%00b", 400, ""),
    ("/brands?q=a%0Ab", 400, ""),
    (f"/brands/{BRAND}?days=31", 400, "BAD_REQUEST"),
    (f"/brands/{BRAND}?days=99999999999", 400, "BAD_REQUEST"),
    (f"/brands/{BRAND}/balance.json?days=-1", 400, "BAD_REQUEST"),
    (f"/brands/{BRAND}/balance.json?days=%F0%9F%98%80", 400, "BAD_REQUEST"),
    (f"/brands/{BRAND}/messages?day=2026-02-30", 400, "BAD_REQUEST"),
    (f"/brands/{BRAND}/messages?day=yesterday", 400, "BAD_REQUEST"),
    (f"/brands/{BRAND}/payments?day=9999-12-31", 400, "BAD_REQUEST"),
    (f"/brands/{BRAND}/messages?mobile=12", 400, "BAD_REQUEST"),
    (f"/brands/{BRAND}/messages?after={encode_token('x')}", 400, "BAD_REQUEST"),
    (f"/brands/{BRAND}/freezes?open=2", 400, "BAD_REQUEST"),
    (f"/brands/{BRAND}/freezes?open=1&after={encode_token('x')}", 400, "BAD_REQUEST"),
    (f"/brands/{BRAND}/campaigns/none", 404, "CAMPAIGN_NOT_FOUND"),
    (f"/brands/{BRAND}/campaigns/{'x' * 49}", 400, "BAD_REQUEST"),
    (f"/batches?after={encode_token('7 x')}", 400, "BAD_REQUEST"),
    (f"/batches?after={encode_token('x')}", 400, "BAD_REQUEST"),
    (f"/batches/{UNKNOWN}", 404, "BATCH_NOT_FOUND"),
    ("/batches/nothing", 404, "BATCH_NOT_FOUND"),
    (f"/messages/{UNKNOWN}", 404, "MESSAGE_NOT_FOUND"),
    ("/messages/%3Cscript%3Ealert(1)%3C%2Fscript%3E", 404, ""),
    ("/messages/x", 404, "MESSAGE_NOT_FOUND"),
    (f"/freezes/{UNKNOWN}", 404, "FREEZE_NOT_FOUND"),
    ("/freezes/x", 404, "FREEZE_NOT_FOUND"),
    (f"/payments/{UNKNOWN}", 404, "PAYMENT_NOT_FOUND"),
    (f"/search?q={'x' * 129}", 400, "BAD_REQUEST"),
    ("/search?q=a%00", 400, ""),
    ("/search?q=a%0Ab", 400, ""),
    ("/search?q=x&brand=seven", 400, "BAD_REQUEST"),
    ("/search?q=%3Cscript%3Ealert(1)%3C/script%3E", 200, ""),
]


async def test_bad_input_is_answered_clearly(scene: Scene) -> None:
    """The right status, a page that names the field or what is missing, never a trace, nothing executed."""
    for path, status, reason in BAD:
        page = await scene.viewer.get(path)
        assert (page.status, page.reason) == (status, reason), (path, page.text)
        assert "Traceback" not in page.text, path
        assert "<script>alert" not in page.text, path
        assert "smsbill" in page.text, path


async def test_without_the_ledger_pages_say_so(scene: Scene) -> None:
    """A page that needs it is a 503 or 504 with words; the overview shows the rest."""
    await scene.stack.stop_costcenter()
    try:
        page = await scene.viewer.get(f"/freezes/{scene.delivered.order_no}")
        assert page.status in {503, 504}
        assert "Traceback" not in page.text
        assert 'data-testid="queues"' in (await shown(scene.viewer, "/overview?live=1")).text
    finally:
        await scene.stack.restart_costcenter()
