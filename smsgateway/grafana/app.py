"""`/grafana/…` of the gateway's HTTP app: what the data sources simple-json, simpod-json and Infinity read.

simple-json: `GET /`, `POST /search`, `/query`, `/annotations`
(https://github.com/grafana/simple-json-datasource). simpod-json, its successor: `GET /`, `POST /metrics`,
`/metric-payload-options`, `/query`, `/variable`, `/tag-keys`, `/tag-values`
(https://github.com/simPod/GrafanaJsonDatasource). Infinity takes any JSON: `GET /rows` answers with an object for each
row.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import grpc
import orjson
import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from infra.authorization import Authenticator, Role
from infra.database import TRANSIENT
from infra.errors import Refusal, invalid_fields, unavailable
from smsgateway.console.console import http_status
from smsgateway.grafana import questions
from smsgateway.grafana.questions import ALL_BRANDS, SERIES, TABLES, Target
from smsgateway.grafana.reading import Caller, GrafanaReader, Series, Table
from smsgateway.settings import Settings

log = structlog.get_logger(__name__)

Handler = Callable[[Request, Any, Caller], Awaitable[Any]]
_MARK = {"sales": "green", "expiries": "orange"}


class GrafanaApp:
    """The endpoints. Each but the health check wants `Authorization: Bearer <token>` of role viewer."""

    def __init__(self, reader: GrafanaReader, authenticator: Authenticator, settings: Settings) -> None:
        self._reader = reader
        self._authenticator = authenticator
        self._settings = settings

    def app(self) -> Starlette:
        """The app, to be mounted at `/grafana`."""
        posts: dict[str, Handler] = {
            "/search": self._search,
            "/metrics": self._metrics,
            "/metric-payload-options": self._options,
            "/query": self._query,
            "/annotations": self._annotations,
            "/variable": self._variable,
            "/tag-keys": self._nothing,
            "/tag-values": self._nothing,
        }
        return Starlette(
            routes=[
                Route("/", self._health, methods=["GET"]),
                Route("/rows", self._guarded(self._rows), methods=["GET"]),
                *(Route(path, self._guarded(handler), methods=["POST"]) for path, handler in posts.items()),
            ],
            exception_handlers={404: _no_path, 405: _no_method},
        )

    def _guarded(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                caller = await self._caller(request)
                body = await self._body(request) if request.method == "POST" else None
                return _json(await handler(request, body, caller))
            except Refusal as refusal:
                return _refused(refusal)
            except TRANSIENT as error:
                log.warning("grafana not answered", error=type(error).__name__)
                return _refused(unavailable("the database cannot be reached; ask again"))
            except ClientDisconnect:
                return Response(status_code=400)
            except Exception:
                log.exception("grafana not answered", path=request.url.path)
                return _json({"error": "something went wrong on our side; the log has the details"}, 500)

        return endpoint

    async def _caller(self, request: Request) -> Caller:
        header = request.headers.get("authorization")
        principal = await self._authenticator.authenticate(header)
        if not principal.may(Role.VIEWER):
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED", "this needs a token of role viewer")
        return Caller(principal, header or "")

    async def _body(self, request: Request) -> Any:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > self._settings.grafana_bytes_max:
                raise invalid_fields({"body": f"must have at most {self._settings.grafana_bytes_max} bytes"})
        if not content:
            return {}
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            raise invalid_fields({"body": "must be JSON"}) from None

    async def _health(self, _request: Request) -> Response:
        return _json({"status": "ok"})

    async def _search(self, _request: Request, body: Any, caller: Caller) -> Any:
        """What may be asked for: with `brands` as the target the brands, else targets, of each brand or of all."""
        target = body.get("target", "") if isinstance(body, dict) else ""
        if target == "brands":
            return [
                {"text": f"{name} ({brand_id})", "value": brand_id} for brand_id, name in await self._brands(caller)
            ]
        if target == "types":
            return ["verification", "notification", "marketing"]
        names = [f"usage.{figure}:{ALL_BRANDS}" for figure in SERIES["usage"]] + [f"balances:{ALL_BRANDS}"]
        for brand_id, _ in (await self._brands(caller))[: self._settings.grafana_search_brands]:
            names += [f"{what}.{figure}:{brand_id}" for what, figures in SERIES.items() for figure in figures]
            names += [f"{what}:{brand_id}" for what in TABLES]
        return [name for name in names if not isinstance(target, str) or target in name]

    async def _metrics(self, _request: Request, _body: Any, _caller: Caller) -> Any:
        """The same for the builder of the simpod data source, which asks for the parts one by one."""
        brand = {"name": "brand_id", "label": "Brand", "type": "select"}
        sms_type = {"name": "sms_type", "label": "Type", "type": "select"}
        series = [
            {"value": f"{what}.{figure}", "payloads": [brand, sms_type] if what == "usage" else [brand]}
            for what, figures in SERIES.items()
            for figure in figures
        ]
        return [*series, *({"value": what, "payloads": [brand]} for what in TABLES)]

    async def _options(self, _request: Request, body: Any, caller: Caller) -> Any:
        name = body.get("name") if isinstance(body, dict) else None
        if name == "sms_type":
            return [{"label": each, "value": each} for each in ("all", "verification", "notification", "marketing")]
        if name != "brand_id":
            raise invalid_fields({"name": "must be brand_id or sms_type"})
        brands = [
            {"label": f"{name} ({brand_id})", "value": str(brand_id)} for brand_id, name in await self._brands(caller)
        ]
        return [{"label": ALL_BRANDS, "value": ALL_BRANDS}, *brands]

    async def _variable(self, _request: Request, body: Any, caller: Caller) -> Any:
        payload = body.get("payload") if isinstance(body, dict) else None
        target = payload.get("target") if isinstance(payload, dict) else payload
        if target == "types":
            return [{"__text": each, "__value": each} for each in ("verification", "notification", "marketing")]
        if target != "brands":
            raise invalid_fields({"payload.target": "must be brands or types"})
        return [
            {"__text": f"{name} ({brand_id})", "__value": str(brand_id)}
            for brand_id, name in await self._brands(caller)
        ]

    async def _query(self, _request: Request, body: Any, caller: Caller) -> Any:
        settings = self._settings
        asked = questions.query(
            body,
            points_max=settings.grafana_points_max,
            targets_max=settings.grafana_targets_max,
            now=datetime.now(UTC),
        )
        answers: list[Any] = []
        # One after another: a panel of twenty targets is not to take twenty connections.
        for target in asked.targets:
            answers += _told(await self._reader.answer(target, asked.span, caller))
        return answers

    async def _annotations(self, _request: Request, body: Any, caller: Caller) -> Any:
        target, span = questions.annotation(body, now=datetime.now(UTC))
        return [
            {
                "annotation": body["annotation"],
                "time": round(event.at.timestamp() * 1_000),
                "title": event.title,
                "text": event.text,
                "tags": list(event.tags),
                "color": _MARK[target.what],
            }
            for event in await self._reader.events(target, span, caller)
        ]

    async def _rows(self, request: Request, _body: Any, caller: Caller) -> Any:
        """`GET /rows?target=…&from=…&to=…[&points=…]`: an object for each row."""
        asked = request.query_params
        settings = self._settings
        body: dict[str, Any] = {"targets": [{"target": asked.get("target"), "type": "table"}]}
        if "from" in asked or "to" in asked:
            body["range"] = {"from": asked.get("from"), "to": asked.get("to")}
        points = asked.get("points", "")
        if points:
            body["maxDataPoints"] = int(points) if points.isdecimal() and len(points) < 10 else points
        parsed = questions.query(body, points_max=settings.grafana_points_max, targets_max=1, now=datetime.now(UTC))
        (target,) = parsed.targets
        table = await self._reader.answer(target, parsed.span, caller)
        assert isinstance(table, Table)
        names = [_column(name, target) for name, _ in table.columns]
        return [dict(zip(names, row, strict=True)) for row in table.rows]

    async def _nothing(self, _request: Request, _body: Any, _caller: Caller) -> Any:
        """No filters beside those of the targets."""
        return []

    async def _brands(self, caller: Caller) -> list[tuple[int, str]]:
        return await self._reader.brands(caller)


def _column(name: str, target: Target) -> str:
    """A column's name in a row: without the target, which the caller knows."""
    short = name.removeprefix(target.name).strip()
    return short or target.figure or target.what


def _told(answer: list[Series] | Table) -> list[Any]:
    if isinstance(answer, Table):
        columns = [{"text": name, "type": kind} for name, kind in answer.columns]
        return [{"type": "table", "columns": columns, "rows": answer.rows}]
    return [{"target": series.name, "datapoints": series.points} for series in answer]


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    told = {"cache-control": "no-store", "x-content-type-options": "nosniff", **(headers or {})}
    return Response(orjson.dumps(value), status, told, "application/json")


def _refused(refusal: Refusal) -> Response:
    violations = [{"field": field, "rule": rule} for field, rule in refusal.fields.items()]
    told: dict[str, Any] = {"error": refusal.message, "reason": refusal.reason}
    if violations:
        told |= {**violations[0], "violations": violations}
    headers = {"www-authenticate": "Bearer"} if refusal.code is grpc.StatusCode.UNAUTHENTICATED else {}
    return _json(told, http_status(refusal), headers)


async def _no_path(_request: Request, _error: Exception) -> Response:
    return _json({"error": "there is no such path; /grafana/ has query, search, annotations and rows"}, 404)


async def _no_method(_request: Request, _error: Exception) -> Response:
    return _json({"error": "ask with POST, but for / and /rows, which are read with GET"}, 405)
