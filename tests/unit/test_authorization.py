"""Tokens and roles: what each includes, and how long an answer about a token is kept."""

from __future__ import annotations

import asyncio
import gc

import grpc
import pytest

from infra import authorization
from infra.authorization import Authenticator, Principal, Role, expand, new_secret, secret_hash
from infra.errors import Refusal

PRINCIPAL = Principal("token", expand([Role.VIEWER]), frozenset({1}))


class Lookups:
    """Counts look-ups, and answers what it is told."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.answer: Principal | None = PRINCIPAL
        self.error: Exception | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, digest: bytes) -> Principal | None:
        self.asked.append(digest)
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return self.answer


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(authorization, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("role", "included"),
    [
        (Role.VIEWER, {Role.VIEWER}),
        (Role.SENDER, {Role.SENDER, Role.VIEWER}),
        (Role.BILLER, {Role.BILLER}),
        (Role.FINANCE, {Role.FINANCE, Role.VIEWER}),
        (Role.ADMIN, set(Role)),
    ],
)
def test_roles_include_others(role: Role, included: set[Role]) -> None:
    """The role table: what each may do beside its own; several roles add up."""
    assert expand([role]) == included
    assert expand([role, Role.BILLER]) == included | {Role.BILLER}
    assert expand([]) == frozenset()


def test_a_principal_holds_for_its_brands() -> None:
    """Some brands or all; all brands only with a token of all."""
    PRINCIPAL.require_brand(1)
    everybody = Principal("token", expand([Role.ADMIN]), None)
    everybody.require_brand(2)
    everybody.require_all_brands()
    with pytest.raises(Refusal) as of_another:
        PRINCIPAL.require_brand(2)
    with pytest.raises(Refusal) as of_all:
        PRINCIPAL.require_all_brands()
    for refusal in (of_another.value, of_all.value):
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "BRAND_NOT_ALLOWED")


def test_secrets_are_long_and_never_the_same() -> None:
    """256 random bits; only their hash is looked up."""
    first, second = new_secret(), new_secret()
    assert first != second
    assert len(first) > 40
    assert len(secret_hash(first)) == 32


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "abc"])
async def test_a_header_that_names_no_token_is_refused_without_a_look_up(header: str | None) -> None:
    """UNAUTHENTICATED, and nothing is asked or kept."""
    lookups = Lookups()
    with pytest.raises(Refusal) as caught:
        await Authenticator(lookups, keep_seconds=60).authenticate(header)
    assert caught.value.code == grpc.StatusCode.UNAUTHENTICATED
    assert lookups.asked == []


async def test_an_answer_is_kept_for_its_time(clock: Clock) -> None:
    """A revoked token goes on to work for `keep_seconds`, not longer; with 0 not at all."""
    lookups = Lookups()
    authenticator = Authenticator(lookups, keep_seconds=5)
    assert await authenticator.authenticate("Bearer x") is PRINCIPAL
    lookups.answer = None
    clock.now += 4.9
    assert await authenticator.authenticate("Bearer x") is PRINCIPAL
    clock.now += 0.1
    with pytest.raises(Refusal):
        await authenticator.authenticate("Bearer x")
    assert lookups.asked == [secret_hash("x")] * 2
    lookups.answer = PRINCIPAL
    keeps_nothing = Authenticator(lookups, keep_seconds=0)
    for _ in range(2):
        await keeps_nothing.authenticate("Bearer x")
    assert len(lookups.asked) == 4


async def test_an_unknown_token_is_kept_too(clock: Clock) -> None:
    """A caller that knocks with a wrong token costs one look-up per while, not one per call."""
    lookups = Lookups()
    lookups.answer = None
    authenticator = Authenticator(lookups, keep_seconds=5)
    for _ in range(3):
        with pytest.raises(Refusal) as caught:
            await authenticator.authenticate("bearer x")
        assert caught.value.code == grpc.StatusCode.UNAUTHENTICATED
    assert len(lookups.asked) == 1


async def test_callers_with_one_token_share_a_look_up() -> None:
    """Fifty calls that come at once with a token nobody knows yet: one look-up."""
    lookups = Lookups()
    lookups.may_answer.clear()
    authenticator = Authenticator(lookups, keep_seconds=5)
    calls = [asyncio.ensure_future(authenticator.authenticate("Bearer x")) for _ in range(50)]
    await asyncio.sleep(0)
    lookups.may_answer.set()
    assert await asyncio.gather(*calls) == [PRINCIPAL] * 50
    assert len(lookups.asked) == 1


async def test_a_caller_who_leaves_takes_no_answer_from_the_others() -> None:
    """The look-up goes on for those who share it."""
    lookups = Lookups()
    lookups.may_answer.clear()
    authenticator = Authenticator(lookups, keep_seconds=5)
    leaves, stays = (asyncio.ensure_future(authenticator.authenticate("Bearer x")) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    lookups.may_answer.set()
    assert await stays is PRINCIPAL
    assert leaves.cancelled() or leaves.cancelling()


async def test_a_failed_look_up_is_not_kept() -> None:
    """An unreachable database is no answer about a token."""
    lookups = Lookups()
    lookups.error = OSError("gone")
    authenticator = Authenticator(lookups, keep_seconds=60)
    with pytest.raises(OSError, match="gone"):
        await authenticator.authenticate("Bearer x")
    lookups.error = None
    assert await authenticator.authenticate("Bearer x") is PRINCIPAL


async def test_the_number_of_answers_kept_is_bounded() -> None:
    """The oldest make room."""
    lookups = Lookups()
    authenticator = Authenticator(lookups, keep_seconds=60, keep_max=2)
    for secret in ("a", "b", "c", "c", "b", "a"):
        await authenticator.authenticate(f"Bearer {secret}")
    assert len(lookups.asked) == 4


async def test_an_error_that_nobody_waits_for_any_more_is_no_complaint() -> None:
    """Aim: a caller who is gone before its look-up fails leaves neither a task nor a warning of one; the next asks."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    lookups = Lookups()
    lookups.may_answer.clear()
    lookups.error = RuntimeError("no connection")
    authenticator = Authenticator(lookups, keep_seconds=5)
    call = asyncio.ensure_future(authenticator.authenticate("Bearer x"))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    lookups.may_answer.set()
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    assert complaints == []
    lookups.error = None
    assert await authenticator.authenticate("Bearer x") is PRINCIPAL
