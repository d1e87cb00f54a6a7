"""Settings of the cost centre."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from costcenter.book import Terms
from costcenter.engine import EngineLimits
from infra import time_zones
from infra.settings import BaseSettings

_DAY_SECONDS = 86_400


class Settings(BaseSettings):
    """What `smsbill costcenter` reads."""

    costcenter_database_url: str = Field("", description="PostgreSQL of the cost centre; empty: SMSBILL_DATABASE_URL")
    costcenter_address: str = Field("127.0.0.1:50051", description="Where the cost centre listens; port 0: a free one")
    costcenter_http_address: str = Field(
        "127.0.0.1:0", description="Where the cost centre serves /metrics, /healthz and /readyz; port 0: a free one"
    )
    bootstrap_token: SecretStr = Field(
        SecretStr(""), description="Secret of an admin token that exists from the first start on; for setting up others"
    )
    service_token: SecretStr = Field(
        SecretStr(""),
        description="Secret of the token that the gateway and the workers call with; exists from the start",
    )
    freeze_time_to_live_seconds: int = Field(
        _DAY_SECONDS, gt=0, description="How long a freeze holds when its call does not say: a day covers any backlog"
    )
    freeze_time_to_live_seconds_max: int = Field(
        7 * _DAY_SECONDS, gt=0, description="How long a freeze may hold from its creation: what is held cannot be spent"
    )
    refund_grace_days: int = Field(
        30,
        ge=0,
        le=3_650,
        description="Days after its package's end in which a refund can be spent; 0: none, it expires at once",
    )
    order_pay_within_seconds: int = Field(
        900, gt=0, description="When an unpaid order is cancelled: as long as payment pages usually stay open"
    )
    brand_time_zone: str = Field("Asia/Shanghai", description="IANA time zone of brands that name none")
    idempotency_key_days: int = Field(
        30, ge=1, description="How long replies are kept; nobody retries a call after a month"
    )
    ledger_group_max: int = Field(
        1_000, ge=1, le=10_000, description="Operations of one transaction at most: beyond it groups gain little more"
    )
    ledger_queue_max: int = Field(
        20_000,
        ge=1,
        description="Operations that wait per lane at most, a few seconds' work; beyond it: RESOURCE_EXHAUSTED at once",
    )
    ledger_batch_max: int = Field(5_000, ge=1, le=50_000, description="Items of one batch call at most")
    ledger_retry_seconds: float = Field(
        5, gt=0, le=60, description="How long a transaction is tried again before its callers get UNAVAILABLE"
    )
    ledger_hold_seconds: float = Field(
        5,
        gt=0,
        le=600,
        description="How long a lane is waited for, and how long a process that stands still may hold one",
    )
    ledger_packages_kept_max: int = Field(
        50_000, ge=0, description="Packages that a lane remembers, some 25 MB; brands beyond it are read each time"
    )
    ledger_freezes_kept_max: int = Field(
        10_000,
        ge=0,
        description="Open freezes that a lane remembers, some 6 MB; older ones are read when paid",
    )
    ledger_ended_freezes_max: int = Field(
        5_000, ge=1, description="Ended freezes of a brand that one transaction books at most; the rest follows in more"
    )
    ledger_ended_packages_max: int = Field(
        100,
        ge=0,
        description="Ended packages that a group of calls books one by one at most, some 5 ms; more: as a set",
    )
    ledger_sweep_packages: int = Field(
        1_000,
        ge=1,
        le=100_000,
        description="Ended packages that the sweep books in one transaction, or one brand's: calls wait behind it",
    )
    ledger_sweep_rest: float = Field(
        0.5,
        ge=0,
        le=100,
        description="How long the sweep rests after each transaction while calls come, in times of its duration",
    )
    ledger_sweep_seconds: float = Field(
        2, gt=0, le=10, description="How long one call of the sweep works at most; the next goes on"
    )
    ledger_read_connections: int = Field(4, ge=1, le=100, description="Connections for queries, beside one per lane")
    release_retry_seconds: float = Field(
        5, gt=0, description="Delay of a release request's second try; doubled each time"
    )
    release_retry_seconds_max: float = Field(600, gt=0, description="Longest delay between two tries of a release")
    token_cache_seconds: float = Field(
        5, ge=0, le=300, description="How long a token's rights are kept, so how long a revoked one goes on to work"
    )
    clock_offset_seconds: float = Field(0, description="Added to the database's clock; for tests")

    @field_validator("brand_time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in time_zones.known():
            raise ValueError(time_zones.RULE)
        return value

    @field_validator("freeze_time_to_live_seconds_max")
    @classmethod
    def _covers_the_default(cls, value: int, info: ValidationInfo) -> int:
        # Else every freeze that names no time to live would be refused.
        if value < info.data.get("freeze_time_to_live_seconds", 0):
            raise ValueError("must be at least SMSBILL_FREEZE_TIME_TO_LIVE_SECONDS")
        return value

    @property
    def ledger_database_url(self) -> str:
        """The database that holds the ledger."""
        return self.costcenter_database_url or self.database_url

    def terms(self) -> Terms:
        """The figures that the rules are set by."""
        return Terms(
            time_to_live_default=timedelta(seconds=self.freeze_time_to_live_seconds),
            time_to_live_max=timedelta(seconds=self.freeze_time_to_live_seconds_max),
            refund_grace_days=self.refund_grace_days,
            pay_within=timedelta(seconds=self.order_pay_within_seconds),
            time_zone_default=self.brand_time_zone,
        )

    def engine_limits(self) -> EngineLimits:
        """The bounds of the engine."""
        return EngineLimits(
            group_max=self.ledger_group_max,
            queue_max=self.ledger_queue_max,
            retry_seconds=self.ledger_retry_seconds,
            hold_seconds=self.ledger_hold_seconds,
            packages_kept_max=self.ledger_packages_kept_max,
            freezes_kept_max=self.ledger_freezes_kept_max,
            ended_freezes_max=self.ledger_ended_freezes_max,
            ended_packages_max=self.ledger_ended_packages_max,
            clock_offset_seconds=self.clock_offset_seconds,
        )
