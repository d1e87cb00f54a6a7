"""An account at a carrier that may have to rest."""

from __future__ import annotations

import time

import structlog

from workers.metrics import CARRIER_PAUSED
from workers.stopping import StopSignal

log = structlog.get_logger(__name__)


class AccountGate:
    """Holds back calls while the carrier refuses all of them, whatever the message.

    Parameters: `account` our name of it; `pause_seconds` how long it rests before one more try.
    """

    def __init__(self, account: str, *, pause_seconds: float) -> None:
        self._account = account
        self._pause_seconds = pause_seconds
        self._paused_until = 0.0
        self._gauge = CARRIER_PAUSED.labels(account)
        self._gauge.set(0)

    def stop(self, code: str, detail: str) -> None:
        """The carrier has stopped the account."""
        now = time.monotonic()
        if now >= self._paused_until:
            log.error(
                "CARRIER ACCOUNT STOPPED: nothing is sent until the carrier takes calls again; its operator must act",
                account=self._account,
                code=code,
                detail=detail,
                pause_seconds=self._pause_seconds,
            )
        self._paused_until = now + self._pause_seconds
        self._gauge.set(1)

    def accepted(self) -> None:
        """The carrier took a call: the account works."""
        if self._paused_until:
            self._paused_until = 0.0
            self._gauge.set(0)
            log.warning("carrier account works again", account=self._account)

    async def opened(self, stop: StopSignal) -> None:
        """Wait until calls may start. Raises `Stopping` when the worker stops."""
        while (left := self._paused_until - time.monotonic()) > 0:
            await stop.sleep(min(left, 1.0))
