"""Balances and packages, read and set out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import cost_center_pb2 as pb
from smsbill.client import Client
from smsbill.tables import moment, plain

TITLE = "Balances (segments; on the right what is available by type)"
COLUMNS = ("#brand", "#total", "#frozen", "#available", "#verif.", "#notif.", "#market.")
PACKAGE_COLUMNS = (
    "#package", "source", "#granted", "#remaining", "#held", "#paid", "#refunded", "#expired", "expires", "types",
)  # fmt: skip


async def read(
    client: Client, brand_ids: Sequence[int], *, as_of: datetime | None = None, limit: int = 1_000
) -> list[pb.GetBalanceResponse]:
    """The balances of these brands, or of the first `limit` that the token may see."""
    moment_asked = None
    if as_of is not None:
        moment_asked = Timestamp()
        moment_asked.FromDatetime(as_of.astimezone())
    wanted = list(brand_ids)
    if not wanted:
        async for page in client.pages(
            client.admin.ListBrands, admin_pb.ListBrandsRequest(page_size=min(limit, 1_000))
        ):
            wanted += [brand.brand_id for brand in page.brands]
            if len(wanted) >= limit:
                break
    return [
        await client.call(client.ledger.GetBalance, pb.GetBalanceRequest(brand_id=brand_id, as_of=moment_asked))
        for brand_id in wanted[:limit]
    ]


def row(balance: pb.GetBalanceResponse) -> tuple[object, ...]:
    """A row under `COLUMNS`."""
    by_type = {each.sms_type: each.available for each in balance.available_by_type}
    return (
        balance.brand_id,
        balance.total,
        balance.frozen,
        balance.available,
        # Figures by type are not known of every past moment; that is no zero.
        *(by_type.get(sms_type, "") for sms_type in (1, 2, 3)),  # type: ignore[call-overload] # numbers of the enum
    )


def package_row(package: Any) -> tuple[object, ...]:
    """A row under `PACKAGE_COLUMNS`."""
    told = plain(package)
    return (
        package.package_id,
        told["source"],
        package.granted,
        package.remaining,
        package.held,
        package.paid,
        package.refunded,
        package.expired,
        moment(package.expires_at)[:10] or "never",
        ", ".join(told["sms_types"]) or "all",
    )
