"""Migrations: each service's schema is moved by Alembic, from scripts in the service's own package."""

from __future__ import annotations

from pathlib import Path

import alembic.command
import alembic.context
from alembic.config import Config
from sqlalchemy import MetaData, create_engine, pool, text

from infra.database import sqlalchemy_url
from infra.schema_version import require_known


def upgrade(url: str, schema: str, scripts: Path) -> None:
    """Bring a schema to the newest version; two processes that try at once take turns.

    Raises `StartError` when the server cannot be reached or the schema is of a newer release.
    """
    require_known(url, schema, scripts)
    alembic.command.upgrade(_config(url, schema, scripts), "head")


def run_environment(metadata: MetaData) -> None:
    """What a service's `migrations/env.py` runs."""
    config = alembic.context.config
    schema = config.get_main_option("schema")
    assert schema is not None
    engine = create_engine(config.attributes["url"], poolclass=pool.NullPool)
    with engine.connect() as connection:
        # The lock is the transaction's, so a process that dies lets the next one in.
        connection.execute(text("select pg_advisory_xact_lock(hashtext(:name))"), {"name": f"smsbill-{schema}"})
        connection.execute(text(f'create schema if not exists "{schema}"'))
        alembic.context.configure(
            connection=connection,
            target_metadata=metadata,
            version_table_schema=schema,
            include_schemas=True,
            include_name=lambda name, kind, _parents: kind != "schema" or name == schema,
        )
        alembic.context.run_migrations()
        connection.commit()


def _config(url: str, schema: str, scripts: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.set_main_option("schema", schema)
    config.attributes["url"] = sqlalchemy_url(url)
    return config
