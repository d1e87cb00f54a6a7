"""The gRPC service CostCenterAdmin: brands, offers, adjustments, tokens."""

from __future__ import annotations

from typing import Any, cast

import grpc
import structlog

from costcenter import store, validation
from costcenter.engine import Engine
from costcenter.model import Brand, PackageOffer, Token
from costcenter.operations import BrandReply
from costcenter.queries import Queries
from costcenter.store_balances import BrandBalance
from costcenter.translation import decimal_text, timestamp
from infra import paging
from infra.authorization import INCLUDES, Principal, Role, current_principal, expand, new_secret, secret_hash
from infra.database import Database
from infra.errors import Refusal, invalid, not_found
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_admin_pb2 as pb
from protos.costcenter.v1 import cost_center_admin_pb2_grpc as rpc

log = structlog.get_logger(__name__)

SERVICE = "costcenter.v1.CostCenterAdmin"
TOKEN_BRANDS_MAX = 1_000

PERMISSIONS = {
    f"/{SERVICE}/{method}": frozenset({role})
    for role, methods in {
        Role.ADMIN: ("PutBrand", "PutPackageOffer", "CreateToken", "ListTokens", "RevokeToken"),
        Role.VIEWER: ("GetBrand", "ListBrands", "ListPackageOffers"),
        Role.FINANCE: ("AdjustPackage",),
        Role.BILLER: ("CheckToken",),
    }.items()
    for method in methods
}
# The workers watch balances with the service's token.
PERMISSIONS[f"/{SERVICE}/ListBalances"] = frozenset({Role.VIEWER, Role.BILLER})

Context = grpc.aio.ServicerContext[Any, Any]


class CostCenterAdminService(rpc.CostCenterAdminServicer):
    """Handlers. A refusal is raised; the server's interceptor turns it into a status."""

    def __init__(self, engine: Engine, queries: Queries, database: Database) -> None:
        self._engine = engine
        self._queries = queries
        self._database = database
        self._identifiers = IdentifierSource()

    async def PutBrand(self, request: pb.PutBrandRequest, context: Context) -> pb.PutBrandResponse:
        operation = validation.put_brand(request)
        current_principal().require_brand(operation.brand_id)
        reply = cast(BrandReply, await self._engine.answer(operation))
        _audit("brand put", brand_id=reply.brand_id, created=reply.created, status=reply.status)
        brand, created_at = await self._queries.brand(reply.brand_id)
        return pb.PutBrandResponse(brand=_brand_message(brand, created_at))

    async def GetBrand(self, request: pb.GetBrandRequest, context: Context) -> pb.GetBrandResponse:
        current_principal().require_brand(validation.brand_id(request.brand_id))
        return pb.GetBrandResponse(brand=_brand_message(*await self._queries.brand(request.brand_id)))

    async def ListBrands(self, request: pb.ListBrandsRequest, context: Context) -> pb.ListBrandsResponse:
        allowed = current_principal().brand_ids
        brands, following = await self._queries.brands(
            None if allowed is None else sorted(allowed),
            after=paging.decode_number(request.page_token),
            limit=paging.page_size(request.page_size),
        )
        return pb.ListBrandsResponse(
            brands=[_brand_message(*brand) for brand in brands], next_page_token=paging.next_token(following)
        )

    async def ListBalances(self, request: pb.ListBalancesRequest, context: Context) -> pb.ListBalancesResponse:
        allowed = current_principal().brand_ids
        status, below, prefix = validation.balance_filter(request)
        balances, following, now = await self._queries.balances(
            None if allowed is None else sorted(allowed),
            status=status,
            below=below,
            prefix=prefix,
            after=paging.decode_number(request.page_token),
            limit=paging.page_size(request.page_size),
        )
        return pb.ListBalancesResponse(
            balances=[_balance_message(balance) for balance in balances],
            next_page_token=paging.next_token(following),
            as_of=timestamp(now),
        )

    async def PutPackageOffer(self, request: pb.PutPackageOfferRequest, context: Context) -> pb.PutPackageOfferResponse:
        current_principal().require_all_brands()
        offer = _offer(request.offer)
        async with self._database.connection() as connection:
            await store.put_offer(connection, offer)
        _audit("offer put", offer_id=offer.offer_id, active=offer.active)
        return pb.PutPackageOfferResponse(offer=_offer_message(offer))

    async def ListPackageOffers(
        self, request: pb.ListPackageOffersRequest, context: Context
    ) -> pb.ListPackageOffersResponse:
        offers, following = await self._queries.offers(
            include_inactive=request.include_inactive,
            after=paging.decode_token(request.page_token),
            limit=paging.page_size(request.page_size),
        )
        return pb.ListPackageOffersResponse(
            offers=[_offer_message(offer) for offer in offers], next_page_token=paging.next_token(following)
        )

    async def AdjustPackage(self, request: pb.AdjustPackageRequest, context: Context) -> pb.AdjustPackageResponse:
        operation = validation.adjust(request)
        current_principal().require_brand(operation.brand_id)
        reply = cast(pb.AdjustPackageResponse, await self._engine.answer(operation))
        _audit("package adjusted", brand_id=operation.brand_id, adjustment_no=reply.adjustment_no)
        return reply

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Context) -> pb.CreateTokenResponse:
        current_principal().require_all_brands()
        name = validation.text("name", request.name, 100)
        if not request.roles or not set(request.roles) <= {role.value for role in INCLUDES}:
            raise invalid(roles="must hold at least one role, known ones only")
        if request.all_brands == bool(request.brand_ids):
            raise invalid(brand_ids="must be given, unless all_brands is set")
        if len(request.brand_ids) > TOKEN_BRANDS_MAX or any(brand_id < 1 for brand_id in request.brand_ids):
            raise invalid(brand_ids=f"must be at most {TOKEN_BRANDS_MAX} numbers of at least 1")
        expires_at = validation.moment("expires_at", request.expires_at) if request.HasField("expires_at") else None
        secret = new_secret()
        async with self._database.connection() as connection:
            now = await store.clock(connection, 0)
            if expires_at is not None and expires_at <= now:
                raise invalid(expires_at="must be in the future")
            token = await store.create_token(
                connection,
                token_id=self._identifiers.new(0, int(now.timestamp() * 1000)),
                secret_sha256=secret_hash(secret),
                name=name,
                roles=sorted(set(request.roles)),
                brand_ids=sorted(set(request.brand_ids)),
                expires_at=expires_at,
            )
        _audit("token created", created_token_id=token.token_id, name=name)
        return pb.CreateTokenResponse(token=_token_message(token), secret=secret)

    async def ListTokens(self, request: pb.ListTokensRequest, context: Context) -> pb.ListTokensResponse:
        current_principal().require_all_brands()
        limit = paging.page_size(request.page_size)
        async with self._database.snapshot() as connection:
            tokens = await store.tokens_page(connection, paging.decode_token(request.page_token), limit + 1)
        following = tokens[limit - 1].token_id if len(tokens) > limit else ""
        return pb.ListTokensResponse(
            tokens=[_token_message(token) for token in tokens[:limit]], next_page_token=paging.next_token(following)
        )

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Context) -> pb.RevokeTokenResponse:
        current_principal().require_all_brands()
        token_id = validation.identifier("token_id", request.token_id)
        async with self._database.connection() as connection:
            token = await store.revoke_token(connection, token_id)
        if token is None:
            raise _no_token()
        _audit("token revoked", revoked_token_id=token_id)
        return pb.RevokeTokenResponse(token=_token_message(token))

    async def CheckToken(self, request: pb.CheckTokenRequest, context: Context) -> pb.CheckTokenResponse:
        current_principal().require_all_brands()
        if len(request.secret_sha256) != 32:
            raise invalid(secret_sha256="must be 32 bytes")  # noqa: S106 - a rule, no secret
        async with self._database.snapshot() as connection:
            token = await store.find_token(connection, request.secret_sha256)
        if token is None:
            raise _no_token()
        return pb.CheckTokenResponse(token=_token_message(token))


def principal_of(token: Token) -> Principal:
    """What a token may do."""
    return Principal(token.token_id, expand(token.roles), None if token.all_brands else frozenset(token.brand_ids))


def _audit(event: str, **fields: object) -> None:
    log.info(event, by_token_id=current_principal().token_id, **fields)


def _no_token() -> Refusal:
    return not_found("TOKEN_NOT_FOUND", "there is no such token")


def _brand_message(brand: Brand, created_at: Any) -> pb.Brand:
    return pb.Brand(
        brand_id=brand.brand_id,
        name=brand.name,
        status=cast(pb.BrandStatus.ValueType, brand.status),
        time_zone=brand.time_zone,
        refund_undelivered=brand.refund_undelivered,
        created_at=timestamp(created_at),
    )


def _balance_message(balance: BrandBalance) -> pb.BrandBalance:
    brand = balance.brand
    return pb.BrandBalance(
        brand_id=brand.brand_id,
        name=brand.name,
        status=cast(pb.BrandStatus.ValueType, brand.status),
        created_at=timestamp(balance.created_at),
        total=brand.total,
        frozen=brand.frozen,
        available=balance.available,
        paid_last_7_days=balance.paid,
        next_expiry_at=timestamp(balance.expires_at),
        next_expiry_segments=balance.expiring,
    )


def _offer(offer: pb.PackageOffer) -> PackageOffer:
    days = offer.validity_days if offer.HasField("validity_days") else None
    months = offer.validity_months if offer.HasField("validity_months") else None
    if days is not None and not 1 <= days <= 36_500:
        raise invalid(offer__validity_days="must be 1 to 36500")
    if months is not None and not 1 <= months <= 1_200:
        raise invalid(offer__validity_months="must be 1 to 1200")
    return PackageOffer(
        offer_id=validation.identifier("offer.offer_id", offer.offer_id),
        name=validation.text("offer.name", offer.name, 100),
        segments=validation.segments(offer.segments, field="offer.segments"),
        price=validation.decimal("offer.price", offer.price),
        currency=validation.currency(offer.currency, field="offer.currency"),
        validity_days=days,
        validity_months=months,
        sms_types=validation.sms_types("offer.sms_types", offer.sms_types),
        active=offer.active,
    )


def _offer_message(offer: PackageOffer) -> pb.PackageOffer:
    message = pb.PackageOffer(
        offer_id=offer.offer_id,
        name=offer.name,
        segments=offer.segments,
        price=decimal_text(offer.price),
        currency=offer.currency,
        sms_types=cast(Any, offer.sms_types),
        active=offer.active,
    )
    if offer.validity_days is not None:
        message.validity_days = offer.validity_days
    if offer.validity_months is not None:
        message.validity_months = offer.validity_months
    return message


def _token_message(token: Token) -> pb.Token:
    return pb.Token(
        token_id=token.token_id,
        name=token.name,
        roles=cast(Any, token.roles),
        all_brands=token.all_brands,
        brand_ids=token.brand_ids,
        created_at=timestamp(token.created_at),
        expires_at=timestamp(token.expires_at),
        revoked_at=timestamp(token.revoked_at),
    )
