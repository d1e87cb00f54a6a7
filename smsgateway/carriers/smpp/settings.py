"""Settings of the SMPP carrier and its place among the kinds of carriers."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pydantic_settings
from pydantic import Field, SecretStr

from infra.errors import StartError
from infra.settings import EnvironmentSettings
from smsgateway.carriers.registry import CarrierKind
from smsgateway.carriers.smpp.carrier import SmppCarrier, SmppConfig
from smsgateway.carriers.smpp.pdus import Address
from smsgateway.carriers.smpp.receipts import IdForm
from smsgateway.carriers.smpp.texts import Alphabet, Concatenation

if TYPE_CHECKING:
    from smsgateway.settings import Settings


class SmppSettings(EnvironmentSettings):
    """One account at an SMPP carrier. Read by the gateway and the workers when `SMSBILL_CARRIER` is ``smpp``."""

    model_config = pydantic_settings.SettingsConfigDict(env_prefix="SMSBILL_SMPP_")

    # Where, and who we are.
    host: str = Field("", description="The carrier's address; empty: no account")
    port: int = Field(2775, ge=1, le=65_535, description="The carrier's port; 2775 is the registered one")
    tls: bool = Field(False, description="Whether to encrypt; without it the password travels in clear")
    tls_ca_file: Path | None = Field(
        None, description="File of the certificates to trust in place of the system's, for a carrier with its own"
    )
    system_id: str = Field("", max_length=15, description="Our name at the carrier")
    password: SecretStr = Field(SecretStr(""), max_length=8, description="Our password at the carrier")
    system_type: str = Field("", max_length=12, description="As the carrier wants it; mostly empty")
    address_ton: int = Field(0, ge=0, le=6, description="Type of the addresses that we serve, for the bind")
    address_npi: int = Field(0, ge=0, le=18, description="Plan of the addresses that we serve, for the bind")
    address_range: str = Field("", max_length=40, description="The addresses that we serve, for the bind")

    # What is sent.
    source_address: str = Field(
        "", max_length=20, description="The sender, a number or name; empty: as the carrier knows it"
    )
    source_ton: int = Field(0, ge=0, le=6, description="Type of the sender: 1 international, 3 short code, 5 name")
    source_npi: int = Field(0, ge=0, le=18, description="Plan of the sender: 1 telephone numbers; 0 with a name")
    destination_ton: int = Field(
        1,
        ge=0,
        le=6,
        description="Type of receivers' numbers; 2 (national): 11 digits, and only mainland China's can be sent",
    )
    destination_npi: int = Field(1, ge=0, le=18, description="Plan of receivers' numbers")
    service_type: str = Field("", max_length=5, description="As the carrier wants it; mostly empty")
    alphabet: Alphabet = Field(
        "gsm",
        description="gsm: the GSM default alphabet where it has all characters of a text, else UCS-2; ucs2: always"
        " UCS-2, for carriers whose default alphabet is another one",
    )
    concatenation: Literal["udh", "sar"] = Field(
        "udh",
        description="How parts of a text are told to belong together: udh, a header in the text, or sar, TLVs, for"
        " carriers that make the header themselves",
    )

    # Receipts.
    receipt_id: IdForm = Field(
        "same",
        description="How receipts write the id that the answer to the message had: same, hex-to-dec or dec-to-hex",
    )
    receipt_utc_minutes: int = Field(
        480, ge=-840, le=840, description="Offset of the dates in receipts from UTC; 480 is China's time"
    )

    part_receipts: Literal["all", "last"] = Field(
        "all",
        description="Which parts of a text in several parts receipts are asked for; last: for carriers that give one"
        " receipt for them all",
    )

    # How much and how long.
    window: int = Field(
        10, ge=1, le=1_000, description="Messages without an answer at a time, in each worker; carriers allow about 10"
    )
    connect_seconds: float = Field(
        5, gt=0, le=60, description="How long connecting and binding may take, and a message waits for a session"
    )
    response_seconds: float = Field(
        10, gt=0, le=300, description="How long an answer may take; after that a message's outcome is unknown"
    )
    call_seconds: float = Field(
        30, gt=0, le=600, description="How long all parts of a message may take, waits for the window included"
    )
    enquire_link_seconds: float = Field(
        30, gt=0, le=3_600, description="Time between two questions whether the session still lives"
    )
    rest_seconds: float = Field(
        1, gt=0, le=60, description="Longest wait before the first attempt to bind again; it doubles, with jitter"
    )
    rest_seconds_max: float = Field(30, gt=0, le=3_600, description="Longest wait before any attempt to bind again")
    unbind_seconds: float = Field(
        2, gt=0, le=60, description="How long leaving may take, for answers that are still owed"
    )

    def config(self, account_id: str, text_characters_max: int) -> SmppConfig | None:
        """The account, or None when none is set. Raises `StartError` for a setting that breaks a rule."""
        if not self.host:
            return None
        try:
            return SmppConfig(
                account_id=account_id,
                host=self.host,
                port=self.port,
                system_id=self.system_id,
                password=self.password.get_secret_value(),
                system_type=self.system_type,
                address_ton=self.address_ton,
                address_npi=self.address_npi,
                address_range=self.address_range,
                source=Address(self.source_ton, self.source_npi, self.source_address),
                destination_ton=self.destination_ton,
                destination_npi=self.destination_npi,
                service_type=self.service_type,
                alphabet=self.alphabet,
                concatenation=Concatenation(self.concatenation),
                receipt_id=self.receipt_id,
                receipt_offset=timedelta(minutes=self.receipt_utc_minutes),
                part_receipts=self.part_receipts,
                text_characters_max=text_characters_max,
                call_s=self.call_seconds,
                tls=self.tls,
                tls_ca_file=None if self.tls_ca_file is None else str(self.tls_ca_file),
                window=self.window,
                connect_s=self.connect_seconds,
                response_s=self.response_seconds,
                enquire_link_s=self.enquire_link_seconds,
                rest_s=self.rest_seconds,
                rest_s_max=self.rest_seconds_max,
                unbind_s=self.unbind_seconds,
            )
        except ValueError as error:
            raise StartError(f"settings SMSBILL_SMPP_*: {error}; correct them in the environment or in .env") from None


class SmppKind(CarrierKind):
    """SMPP 3.4 among the kinds of carriers; its settings are `SmppSettings`."""

    def describe(self, settings: Settings) -> str | None:
        """See `CarrierKind.describe`."""
        config = _config(settings)
        return None if config is None else f"SMPP account {config.system_id} at {config.host}:{config.port}"

    def open(self, settings: Settings, *, connections_max: int) -> SmppCarrier | None:
        """See `CarrierKind.open`. One session whatever `connections_max` says: its window is what carriers bound."""
        config = _config(settings)
        if config is None:
            return None
        try:
            return SmppCarrier(config)
        except OSError as error:
            raise StartError(f"setting SMSBILL_SMPP_TLS_CA_FILE: {type(error).__name__}; correct it") from None

    def chunk_messages(self, settings: Settings) -> int:
        """One: a message is a submit_sm of its own, and so has an outcome of its own."""
        return 1


def _config(settings: Settings) -> SmppConfig | None:
    return SmppSettings.load(settings.carrier_given).config(settings.carrier_account, settings.text_characters_max)
