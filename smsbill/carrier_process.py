"""The carrier simulator as a process of the stack."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import Field, SecretStr

from infra.errors import StartError
from infra.settings import BaseSettings
from smsbill.carrier_simulator import CarrierSimulator, SettingsError, SimulatorConfig, SimulatorSettings

_ACCOUNT = "N0000001"
_PASSWORD = "simulator"  # noqa: S105 - of a carrier that exists on this machine only


class CarrierSettings(BaseSettings):
    """What `smsbill carrier-simulator` reads. Account and credentials are those that the gateway and workers use."""

    simulator_address: str = Field(
        "127.0.0.1:0", description="Where the carrier simulator listens; it has no access control, so keep it local"
    )
    simulator_receipt_url: str = Field(
        "", description="Where it pushes receipts, a gateway's /callbacks/chuanglan/report; empty: they can be pulled"
    )
    simulator_settings: str = Field(
        "{}", description='How it behaves: a JSON object such as {"latency_ms": 50, "receipt_loss": 0.01}'
    )
    simulator_record_max: int = Field(
        2_000_000,
        ge=1,
        le=100_000_000,
        description="Messages that its record holds, at up to 250 bytes each; when it is full, calls are refused",
    )
    chuanglan_account: str = Field("", description="API account at Chuanglan; empty: N0000001")
    chuanglan_password: SecretStr = Field(SecretStr(""), description="API password at Chuanglan; empty: simulator")
    chuanglan_receiver: str = Field("", description="User name that pushed receipts carry")
    chuanglan_push_password: SecretStr = Field(SecretStr(""), description="Password that pushed receipts carry")

    def config(self) -> SimulatorConfig:
        """The simulator's own configuration. Raises `StartError` for a setting that breaks its rule."""
        host, _, port = self.simulator_address.rpartition(":")
        try:
            changes: dict[str, Any] = {
                "receipt_url": self.simulator_receipt_url,
                "receiver": self.chuanglan_receiver,
                "pswd": self.chuanglan_push_password.get_secret_value(),
                **orjson.loads(self.simulator_settings),
            }
            return SimulatorConfig(
                host=host.strip("[]"),
                port=int(port),
                account=self.chuanglan_account or _ACCOUNT,
                password=self.chuanglan_password.get_secret_value() or _PASSWORD,
                record_entries_max=self.simulator_record_max,
                settings=SimulatorSettings().changed(changes),
            )
        except (SettingsError, ValueError, TypeError) as error:
            raise StartError(f"settings SMSBILL_SIMULATOR_*: {error}; correct them") from None


class CarrierProcess:
    """The simulator with the start and stop of every service process."""

    def __init__(self, settings: CarrierSettings) -> None:
        self._address = settings.simulator_address
        self._simulator = CarrierSimulator(settings.config())

    @property
    def url(self) -> str:
        """Its base address, once started."""
        return self._simulator.url

    @property
    def http_port(self) -> int:
        """Its port, once started."""
        return int(self.url.rpartition(":")[2])

    async def start(self) -> None:
        """Listen. Raises `StartError` when the address is taken."""
        try:
            await self._simulator.start()
        except OSError as error:
            raise StartError(
                f"cannot listen on {self._address} ({error.strerror}); "
                "free it, or set SMSBILL_SIMULATOR_ADDRESS to another"
            ) from None

    async def stop(self) -> None:
        """Stop; what has not been pushed by then is logged as waiting."""
        await self._simulator.stop()
