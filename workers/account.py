"""An account at a carrier that may have to rest: because the carrier stopped it, or because calls fail."""

from __future__ import annotations

import time
from contextlib import suppress

import structlog

from smsgateway.carriers.base import CallOutcome, Verdict
from workers.breaker import Breaker, Permit, Rules, State
from workers.metrics import CARRIER_CIRCUIT, CARRIER_CIRCUIT_OPENED, CARRIER_PAUSED
from workers.settings import Settings

log = structlog.get_logger(__name__)

_GAUGE = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}
CARRIER_WORKS = "works"
"""What `AccountGate.state` says of an account that is called."""
_WORDS = {State.CLOSED: CARRIER_WORKS, State.HALF_OPEN: "is tried", State.OPEN: "rests"}


class AccountGate:
    """Holds back calls while the carrier refuses all of them, or while they fail.

    Parameters: `account` our name of it.
    """

    def __init__(self, account: str, settings: Settings) -> None:
        self._account = account
        self._pause_seconds = settings.account_pause_seconds
        self._breaker = Breaker(
            Rules(
                in_a_row=settings.circuit_failures,
                share=settings.circuit_share,
                calls_min=settings.circuit_calls_min,
                window_seconds=settings.circuit_window_seconds,
                rest_seconds=settings.circuit_rest_seconds,
                rest_seconds_max=settings.circuit_rest_seconds_max,
                trials=settings.circuit_trial_calls,
            )
        )
        self._stopped = False
        self._told = State.CLOSED
        self._paused = CARRIER_PAUSED.labels(account)
        self._circuit = CARRIER_CIRCUIT.labels(account)
        self._paused.set(0)
        self._circuit.set(0)

    @property
    def is_stopped(self) -> bool:
        """Whether the carrier has stopped the account, and has taken no call since."""
        return self._stopped

    def wait_seconds(self) -> float:
        """How long to wait before a call is worth a try; 0: now."""
        return self._breaker.wait_seconds(time.monotonic())

    @property
    def state(self) -> str:
        """For operators: works, rests, is tried (after a rest)."""
        return "is stopped" if self._stopped else _WORDS[self._breaker.state]

    def enter(self) -> Permit | None:
        """Leave to make one call, answered by one `leave`; None when it must wait (`wait_seconds`)."""
        permit = self._breaker.enter(time.monotonic())
        self._tell("")
        return permit

    def leave(self, permit: Permit, outcome: CallOutcome | None) -> None:
        """What became of the call; None: it was not made."""
        now = time.monotonic()
        if outcome is None:
            self._breaker.leave(permit, now, good=None)
            return
        if outcome.verdict is Verdict.STOP_ACCOUNT:
            self._stop(now, outcome)
            return
        self._breaker.leave(permit, now, good=not (outcome.unreachable or outcome.verdict is Verdict.UNKNOWN))
        self._tell(outcome.detail)

    def forget(self) -> None:
        """The account is gone: nothing is told of it any more."""
        for gauge in (CARRIER_PAUSED, CARRIER_CIRCUIT):
            with suppress(KeyError):
                gauge.remove(self._account)

    def _stop(self, now: float, outcome: CallOutcome) -> None:
        if not self._stopped or self._breaker.state is State.HALF_OPEN:
            log.error(
                "CARRIER ACCOUNT STOPPED: it sends nothing until the carrier takes calls again; its operator must act",
                account=self._account,
                code=outcome.code,
                detail=outcome.detail,
                pause_seconds=self._pause_seconds,
            )
        self._stopped = True
        self._paused.set(1)
        self._breaker.trip(now, self._pause_seconds)
        self._tell(outcome.detail)

    def _tell(self, why: str) -> None:
        """Tell a change of state, once."""
        state = self._breaker.state
        if state is self._told:
            return
        self._told = state
        self._circuit.set(_GAUGE[state])
        if state is State.CLOSED:
            self._stopped = False
            self._paused.set(0)
            log.warning("carrier account works again", account=self._account)
        elif state is State.OPEN and not self._stopped:
            CARRIER_CIRCUIT_OPENED.labels(self._account).inc()
            seconds = self._breaker.wait_seconds(time.monotonic())
            log.error("carrier calls fail, account rests", account=self._account, last=why, seconds=round(seconds, 1))
