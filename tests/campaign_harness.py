"""A file, and the command's own client on the parts of a `worker_harness.Stack`."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from worker_harness import ADMIN, BRAND, MARKETING, Stack

from smsbill.campaign_file import NO_TERMS, Terms
from smsbill.client import Access, Client, ClientSettings
from smsbill.sending import FileOrder

TEXT = "【示例】{$name}你好"


@asynccontextmanager
async def client_of(stack: Stack) -> AsyncIterator[Client]:
    """A client of the command's."""
    access = Access(stack.values["costcenter_target"], f"127.0.0.1:{stack.gateway.grpc_port}", ADMIN)
    client = Client(ClientSettings(_env_file=None), access, call_seconds=30)
    try:
        yield client
    finally:
        await client.close()


def order(*, text: str = TEXT, campaign_id: str = "c", batch_rows: int = 10, terms: Terms = NO_TERMS) -> FileOrder:
    """What to send to a file's recipients."""
    return FileOrder(BRAND, MARKETING, text, campaign_id=campaign_id, batch_rows=batch_rows, terms=terms)


def write_file(path: Path, rows: Iterable[tuple[str, str]]) -> Path:
    """A file of numbers and names."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("mobile", "name"))
        writer.writerows(rows)
    return path


def read_results(path: Path) -> list[dict[str, str]]:
    """The rows of a result file."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))
