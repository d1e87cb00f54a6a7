"""Aim: adapter and simulated carrier agree on the protocol, and the simulator counts everything that it was given.

Method: the real adapter against the real simulator over HTTP; a local receiver of receipts that answers as it is told.
The conservation of receipts (scheduled = acknowledged + abandoned + pulled + waiting) is checked after every test.
"""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from smsbill.carrier_simulator import CarrierSimulator, SettingsError, SimulatorConfig, SimulatorSettings, text_hash
from smsgateway.carriers.base import BatchCall, CarrierError, ReceiptState, SingleCall, Verdict
from smsgateway.carriers.chuanglan import (
    RECEIPT_ACKNOWLEDGED,
    RECEIPT_AGAIN,
    ChuanglanCarrier,
    ChuanglanConfig,
)

TEXT = "【测试】您的验证码是123456"
MOBILE = "+8613800138000"
FAST = {"receipt_delay_ms_min": 0, "receipt_delay_ms_max": 5, "receipt_retry_interval_ms": 20}


def call(call_id: str = "call-1", mobile: str = MOBILE, text: str = TEXT) -> SingleCall:
    return SingleCall(call_id, mobile, text)


@asynccontextmanager
async def simulating(*, start: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[CarrierSimulator]:
    chosen = SimulatorSettings(**{**FAST, **settings})
    simulator = CarrierSimulator(SimulatorConfig(**(start or {}), settings=chosen))
    async with simulator:
        yield simulator
    receipts = simulator.totals()["receipts"]
    ended = receipts["acknowledged"] + receipts["abandoned"] + receipts["pulled"]
    assert receipts["scheduled"] == ended + receipts["waiting"]


@asynccontextmanager
async def adapter(simulator: CarrierSimulator, **settings: Any) -> AsyncIterator[ChuanglanCarrier]:
    fields = {"account": "N0000001", "password": "simulator", **settings}
    opened = ChuanglanCarrier(ChuanglanConfig("main", simulator.url, **fields))
    try:
        yield opened
    finally:
        await opened.aclose()


class Receiver:
    """Takes pushed receipts; `answer` is asked for the body of each reply, given how many came before."""

    def __init__(self) -> None:
        self.got: list[dict[str, str]] = []
        self.connections: set[object] = set()
        self.answer: Callable[[int], web.Response] = lambda _before: web.Response(body=RECEIPT_ACKNOWLEDGED)
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        assert (request.method, request.path) == ("GET", "/callbacks/chuanglan")
        self.connections.add(request.transport.get_extra_info("peername"))
        before = len(self.got)
        self.got.append(dict(request.query))
        return self.answer(before)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    runner = web.ServerRunner(web.Server(receiver.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/callbacks/chuanglan"
    try:
        yield receiver
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - totals have no event to await
            await asyncio.sleep(0.005)


async def ask(method: str, url: str, body: object = None) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.request(method, url, json=body) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("path", ["/msg/send/json", "/msg/v1/send/json"])
async def test_accepts_and_records(path: str) -> None:
    long_text = "【测试】" + "长" * 67
    async with simulating() as simulator, adapter(simulator, path=path) as carrier:
        first = await carrier.send_single(call())
        second = await carrier.send_single(call("call-2", "+8613900139001", long_text))
        assert (first.verdict, second.verdict) == (Verdict.ACCEPTED, Verdict.ACCEPTED)
        assert first.carrier_message_id != second.carrier_message_id
        assert first.carrier_message_id is not None
        assert len(first.carrier_message_id) == 32
        assert await carrier.balance() == 1_000_000_000 - 3
        one, two = simulator.entries()
        assert one["time"] <= two["time"]
        assert two == {
            "n": 2,
            "uid": "call-2",
            "mobile": "13900139001",
            "text_hash": text_hash(long_text),
            "text_length": 71,
            "segments": 2,
            "msgid": second.carrier_message_id,
            "time": two["time"],
            "answer": "answered",
            "receipt_taken": None,
        }
        totals = simulator.totals()
        assert (totals["messages"], totals["segments"], totals["calls"]["accepted"]) == (2, 3, 2)


async def test_batch() -> None:
    mobiles = tuple(f"+8613800{number:06d}" for number in range(1, 1_001))
    async with simulating() as simulator, adapter(simulator) as carrier:
        outcome = await carrier.send_batch(BatchCall("batch-1", mobiles, TEXT))
        assert outcome.verdict is Verdict.ACCEPTED
        entries = simulator.entries(0, 2_000)
        assert ["+86" + entry["mobile"] for entry in entries] == list(mobiles)
        assert {entry["msgid"] for entry in entries} == {outcome.carrier_message_id}
        assert simulator.totals()["calls"]["accepted"] == 1


async def test_batch_too_large_for_the_carrier_is_for_halving() -> None:
    mobiles = tuple(f"+8613800{number:06d}" for number in range(1, 12))
    async with simulating(batch_numbers_max=10) as simulator, adapter(simulator) as carrier:
        outcome = await carrier.send_batch(BatchCall("batch-1", mobiles, TEXT))
        assert (outcome.verdict, outcome.code) == (Verdict.BAD_NUMBER, "108")


async def test_bad_number_refuses_the_whole_call() -> None:
    async with simulating() as simulator, adapter(simulator) as carrier:
        bad = await carrier.send_single(call(mobile="+8613800001111"))
        batch = await carrier.send_batch(BatchCall("batch-1", (MOBILE, "+8613800001111"), TEXT))
        assert (bad.verdict, bad.code) == (Verdict.BAD_NUMBER, "107")
        assert (batch.verdict, batch.code) == (Verdict.BAD_NUMBER, "107")
        assert simulator.entries() == []
        assert simulator.totals()["calls"]["refused_by_code"] == {"107": 2}


@pytest.mark.parametrize(
    ("settings", "code", "verdict"),
    [
        ({"account": "N9"}, "101", Verdict.STOP_ACCOUNT),
        ({"password": "wrong"}, "102", Verdict.STOP_ACCOUNT),
        ({"text_characters_max": 1_000}, "106", Verdict.REFUSED),
    ],
)
async def test_refusals(settings: dict[str, Any], code: str, verdict: Verdict) -> None:
    async with simulating() as simulator, adapter(simulator, **settings) as carrier:
        outcome = await carrier.send_single(call(text="长" * 537 if code == "106" else TEXT))
        assert (outcome.verdict, outcome.code) == (verdict, code)
        if verdict is Verdict.STOP_ACCOUNT:
            with pytest.raises(CarrierError) as error:
                await carrier.balance()
            assert error.value.code == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"phone": ""}, "108"),
        ({"phone": "13800138000,"}, "107"),
        ({"phone": 13800138000}, "130"),
        ({"msg": ""}, "106"),
        ({"msg": None}, "130"),
        ({"uid": "x" * 65}, "130"),
        ({"sendtime": "tomorrow"}, "127"),
        ({"extend": "12345"}, "113"),
        ({"extend": "12", "sendtime": "203001010000"}, "0"),
    ],
)
async def test_raw_calls(changes: dict[str, object], code: str) -> None:
    asked = {"account": "N0000001", "password": "simulator", "msg": TEXT, "phone": "13800138000", **changes}
    async with simulating() as simulator:
        _, answer = await ask("POST", simulator.url + "/msg/send/json", asked)
        assert answer["code"] == code


async def test_rubbish() -> None:
    async with simulating() as simulator, aiohttp.ClientSession() as session:
        for body in (b"", b"{", b"[]"):
            async with session.post(simulator.url + "/msg/send/json", data=body) as response:
                assert (await response.json())["code"] == "129"
        async with session.get(simulator.url + "/msg/send/json") as response:
            assert response.status == 404


async def test_throttles_and_recovers() -> None:
    async with simulating(throttle_rate=1) as simulator, adapter(simulator) as carrier:
        throttled = await carrier.send_single(call())
        assert (throttled.verdict, throttled.code, throttled.retry_after_s) == (Verdict.RETRY, "103", 1.0)
        simulator.change_settings({"throttle_rate": 0, "error_rates": {"120": 1}})
        assert (await carrier.send_single(call())).verdict is Verdict.STOP_ACCOUNT
        simulator.change_settings({"error_rates": {}})
        assert (await carrier.send_single(call())).verdict is Verdict.ACCEPTED
        assert len(simulator.entries()) == 1


async def test_rates_are_shares_and_repeatable() -> None:
    verdicts: list[list[Verdict]] = []
    for _ in range(2):
        async with (
            simulating(throttle_rate=0.2, error_rates={"105": 0.1}, garbage_rate=0.1, seed=7) as simulator,
            adapter(simulator) as carrier,
        ):
            verdicts.append([(await carrier.send_single(call(f"call-{n}"))).verdict for n in range(300)])
    assert verdicts[0] == verdicts[1]
    for verdict, share in ((Verdict.RETRY, 0.2), (Verdict.REFUSED, 0.1), (Verdict.UNKNOWN, 0.1)):
        assert verdicts[0].count(verdict) / 300 == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize(
    ("rate", "recorded"), [("timeout_rate", ["withheld"]), ("lost_rate", []), ("garbage_rate", ["garbled"])]
)
async def test_no_clear_answer_is_unknown(rate: str, recorded: list[str]) -> None:
    settings: dict[str, Any] = {rate: 1}
    async with (
        simulating(**settings) as simulator,
        adapter(simulator, connect_timeout_s=0.2, total_timeout_s=0.3) as carrier,
    ):
        outcome = await carrier.send_single(call())
        assert outcome.verdict is Verdict.UNKNOWN
        assert [entry["answer"] for entry in simulator.entries()] == recorded
        calls = simulator.totals()["calls"]
        assert calls["lost"] + calls["withheld"] + calls["garbled"] == 1


async def test_unanswered_call_is_cut_after_its_hold() -> None:
    async with simulating(timeout_rate=1, timeout_hold_ms=50) as simulator, adapter(simulator) as carrier:
        assert (await carrier.send_single(call())).verdict is Verdict.UNKNOWN


async def test_refused_connection_is_retry() -> None:
    async with simulating() as simulator, adapter(simulator) as carrier:
        await simulator.stop()
        assert (await carrier.send_single(call())).verdict is Verdict.RETRY


async def test_latency() -> None:
    async with simulating(latency_ms=100, latency_jitter_ms=10) as simulator, adapter(simulator) as carrier:
        loop = asyncio.get_running_loop()
        started = loop.time()
        assert (await carrier.send_single(call())).verdict is Verdict.ACCEPTED
        assert loop.time() - started >= 0.1


async def test_full_record_refuses_rather_than_forgets() -> None:
    async with simulating(start={"record_entries_max": 2}) as simulator, adapter(simulator) as carrier:
        three = tuple(f"+8613800{number:06d}" for number in range(1, 4))
        assert (await carrier.send_batch(BatchCall("batch-1", three, TEXT))).code == "104"
        assert (await carrier.send_batch(BatchCall("batch-2", three[:2], TEXT))).verdict is Verdict.ACCEPTED
        full = await carrier.send_single(call())
        assert (full.verdict, full.code) == (Verdict.RETRY, "104")
        assert await carrier.balance() == 1_000_000_000 - 2


async def test_balance_runs_out() -> None:
    async with simulating(start={"balance": 1}) as simulator, adapter(simulator) as carrier:
        assert (await carrier.send_single(call())).verdict is Verdict.ACCEPTED
        assert (await carrier.send_single(call())).code == "109"
        assert await carrier.balance() == 0


async def test_receipts_are_pushed_and_parsed() -> None:
    states = {"MK:0001": 1}
    async with receiving() as receiver:
        agreed: dict[str, Any] = {"receiver": "admin&co", "pswd": "密码"}
        async with (
            simulating(receipt_url=receiver.url, **agreed) as simulator,
            adapter(simulator, receiver="admin&co", push_password="密码") as carrier,
        ):
            outcome = await carrier.send_single(call("uid&+%/", text="长" * 71))
            await until(lambda: len(receiver.got) == 1)
            simulator.change_settings({"receipt_states": states})
            await carrier.send_single(call("call-2"))
            await carrier.send_single(call("call-3", "+8613899990000"))
            await until(lambda: simulator.totals()["receipts"]["acknowledged"] == 3)
            first, *others = [carrier.parse_pushed_receipt(params) for params in receiver.got]
            assert first.carrier_message_id == outcome.carrier_message_id
            assert (first.call_id, first.mobile, first.segments) == ("uid&+%/", MOBILE, 2)
            assert (first.state, first.code, first.description) == (ReceiptState.DELIVERED, "DELIVRD", "短信发送成功")
            assert first.notified_at is not None
            assert 0 <= (first.notified_at - first.reported_at).total_seconds() <= 60
            assert {(r.call_id, r.code, r.state) for r in others} == {
                ("call-2", "MK:0001", ReceiptState.FAILED),
                ("call-3", "UNDELIV", ReceiptState.FAILED),
            }


async def test_receipts_of_a_batch_reuse_connections() -> None:
    mobiles = tuple(f"+8613800{number:06d}" for number in range(1, 501))
    async with receiving() as receiver:
        url = receiver.url + "?tenant=7"
        async with (
            simulating(start={"receipt_connections": 4}, receipt_url=url) as simulator,
            adapter(simulator) as carrier,
        ):
            await carrier.send_batch(BatchCall("batch-1", mobiles, TEXT))
            await until(lambda: simulator.totals()["receipts"]["acknowledged"] == 500)
            assert len(receiver.connections) <= 4
            assert {"+86" + params["mobile"] for params in receiver.got} == set(mobiles)
            assert {params["tenant"] for params in receiver.got} == {"7"}


@pytest.mark.parametrize(
    "refusal",
    [
        lambda: web.Response(body=RECEIPT_AGAIN),
        lambda: web.Response(status=500, body=RECEIPT_ACKNOWLEDGED),
        lambda: web.Response(body=b"ok"),
        lambda: web.Response(body=b"x" * 70_000),
    ],
)
async def test_receipts_are_retried_until_acknowledged(refusal: Callable[[], web.Response]) -> None:
    async with receiving() as receiver:
        receiver.answer = lambda before: (
            refusal()
            if before < 2
            else web.Response(body=b' { "clcode" : "000000" } ', headers={"Connection": "close"})
        )
        async with simulating(receipt_url=receiver.url) as simulator, adapter(simulator) as carrier:
            await carrier.send_single(call())
            await until(lambda: simulator.totals()["receipts"]["acknowledged"] == 1)
            receipts = simulator.totals()["receipts"]
            assert (receipts["pushed"], receipts["abandoned"], receipts["waiting"]) == (3, 0, 0)
            assert len({json.dumps({**params, "notifyTime": ""}) for params in receiver.got}) <= 2


async def test_receipts_are_given_up_after_their_tries() -> None:
    async with receiving() as receiver:
        receiver.answer = lambda _before: web.Response(body=RECEIPT_AGAIN)
        url = receiver.url
        async with simulating(receipt_url=url, receipt_keep=False) as simulator, adapter(simulator) as carrier:
            await carrier.send_single(call())
            await until(lambda: simulator.totals()["receipts"]["abandoned"] == 1)
            assert len(receiver.got) == 3
            assert (await carrier.pull_receipts(100)).receipts == ()


async def test_what_could_not_be_pushed_can_be_pulled_once() -> None:
    """A push never acknowledged and one lost on the way: both wait, are given once, and are gone."""
    async with receiving() as receiver:
        receiver.answer = lambda _before: web.Response(body=RECEIPT_AGAIN)
        async with simulating(receipt_url=receiver.url) as simulator, adapter(simulator) as carrier:
            await carrier.send_single(call("refused"))
            await until(lambda: len(receiver.got) == 3)
            simulator.change_settings({"push_loss": 1})
            await carrier.send_single(call("lost"))
            pulled: list[str] = []
            async with asyncio.timeout(10):
                while len(pulled) < 2:
                    pulled += [receipt.call_id for receipt in (await carrier.pull_receipts(1)).receipts]
            assert sorted(pulled) == ["lost", "refused"]
            assert len(receiver.got) == 3
            last = await carrier.pull_receipts(100)
            assert (last.receipts, last.more) == ((), False)
            assert simulator.totals()["receipts"]["pulled"] == 2


async def test_pulls_fail_on_request() -> None:
    """A refused pull takes nothing; the rows of one that is never answered are gone."""
    async with simulating(pull_error_rate=1) as simulator, adapter(simulator) as carrier:
        await carrier.send_single(call())
        with pytest.raises(CarrierError) as refused:
            await carrier.pull_receipts(100)
        assert (refused.value.code, simulator.totals()["receipts"]["pulled"]) == ("1", 0)
        simulator.change_settings({"pull_error_rate": 0, "pull_loss": 1})
        async with asyncio.timeout(10):
            while simulator.totals()["receipts"]["pulled"] == 0:
                with pytest.raises(CarrierError) as lost:
                    await carrier.pull_receipts(100)
        assert lost.value.code == ""
        simulator.change_settings({"pull_loss": 0})
        assert (await carrier.pull_receipts(100)).receipts == ()


async def test_receiver_away_silent_and_back() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/callbacks/chuanglan"
        async with receiving() as receiver, simulating(receipt_url=nobody) as simulator, adapter(simulator) as carrier:
            simulator.change_settings({"receipt_tries": 1_000, "receipt_timeout_ms": 50})
            await carrier.send_single(call())
            await until(lambda: simulator.totals()["receipts"]["pushed"] >= 2)
            taken.listen()  # connects, never answers
            pushed = simulator.totals()["receipts"]["pushed"]
            await until(lambda: simulator.totals()["receipts"]["pushed"] >= pushed + 2)
            simulator.change_settings({"receipt_url": receiver.url})
            await until(lambda: simulator.totals()["receipts"]["acknowledged"] == 1)


async def test_push_survives_a_connection_closed_while_idle() -> None:
    seen = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        await reader.readuntil(b"\r\n\r\n")
        seen += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n" + RECEIPT_ACKNOWLEDGED)
        await writer.drain()
        # A second request on this connection is read, never answered: the connection just ends.
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with (
        server,
        simulating(start={"receipt_connections": 1}, receipt_url=url) as simulator,
        adapter(simulator) as carrier,
    ):
        for number in range(3):
            await carrier.send_single(call(f"call-{number}"))
        await until(lambda: simulator.totals()["receipts"]["acknowledged"] == 3)
        assert simulator.totals()["receipts"]["pushed"] == 3
        await simulator.stop()
    assert seen == 3


@pytest.mark.parametrize(
    ("answer", "acknowledged"),
    [
        (b'HTTP/1.0 200 OK\r\n\r\n{"clcode":"000000"}', True),
        (b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{"clcode":"000000"}', True),
        (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n13\r\n{"clcode":"000000"}\r\n0\r\n\r\n', True),
        (b"SSH-2.0-OpenSSH_9.6\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{", False),
        (b"", False),
    ],
)
async def test_push_reads_any_http(answer: bytes, acknowledged: bool) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    once: dict[str, Any] = {"receipt_tries": 1, "receipt_keep": False}
    async with server, simulating(receipt_url=url, **once) as simulator, adapter(simulator) as carrier:
        await carrier.send_single(call())
        await until(lambda: simulator.totals()["receipts"]["waiting"] == 0)
        assert simulator.totals()["receipts"]["acknowledged"] == int(acknowledged)


async def test_receipts_lost_and_doubled() -> None:
    async with (
        receiving() as receiver,
        simulating(receipt_url=receiver.url, receipt_double=1) as simulator,
        adapter(simulator) as carrier,
    ):
        await carrier.send_single(call())
        await until(lambda: simulator.totals()["receipts"]["acknowledged"] == 2)
        assert receiver.got[0]["msgid"] == receiver.got[1]["msgid"]
        (entry,) = simulator.entries()
        assert entry["time"] <= entry["receipt_taken"]
        simulator.change_settings({"receipt_loss": 1})
        await carrier.send_single(call())
        receipts = simulator.totals()["receipts"]
        assert (receipts["doubled"], receipts["lost"], receipts["scheduled"]) == (1, 1, 2)


async def test_no_receipt_unless_asked_for() -> None:
    asked = {"account": "N0000001", "password": "simulator", "msg": TEXT, "phone": "13800138000"}
    async with simulating() as simulator:
        await ask("POST", simulator.url + "/msg/send/json", asked)
        assert simulator.totals()["receipts"]["scheduled"] == 0


async def test_receipts_are_pulled_once() -> None:
    asked = {"account": "N0000001", "password": "simulator"}
    async with simulating() as simulator, adapter(simulator) as carrier:
        outcome = await carrier.send_batch(BatchCall("batch-1", (MOBILE, "+8613900139001", "+8613900139002"), TEXT))
        await asyncio.sleep(0.05)
        url = simulator.url + "/msg/pull/report"
        _, first = await ask("POST", url, {**asked, "count": "2"})
        _, second = await ask("POST", url, asked)
        _, third = await ask("POST", url, asked)
        rows = first["result"] + second["result"]
        assert (first["ret"], len(first["result"]), len(second["result"]), third["result"]) == (0, 2, 1, [])
        assert {row["mobile"] for row in rows} == {"13800138000", "13900139001", "13900139002"}
        assert {(row["uid"], row["msgId"], row["status"]) for row in rows} == {
            ("batch-1", outcome.carrier_message_id, "DELIVRD")
        }
        assert (await ask("POST", url, {**asked, "count": 101}))[1] == {"ret": 1, "error": "refused with 130"}
        assert (await ask("POST", url, {"account": "N0000001"}))[1]["ret"] == 1


async def test_personalised() -> None:
    asked = {
        "account": "N0000001",
        "password": "simulator",
        "msg": "【测试】{$var}您好，余额{$var}元",
        "params": "13800138000,张三,5;13900139001,李四;bad,王五,6;13900139002,赵六,7",
        "report": "true",
        "uid": "call-1",
    }
    async with simulating() as simulator:
        _, answer = await ask("POST", simulator.url + "/msg/variable/json", asked)
        assert (answer["code"], answer["successNum"], answer["failNum"]) == ("0", "2", "2")
        texts = [entry["text_hash"] for entry in simulator.entries()]
        assert texts == [text_hash("【测试】张三您好，余额5元"), text_hash("【测试】赵六您好，余额7元")]
        for changes in ({"msg": "none"}, {"params": ""}, {"params": "bad"}, {"msg": "{$var}" * 21}):
            _, answer = await ask("POST", simulator.url + "/msg/variable/json", {**asked, **changes})
            assert answer["code"] == "114"


async def test_record_pages() -> None:
    async with simulating() as simulator, adapter(simulator) as carrier:
        for number in range(5):
            await carrier.send_single(call(f"call-{number}", f"+861380013800{number % 4}"))
        url = simulator.url + "/simulator/record"
        seen: list[str] = []
        after = 0
        while True:
            _, page = await ask("GET", f"{url}?after={after}&limit=2")
            seen += [entry["uid"] for entry in page["entries"]]
            after = page["next_after"]
            if not page["more"]:
                break
        assert seen == [f"call-{number}" for number in range(5)]
        assert page["numbers"] == {"13800138000": 2}
        assert page["totals"] == simulator.totals()
        assert (page["totals"]["distinct_numbers"], page["totals"]["numbers_more_than_once"]) == (4, 1)
        assert (await ask("GET", f"{url}?after=99"))[1]["entries"] == []
        for query in ("after=x", "limit=0", "limit=10001", "after=-1"):
            assert (await ask("GET", f"{url}?{query}"))[0] == 400


async def test_settings_over_http() -> None:
    async with simulating(pswd="hush") as simulator:
        url = simulator.url + "/simulator/settings"
        status, shown = await ask("POST", url, {"error_rates": {"105": 0.5}, "latency_ms": 3, "seed": 1})
        assert (status, shown["error_rates"], shown["latency_ms"]) == (200, {"105": 0.5}, 3.0)
        assert shown["pswd"] == "***"
        assert (await ask("GET", url))[1] == shown
        for changes, named in (
            ({"latency": 3}, "latency"),
            ({"throttle_rate": 0.6}, "add up"),
            ({"throttle_rate": 2}, "throttle_rate"),
            ({"throttle_rate": True}, "throttle_rate"),
            ({"error_rates": {"0": 1}}, "error_rates"),
            ({"error_rates": 1}, "error_rates"),
            ({"receipt_states": {"A": 0.6, "B": 0.6}}, "receipt_states"),
            ({"receipt_delay_ms_min": 9_000}, "receipt_delay_ms_min"),
            ({"receipt_url": "ftp://x"}, "receipt_url"),
            ({"receipt_url": "http://x/ y"}, "receipt_url"),
            ({"receipt_tries": 0}, "receipt_tries"),
            ({"refused_numbers": "1111"}, "refused_numbers"),
            ({"refused_numbers": [""]}, "refused_numbers"),
            ({"receiver": 1}, "receiver"),
            ({"latency_ms": -1}, "latency_ms"),
            ({"seed": "x"}, "seed"),
            ([], "object"),
        ):
            status, answer = await ask("POST", url, changes)
            assert status == 400
            assert named in answer["error"]
        assert (await ask("GET", url))[1] == shown


async def test_page_for_people() -> None:
    async with simulating(receipt_url="http://127.0.0.1:9/?a=<b>") as simulator, aiohttp.ClientSession() as session:
        async with session.get(simulator.url + "/") as response:
            page = await response.text()
        assert response.content_type == "text/html"
        assert "<th>receipts.acknowledged</th><td>0</td>" in page
        assert "<b>" not in page


async def test_port_taken() -> None:
    async with simulating() as simulator:
        port = int(simulator.url.rsplit(":", 1)[1])
        with pytest.raises(OSError, match="address already in use"):
            await CarrierSimulator(SimulatorConfig(port=port)).start()


@pytest.mark.parametrize("start", [{"account": ""}, {"password": ""}, {"record_entries_max": 0}, {"balance": -1}])
def test_config_rules(start: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        SimulatorConfig(**start)


@pytest.mark.parametrize("runner", ["asyncio", "uvloop"])
async def test_process_of_its_own_ends_on_sigterm(runner: str) -> None:
    program = (
        f"import {runner}\n"
        "from smsbill.carrier_simulator import SimulatorConfig, serve\n"
        f"{runner}.run(serve(SimulatorConfig(), on_ready=lambda url: print(url, flush=True)))\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        url = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
        async with receiving() as receiver:
            settings = {**FAST, "receipt_url": receiver.url, "receipt_delay_ms_max": 0}
            settings["receipt_tries"] = 100
            assert (await ask("POST", url + "/simulator/settings", settings))[0] == 200
            config = ChuanglanConfig("main", url, "N0000001", "simulator")
            carrier = ChuanglanCarrier(config)
            receiver.answer = lambda before: web.Response(body=RECEIPT_ACKNOWLEDGED if before % 3 else RECEIPT_AGAIN)
            for number in range(50):
                assert (await carrier.send_single(call(f"call-{number}"))).verdict is Verdict.ACCEPTED
            await carrier.aclose()
            # The answers 0, 3, 6, … ask again: 50 acknowledgements take 75 pushes.
            await until(lambda: len(receiver.got) >= 75)
            receipts: dict[str, int] = {"waiting": 1}
            while receipts["waiting"]:
                receipts = (await ask("GET", url + "/simulator/record"))[1]["totals"]["receipts"]
            assert (receipts["scheduled"], receipts["acknowledged"], receipts["abandoned"]) == (50, 50, 0)
            assert {params["uid"] for params in receiver.got} == {f"call-{number}" for number in range(50)}
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
