"""The pages that show: overview, brands, messages, batches, search. They change nothing."""

from __future__ import annotations

from starlette.routing import Route

from smsgateway.console import batch_pages, brand_pages, overview_pages, record_pages
from smsgateway.console.console import Console, NavigationItem
from smsgateway.console.desk import Desk

NAVIGATION = (
    NavigationItem("/", "Overview", 0),
    NavigationItem("/brands", "Brands", 10),
    NavigationItem("/batches", "Batches", 20),
    NavigationItem("/search", "Search", 30),
)


def routes(console: Console) -> list[Route]:
    """The routes."""
    desk = Desk(console)
    return [route for pages in (overview_pages, batch_pages, brand_pages, record_pages) for route in pages.routes(desk)]
