"""Every table of both services is held to the rules of growing past one machine, from PostgreSQL's own catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from psycopg import errors

import costcenter.schema
import smsgateway.schema
from infra.database import sqlalchemy_url
from infra.embedded import EmbeddedServers
from scripts import databases

SCHEMAS = {"costcenter": costcenter.schema.metadata, "smsgateway": smsgateway.schema.metadata}

# Small and shared by all brands: a copy on every machine.
REFERENCE_TABLES = {
    "costcenter.lane",
    "costcenter.package_offer",
    "costcenter.token",
    "smsgateway.carrier_account",
    "smsgateway.console_session",
    "smsgateway.receipt_pull",
    "smsgateway.routing_version",
}
# A receipt comes with the carrier's reference and no brand.
BY_REFERENCE = {
    "smsgateway.route": ["account", "reference"],
    "smsgateway.receipt_inbox": ["account", "reference"],
    "smsgateway.reply_reference": ["account", "reference"],
}
# Lists of work over all brands, of few rows each: what is due, on its way, unpaid or waiting. Each machine walks its
# own by time.
BY_TIME_OR_STATE = {
    "costcenter.balance_next_due_at",
    "costcenter.idempotency_key_created_at",
    "costcenter.package_order_unpaid",
    "costcenter.release_request_pending",
    "smsgateway.alert_mail_next_at",
    "smsgateway.alert_recovered_at",
    "smsgateway.batch_accepting",
    "smsgateway.console_audit_newest",
    "smsgateway.dispatch_not_before",
    "smsgateway.dispatch_parked",
    "smsgateway.dispatch_progress",
    "smsgateway.frequency_expires_at",
    "smsgateway.message_sent",
    "smsgateway.outbox_next_at",
    "smsgateway.outbox_parked",
    "smsgateway.receipt_inbox_next_at",
    "smsgateway.receipt_inbox_parked",
    "smsgateway.receipt_inbox_parked_id",
    "smsgateway.reply_reference_created_at",
    "smsgateway.request_key_created_at",
    "smsgateway.route_created_at",
    "smsgateway.sender_rules_changed_at",
    "smsgateway.usage_day_due",
    "smsgateway.webhook_event_parked",
}
# Texts that are no identifiers: for people, or a carrier's or bank's own words, never looked up.
PROSE = {
    "name",
    "time_zone",
    "currency",
    "author",
    "reason",
    "text",
    "variables",
    "last_error",
    "detail",
    "result_detail",
    "result_code",
    "carrier_code",
    "payment_reference",
    "title",
    "body",
    "url",
    "secret",
    "old_secret",
}
# Names that operators give to carriers' accounts, and what is compared for being equal only.
LABELS = {"account", "call_id", "carrier_message_id", "stream_entry"}

_TABLES = """
select n.nspname || '.' || c.relname
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = any(%s) and c.relkind in ('r', 'p') and c.relname <> 'alembic_version'
"""
# A unique constraint is a unique index as well, so the indexes tell all.
_INDEXES = """
select n.nspname || '.' || c.relname, n.nspname || '.' || x.relname, i.indisunique, i.indisprimary,
    array(select a.attname::text from unnest(i.indkey::int[]) with ordinality as k(number, place)
        join pg_attribute a on a.attrelid = c.oid and a.attnum = k.number order by k.place)
from pg_index i
join pg_class c on c.oid = i.indrelid
join pg_class x on x.oid = i.indexrelid
join pg_namespace n on n.oid = c.relnamespace
where n.nspname = any(%s) and c.relname <> 'alembic_version'
"""
_FOREIGN_KEYS = "select conname from pg_constraint where contype = 'f' and connamespace::regnamespace::text = any(%s)"
_TEXTS = """
select table_schema || '.' || table_name, column_name, collation_name from information_schema.columns
where table_schema = any(%s) and data_type = 'text' and table_name <> 'alembic_version'
  and table_name not like 'report\\_%%'
"""
_OTHERS = """
select table_schema || '.' || table_name, column_name, data_type from information_schema.columns
where table_schema = any(%s) and table_name <> 'alembic_version' and table_name not like 'report\\_%%'
"""
_PROGRAMS = """
select 'trigger ' || t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid
where c.relnamespace::regnamespace::text = any(%(schemas)s) and not t.tgisinternal
union all
select 'sequence ' || c.relname from pg_class c
where c.relkind = 'S' and c.relnamespace::regnamespace::text = any(%(schemas)s)
union all
select 'partitions ' || c.relname from pg_class c
where c.relkind = 'p' and c.relnamespace::regnamespace::text = any(%(schemas)s)
"""


@pytest.fixture(scope="module")
def migrated(servers: EmbeddedServers, database_template: str) -> Iterator[str]:
    """A migrated database whose tables stay empty."""
    with databases.fresh(servers.database_url, database_template) as url:
        yield url


@pytest.fixture
def connection(migrated: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection whose changes are taken back."""
    with psycopg.connect(migrated) as opened:
        yield opened
        opened.rollback()


def _rows(connection: psycopg.Connection[tuple[Any, ...]], query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query.encode(), (list(SCHEMAS),)).fetchall()


def test_the_catalogue_holds_the_tables_of_the_models(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """No more and no fewer, so that the rules below miss none."""
    modelled = {str(table) for metadata in SCHEMAS.values() for table in metadata.tables}
    assert {row[0] for row in _rows(connection, _TABLES)} == modelled
    assert modelled >= REFERENCE_TABLES | set(BY_REFERENCE)


def test_every_table_has_a_primary_key(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """What is sharded or replicated is told apart by its key."""
    with_key = {table for table, _, _, primary, _ in _rows(connection, _INDEXES) if primary}
    assert with_key == {row[0] for row in _rows(connection, _TABLES)}


def test_the_brand_leads_every_key(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Primary keys and unique constraints begin with brand_id, but for reference tables and those of the carriers."""
    keys = [(table, name, columns) for table, name, unique, _, columns in _rows(connection, _INDEXES) if unique]
    assert len(keys) > 20
    for table, name, columns in keys:
        if table in REFERENCE_TABLES:
            continue
        expected = BY_REFERENCE.get(table, ["brand_id"])
        assert columns[: len(expected)] == expected, name


def test_reference_tables_know_no_brand(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """What is shared by all has no brand_id, and what is not has one."""
    branded = {table for table, column, _ in _rows(connection, _OTHERS) if column == "brand_id"}
    without = {row[0] for row in _rows(connection, _TABLES)} - branded
    # A receipt in the inbox has no brand yet, nor has a reply that is just coming in.
    assert without == REFERENCE_TABLES | {"smsgateway.receipt_inbox", "smsgateway.reply_reference"}


def test_other_indexes_are_led_by_the_brand_or_are_lists_of_work(
    connection: psycopg.Connection[tuple[Any, ...]],
) -> None:
    """An index that is not is one of the lists of work that are named here."""
    found = {
        name
        for table, name, unique, _, columns in _rows(connection, _INDEXES)
        if not unique and columns[0] != "brand_id" and table not in REFERENCE_TABLES
    }
    assert found == BY_TIME_OR_STATE


def test_no_foreign_key_ties_tables_together(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """None within or across brands, and none between the services."""
    assert _rows(connection, _FOREIGN_KEYS) == []


def test_nothing_else_stands_in_the_way_of_sharding(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """No triggers, no sequences (numbers come from the brand's own counters), no partitions by time."""
    assert connection.execute(_PROGRAMS.encode(), {"schemas": list(SCHEMAS)}).fetchall() == []


def test_identifiers_sort_as_bytes(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Collation "C" for every text but prose and labels, so that numbers sort by time on any server."""
    texts = _rows(connection, _TEXTS)
    assert len(texts) > 40
    wrong = [(table, column) for table, column, collation in texts if collation != "C" and column not in PROSE | LABELS]
    assert wrong == []


def test_moments_have_a_time_zone_and_money_is_no_float(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Nothing depends on a session's time zone, and nothing of a price is lost."""
    types = {data_type for _, _, data_type in _rows(connection, _OTHERS)}
    assert not types & {"timestamp without time zone", "date", "real", "double precision", "money"}
    assert {(c, t) for _, c, t in _rows(connection, _OTHERS) if c == "price"} == {("price", "numeric")}
    assert {t for _, c, t in _rows(connection, _OTHERS) if c == "brand_id"} == {"bigint"}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_models_and_migrations_agree(migrated: str, schema: str) -> None:
    """Alembic finds nothing to add, drop or change between the migrated schema and the models."""

    def of_this_schema(name: str | None, kind: str, _parents: Any) -> bool:
        return kind != "schema" or name == schema

    engine = sqlalchemy.create_engine(sqlalchemy_url(migrated), poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": of_this_schema,
                "version_table_schema": schema,
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        assert compare_metadata(context, SCHEMAS[schema]) == []


@pytest.mark.parametrize("schema", SCHEMAS)
def test_migrated_tables_equal_the_modelled_ones(migrated: str, empty_database_url: str, schema: str) -> None:
    """Also in what Alembic does not compare: checks, collations, predicates of indexes, storage."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(f"create schema {schema}".encode())
    engine = sqlalchemy.create_engine(sqlalchemy_url(empty_database_url), poolclass=sqlalchemy.NullPool)
    SCHEMAS[schema].create_all(engine)
    assert _definition(migrated, schema) == _definition(empty_database_url, schema)


def _definition(url: str, schema: str) -> list[list[tuple[Any, ...]]]:
    queries = [
        "select table_name, column_name, ordinal_position, data_type, is_nullable, column_default, collation_name,"
        " generation_expression from information_schema.columns"
        # Views are not among the models; they hold nothing.
        " where table_schema = %s and table_name <> 'alembic_version' and table_name not like 'report\\_%%'"
        " order by 1, 3",
        "select conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint"
        " where connamespace = %s::regnamespace and conrelid::regclass::text not like '%%.alembic_version'"
        " order by 1, 2",
        "select tablename, indexname, indexdef from pg_indexes"
        " where schemaname = %s and tablename <> 'alembic_version' order by 1, 2",
        "select relname, reloptions from pg_class"
        " where relnamespace = %s::regnamespace and relkind = 'r' and relname <> 'alembic_version' order by 1",
    ]
    with psycopg.connect(url) as connection:
        found = [connection.execute(query.encode(), (schema,)).fetchall() for query in queries]
    assert all(found)
    return found


# The constraints refuse what must not be, even from a statement that nobody wrote with care.

_ROWS: dict[str, dict[str, str]] = {
    "brand": {
        "brand_id": "1",
        "name": "'a'",
        "status": "1",
        "time_zone": "'UTC'",
        "refund_undelivered": "false",
        "created_at": "now()",
    },
    "balance": {"brand_id": "1", "total": "10", "frozen": "4"},
    "balance_history": {"brand_id": "1", "at": "now()", "total": "10", "frozen": "4"},
    "package_queue": {
        "brand_id": "1",
        "package_id": "1",
        "source": "2",
        "source_no": "'a'",
        "granted": "10",
        "remaining": "7",
        "held": "4",
        "paid": "5",
        "refunded": "3",
        "expired": "1",
        "sms_types": "'{}'",
        "created_at": "now()",
    },
    "package_offer": {
        "offer_id": "'a'",
        "name": "'a'",
        "segments": "1",
        "price": "1",
        "currency": "'CNY'",
        "sms_types": "'{}'",
        "active": "true",
    },
    "package_order": {
        "brand_id": "1",
        "package_order_no": "'a'",
        "offer_id": "'a'",
        "segments": "1",
        "price": "1",
        "currency": "'CNY'",
        "sms_types": "'{}'",
        "status": "1",
        "created_at": "now()",
        "pay_before": "now()",
    },
    "freeze": {
        "brand_id": "1",
        "order_no": "'a'",
        "request_id": "'a'",
        "sms_type": "1",
        "segments": "6",
        "paid": "1",
        "released": "2",
        "timed_out": "2",
        "line_packages": "'{1,2}'",
        "line_segments": "'{3,3}'",
        "created_at": "now()",
        "expires_at": "now() + interval '1 day'",
        "record_no": "1",
    },
    "payment": {
        "brand_id": "1",
        "payment_no": "'a'",
        "order_no": "'a'",
        "request_id": "'a'",
        "sms_type": "1",
        "segments": "5",
        "refunded": "2",
        "line_packages": "'{1}'",
        "line_segments": "'{5}'",
        "status": "3",
        "created_at": "now()",
        "record_no": "1",
    },
    "refund": {
        "brand_id": "1",
        "payment_no": "'a'",
        "message_id": "'a'",
        "segments": "5",
        "line_packages": "'{1,2}'",
        "line_segments": "'{2,3}'",
        "line_targets": "'{1,NULL}'",
        "cause": "1",
        "created_at": "now()",
        "record_no": "1",
    },
    "receipt": {
        "brand_id": "1",
        "payment_no": "'a'",
        "message_id": "'a'",
        "segments": "1",
        "state": "1",
        "carrier_code": "''",
        "recorded_at": "now()",
    },
    "entry": {
        "brand_id": "1",
        "record_no": "1",
        "at": "now()",
        "booked_at": "now()",
        "kind": "1",
        "package_id": "1",
        "segments": "1",
        "reference": "''",
    },
    "adjustment": {
        "brand_id": "1",
        "adjustment_no": "'a'",
        "kind": "1",
        "package_id": "1",
        "segments": "1",
        "author": "'a'",
        "reason": "'a'",
        "created_at": "now()",
    },
    "release_request": {
        "brand_id": "1",
        "release_no": "'a'",
        "order_no": "'a'",
        "segments": "1",
        "created_at": "now()",
        "next_at": "now()",
    },
    "idempotency_key": {
        "brand_id": "1",
        "operation": "2",
        "request_id": "'a'",
        "fingerprint": "''",
        "reply": "''",
        "created_at": "now()",
    },
    "payment_key": {"brand_id": "1", "request_id": "'a'", "fingerprint": "''", "reply": "''"},
    "token": {
        "token_id": "'a'",
        "secret_sha256": "'x'",
        "name": "'a'",
        "roles": "'{1}'",
        "all_brands": "true",
        "brand_ids": "'{}'",
        "created_at": "now()",
    },
}


def _insert(connection: psycopg.Connection[tuple[Any, ...]], table: str, row: dict[str, str]) -> None:
    statement = f"insert into costcenter.{table} ({', '.join(row)}) values ({', '.join(row.values())})"
    connection.execute(statement.encode())


def test_the_rows_of_these_tests_are_good(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """So that it is the change of each case below that is refused; and no table is left out."""
    for table, row in _ROWS.items():
        _insert(connection, table, row)
    tables = {str(table).partition(".")[2] for table in costcenter.schema.metadata.tables}
    assert set(_ROWS) == tables - {"lane"}


@pytest.mark.parametrize("table", _ROWS)
def test_a_key_is_there_once(connection: psycopg.Connection[tuple[Any, ...]], table: str) -> None:
    """The same key a second time is refused, whatever else the row says."""
    _insert(connection, table, _ROWS[table])
    with pytest.raises(errors.UniqueViolation):
        _insert(connection, table, _ROWS[table])


@pytest.mark.parametrize(
    ("table", "constraint", "changes"),
    [
        ("brand", "brand_id_positive", {"brand_id": "0"}),
        ("brand", "brand_status_known", {"status": "0"}),
        ("brand", "brand_status_known", {"status": "4"}),
        ("balance", "balance_frozen_within_total", {"frozen": "11"}),
        ("balance", "balance_frozen_within_total", {"frozen": "-1"}),
        ("balance_history", "balance_history_frozen_within_total", {"total": "3"}),
        ("package_queue", "package_held_within_remaining", {"held": "8"}),
        ("package_queue", "package_held_within_remaining", {"held": "-1"}),
        ("package_queue", "package_adds_up", {"remaining": "8"}),
        ("package_queue", "package_adds_up", {"granted": "11"}),
        ("package_queue", "package_adds_up", {"expired": "2"}),
        ("package_queue", "package_not_negative", {"refunded": "6", "granted": "7"}),
        ("package_queue", "package_not_negative", {"expired": "-1", "granted": "8"}),
        ("package_queue", "package_source_known", {"source": "4"}),
        ("package_queue", "package_refund_has_origin", {"source": "3"}),
        ("package_queue", "package_refund_has_origin", {"origin_package_id": "9"}),
        ("package_offer", "package_offer_positive", {"segments": "0"}),
        ("package_offer", "package_offer_positive", {"price": "-1"}),
        ("package_offer", "package_offer_one_validity", {"validity_days": "1", "validity_months": "1"}),
        ("package_order", "package_order_status_known", {"status": "4"}),
        ("package_order", "package_order_paid_is_credited", {"status": "3"}),
        ("package_order", "package_order_paid_is_credited", {"status": "3", "paid_at": "now()", "package_id": "1"}),
        ("freeze", "freeze_settles_at_most_once", {"paid": "3"}),
        ("freeze", "freeze_not_negative", {"released": "-1"}),
        ("freeze", "freeze_positive", {"segments": "0", "paid": "0", "released": "0", "timed_out": "0"}),
        ("freeze", "freeze_lasts", {"expires_at": "now()"}),
        ("freeze", "freeze_lines_whole", {"line_segments": "'{6}'"}),
        ("payment", "payment_refunded_within_segments", {"refunded": "6"}),
        ("payment", "payment_refunded_within_segments", {"refunded": "-1"}),
        ("payment", "payment_status_refunded", {"status": "4"}),
        ("payment", "payment_status_refunded", {"refunded": "5"}),
        ("payment", "payment_status_known", {"status": "5"}),
        ("payment", "payment_positive", {"segments": "0", "refunded": "0", "status": "4"}),
        ("payment", "payment_lines_whole", {"line_packages": "'{1,2}'"}),
        ("refund", "refund_positive", {"segments": "0"}),
        ("refund", "refund_cause_known", {"cause": "3"}),
        ("refund", "refund_lines_whole", {"line_segments": "'{5}'"}),
        ("refund", "refund_lines_whole", {"line_targets": "'{1}'"}),
        ("receipt", "receipt_state_known", {"state": "5"}),
        ("receipt", "receipt_loss_not_negative", {"house_loss": "-1"}),
        ("entry", "entry_positive", {"segments": "0"}),
        ("entry", "entry_kind_known", {"kind": "7"}),
        ("entry", "entry_booked_after", {"at": "now() + interval '1 second'"}),
        ("adjustment", "adjustment_positive", {"segments": "0"}),
        ("release_request", "release_request_not_negative", {"segments": "-1"}),
        ("release_request", "release_request_pending_is_due", {"next_at": "null"}),
        ("release_request", "release_request_pending_is_due", {"applied_at": "now()"}),
        ("token", "token_brands", {"all_brands": "false"}),
        ("token", "token_brands", {"brand_ids": "'{1}'"}),
        ("token", "token_roles", {"roles": "'{}'"}),
    ],
)
def test_a_row_that_cannot_be_is_refused(
    connection: psycopg.Connection[tuple[Any, ...]], table: str, constraint: str, changes: dict[str, str]
) -> None:
    """Inserted or updated, by its constraint."""
    with pytest.raises(errors.CheckViolation) as caught:
        _insert(connection, table, {**_ROWS[table], **changes})
    # Of several that a row breaks PostgreSQL names one; each case breaks one only.
    assert caught.value.diag.constraint_name == constraint
    connection.rollback()
    _insert(connection, table, _ROWS[table])
    assignments = ", ".join(f"{column} = {value}" for column, value in changes.items())
    with pytest.raises(errors.CheckViolation):
        connection.execute(f"update costcenter.{table} set {assignments}".encode())


def test_one_package_takes_the_refunds_of_another(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """A second one for the same origin is refused; another brand's is another matter."""
    refunds = {**_ROWS["package_queue"], "source": "3", "origin_package_id": "9"}
    _insert(connection, "package_queue", refunds)
    _insert(connection, "package_queue", {**refunds, "brand_id": "2"})
    with pytest.raises(errors.UniqueViolation):
        _insert(connection, "package_queue", {**refunds, "package_id": "2"})


def test_a_secret_belongs_to_one_token(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Two tokens cannot share a hash."""
    _insert(connection, "token", _ROWS["token"])
    with pytest.raises(errors.UniqueViolation):
        _insert(connection, "token", {**_ROWS["token"], "token_id": "'b'"})


def test_every_check_is_tried_above() -> None:
    """A new constraint must get a case that it refuses."""
    named = {
        str(constraint.name)
        for table in costcenter.schema.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, sqlalchemy.CheckConstraint)
    }
    marks = [mark for mark in test_a_row_that_cannot_be_is_refused.pytestmark if mark.name == "parametrize"]
    assert {case[1] for case in marks[0].args[1]} == named
