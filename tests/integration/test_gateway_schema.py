"""The gateway's migrations make exactly the tables that its SQL is written for."""

from __future__ import annotations

import psycopg
import pytest
import sqlalchemy

from infra.database import sqlalchemy_url
from infra.errors import StartError
from smsgateway import migrations
from smsgateway.schema import metadata

_COLUMNS = """
select table_name, column_name, ordinal_position, data_type, is_nullable, column_default, collation_name
from information_schema.columns
join information_schema.tables using (table_schema, table_name)
where table_schema = 'smsgateway' and table_name <> 'alembic_version' and table_type = 'BASE TABLE'
order by table_name, ordinal_position
"""
_CONSTRAINTS = """
select conrelid::regclass::text, conname, pg_get_constraintdef(oid)
from pg_constraint
where connamespace = 'smsgateway'::regnamespace and conrelid <> coalesce(to_regclass('smsgateway.alembic_version'), 0)
order by 1, 2
"""
_INDEXES = """
select tablename, indexname, indexdef from pg_indexes
where schemaname = 'smsgateway' and tablename <> 'alembic_version'
order by 1, 2
"""
_STORAGE = """
select relname, reloptions from pg_class
where relnamespace = 'smsgateway'::regnamespace and relkind = 'r' and relname <> 'alembic_version'
order by 1
"""


def _catalogue(url: str) -> dict[str, list[tuple[object, ...]]]:
    with psycopg.connect(url) as connection:
        return {
            name: connection.execute(query).fetchall()
            for name, query in {
                "columns": _COLUMNS,
                "constraints": _CONSTRAINTS,
                "indexes": _INDEXES,
                "storage": _STORAGE,
            }.items()
        }


def test_models_and_migrations_agree(database_url: str, empty_database_url: str) -> None:
    """Tables made from the models equal the migrated ones: columns, defaults, collations, constraints, indexes."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("create schema smsgateway")
    engine = sqlalchemy.create_engine(sqlalchemy_url(empty_database_url), poolclass=sqlalchemy.NullPool)
    metadata.create_all(engine)
    migrated, modelled = _catalogue(database_url), _catalogue(empty_database_url)
    assert len(migrated["columns"]) > 80
    assert migrated == modelled


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    """A second run finds nothing to do."""
    migrations.require_current(database_url)
    before = _catalogue(database_url)
    migrations.migrate(database_url)
    assert _catalogue(database_url) == before


def test_a_schema_of_a_newer_release_is_refused(database_url: str) -> None:
    """A version that this release does not know stops the migration with a sentence that says what to do."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("update smsgateway.alembic_version set version_num = '9999'")
    for step in (migrations.migrate, migrations.require_current):
        with pytest.raises(StartError, match="newer release"):
            step(database_url)


def test_a_schema_without_migrations_is_refused(empty_database_url: str) -> None:
    """A process does not start on a schema that was not migrated, and says which command to run."""
    with pytest.raises(StartError, match="smsbill migrate"):
        migrations.require_current(empty_database_url)
