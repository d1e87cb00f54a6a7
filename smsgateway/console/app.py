"""The console's pages as one app."""

from __future__ import annotations

from starlette.applications import Starlette

from smsgateway.console import (
    audit_pages,
    brand_forms,
    control_pages,
    parked_pages,
    reading_pages,
    sale_pages,
    sign_in_pages,
    token_pages,
)
from smsgateway.console.console import Console, app_routes

# Who adds pages adds its module here; forms before the pages that show, for /brands/new is no brand's.
PAGES = (brand_forms, sale_pages, control_pages, parked_pages, token_pages, audit_pages, reading_pages)
OPEN_PAGES = (sign_in_pages,)


def console_app(console: Console) -> Starlette:
    """The app, to be mounted at `/` behind all other paths."""
    return Starlette(
        routes=app_routes(console, PAGES, OPEN_PAGES), exception_handlers={404: console.no_page, 405: console.no_page}
    )
