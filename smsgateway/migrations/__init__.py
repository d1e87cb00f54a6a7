"""Migrations of the gateway's schema."""

from __future__ import annotations

from pathlib import Path

from infra import migration
from smsgateway.schema import SCHEMA

SCRIPTS = Path(__file__).parent


def migrate(url: str) -> None:
    """Bring the gateway's schema to this release's version; raises `StartError` as `infra.migration.upgrade` does."""
    migration.upgrade(url, SCHEMA, SCRIPTS)


def pending(url: str) -> bool:
    """Whether `migrate` has something to do; raises `StartError` when the server cannot be reached."""
    return migration.pending(url, SCHEMA, SCRIPTS)


def is_of_a_newer_release(url: str) -> bool:
    """Whether the schema's version is none that this release knows; raises `StartError` as `pending` does."""
    return migration.version_is_unknown(url, SCHEMA, SCRIPTS)
