"""Migrations: each service's schema is moved by Alembic, from scripts in the service's own package."""

from __future__ import annotations

from pathlib import Path

import alembic.command
import alembic.context
import psycopg
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, create_engine, pool, text

from infra.database import sqlalchemy_url
from infra.errors import StartError


def upgrade(url: str, schema: str, scripts: Path) -> None:
    """Bring a schema to the newest version; two processes that try at once take turns.

    Raises `StartError` when the server cannot be reached or the schema is of a newer release.
    """
    if version_is_unknown(url, schema, scripts):
        raise StartError(f"schema {schema} is of a newer release; start that release, or restore a backup")
    alembic.command.upgrade(_config(url, schema, scripts), "head")


def require_current(url: str, schema: str, scripts: Path) -> None:
    """Raise `StartError` when the schema is of another release, or the server cannot be reached."""
    if version_is_unknown(url, schema, scripts):
        raise StartError(f"schema {schema} is of a newer release; start that release, or restore a backup")
    if pending(url, schema, scripts):
        raise StartError(f"schema {schema} lacks migrations of this release; run `smsbill migrate`")


def pending(url: str, schema: str, scripts: Path) -> bool:
    """Whether the schema lacks migrations of this release. Raises `StartError` as `upgrade` does."""
    return _current(url, schema) != _script_directory(schema, scripts, url).get_current_head()


def version_is_unknown(url: str, schema: str, scripts: Path) -> bool:
    """Whether the schema's version is none that this release knows."""
    current = _current(url, schema)
    known = {script.revision for script in _script_directory(schema, scripts, url).walk_revisions()}
    return current is not None and current not in known


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


def _script_directory(schema: str, scripts: Path, url: str) -> ScriptDirectory:
    return ScriptDirectory.from_config(_config(url, schema, scripts))


def _current(url: str, schema: str) -> str | None:
    engine = create_engine(sqlalchemy_url(url), poolclass=pool.NullPool)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"version_table_schema": schema})
            return context.get_current_revision()
    except Exception as error:
        cause = getattr(error, "orig", error)
        if isinstance(cause, psycopg.OperationalError):
            reason = str(cause).strip().splitlines()[-1]
            raise StartError(
                f"PostgreSQL cannot be reached: {reason}; check SMSBILL_DATABASE_URL and that the server runs"
            ) from None
        raise
