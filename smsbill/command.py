"""The `smsbill` command. Each subcommand imports what it needs when it runs, so that all of them start fast."""

# ruff: noqa: PLC0415

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from smsbill.commands import (
    account,
    admin,
    alerts,
    backups,
    campaign,
    carriers,
    following,
    parked,
    routes,
    rules,
    sending,
    statistics,
    watching,
    webhook,
)
from smsbill.commands.options import AsJson

app = typer.Typer(
    name="smsbill",
    help="Prepaid SMS billing: a cost centre, an SMS gateway and its workers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
account.register(app)
admin.register(app)
sending.register(app)
campaign.register(app)
parked.register(app)
following.register(app)
watching.register(app)
webhook.register(app)
backups.register(app)
carriers.register(app)
routes.register(app)
rules.register(app)
alerts.register(app)
statistics.register(app)

_STACK, _SERVICE, _CARE = "The whole stack", "Single processes", "Care"

Address = Annotated[str, typer.Option(help="Where to listen, HOST:PORT; port 0: a free one.", show_default=False)]
HttpAddress = Annotated[
    str, typer.Option(help="Where /metrics, /healthz and /readyz are served, HOST:PORT.", show_default=False)
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting, without its SMSBILL_ prefix; no secrets."),
]
DataDir = Annotated[Path | None, typer.Option(help="Data folder (SMSBILL_DATA_DIR).", show_default=False)]


@app.command(rich_help_panel=_STACK)
def up(
    demo: Annotated[bool, typer.Option("--demo", help="Create brands, buy packages, send texts.")] = False,
    messages: Annotated[int, typer.Option(min=1, max=100_000, help="Texts that the demo sends, about.")] = 360,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Start everything on this machine and stay until Ctrl-C."""
    _set({"data_dir": data_dir})
    from smsbill import up as stack_up
    from smsbill.settings import StackSettings

    raise typer.Exit(stack_up.run(StackSettings.load(), demo_messages=messages if demo else 0, as_json=as_json))


@app.command(rich_help_panel=_STACK)
def demo(
    messages: Annotated[int, typer.Option(min=1, max=100_000, help="Texts to send, about.")] = 360,
    data_dir: Annotated[Path | None, typer.Option(help="Data folder; else a temporary one.")] = None,
) -> None:
    """Start everything, send texts, wait until all are final, check every figure, stop; the last line is JSON."""
    from smsbill import demo as whole_demo

    raise typer.Exit(whole_demo.run(messages=messages, data_dir=data_dir))


@app.command(rich_help_panel=_SERVICE)
def costcenter(address: Address = "", http_address: HttpAddress = "", assignments: Assignments = None) -> None:
    """Run the cost centre: the ledger and its gRPC services."""
    _prepare({"costcenter_address": address, "costcenter_http_address": http_address}, assignments)
    from costcenter.process import CostCenterProcess
    from costcenter.settings import Settings
    from smsbill import process

    settings = Settings.load()
    service = CostCenterProcess(settings)
    process.run(
        "costcenter",
        settings,
        service,
        lambda: {"grpc_port": service.port, "http_port": service.http_port},
        threads=True,
    )


@app.command(rich_help_panel=_SERVICE)
def gateway(address: Address = "", http_address: HttpAddress = "", assignments: Assignments = None) -> None:
    """Run the gateway: the sending gRPC service and the carriers' HTTP callbacks."""
    _prepare({"gateway_address": address, "http_address": http_address}, assignments)
    from smsbill import process
    from smsgateway.process import GatewayProcess
    from smsgateway.settings import Settings

    settings = Settings.load()
    service = GatewayProcess(settings)
    process.run("gateway", settings, service, lambda: {"grpc_port": service.grpc_port, "http_port": service.http_port})


@app.command(rich_help_panel=_SERVICE)
def worker(http_address: HttpAddress = "", assignments: Assignments = None) -> None:
    """Run a worker: sends what is queued, settles receipts, sweeps. Any number may run side by side."""
    _prepare({"worker_http_address": http_address}, assignments)
    from smsbill import process
    from workers.process import WorkerProcess
    from workers.settings import Settings

    settings = Settings.load()
    service = WorkerProcess(settings)
    process.run("worker", settings, service, lambda: {"http_port": service.http_port})


@app.command("carrier-simulator", rich_help_panel=_SERVICE)
def carrier_simulator(
    address: Address = "",
    receipt_url: Annotated[str, typer.Option(help="Where receipts are pushed to.", show_default=False)] = "",
    behaviour: Annotated[
        str, typer.Option(metavar="JSON", help='How it behaves, such as {"latency_ms": 50}.', show_default=False)
    ] = "",
    assignments: Assignments = None,
) -> None:
    """Run a simulated carrier that speaks Chuanglan's protocol; no text leaves this machine."""
    _prepare(
        {"simulator_address": address, "simulator_receipt_url": receipt_url, "simulator_settings": behaviour},
        assignments,
    )
    from smsbill import process
    from smsbill.carrier_process import CarrierProcess, CarrierSettings

    settings = CarrierSettings.load()
    service = CarrierProcess(settings)
    process.run("carrier-simulator", settings, service, lambda: {"http_port": service.http_port, "url": service.url})


@app.command(rich_help_panel=_CARE)
def migrate(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Bring both database schemas to this release."""
    _set({"data_dir": data_dir})
    from smsbill import care

    care.migrate(as_json)


@app.command(rich_help_panel=_CARE)
def reconcile(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Compare the ledger, the message records and the queues; exit 1 on any difference."""
    _set({"data_dir": data_dir})
    from smsbill import care

    raise typer.Exit(care.reconcile(as_json))


@app.command(rich_help_panel=_CARE)
def doctor(
    data_dir: DataDir = None,
    after_restore: Annotated[
        bool, typer.Option("--after-restore", help="Compare restored records with Redis and the carrier, workers off.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Settle what that finds, so that nothing is sent twice.")
    ] = False,
    restored_to: Annotated[
        str,
        typer.Option(metavar="MOMENT", help="After another restore than ours: to when, ISO 8601.", show_default=False),
    ] = "",
    carrier_record: Annotated[
        Path | None,
        typer.Option(help="All that the carrier took since: CSV or JSON with uid, mobile.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what is reachable, which versions run, what is misconfigured, and what to do; exit 1 on problems."""
    _set({"data_dir": data_dir})
    from smsbill import doctor as examination

    if not after_restore:
        if repair or restored_to or carrier_record:
            raise typer.BadParameter(
                "belongs to --after-restore", param_hint="--repair, --restored-to, --carrier-record"
            )
        raise typer.Exit(examination.run(as_json))
    raise typer.Exit(
        examination.run_after_restore(
            as_json, repair=repair, restored_to=_past(restored_to), carrier_record=carrier_record
        )
    )


def _past(text: str) -> datetime | None:
    """A moment that is over; None for an empty text."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("is no moment such as 2026-11-21T12:00:00Z", param_hint="--restored-to") from None
    if moment.tzinfo is None or moment > datetime.now(UTC):
        raise typer.BadParameter("give its offset, such as Z, and a moment that is over", param_hint="--restored-to")
    return moment


@app.command(
    rich_help_panel=_CARE,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Measure throughput; takes the options of `python -m bench`."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "bench" / "__main__.py").is_file():
        from smsbill.failure import CommandError

        raise CommandError("the benchmarks are in the source checkout; get it and run `make bench` there")
    os.chdir(checkout)
    os.execv(sys.executable, [sys.executable, "-m", "bench", *context.args])  # noqa: S606 - our own program


def main() -> None:
    """The entry point: whatever goes wrong ends in one line on standard error and status 1."""
    try:
        app(prog_name="smsbill")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read us has seen enough; what is buffered must not raise again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        from smsbill.failure import described
        from smsbill.interruption import Interrupted

        if isinstance(error, Interrupted):
            sys.exit(128 + error.number)
        line = described(error)
        if line is None:
            if os.environ.get("SMSBILL_LOG_LEVEL") == "DEBUG":
                raise
            line = f"unexpected {type(error).__name__}: {error}; SMSBILL_LOG_LEVEL=DEBUG shows where, please report it"
        sys.stderr.write(f"smsbill: {' '.join(line.split())}\n")
        sys.exit(1)


def _prepare(options: Mapping[str, object], assignments: list[str] | None) -> None:
    """Turn a service's options into settings, and tie it to its supervisor if it has one."""
    # What is imported now stays, and looking through it again and again is a tenth of a start. `smsbill.process`
    # switches the collector on when the service is ready.
    gc.disable()
    _set(options)
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        name = name.strip().lower().removeprefix("smsbill_")
        if not equals or not name:
            raise typer.BadParameter(f"{assignment!r} is not NAME=VALUE", param_hint="--set")
        if name.endswith(("token", "password", "_url")) and "receipt" not in name:
            raise typer.BadParameter(
                f"{name} may be a secret, which others can read on a command line: set SMSBILL_{name.upper()} in the "
                "environment or in .env",
                param_hint="--set",
            )
        os.environ[f"SMSBILL_{name.upper()}"] = value
    from infra import tracing
    from smsbill import parent

    tracing.keep_out()
    # Before the settings are read: the tie must hold from the first moment. A drain time that breaks its rule is
    # refused later; here any number will do.
    try:
        drain_seconds = float(os.environ.get("SMSBILL_DRAIN_SECONDS", "20"))
    except ValueError:
        drain_seconds = 20.0
    parent.tie(drain_seconds)


def _set(options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if value is not None and value != "":
            os.environ[f"SMSBILL_{name.upper()}"] = str(value)
