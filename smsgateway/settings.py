"""Settings of the gateway; the workers' build on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field, IPvAnyNetwork, PrivateAttr, SecretStr, field_validator, model_validator

from infra import time_zones
from infra.errors import SettingError, StartError
from infra.settings import BaseSettings
from smsgateway.alerts import is_recipient
from smsgateway.carriers.chuanglan import ChuanglanConfig

# The kind whose settings stand in the gateway's own class.
_OWN_KIND, _OWN_PREFIX = "chuanglan", "chuanglan_"


def _account_name(given: dict[str, Any]) -> str:
    """the kind of carrier"""
    return str(given.get("carrier", ""))


class Settings(BaseSettings):
    """What the gateway needs, and the workers with it."""

    # Where to listen and whom to call.
    gateway_address: str = Field(
        "127.0.0.1:50052", description="Where the gateway's gRPC port listens; port 0: a free one"
    )
    gateway_target: str = Field("127.0.0.1:50052", description="Where clients find the gateway")
    http_address: str = Field(
        "127.0.0.1:8080",
        description="Where the HTTP port listens (carriers' callbacks, metrics, health); port 0: a free one",
    )
    costcenter_target: str = Field(
        "127.0.0.1:50051", description="Where the gateway and the workers find the cost centre"
    )
    service_token: SecretStr = Field(
        SecretStr(""), description="Token of the gateway and the workers at the cost centre: role biller, all brands"
    )
    token_keep_seconds: float = Field(
        30,
        ge=0,
        le=600,
        description="How long a caller's checked token is kept, so how long a revoked one goes on to work",
    )

    # The carrier's account.
    carrier: str = Field(
        "chuanglan",
        min_length=1,
        max_length=32,
        description="Kind of carrier, by the name under which it is installed; see carriers.md",
    )
    carrier_account: str = Field(
        default_factory=_account_name,
        min_length=1,
        max_length=64,
        description="Our name of the carrier's account, as it stands in records",
    )
    chuanglan_url: str = Field(
        "https://smssh1.253.com", description="Base address that Chuanglan gave with the account"
    )
    chuanglan_account: str = Field("", description="API account at Chuanglan; empty: none, its callbacks are refused")
    chuanglan_password: SecretStr = Field(SecretStr(""), description="API password at Chuanglan")
    chuanglan_receiver: str = Field("", description="User name that pushed receipts carry; empty: none was agreed")
    chuanglan_push_password: SecretStr = Field(SecretStr(""), description="Password that pushed receipts carry")
    chuanglan_path: str = Field(
        "/msg/send/json",
        pattern="^/",
        description="Path of Chuanglan's send call; /msg/v1/send/json for accounts on the newer version",
    )
    chuanglan_batch_max: int = Field(
        1_000, ge=1, le=1_000, description="Numbers in one call at Chuanglan; its pages say 1,000, some contracts less"
    )
    chuanglan_personalised_max: int = Field(
        1_000,
        ge=0,
        le=1_000,
        description="Numbers in one call with variables at Chuanglan; its pages say 1,000; 0: the account may not make "
        "them, and each such message goes by itself",
    )
    chuanglan_connect_seconds: float = Field(
        3, gt=0, le=60, description="How long a connection to Chuanglan may take; until it stands nothing was sent"
    )
    chuanglan_call_seconds: float = Field(
        10, gt=0, le=300, description="How long a call to Chuanglan may take; after that its outcome is unknown"
    )
    chuanglan_closed_hours_seconds: float = Field(
        900,
        ge=0,
        le=86_400,
        description="How long to wait after Chuanglan says that it is outside its hours",
    )

    # Carrier accounts of the table, beside the environment's (`smsbill carrier`, `smsbill route`).
    routing_poll_seconds: float = Field(
        1,
        gt=0,
        le=60,
        description="Time between two looks whether carrier accounts, rules or limits have changed, so how late a "
        "change takes effect; one look reads one row",
    )
    carrier_secrets_dir: Path = Field(
        Path("/run/secrets"),
        description="Folder below which file:… of a carrier account's setting must lie, so that an admin's call reads "
        "nothing else of the machine",
    )

    # Receipts that wait at the carrier.
    receipt_pull: bool = Field(
        True,
        description="Whether workers pull receipts that the carrier could not push; turn it off where another system "
        "pulls the same account: each receipt is given once",
    )

    # Replies.
    reply_pull: bool = Field(
        True,
        description="Whether workers pull what people sent back; turn it off where another system pulls the same "
        "account: each reply is given once",
    )
    reply_extensions: dict[Annotated[str, Field(pattern="^[0-9]{1,20}$")], Annotated[int, Field(ge=1)]] = Field(
        {},
        description="Brands by extension code: the end of the number that people reply to, the longest first; a JSON "
        'object such as {"01": 7}. Without a match the brand counts whose message went last to the number',
    )
    reply_days: float = Field(
        3,
        ge=0,
        le=90,
        description="How far back that last message is looked for; nobody answers later, and numbers change hands",
    )
    reply_brands_max: int = Field(
        2_000, ge=0, le=100_000, description="Brands that are looked through for it, two look-ups each"
    )
    reply_opt_out_words: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = Field(
        ("R", "T", "TD", "退订", "拒收", "STOP", "STOPALL", "UNSUBSCRIBE"),
        max_length=1_000,
        description="Replies that put the number on the brand's list of opt-outs, case and width of letters aside: a "
        "JSON list",
    )
    reply_opt_out_unassigned: bool = Field(
        True,
        description="Whether an opt-out of no known brand holds for all: who asked for it hears of no marketing then",
    )
    reply_repeat_seconds: float = Field(
        600,
        ge=0,
        le=86_400,
        description="How long the same words of a number are the same reply, where the carrier tells no id and no time",
    )
    reply_group_max: int = Field(200, ge=1, le=5_000, description="Replies stored in one transaction")
    reply_queue_max: int = Field(
        5_000, ge=1, le=100_000, description="Replies that wait for it; beyond it the carrier is asked to repeat"
    )

    # What a call may hold.
    text_characters_max: int = Field(
        536, ge=1, le=10_000, description="Characters of a text, signature included; Chuanglan takes 536 = 8 x 67"
    )
    batch_recipients_max: int = Field(
        100_000,
        ge=1,
        le=1_000_000,
        description="Recipients of one batch, which the process holds until it is accepted whole",
    )
    batch_bad_listed_max: int = Field(
        1_000,
        ge=0,
        le=10_000,
        description="Refused recipients that a reply lists; beyond them only their number is told",
    )
    batch_chunk_messages: int = Field(
        1_000,
        ge=1,
        le=1_000,
        description="Messages of a chunk: one payment and one carrier call; Chuanglan takes 1,000",
    )
    batch_stream_seconds: float = Field(
        300, gt=0, le=3_600, description="How long a caller may take to stream a batch; a stalled one holds memory"
    )
    batches_max: int = Field(
        64, ge=1, le=1_000, description="Batches taken at once; beyond it RESOURCE_EXHAUSTED at once"
    )
    batch_recipients_in_hand_max: int = Field(
        200_000,
        ge=1,
        le=10_000_000,
        description="Recipients of all batches under way; beyond it RESOURCE_EXHAUSTED: 100,000 take some 15 MB",
    )

    # Groups of single messages.
    accept_group_max: int = Field(
        500, ge=1, le=5_000, description="Messages accepted in one transaction; more would only make each wait longer"
    )
    accept_groups_in_flight: int = Field(
        4,
        ge=1,
        le=64,
        description="Groups under way at once: while one waits for the disk another asks the cost centre",
    )
    accept_gather_seconds: float = Field(
        0.03,
        ge=0,
        le=1,
        description="Time between the starts of two groups of messages while many come: few large groups cost less "
        "than many small ones, and a message that comes alone does not wait",
    )
    accept_queue_max: int = Field(
        5_000, ge=1, le=100_000, description="Messages that wait for a group; beyond it RESOURCE_EXHAUSTED at once"
    )
    accepting_seconds: float = Field(
        60,
        gt=0,
        le=86_400,
        description="Age at which what is being accepted counts as abandoned: messages resume, batches are undone",
    )
    pause_seconds: float = Field(
        10,
        gt=0,
        le=300,
        description="How long a pause waits for chunks that workers are just changing; then the call is to be repeated",
    )
    key_days: int = Field(30, ge=1, le=3_650, description="How long a request_id is remembered with its reply")
    stream_entry_seconds: float = Field(
        2,
        ge=0,
        le=30,
        description="Delay of the note that says where a message is queued; most are sent by then and need none",
    )
    stream_entries_max: int = Field(
        20_000,
        ge=1,
        le=1_000_000,
        description="Such notes that wait; beyond it they are dropped, which costs a look-up later",
    )

    # The sender's rules, of brands that have none of their own.
    sender_rules: str = Field(
        "off",
        pattern="^(off|on)$",
        description="Rules of brands that have not set their own: off: texts go as they are; on: signatures, templates,"
        " the marketing suffix (appended), frequencies and quiet hours hold for all brands. Suppressions and sensitive"
        " words always hold",
    )
    marketing_suffix: str = Field(
        "拒收请回复R",
        min_length=1,
        max_length=40,
        description="The end of a marketing text where the rule asks for it; its segments are counted with it",
    )
    verification_limits: str = Field(
        "1,5,10",
        pattern="^[0-9]{1,4},[0-9]{1,4},[0-9]{1,4}$",
        description="Verification codes that a number gets within any minute, hour and day, 0: any number; Aliyun's"
        " defaults",
    )
    notification_limits: str = Field(
        "0,0,50",
        pattern="^[0-9]{1,4},[0-9]{1,4},[0-9]{1,4}$",
        description="Notifications of the same template or text that a number gets within any minute, hour and day",
    )
    marketing_limits: str = Field(
        "0,0,50",
        pattern="^[0-9]{1,4},[0-9]{1,4},[0-9]{1,4}$",
        description="Marketing of the same template or text that a number gets within any minute, hour and day",
    )
    quiet_from: str = Field(
        "22:00",
        pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$",
        description="When marketing begins to be held, where the recipient is; Huawei's hours",
    )
    quiet_until: str = Field(
        "08:00",
        pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$",
        description="When it goes again; the same as quiet_from: it is never held",
    )
    sensitive_words_file: Path | None = Field(
        None,
        description="File of words that no text may hold: UTF-8, one a line; read again when it changes; not set: none",
    )
    sensitive_words_max: int = Field(
        100_000, ge=1, le=1_000_000, description="Words of that file at most; so many take some 20 MB"
    )
    schedule_days_max: float = Field(
        6,
        gt=0,
        le=6.9,
        description="How far ahead send_at may be: the freeze that holds the segments ends after seven days, and a"
        " backlog may wait for a day",
    )
    rules_refresh_seconds: float = Field(
        2,
        gt=0,
        le=60,
        description="How long a gateway may go on by rules that have been changed, one small query in that time",
    )
    rules_kept_max: int = Field(
        100_000,
        ge=1_000,
        le=10_000_000,
        description="Brands, signatures and templates that a gateway keeps in memory, some 100 MB at most; the rest is"
        " read when it is needed",
    )
    rules_per_brand_max: int = Field(
        1_000,
        ge=1,
        le=10_000,
        description="Signatures, and templates, of one brand: a text is held against all of them",
    )

    # PostgreSQL and Redis.
    gateway_database_connections: int = Field(
        12,
        ge=2,
        le=1_000,
        description="PostgreSQL connections of one gateway process: groups, batches, receipts, readers",
    )
    listing_seconds: float = Field(
        10,
        gt=0,
        le=300,
        description="How long a listing may search; a rare state in a long history needs more than that",
    )
    gateway_statement_connections: int = Field(
        8, ge=1, le=1_000, description="More of them for single statements: the groups that are under way at once"
    )
    redis_call_seconds: float = Field(
        2, gt=0, le=60, description="How long Redis may take to answer; records hold what it does not take"
    )
    redis_connections: int = Field(16, ge=1, le=1_000, description="Redis connections of one process")

    queue_push_attempts: int = Field(
        2, ge=1, le=10, description="Attempts of a push to Redis: after its restart each kept connection fails once"
    )

    # The cost centre.
    ledger_attempt_seconds: float = Field(
        5, gt=0, le=60, description="How long one attempt of a call to the cost centre may take"
    )
    ledger_call_seconds: float = Field(10, gt=0, le=300, description="How long a call with all its attempts may take")
    ledger_attempts: int = Field(
        6, ge=1, le=100, description="Attempts of a call while the cost centre is unreachable, with the same request_id"
    )
    ledger_backoff_seconds: float = Field(
        0.05, gt=0, le=10, description="Longest wait before the second attempt; it doubles"
    )
    ledger_backoff_seconds_max: float = Field(1, gt=0, le=60, description="Longest wait between two attempts")
    ledger_items_max: int = Field(
        1_000, ge=1, le=5_000, description="Items of one batch call; the cost centre takes 5,000 at most"
    )

    # Receipts.
    receipt_streams: int = Field(
        4,
        ge=1,
        le=64,
        description="Redis streams that receipts are spread over; the same for the gateway and all workers",
    )
    receipt_group_max: int = Field(500, ge=1, le=5_000, description="Receipts written in one transaction")
    receipt_groups_in_flight: int = Field(2, ge=1, le=16, description="Such transactions at once")
    receipt_queue_max: int = Field(
        5_000,
        ge=1,
        le=100_000,
        description="Receipts that wait for a transaction; beyond it the carrier is asked to repeat",
    )
    receipt_gather_seconds: float = Field(
        0.1,
        ge=0,
        le=5,
        description="Time between two groups of receipts that are queued or settled while many come; the carrier has "
        "its answer before, and a receipt that comes alone never waits",
    )
    receipt_requeue_seconds: float = Field(
        60, ge=1, le=3_600, description="Age at which a receipt that no worker has settled is queued again"
    )
    callback_bytes_max: int = Field(
        16_384, ge=1_024, le=1_048_576, description="Largest body of a callback; Chuanglan's have some 300 bytes"
    )
    callback_fields_max: int = Field(
        32, ge=10, le=1_000, description="Fields of a callback at most; Chuanglan's have ten"
    )
    http_requests_max: int = Field(1_000, ge=1, le=100_000, description="HTTP requests served at once; beyond it 503")

    # Usage.
    usage_time_zone: str = Field(
        "Asia/Shanghai",
        description="IANA time zone of the days whose recipients are counted, and of usage when a call names none; "
        "after a change run `smsbill usage --rebuild`",
    )
    usage_units_max: int = Field(
        800,
        ge=1,
        le=100_000,
        description="Hours, days or months of one question about usage; a month has 744 hours, two years 731 days",
    )
    usage_brands_max: int = Field(
        100_000, ge=1, le=1_000_000, description="Brands summed up by one question about usage of all brands"
    )

    # What Grafana reads as JSON.
    grafana_points_max: int = Field(
        1_000, ge=1, le=10_000, description="Points of a series at most; a wide screen has some 2,000 pixels"
    )
    grafana_targets_max: int = Field(20, ge=1, le=1_000, description="Targets of one query at most")
    grafana_rows_max: int = Field(
        10_000, ge=1, le=1_000_000, description="Brands, packages or balances that are listed at most"
    )
    grafana_search_brands: int = Field(
        20, ge=0, le=1_000, description="Brands whose targets a search lists; others can be typed"
    )
    grafana_bytes_max: int = Field(
        65_536, ge=1_024, le=1_048_576, description="Largest body of a question; Grafana's have some 2 kB"
    )

    # Following batches.
    followers_max: int = Field(
        32, ge=0, le=10_000, description="Calls that follow a batch at once; beyond it RESOURCE_EXHAUSTED at once"
    )
    follow_seconds: float = Field(
        0.5,
        ge=0.01,
        le=60,
        description="Time between two looks at a batch that is followed; longer where a look takes long, so that a "
        "follower reads for a tenth of the time at most",
    )

    # Webhooks.
    webhook_http: bool = Field(
        False, description="Whether receivers of webhooks may be called without TLS; numbers travel in clear then"
    )
    webhook_private_addresses: bool = Field(
        False,
        description="Whether receivers may have private or loopback addresses; who may set up webhooks can then have "
        "requests made inside the network",
    )
    webhooks_max: int = Field(
        5, ge=1, le=100, description="Webhooks of one brand; each event is written for each that wants it"
    )
    webhook_secret_hours: float = Field(
        24, ge=0, le=8_760, description="How long the old secret of a webhook signs beside a new one"
    )

    # Console.
    console: bool = Field(True, description="Whether the HTTP port serves the console at /; see console.md")
    console_refresh_seconds: float = Field(
        3,
        ge=1,
        le=3_600,
        description="Time between two looks of a page that shows what goes on; each costs a few look-ups",
    )
    console_rows: int = Field(
        50, ge=5, le=500, description="Rows on one page of the console's lists; a telephone shows some ten at once"
    )
    console_idle_seconds: float = Field(
        1_800,
        ge=60,
        le=86_400,
        description="A session without a page asked for by its user for so long ends; a page that refreshes itself "
        "does not count, so that a screen left alone is locked",
    )
    console_session_seconds: float = Field(
        43_200, ge=60, le=604_800, description="A session ends after so long however busy: sign in once a working day"
    )
    console_sessions_max: int = Field(
        20,
        ge=1,
        le=1_000,
        description="Sessions of one token at once; the next sign-in ends the oldest, so that the table stays small",
    )
    console_token_seconds: float = Field(
        3,
        ge=0,
        le=60,
        description="How long the console goes on with a token that has been checked, so how long after its "
        "revocation its sessions go on",
    )
    console_sign_in_attempts: int = Field(
        10,
        ge=1,
        le=1_000,
        description="Sign-ins with a wrong token from one address (IPv6: one /64) in `console_sign_in_seconds`; beyond "
        "it 429. Tokens cannot be guessed; it is the cost centre that is spared",
    )
    console_sign_in_attempts_all: int = Field(
        1_000,
        ge=1,
        le=100_000,
        description="The same from all addresses together, counted in Redis for all gateways",
    )
    console_sign_in_seconds: float = Field(
        300, ge=1, le=86_400, description="Time in which wrong sign-ins are counted together"
    )
    console_form_bytes_max: int = Field(
        65_536, ge=1_024, le=1_048_576, description="Largest form that the console takes; its own have a few hundred"
    )
    console_pages_max: int = Field(
        6,
        ge=1,
        le=1_000,
        description="Pages made at once; the others wait. Half of `gateway_database_connections`, so that people who "
        "look never keep messages waiting for a connection",
    )
    console_call_seconds: float = Field(
        10, gt=0, le=300, description="How long a page waits for an answer of the services; then it says so"
    )
    console_url: str = Field(
        "",
        pattern="^(https?://[^/?#]+)?$",
        description="Where people find the console, such as https://sms.example.com; changes are taken from its pages "
        "alone, and with https cookies are sent over TLS alone. Empty: whatever host a request names, and TLS as a "
        "trusted proxy says",
    )
    console_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (),
        max_length=100,
        description="Networks of the proxies before the HTTP port, whose X-Forwarded-For and X-Forwarded-Proto are "
        'believed, as JSON such as ["10.0.0.0/8"]; empty: nobody\'s',
    )

    # Alerts to people.
    smtp_host: str = Field("", description="Mail server that alerts are sent by; empty: none are sent by mail")
    smtp_port: int = Field(587, ge=1, le=65_535, description="Its port")
    smtp_tls: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="starttls: after the greeting, tls: from the start (465), none: in clear"
    )
    smtp_user: str = Field("", description="User at the mail server; empty: it asks for none")
    smtp_password: SecretStr = Field(SecretStr(""), description="Password of that user")
    smtp_from: str = Field("", description="Address that alerts come from; empty: smsbill@ and the mail server")
    alert_language: Literal["en", "zh"] = Field("en", description="Language of alerts: en or zh")
    alert_time_zone: str = Field("Asia/Shanghai", description="IANA time zone of the moments in alerts")

    # What the console's pages read.
    console_reads_max: int = Field(
        3,
        ge=1,
        le=100,
        description="Reads of the gateway's tables by pages at once, of its `gateway_database_connections`: who looks "
        "must not hold up who sends",
    )
    console_low_segments: int = Field(
        1_000, ge=1, le=10**12, description="The overview names active brands with fewer segments available"
    )
    console_low_seconds: float = Field(
        30,
        ge=1,
        le=3_600,
        description="How long the overview keeps that list: it looks through the balances of all brands",
    )

    _carrier_given: Mapping[str, Any] | None = PrivateAttr(None)

    @property
    def carrier_given(self) -> Mapping[str, Any] | None:
        """The settings of a carrier account of the table, for the `load` of its kind's own class; None: the account is
        the environment's.
        """
        return self._carrier_given

    def of_account(self, kind: str, account_id: str, given: Mapping[str, Any]) -> Self:
        """These settings as if the environment set up one carrier account, and no other.

        Parameters: `kind` the name of its kind; `account_id` our name of it; `given` its settings, named as in the
        environment behind `SMSBILL_<KIND>_`, in lower case. Raises `SettingError` for what is not known or breaks its
        rule as far as the gateway's own settings say; the kind's own class says the rest.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        values |= {"carrier": kind, "carrier_account": account_id}
        if kind == _OWN_KIND:
            own = {name for name in values if name.startswith(_OWN_PREFIX)}
            unknown = sorted(name for name in given if _OWN_PREFIX + name not in own)
            if unknown:
                known = ", ".join(sorted(name.removeprefix(_OWN_PREFIX) for name in own))
                raise SettingError(unknown[0], f"is not known; known are: {known}")
            values |= {name: type(self).model_fields[name].get_default() for name in own}
            values |= {_OWN_PREFIX + name: value for name, value in given.items()}
        try:
            made = type(self)(_env_file=None, **values)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]).removeprefix(_OWN_PREFIX)
            raise SettingError(name, first["msg"]) from None
        made._carrier_given = given
        return made

    @field_validator("smtp_from")
    @classmethod
    def _check_sender(cls, value: str) -> str:
        if value and not is_recipient(value):
            raise ValueError("must be an address such as sms@example.com")
        return value

    @field_validator("alert_time_zone", "usage_time_zone")
    @classmethod
    def _check_zone(cls, value: str) -> str:
        if value not in time_zones.known():
            raise ValueError(time_zones.RULE)
        return value

    @model_validator(mode="after")
    def _check_recipients(self) -> Self:
        if self.batch_recipients_in_hand_max < self.batch_recipients_max:
            raise ValueError("batch_recipients_in_hand_max must be at least batch_recipients_max")
        return self

    def chuanglan(self) -> ChuanglanConfig | None:
        """The account at Chuanglan, or None when none is set. Raises `StartError` for a setting that breaks a rule."""
        if not self.chuanglan_account:
            return None
        try:
            return ChuanglanConfig(
                account_id=self.carrier_account,
                base_url=self.chuanglan_url,
                account=self.chuanglan_account,
                password=self.chuanglan_password.get_secret_value(),
                receiver=self.chuanglan_receiver,
                push_password=self.chuanglan_push_password.get_secret_value(),
                path=self.chuanglan_path,
                connect_timeout_s=self.chuanglan_connect_seconds,
                total_timeout_s=self.chuanglan_call_seconds,
                batch_numbers_max=self.chuanglan_batch_max,
                personalised_numbers_max=self.chuanglan_personalised_max,
                text_characters_max=self.text_characters_max,
                closed_hours_delay_s=self.chuanglan_closed_hours_seconds,
            )
        except ValueError as error:
            raise StartError(
                f"settings SMSBILL_CHUANGLAN_*: {error}; correct them in the environment or in .env"
            ) from None
