"""Aim: what Grafana reads is right, for those who may, and nothing else: the reporting views by a role that sees but
them, the JSON endpoints by a token, and every query of the dashboards. Method: one real stack with some messages, asked
as Grafana asks; the dashboards' own SQL with Grafana's macros filled in.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from gateway_harness import SECONDS, eventually
from psycopg import errors
from worker_harness import ADMIN, BRAND, GRANTED, OTHER_BRAND, Stack, numbers, running_stack

from infra.embedded_postgres import ROLE, SUPERUSER
from infra.grpc_server import bearer
from protos.costcenter.v1 import cost_center_admin_pb2

ROOT = Path(__file__).resolve().parent.parent.parent / "deploy" / "grafana"
DASHBOARDS = sorted((ROOT / "dashboards").glob("*.json"))
SINGLES, BATCH = 6, 4


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    behaviour = {"receipt_states": {"UNDELIV": 0.3}, "seed": 3}
    async with running_stack(database_url, redis_url, simulator=behaviour) as running:
        await running.worker(usage_fold_seconds=0.1, usage_count_seconds=0.2, usage_count_share=1)
        for mobile in numbers(SINGLES):
            await running.send(mobile)
        await running.send_batch(numbers(BATCH))
        await running.send(numbers(1)[0], brand_id=OTHER_BRAND)
        await running.wait_until_final(SINGLES + BATCH + 1)

        async def counted() -> bool:
            return bool(await running.rows("select 1 from usage_day where recipients = %s", SINGLES))

        await eventually(counted)
        yield running


async def test_what_grafana_reads_is_there(stack: Stack) -> None:
    """By the views and by the endpoints, of the same messages."""
    _the_reader_sees_the_views_and_the_dashboards_work(stack)
    await _endpoints_answer_as_their_data_sources_ask(stack)


def _the_reader_sees_the_views_and_the_dashboards_work(stack: Stack) -> None:
    """Each view answers the role of reader.sql, no table does; each query of each dashboard runs as that role."""
    script = (ROOT / "reader.sql").read_bytes()
    # The owner of the schemas may make no roles.
    administrator = stack.database_url.replace(f"user={ROLE}", f"user={SUPERUSER}")
    with psycopg.connect(administrator, autocommit=True) as owner:
        owner.execute(script)
        owner.execute(script)
        # Its login is a password's matter; here it is enough to be it.
        owner.execute("set role smsbill_reader")
        views = [
            f"{schema}.{name}"
            for schema, name in owner.execute(
                "select schemaname, viewname from pg_views where viewname like 'report\\_%' order by 1, 2"
            )
        ]
        assert len(views) == 8
        for view in views:
            assert owner.execute(f"select * from {view} limit 1".encode()).description, view
        for table in ("smsgateway.message", "smsgateway.usage_hour", "costcenter.balance", "costcenter.token"):
            with pytest.raises(errors.InsufficientPrivilege):
                owner.execute(f"select 1 from {table}".encode())
        with pytest.raises((errors.InsufficientPrivilege, errors.ObjectNotInPrerequisiteState)):
            owner.execute("update smsgateway.report_recipients_day set recipients = 1")

        usage = owner.execute(
            "select sum(messages), sum(segments), sum(delivered + undelivered), sum(sent + waiting + unknown)"
            " from smsgateway.report_usage_hour where brand_id = %s",
            (BRAND,),
        ).fetchone()
        assert usage is not None
        assert (usage[0], usage[2], usage[3]) == (SINGLES + BATCH, SINGLES + BATCH, 0)
        balance = owner.execute(
            "select total, frozen, available from costcenter.report_balance where brand_id = %s", (BRAND,)
        ).fetchone()
        assert balance == (GRANTED - usage[1], 0, GRANTED - usage[1])
        paid = owner.execute(
            "select sum(segments), sum(payments), count(distinct day) from costcenter.report_payment_day"
            " where brand_id = %s",
            (BRAND,),
        ).fetchone()
        assert paid is not None
        assert paid[0] == usage[1]

        ran = 0
        for path in DASHBOARDS:
            for query in _queries(json.loads(path.read_text())):
                owner.execute(_filled(query).encode())
                ran += 1
        assert ran >= 12


def test_dashboards_are_whole() -> None:
    """Each names itself once, panels do not overlap, and every source of data is provisioned."""
    provisioned = set()
    for path in sorted((ROOT / "provisioning" / "datasources").glob("*.yml")):
        # One source is from its name to the next one's.
        for each in path.read_text().split("- name:")[1:]:
            provisioned.add(
                (re.findall(r"^    type: (.+)$", each, re.M)[0], re.findall(r"^    uid: (.+)$", each, re.M)[0])
            )
    names = set()
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        names.add(dashboard["uid"])
        panels = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels), path.name
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, f"{path.name}: {panel['title']}"
            taken |= cells
            assert panel["title"]
            assert panel["type"] == "row" or panel["targets"], panel["title"]
        sources = {(each["type"], each["uid"]) for each in _sources(dashboard)}
        assert sources <= provisioned, path.name
        variables = {each["name"] for each in dashboard["templating"]["list"]}
        used = set(re.findall(r"\$\{?(?!__)(\w+)", " ".join([*_queries(dashboard), *_urls(dashboard)])))
        assert used <= variables, path.name
    assert len(names) == len(DASHBOARDS)


async def _endpoints_answer_as_their_data_sources_ask(stack: Stack) -> None:
    """Series and tables of balance and usage, variables, annotations, rows; bounds; and refusals as JSON."""
    base = f"http://127.0.0.1:{stack.gateway.http_port}/grafana"
    limited = await stack.admin.CreateToken(
        cost_center_admin_pb2.CreateTokenRequest(
            name="grafana", roles=[cost_center_admin_pb2.ROLE_VIEWER], brand_ids=[BRAND]
        ),
        metadata=bearer(ADMIN),
        timeout=SECONDS,
    )
    now = datetime.now(UTC)
    span = {"from": (now - timedelta(hours=3)).isoformat(), "to": (now + timedelta(hours=1)).isoformat()}
    headers = {"authorization": f"Bearer {limited.secret}"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def post(path: str, body: Any, status: int = 200, **options: Any) -> Any:
            sent = {"data": body} if isinstance(body, bytes) else {"json": body}
            async with session.post(f"{base}{path}", **sent, **options) as response:
                assert response.status == status, await response.text()
                assert response.content_type == "application/json"
                return await response.json()

        async def ask(*targets: Any, **more: Any) -> Any:
            return await post("/query", {"range": span, "targets": list(targets), **more})

        async with session.get(f"{base}/") as response:
            assert response.status == 200

        # Series.
        (total,) = await ask({"target": f"balance.total:{BRAND}", "refId": "A", "type": "timeserie"})
        assert total["target"] == f"balance.total:{BRAND}"
        sent = (await stack.rows("select sum(segments) from message where brand_id = %s", BRAND))[0][0]
        assert total["datapoints"][-1][0] == GRANTED - sent
        moments = [at for _, at in total["datapoints"]]
        assert moments == sorted(moments)
        assert len(await ask({"target": f"balance:{BRAND}"})) == 3
        (few,) = await ask({"target": f"balance.total:{BRAND}"}, maxDataPoints=10)
        assert len(few["datapoints"]) <= 11
        messages, marketing = await ask(
            {"target": f"usage.messages:{BRAND}"},
            {"target": "usage.messages", "payload": {"brand_id": str(BRAND), "sms_type": "marketing"}},
        )
        assert sum(value for value, _ in messages["datapoints"]) == SINGLES + BATCH
        assert sum(value for value, _ in marketing["datapoints"]) == BATCH
        # All brands are those of the token.
        (own,) = await ask({"target": "usage.messages:all"})
        assert own["datapoints"] == messages["datapoints"]
        assert await ask({"target": f"balance:{BRAND}", "hide": True}, {"target": "balances:all", "type": "table"}) == [
            {
                "type": "table",
                "columns": [{"text": name, "type": "number"} for name in ("brand_id", "total", "frozen", "available")],
                "rows": [[BRAND, GRANTED - sent, 0, GRANTED - sent]],
            }
        ]
        (packages,) = await ask({"target": f"packages:{BRAND}"})
        assert len(packages["rows"]) == 1

        # Variables and builders.
        assert await post("/search", {"target": "brands"}) == [{"text": f"Brand {BRAND} ({BRAND})", "value": BRAND}]
        found = await post("/search", {"target": "delivered"})
        assert {f"usage.delivered:{BRAND}", "usage.delivered:all"} <= set(found)
        assert await post("/variable", {"payload": {"target": "brands"}}) == [
            {"__text": f"Brand {BRAND} ({BRAND})", "__value": str(BRAND)}
        ]
        assert {"usage.delivered", "balance.total", "packages"} <= {
            each["value"] for each in await post("/metrics", {})
        }
        assert len(await post("/metric-payload-options", {"metric": "balance.total", "name": "brand_id"})) == 2

        # What is sold and what ends.
        ends = now + timedelta(minutes=30)
        await stack.adjust(
            BRAND,
            request_id="ends-soon",
            grant=cost_center_admin_pb2.GrantAdjustment(segments=5, expires_at=_timestamp(ends)),
        )
        body = {"range": span, "annotation": {"name": "ends", "query": f"expiries:{BRAND}"}}
        (end,) = await post("/annotations", body)
        assert end["annotation"] == body["annotation"]
        assert abs(end["time"] - ends.timestamp() * 1_000) < 1_000
        assert end["tags"] == ["expiry"]

        # Rows, for Infinity.
        milliseconds = {name: str(int(datetime.fromisoformat(text).timestamp() * 1_000)) for name, text in span.items()}
        query = {"target": f"usage:{BRAND}:marketing", **milliseconds}
        async with session.get(f"{base}/rows", params=query) as response:
            (row,) = await response.json()
        assert (row["messages"], row["waiting"]) == (BATCH, 0)

        # What is wrong is told.
        for path, bad, field in (
            ("/query", b"{", "body"),
            ("/query", [], "body"),
            ("/query", {"targets": []}, "targets"),
            ("/query", {"targets": [{"target": "usage"}] * 21}, "targets"),
            ("/query", {"targets": [{"target": f"price:{BRAND}"}]}, "targets[0].target"),
            ("/query", {"targets": [{"target": f"usage.price:{BRAND}"}]}, "targets[0].target"),
            ("/query", {"targets": [{"target": "usage:seven"}]}, "targets[0].target brand"),
            ("/query", {"targets": [{"target": "balance"}]}, "targets[0].target brand"),
            ("/query", {"targets": [{"target": f"usage:{BRAND}:letters"}]}, "targets[0].target type"),
            ("/query", {"targets": [{"target": "usage", "type": "heap"}]}, "targets[0].type"),
            ("/query", {"targets": [{"target": "usage"}], "maxDataPoints": "many"}, "maxDataPoints"),
            ("/query", {"targets": [{"target": "usage"}], "range": {"from": "soon", "to": "later"}}, "range.from"),
            ("/query", {"targets": [{"target": "usage"}], "range": {"from": 2, "to": 1}}, "range.from"),
            (
                "/query",
                {"targets": [{"target": "usage"}], "range": {"from": 0, "to": 10**14}, "maxDataPoints": 5},
                "range",
            ),
            ("/annotations", {"annotation": {"query": f"usage:{BRAND}"}}, "annotation.query"),
            ("/variable", {"payload": {"target": "tokens"}}, "payload.target"),
            ("/query", b" " * 70_000, "body"),
        ):
            told = await post(path, bad, 400)
            assert told["field"] == field, told
            assert told["rule"]
        assert (await post("/query", {"targets": [{"target": f"balance:{OTHER_BRAND}"}]}, 403))["reason"] == (
            "BRAND_NOT_ALLOWED"
        )
        foreign = {"targets": [{"target": f"usage:{OTHER_BRAND}"}]}
        assert (await post("/query", foreign, 403))["reason"] == "BRAND_NOT_ALLOWED"
        for header in ("Bearer wrong", "Basic YTpi", ""):
            told = await post("/query", foreign, 401, headers={"authorization": header})
            assert told["reason"] == "UNAUTHENTICATED"
        assert "error" in await post("/nothing", {}, 404)
        async with session.get(f"{base}/query") as response:
            assert response.status == 405


def _timestamp(moment: datetime) -> Any:
    from google.protobuf.timestamp_pb2 import Timestamp

    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def _queries(dashboard: Any) -> list[str]:
    """All SQL of a dashboard."""
    found = [
        target["rawSql"] for panel in dashboard["panels"] for target in panel.get("targets", ()) if "rawSql" in target
    ]
    found += [
        note["target"]["rawSql"] for note in dashboard["annotations"]["list"] if "rawSql" in note.get("target", {})
    ]
    return found + [
        each["query"]
        for each in dashboard["templating"]["list"]
        if each.get("datasource", {}).get("uid") == "smsbill-sql"
    ]


def _urls(dashboard: Any) -> list[str]:
    return [target["url"] for panel in dashboard["panels"] for target in panel.get("targets", ()) if "url" in target]


def _sources(dashboard: Any) -> list[Any]:
    found = [panel["datasource"] for panel in dashboard["panels"] if "datasource" in panel]
    found += [
        target["datasource"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
        if "datasource" in target
    ]
    return [each for each in found if each.get("uid") != "-- Grafana --" and not str(each.get("uid")).startswith("$")]


def _filled(query: str) -> str:
    """A query with Grafana's macros and the dashboard's variables filled in as Grafana does."""
    query = re.sub(r"\$__timeFilter\(([^)]+)\)", r"\1 between now() - interval '7 days' and now()", query)
    query = query.replace("${type:sqlstring}", "'verification','notification','marketing'").replace(
        "$brand", str(BRAND)
    )
    assert "$" not in query, query
    return query
