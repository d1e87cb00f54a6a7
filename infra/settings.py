"""Settings: `SMSBILL_*` in the environment or in a `.env` file of the working folder.

Every one has a default that fits one machine and a reason in its description; docs/settings.md is made from here.
Services read the class that names their own settings; all share what `BaseSettings` below holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pydantic
import pydantic_settings
from pydantic import Field

from infra.data_folder import default_data_dir
from infra.errors import SettingError, StartError


class EnvironmentSettings(pydantic_settings.BaseSettings):
    """Settings from the environment; a subclass of another prefix names it in its `model_config`."""

    model_config = pydantic_settings.SettingsConfigDict(
        env_prefix="SMSBILL_",
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
    )

    @classmethod
    def load(cls, given: Mapping[str, Any] | None = None) -> Self:
        """Read the environment. Raises `StartError` with the variable's name and the rule that it breaks.

        Parameters: `given` values instead of the environment, by the names of the fields, numbers and JSON as texts
        where that is what they came as; then a `SettingError` names what is not known or breaks its rule.
        """
        if given is not None:
            return cls._of(given)
        try:
            return cls()
        except pydantic_settings.SettingsError as error:
            # What should be JSON and is not; its text names the field and holds no value.
            raise StartError(f"settings {cls.model_config.get('env_prefix', '')}*: {error}") from None
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            name = cls.model_config.get("env_prefix", "") + "_".join(str(part) for part in first["loc"]).upper()
            raise StartError(f"setting {name}: {first['msg']}; correct it in the environment or in .env") from None

    @classmethod
    def _of(cls, given: Mapping[str, Any]) -> Self:
        unknown = sorted(set(given) - set(cls.model_fields))
        if unknown:
            raise SettingError(unknown[0], f"is not known; known are: {', '.join(sorted(cls.model_fields))}")
        values = {name: _parsed(value) for name, value in given.items()}
        try:
            # A prefix that no variable has: nothing comes from the environment.
            return cls(_env_file=None, _env_prefix="\0", **values)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise SettingError(".".join(str(part) for part in first["loc"]), first["msg"]) from None


def _parsed(value: Any) -> Any:
    """An object or list where a text is one in JSON, as in the environment."""
    if not isinstance(value, str) or value[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


class BaseSettings(EnvironmentSettings):
    """What every process needs."""

    data_dir: Path = Field(
        default_factory=default_data_dir, description="Folder of the embedded servers and their data"
    )
    database_url: str = Field(
        "",
        description="PostgreSQL (postgresql://…); empty: the embedded server of the data folder is started",
    )
    redis_url: str = Field("", description="Redis or Valkey (redis://…); empty: the embedded server is started")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level that is logged")
    log_format: str = Field("auto", pattern="^(auto|json|text)$", description="json, text, or text on a terminal only")
    database_wait_seconds: float = Field(
        5,
        gt=0,
        le=60,
        description="How long work waits for a free connection before it fails with UNAVAILABLE",
    )
    drain_seconds: float = Field(
        20, gt=0, le=300, description="How long a stopping process may take to finish what it has in hand"
    )
    watchdog_seconds: float = Field(
        60,
        gt=0,
        le=3_600,
        description="A loop or thread that has not turned for so long, beyond its own interval, makes its process not "
        "ready; longer than any call and transaction takes",
    )
    otlp_endpoint: str = Field(
        "",
        description="OTLP receiver of traces (HTTP), such as http://localhost:4318; empty: OTEL_EXPORTER_OTLP_ENDPOINT,"
        " and without that no traces",
    )
    trace_ratio: float = Field(
        1,
        ge=0,
        le=1,
        description="Part of the traces that begin here and are kept; what a caller traces is traced. A message has"
        " some ten spans: at thousands a second keep a hundredth",
    )
    crash_point: str = Field(
        "",
        description="For tests alone: a name of crash-points.md, with :<n> for the n-th arrival; the process that"
        " arrives there kills itself",
    )
    grpc_tls_certificate: Path | None = Field(
        None, description="PEM certificate chain of the gRPC ports; with a key: TLS"
    )
    grpc_tls_key: Path | None = Field(None, description="PEM private key of the gRPC ports")
    grpc_tls_ca: Path | None = Field(
        None, description="PEM authorities that our gRPC clients trust; not set: the certificate of the ports itself"
    )
    grpc_message_bytes_max: int = Field(
        8 * 1024 * 1024, gt=0, description="Largest gRPC message; a batch of 5,000 items is about 1 MiB"
    )
    grpc_keepalive_seconds: float = Field(
        10,
        ge=1,
        le=3_600,
        description="A connection on which calls of ours wait is tried so often, and replaced when it is silent for as"
        " long again: a firewall may have forgotten it, which the system would notice after a quarter of an hour",
    )
    grpc_calls_max: int = Field(
        10_000,
        gt=0,
        description="Calls that one process serves at once; beyond it a call gets RESOURCE_EXHAUSTED",
    )

    grpc_pending_max: int = Field(
        1_000,
        gt=0,
        le=100_000,
        description="Calls that wait until a process has time to take them, about half a second's; from there on the"
        " gRPC library refuses more and more of the rest with CANCELLED, at twice as many all; call again later",
    )
