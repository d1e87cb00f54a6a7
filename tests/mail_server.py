"""A mail server in this process that keeps what it takes: over TLS, from who knows the password alone. A test decides
whom it refuses.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

USER, PASSWORD = "sms", "mail secret"


class MailServer:
    """Its letters in the order in which they came."""

    def __init__(self) -> None:
        self.letters: list[EmailMessage] = []
        self.refused: set[str] = set()
        self.busy = False
        self.port = 0

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        """See aiosmtpd."""
        return AuthResult(success=data == LoginPassword(USER.encode(), PASSWORD.encode()))

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        """See aiosmtpd."""
        if address in self.refused:
            return "550 nobody lives here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """See aiosmtpd."""
        if self.busy:
            return "451 later, please"
        letter = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(letter, EmailMessage)
        self.letters.append(letter)
        return "250 taken"

    def to(self, recipient: str) -> list[EmailMessage]:
        """The letters to somebody."""
        return [letter for letter in self.letters if letter["To"] == recipient]


def make_certificate(folder: Path) -> Path:
    """A certificate of this machine with its key, in one PEM file."""
    path = folder / "mail.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(path), "-out", str(folder / "certificate.pem")),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    path.write_bytes(path.read_bytes() + (folder / "certificate.pem").read_bytes())
    return path


@asynccontextmanager
async def mail_server(certificate: Path) -> AsyncIterator[MailServer]:
    """One that listens on a free port until the test ends; nothing goes before STARTTLS and AUTH."""
    made = MailServer()
    loop = asyncio.get_running_loop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def conversation() -> SMTP:
        return SMTP(
            made,
            hostname="mail.test",
            loop=loop,
            tls_context=context,
            require_starttls=True,
            auth_required=True,
            authenticator=made.authenticate,
        )

    server = await loop.create_server(conversation, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await server.wait_closed()
