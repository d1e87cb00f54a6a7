"""What `smsbill up` and `smsbill demo` show: steps, what a person should know, progress, tables."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from protos.costcenter.v1 import cost_center_pb2 as ledger_pb
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill import balances
from smsbill.client import Client
from smsbill.sending import FINAL_STATES
from smsbill.showcase import Order, States
from smsbill.stack_file import TARGETS_NAME, StackFile
from smsbill.tables import console, table, word

_STATE = pb.MessageState.DESCRIPTOR
_PACKAGES_SHOWN = 10
_LEFT_OUT = ("source", "#held", "#expired")

T = TypeVar("T")


class Screen:
    """Prints for a person; `stderr` where standard output is for programs."""

    def __init__(self, *, stderr: bool) -> None:
        self._console: Console = console(stderr=stderr)
        self._started = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line)

    def step(self, what: str) -> None:
        """Tell that a part of the start is done."""
        self._console.print(f"  ✓ {what}  ({time.monotonic() - self._started:.1f} s)")

    def notify(self, line: str) -> None:
        """Tell what a person should know."""
        self._console.print(f"  ! {line}")

    @contextmanager
    def sending(self, brands: Mapping[int, str], orders: list[Order]) -> Iterator[SendingProgress]:
        """A bar per brand: how many of its messages are final, and where the others are."""
        columns = (
            TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=24)),
            BarColumn(bar_width=14),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[states]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal) as progress:
            yield SendingProgress(progress, brands, orders)

    async def results(self, client: Client, brands: Mapping[int, str], states: States) -> None:
        """Balances, packages and states of messages as tables."""
        found = await balances.read(client, list(brands))
        rows = [(brands[each.brand_id], *balances.row(each)) for each in found]
        self._console.print(table(balances.TITLE, ("name", *balances.COLUMNS), rows))
        packages = []
        for brand_id in brands:
            request = ledger_pb.ListPackagesRequest(brand_id=brand_id, page_size=_PACKAGES_SHOWN)
            reply = await client.call(client.ledger.ListPackages, request)
            packages += [(brand_id, *_narrow(balances.package_row(package))) for package in reply.packages]
        self._console.print(table("Packages (segments)", ("#brand", *_narrow(balances.PACKAGE_COLUMNS)), packages))
        present = sorted({state for counts in states.values() for state in counts})
        columns = ("name", "#messages", *(f"#{word(_STATE, state)}" for state in present))
        self._console.print(
            table(
                "Messages of this run",
                columns,
                [
                    (brands[brand_id], counts.total(), *(counts[state] for state in present))
                    for brand_id, counts in states.items()
                ],
            )
        )

    def addresses(self, file: StackFile, *, data_dir: str) -> None:
        """Where everything is, and the token."""
        rows = [
            ("console", f"{file.gateway_url}/  (sign in with the token below)"),
            ("cost centre (gRPC)", file.costcenter_target),
            ("gateway (gRPC)", file.gateway_target),
            ("gateway (HTTP)", f"{file.gateway_url}/metrics  /healthz  /readyz"),
        ]
        if file.simulator_url:
            rows.append(("carrier simulator", f"{file.simulator_url}/  (no text leaves this machine)"))
        rows += [(f"{name} metrics", url) for name, url in sorted(file.metrics_urls.items())]
        rows += [("for a Prometheus (file_sd)", f"{data_dir}/{TARGETS_NAME}")]
        rows += [("data folder", data_dir), ("logs", file.log_folder), ("token (admin)", file.token)]
        self._console.print(table("Addresses", ("what", "where"), rows))
        self._console.print(
            "Callers send the token as `authorization: Bearer <token>`. In another terminal:\n"
            "  smsbill balance, smsbill messages --brand 1, smsbill send --help, smsbill doctor\n"
            "Ctrl-C stops everything; nothing is lost."
        )


def _narrow(row: Sequence[T]) -> list[T]:
    """A row of packages without what the demo's packages have nothing to tell of: it must fit a terminal."""
    return [cell for column, cell in zip(balances.PACKAGE_COLUMNS, row, strict=True) if column not in _LEFT_OUT]


class SendingProgress:
    """The bars of `Screen.sending`."""

    def __init__(self, progress: Progress, brands: Mapping[int, str], orders: list[Order]) -> None:
        self._progress = progress
        self._tasks = {}
        for brand_id, name in brands.items():
            total = sum(len(order.texts) for order in orders if order.brand_id == brand_id)
            if total:
                self._tasks[brand_id] = progress.add_task(name, total=total, states="")

    def show(self, states: States) -> None:
        """Set the bars to these states."""
        for brand_id, counts in states.items():
            if brand_id in self._tasks:
                final = sum(count for state, count in counts.items() if state in FINAL_STATES)
                told = "  ".join(f"{word(_STATE, state)} {count}" for state, count in sorted(counts.items()))
                self._progress.update(self._tasks[brand_id], completed=final, states=told)
