"""Buying a package: the order and its payment."""

from __future__ import annotations

from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import cost_center_pb2 as pb
from smsbill.client import Client
from smsbill.tables import moment


async def put_plain_offer(client: Client, segments: int, days: int, price: str) -> str:
    """Make sure that there is an offer of just so many segments; return its id."""
    offer_id = f"plain-{segments}-{days}d-{price}"
    offer = admin_pb.PackageOffer(
        offer_id=offer_id,
        name=f"{segments} segments for {days} days",
        segments=segments,
        price=price,
        currency="CNY",
        validity_days=days,
        active=True,
    )
    await client.call(client.admin.PutPackageOffer, admin_pb.PutPackageOfferRequest(offer=offer))
    return offer_id


async def buy(client: Client, brand_id: int, offer_id: str, request_id: str) -> dict[str, object]:
    """Order an offer for a brand and say that it was paid. The same `request_id` again buys nothing more."""
    order = await client.call(
        client.ledger.CreatePackageOrder,
        pb.CreatePackageOrderRequest(brand_id=brand_id, request_id=request_id, offer_id=offer_id),
    )
    paid = await client.call(
        client.ledger.PackagePaidCallBack,
        pb.PackagePaidCallBackRequest(
            brand_id=brand_id,
            package_order_no=order.package_order_no,
            payment_reference=f"pay-{order.package_order_no}",
            amount=order.price,
            currency=order.currency,
        ),
    )
    return {
        "brand_id": brand_id,
        "package_order_no": order.package_order_no,
        "package_id": paid.package_id,
        "segments": paid.segments,
        "price": f"{order.price} {order.currency}",
        "expires_at": moment(paid.expires_at) or "never",
    }
