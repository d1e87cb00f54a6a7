"""Who a request comes from, and by what name it reached us, as far as that can be believed."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request

Network = Any  # ipaddress.IPv4Network | ipaddress.IPv6Network
_UNKNOWN = ipaddress.ip_address("0.0.0.0")  # noqa: S104 - stands for no address
_FORWARDED_MAX = 50


@dataclass(frozen=True, slots=True)
class Visitor:
    """`address` the caller's, or that of its last proxy that is not ours; `secure` whether it came over TLS."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    secure: bool

    @property
    def group(self) -> str:
        """What is counted together: the address, of IPv6 its /64, which one subscriber has whole."""
        if isinstance(self.address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((self.address, 64), strict=False))
        return str(self.address)


def visitor(request: Request, proxies: Sequence[Network], url: str) -> Visitor:
    """The visitor. What proxies say is believed of those whose address is in `proxies`, and of nobody else.

    Parameters: `url` where people find the console, if that is set: then it tells whether there is TLS.
    """
    address = _address(request.client.host if request.client else "")
    proxied = _trusted(address, proxies)
    if proxied:
        hops = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
        # From the nearest to the farthest; the first that is no proxy of ours is whom it came to.
        for hop in reversed(hops[-_FORWARDED_MAX:]):
            address = _address(hop.strip())
            if not _trusted(address, proxies):
                break
    if url:
        return Visitor(address, url.startswith("https:"))
    forwarded = request.headers.get("x-forwarded-proto", "") if proxied else ""
    return Visitor(address, (forwarded or request.url.scheme).strip().lower() == "https")


def from_own_page(request: Request, url: str) -> bool:
    """Whether a request that changes something was made by a page of ours, as far as the browser says.

    Parameters: `url` where people find the console; empty: the host that the request names.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    if origin is None:
        return True
    if url:
        return origin == url
    # Behind a proxy that ends TLS the scheme is its matter; what is forged names another host.
    return bool(origin) and urlsplit(origin).netloc == request.headers.get("host")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return _UNKNOWN
    mapped = getattr(found, "ipv4_mapped", None)
    return mapped or found


def _trusted(address: ipaddress.IPv4Address | ipaddress.IPv6Address, proxies: Sequence[Network]) -> bool:
    return any(address in network for network in proxies)
