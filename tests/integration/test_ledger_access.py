"""Who may call what of the cost centre, over plain and encrypted channels; and starts that cannot be."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from ledger_service import (
    ADMIN,
    METHODS,
    SECONDS,
    CostCenter,
    cost_center_settings,
    moment,
    number,
    outcomes_of,
    refusal,
    request_of,
    running_cost_center,
    timestamp,
)
from psycopg import sql

from costcenter.process import CostCenterProcess
from infra.embedded import EmbeddedServers
from infra.errors import Refusal, StartError
from infra.grpc_server import open_channel
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from scripts import databases

pytestmark = pytest.mark.asyncio(loop_scope="module")

VIEWER, SENDER, BILLER, FINANCE, ADMIN_ROLE = range(1, 6)
ROLES = {VIEWER: "viewer", SENDER: "sender", BILLER: "biller", FINANCE: "finance", ADMIN_ROLE: "admin"}
UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED

_READERS = {VIEWER, SENDER, FINANCE, ADMIN_ROLE}
_BILLERS = {BILLER, ADMIN_ROLE}
_FINANCIERS = {FINANCE, ADMIN_ROLE}
_ADMINS = {ADMIN_ROLE}
# The role table, RPC by RPC.
MAY_CALL = {
    "CreatePackageOrder": _FINANCIERS,
    "PackagePaidCallBack": _FINANCIERS,
    "SmsSendPrePay": _BILLERS,
    "SmsSendPay": _BILLERS,
    "SmsReleaseFreezeNum": _BILLERS,
    "ExtendFreeze": _BILLERS,
    "SmsSendStatusCallBack": _BILLERS,
    "SmsReceiptStatusCallBack": _BILLERS,
    "BatchSmsSendPrePay": _BILLERS,
    "BatchSmsSendPay": _BILLERS,
    "BatchSmsSendStatusCallBack": _BILLERS,
    "BatchSmsReceiptStatusCallBack": _BILLERS,
    "GetBalance": _READERS,
    "GetBalanceHistory": _READERS,
    "ListPackages": _READERS,
    "GetFreeze": _READERS,
    "ListFreezes": _READERS,
    "GetPayment": _READERS,
    "ListPayments": _READERS,
    "GetStatement": _FINANCIERS,
    "PutBrand": _ADMINS,
    "GetBrand": _READERS,
    "ListBrands": _READERS,
    "ListBalances": _READERS | _BILLERS,
    "PutPackageOffer": _ADMINS,
    "ListPackageOffers": _READERS,
    "AdjustPackage": _FINANCIERS,
    "CreateToken": _ADMINS,
    "ListTokens": _ADMINS,
    "RevokeToken": _ADMINS,
    "CheckToken": _BILLERS,
    "ApplyReleases": _BILLERS,
    "BookDue": _BILLERS,
    "CleanUp": _BILLERS,
    "GetLedgerFigures": _BILLERS,
}
# What concerns no single brand and therefore needs a token of all.
FOR_ALL_BRANDS = {
    "PutPackageOffer",
    "CreateToken",
    "ListTokens",
    "RevokeToken",
    "CheckToken",
    "ApplyReleases",
    "BookDue",
    "CleanUp",
    "GetLedgerFigures",
}
# What answers about no brand, or about those of the token.
FOR_ANY_BRAND = {"ListBrands", "ListBalances", "ListPackageOffers"}

_FIELDS: dict[str, dict[str, Any]] = {
    "CreatePackageOrder": {"request_id": "r", "offer_id": "o"},
    "PackagePaidCallBack": {
        "package_order_no": "x",
        "payment_reference": "x",
        "amount": "1.00",
        "currency": "CNY",
    },
    "SmsSendPrePay": {"request_id": "r", "sms_type": 3, "segments": 1},
    "SmsSendPay": {"request_id": "r", "order_no": "x", "segments": 1},
    "SmsReleaseFreezeNum": {"request_id": "r", "order_no": "x"},
    "ExtendFreeze": {"request_id": "r", "order_no": "x", "time_to_live": Duration(seconds=1)},
    "SmsSendStatusCallBack": {"request_id": "r", "payment_no": "x"},
    "SmsReceiptStatusCallBack": {"request_id": "r", "payment_no": "x", "message_id": "m", "segments": 1, "state": 1},
    "GetBalanceHistory": {"from": Timestamp(seconds=1_700_000_000), "step": Duration(seconds=86_400)},
    "GetStatement": {"month": "2024-03"},
    "AdjustPackage": {
        "request_id": "r",
        "author": "a",
        "reason": "b",
        "grant": admin_pb.GrantAdjustment(segments=1),
    },
    "PutBrand": {},
    "CheckToken": {"secret_sha256": bytes(32)},
    "CreateToken": {"name": "t", "roles": [1], "all_brands": True},
    "RevokeToken": {"token_id": "x"},
}


def _request(method: str, brand_id: int) -> Any:
    """A call about a brand that would have no effect if it were admitted, for the brand does not exist."""
    if method.startswith("Batch"):
        single = method.removeprefix("Batch")
        return request_of(method, items=[request_of(single, brand_id=brand_id, **_FIELDS[single])])
    if method in {"GetFreeze", "GetPayment"}:
        field = "order_no" if method == "GetFreeze" else "payment_no"
        return request_of(method, **{field: IdentifierSource().new(brand_id, 1)})
    fields = dict(_FIELDS.get(method, {}))
    if method not in FOR_ALL_BRANDS | FOR_ANY_BRAND:
        fields["brand_id"] = brand_id
    return request_of(method, **fields)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def center(servers: EmbeddedServers, database_template: str) -> AsyncIterator[CostCenter]:
    with databases.fresh(servers.database_url, database_template) as url:
        async with running_cost_center(url) as running:
            yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secrets(center: CostCenter) -> dict[int, str]:
    """A token of all brands for each role."""
    return {role: await center.token([role]) for role in ROLES}


async def test_the_table_names_every_method() -> None:
    """A new RPC must be given its roles here."""
    assert set(MAY_CALL) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
async def test_no_token_no_call(center: CostCenter, method: str) -> None:
    """No token, an unknown one, another scheme: UNAUTHENTICATED, whatever the call."""
    request = _request(method, 2**62)
    calls = [center.send(method, request, token=token) for token in (None, "unknown", "", "a b")]
    service = METHODS[method][0]
    raw: Any = center.channel.unary_unary(f"/costcenter.v1.{service}/{method}")
    calls.append(raw(b"", metadata=(("authorization", f"Basic {ADMIN}"),), timeout=SECONDS))
    for outcome in await outcomes_of(calls):
        assert isinstance(outcome, Refusal)
        assert (outcome.code, outcome.reason) == (UNAUTHENTICATED, "UNAUTHENTICATED")


@pytest.mark.parametrize("method", METHODS)
async def test_each_role_may_call_what_the_table_says(center: CostCenter, secrets: dict[int, str], method: str) -> None:
    """PERMISSION_DENIED with ROLE_NOT_ALLOWED for every other role."""
    request = _request(method, 2**62)
    outcomes = await outcomes_of([center.send(method, request, token=secrets[role]) for role in ROLES])
    for role, outcome in zip(ROLES, outcomes, strict=True):
        denied = isinstance(outcome, Refusal) and outcome.code in {DENIED, UNAUTHENTICATED}
        assert denied == (role not in MAY_CALL[method]), (ROLES[role], outcome)
        if denied:
            assert outcome.reason == "ROLE_NOT_ALLOWED"


@pytest.mark.parametrize("method", sorted(set(METHODS) - FOR_ANY_BRAND))
async def test_a_token_holds_for_its_brands_only(center: CostCenter, method: str) -> None:
    """Even an admin's, even where the brand does not exist: what a token may not see it cannot tell from nothing."""
    mine, other = number(), await center.brand(1)
    token = await center.token([ADMIN_ROLE], [mine])
    for brand_id in (other, 2**62):
        outcome = (await outcomes_of([center.send(method, _request(method, brand_id), token=token)]))[0]
        if method.startswith("Batch"):
            (result,) = outcome.results
            assert (result.refusal.code, result.refusal.reason) == (DENIED.value[0], "BRAND_NOT_ALLOWED")
            assert result.refusal.metadata["brand_id"] == str(brand_id)
            continue
        assert isinstance(outcome, Refusal), outcome
        assert (outcome.code, outcome.reason) == (DENIED, "BRAND_NOT_ALLOWED")
        assert outcome.metadata == ({} if method in FOR_ALL_BRANDS else {"brand_id": str(brand_id)})
    assert await center.figures(other) == (1, 0, 1)


@pytest.mark.parametrize("method", sorted(set(METHODS) - FOR_ANY_BRAND - FOR_ALL_BRANDS))
async def test_a_token_of_a_brand_may_do_there_what_its_role_says(center: CostCenter, method: str) -> None:
    """The brand of the token is not refused for being one brand only."""
    mine = number()
    token = await center.token(sorted(MAY_CALL[method])[:1], [mine])
    (outcome,) = await outcomes_of([center.send(method, _request(method, mine), token=token)])
    assert not isinstance(outcome, Refusal) or outcome.code not in {DENIED, UNAUTHENTICATED}
    if method.startswith("Batch"):
        assert outcome.results[0].refusal.reason == "BRAND_NOT_FOUND"


async def test_roles_add_up(center: CostCenter) -> None:
    """A biller cannot read; a biller and viewer can do both."""
    brand_id = await center.brand(5)
    biller, both = await center.token([BILLER], [brand_id]), await center.token([BILLER, VIEWER], [brand_id])
    denied = await refusal(center.call("GetBalance", brand_id=brand_id, token=biller))
    assert denied.reason == "ROLE_NOT_ALLOWED"
    assert (await center.call("GetBalance", brand_id=brand_id, token=both)).total == 5
    freeze = _FIELDS["SmsSendPrePay"]
    assert (await center.call("SmsSendPrePay", brand_id=brand_id, token=both, **freeze)).order_no


async def test_a_revoked_token_ends_at_once(center: CostCenter) -> None:
    """Nothing is cached in this cost centre, so the next call is refused, and CheckToken does not know it."""
    secret = await center.token([VIEWER])
    digest = hashlib.sha256(secret.encode()).digest()
    await center.call("ListBrands", token=secret)
    token = (await center.call("CheckToken", secret_sha256=digest)).token
    assert (list(token.roles), token.all_brands) == ([VIEWER], True)
    await center.call("RevokeToken", token_id=token.token_id)
    assert (await refusal(center.call("ListBrands", token=secret))).code == UNAUTHENTICATED
    assert (await center.refused("CheckToken", secret_sha256=digest)).reason == "TOKEN_NOT_FOUND"


async def test_a_token_ends_by_itself(center: CostCenter) -> None:
    """At `expires_at`, which must be in the future when the token is made."""
    end = datetime.now(UTC) + timedelta(hours=1)
    secret = await center.token([VIEWER], expires_at=timestamp(end))
    digest = hashlib.sha256(secret.encode()).digest()
    token = (await center.call("CheckToken", secret_sha256=digest)).token
    assert moment(token.expires_at) == end
    await center.rows("update token set expires_at = clock_timestamp() where token_id = %s", token.token_id)
    assert (await refusal(center.call("ListBrands", token=secret))).code == UNAUTHENTICATED
    assert (await center.refused("CheckToken", secret_sha256=digest)).reason == "TOKEN_NOT_FOUND"


async def test_secrets_are_stored_hashed(center: CostCenter) -> None:
    """Neither a made secret nor that of the settings is anywhere in the table."""
    secret = await center.token([VIEWER])
    stored = str(await center.rows("select * from token"))
    assert secret not in stored
    assert ADMIN not in stored
    ((count,),) = await center.rows(
        "select count(*) from token where secret_sha256 = %s", hashlib.sha256(secret.encode()).digest()
    )
    assert count == 1


async def test_the_tokens_of_the_settings_exist_once_and_stay_revoked(database_url: str) -> None:
    """A bootstrap admin and a service biller; a second start makes no second, and does not undo a revocation."""
    settings: dict[str, Any] = {"service_token": "service"}
    async with running_cost_center(database_url, **settings) as center:
        tokens = (await center.call("ListTokens")).tokens
        assert sorted(list(token.roles) for token in tokens) == [[BILLER], [ADMIN_ROLE]]
        await center.call("BookDue", token="service")
        service = next(token for token in tokens if list(token.roles) == [BILLER])
        await center.call("RevokeToken", token_id=service.token_id)
    async with running_cost_center(database_url, **settings) as center:
        assert len((await center.call("ListTokens")).tokens) == 2
        assert (await refusal(center.call("BookDue", token="service"))).code == UNAUTHENTICATED


# TLS.


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own authority for 127.0.0.1, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return certificate, key


async def test_calls_travel_encrypted(database_url: str, tmp_path: Path) -> None:
    """With certificate and key a caller that trusts the authority is served; plain text and strangers are not."""
    certificate, key = _certificate(tmp_path)
    (tmp_path / "other").mkdir()
    stranger, _ = _certificate(tmp_path / "other")
    tls: dict[str, Any] = {"grpc_tls_certificate": certificate, "grpc_tls_key": key, "grpc_tls_ca": certificate}
    async with running_cost_center(database_url, **tls) as center:
        brand_id = await center.brand(5)
        assert await center.figures(brand_id) == (5, 0, 5)
        target = f"127.0.0.1:{center.process.port}"
        plain = cost_center_settings(database_url)
        distrusting = cost_center_settings(database_url, **{**tls, "grpc_tls_ca": stranger})
        for settings in (plain, distrusting):
            async with open_channel(settings, target) as channel:
                outsider = CostCenter(center.process, settings, channel)
                refused = await refusal(outsider.call("ListBrands", timeout=2))
                assert refused.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


# Starts that cannot be.


async def _start_error(settings: Any) -> str:
    process = CostCenterProcess(settings)
    with pytest.raises(StartError) as caught:
        await asyncio.wait_for(process.start(), SECONDS)
    line = str(caught.value)
    assert "\n" not in line
    return line


async def test_a_database_that_takes_no_writes_is_no_start(database_url: str) -> None:
    """As a standby is, or a hosted server whose disk is nearly full: the line says so, and nobody is to report it."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        await connection.execute(sql.SQL("alter database {} set default_transaction_read_only = on").format(name))
    assert "takes no writes" in await _start_error(cost_center_settings(database_url))


@pytest.mark.parametrize("half", ["grpc_tls_certificate", "grpc_tls_key"])
async def test_half_a_tls_pair_is_no_start(database_url: str, tmp_path: Path, half: str) -> None:
    """Silently serving plain text would be worse than not starting."""
    certificate, _ = _certificate(tmp_path)
    assert "SMSBILL_GRPC_TLS_KEY" in await _start_error(cost_center_settings(database_url, **{half: certificate}))


@pytest.mark.parametrize("content", [None, "rubbish"])
async def test_an_unusable_certificate_is_no_start(database_url: str, tmp_path: Path, content: str | None) -> None:
    """A missing file or one without a certificate: the line names the file or the setting, not the port."""
    _, key = _certificate(tmp_path)
    bad = tmp_path / "bad.pem"
    if content is not None:
        bad.write_text(content)
    line = await _start_error(cost_center_settings(database_url, grpc_tls_certificate=bad, grpc_tls_key=key))
    assert str(bad) in line or "SMSBILL_GRPC_TLS_CERTIFICATE" in line


async def test_a_taken_port_is_no_start(database_url: str) -> None:
    """And leaves no connection behind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert address in await _start_error(cost_center_settings(database_url, costcenter_address=address))
    with psycopg.connect(database_url) as connection:
        left = connection.execute(
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and application_name like 'smsbill%'"
        ).fetchone()
    assert left == (0,)


async def test_a_database_that_is_not_there_is_no_start() -> None:
    """The line says what to check."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://nobody@127.0.0.1:{nobody.getsockname()[1]}/nothing"
        assert "SMSBILL_DATABASE_URL" in await _start_error(cost_center_settings(url))
    assert "SMSBILL_DATABASE_URL" in await _start_error(cost_center_settings(""))


async def test_a_schema_of_another_release_is_no_start(empty_database_url: str, database_url: str) -> None:
    """None or an older one: migrate; a newer one: start that release."""
    assert "smsbill migrate" in await _start_error(cost_center_settings(empty_database_url))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("update costcenter.alembic_version set version_num = '9999'")
    assert "newer release" in await _start_error(cost_center_settings(database_url))
