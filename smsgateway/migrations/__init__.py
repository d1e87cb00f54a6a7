"""Migrations of the gateway's schema."""

from __future__ import annotations

from pathlib import Path

from infra import schema_version
from smsgateway.schema import SCHEMA

SCRIPTS = Path(__file__).parent


def migrate(url: str) -> None:
    """Bring the gateway's schema to this release's version; raises `StartError` as `infra.migration.upgrade` does."""
    # A process only asks for the version: Alembic would take a fifth of its start.
    from infra import migration  # noqa: PLC0415

    migration.upgrade(url, SCHEMA, SCRIPTS)


def require_current(url: str) -> None:
    """Raise `StartError` unless the schema is of this release."""
    schema_version.require_current(url, SCHEMA, SCRIPTS)
