"""Sends the letters that alerts are told by.

What waits for one recipient goes as one letter. A letter's rows are taken for a while, sent, and removed once the mail
server has answered that it has it: at least once. A worker that is killed between that answer and the removal leaves
rows that are sent again, as the same letter with the same Message-ID, so that mail programs can tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import format_datetime

import aiosmtplib
import structlog

from infra.database import Database
from smsgateway.alert_texts import Text, mail
from smsgateway.store import alerts as store
from smsgateway.store.alerts import Mail
from workers.backoff import delay_seconds
from workers.metrics import ALERT_MAILS
from workers.settings import Settings

log = structlog.get_logger(__name__)

_ERROR_CHARACTERS_MAX = 200
# Greeting, TLS, user, sender, recipient, text, end: each may take as long as one step may.
_STEPS = 8
_PERMANENT = range(500, 600)


class AlertMailer:
    """Sends what is due. Any number of workers may: each takes other letters."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._sender = settings.smtp_from or f"smsbill@{settings.smtp_host}"

    async def step(self) -> None:
        """Send what is due, a bounded number of letters. Raises the database's errors."""
        for _ in range(self._settings.mail_letters_max):
            if not await self._next():
                return

    async def _next(self) -> bool:
        settings = self._settings
        async with self._database.connection() as connection:
            letters = await store.take_mail(
                connection, hold_seconds=settings.mail_call_seconds * _STEPS, limit=settings.mail_notices_max
            )
        if not letters:
            return False
        try:
            await self._send(letters)
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            await self._failed(letters, error)
            return True
        async with self._database.connection() as connection:
            await store.mail_sent(connection, letters)
        ALERT_MAILS.labels("sent").inc(len(letters))
        return True

    async def _send(self, letters: Sequence[Mail]) -> None:
        settings = self._settings
        await aiosmtplib.send(
            self.message(letters),
            hostname=settings.smtp_host,
            port=settings.smtp_port,
            use_tls=settings.smtp_tls == "tls",
            start_tls=settings.smtp_tls == "starttls",
            username=settings.smtp_user or None,
            password=settings.smtp_password.get_secret_value() or None,
            timeout=settings.mail_call_seconds,
        )

    def message(self, letters: Sequence[Mail]) -> EmailMessage:
        """One message to one recipient, the same for the same letters."""
        text = mail([Text(each.title, each.body) for each in letters], language=self._settings.alert_language)
        digest = hashlib.sha256("\n".join(each.mail_id for each in letters).encode()).hexdigest()[:40]
        message = EmailMessage()
        message["From"] = self._sender
        message["To"] = letters[0].recipient
        message["Subject"] = text.title
        message["Date"] = format_datetime(letters[-1].created_at)
        message["Message-ID"] = f"<{digest}@{self._sender.partition('@')[2]}>"
        # No automatic answers, please (RFC 3834).
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(text.body)
        return message

    async def _failed(self, letters: Sequence[Mail], error: Exception) -> None:
        settings = self._settings
        why = f"{type(error).__name__}: {error}".replace("\n", " ")[:_ERROR_CHARACTERS_MAX]
        # The server takes mail, but not to there.
        refused = isinstance(error, aiosmtplib.SMTPRecipientsRefused) and all(
            each.code in _PERMANENT for each in error.recipients
        )
        delay = delay_seconds(
            max(each.attempts for each in letters),
            base=settings.mail_retry_base_seconds,
            longest=settings.mail_retry_seconds_max,
        )
        async with self._database.connection() as connection:
            given_up = await store.put_off_mail(
                connection,
                letters,
                error=why,
                refused=refused,
                delay_seconds=delay,
                age_seconds=settings.mail_hours * 3_600,
            )
        ALERT_MAILS.labels("failed").inc(len(letters) - given_up)
        ALERT_MAILS.labels("given_up").inc(given_up)
        write = log.error if given_up else log.warning
        write("alert not sent by mail", letters=len(letters), given_up=given_up, seconds=round(delay, 1), error=why)
