"""Operations on SQLite, which needs batches: they look, and they are recorded."""

from __future__ import annotations

import pytest
from migrate_kit import FILE, revision_text
from sqlalchemy import create_engine, inspect
from sqlalchemy.dialects import mysql, postgresql, sqlite

from shardctl.fleet.load import load_fleet
from shardctl.migrate import history, operations
from shardctl.migrate.operations import Context, Steps
from shardctl.migrate.preview import preview, still_mapped

BATCH = (
    "with op.batch_alter_table('orders') as batch:",
    "    batch.add_column(sa.Column('a', sa.Integer()))",
    "    batch.create_index('ix_orders_a', ['a'])",
    "    batch.drop_column('amount')",
)
AS_IT_SHOULD_BE = ({"order_id", "a"}, {"ix_orders_a"})


@pytest.fixture
def revision(tmp_path):
    path = tmp_path / "r1.py"
    path.write_text(revision_text("r1", None, *BATCH))
    return history.Revision("r1", None, "Change", path)


@pytest.mark.parametrize("dialect", [mysql.dialect(), sqlite.dialect()], ids=lambda dialect: dialect.name)
def test_what_a_batch_takes_away_is_known_before_it_runs(revision, dialect):
    seen = preview(revision, dialect)
    assert seen.removed == (("orders", "amount"),)
    assert seen.added == (("orders", "a"),)
    assert seen.contracts


@pytest.mark.parametrize(
    ("dialect", "refused"), [(mysql.dialect(), True), (postgresql.dialect(), False)], ids=["mysql", "pg"]
)
def test_a_mapped_column_is_known_in_any_case_that_the_database_takes(tmp_path, dialect, refused):
    file = tmp_path / "shards.yaml"
    file.write_text(FILE % "")
    path = tmp_path / "r1.py"
    path.write_text(revision_text("r1", None, "op.drop_column('orders', 'Amount')"))
    seen = preview(history.Revision("r1", None, "Change", path), dialect)
    assert any(still_mapped(seen, load_fleet(file).message_types)) == refused


@pytest.mark.parametrize(
    ("operation", "gone"),
    [("op.drop_index('AMOUNTS', 'orders')", "amounts"), ("op.drop_column('orders', 'A')", "a")],
    ids=["index", "column"],
)
def test_what_is_there_in_another_case_is_dropped(tmp_path, operation, gone):
    path = tmp_path / "r1.py"
    path.write_text(revision_text("r1", None, operation))
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (order_id TEXT PRIMARY KEY, amount INTEGER, a INTEGER)")
        connection.exec_driver_sql("CREATE INDEX amounts ON orders (amount)")
        operations.run(history.load(path), Steps(Context(connection.dialect, connection, {}, None)))
        inspector = inspect(connection)
        names = [entry["name"] for entry in (*inspector.get_columns("orders"), *inspector.get_indexes("orders"))]
    assert gone not in names


@pytest.mark.parametrize(
    "before",
    [
        "CREATE TABLE orders (order_id TEXT PRIMARY KEY, amount INTEGER)",
        "CREATE TABLE orders (order_id TEXT PRIMARY KEY, amount INTEGER, a INTEGER)",
        "CREATE TABLE orders (order_id TEXT PRIMARY KEY, a INTEGER)",
    ],
    ids=["nothing is done", "the column is there", "all but the index is done"],
)
def test_a_batch_does_what_is_left(revision, before):
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        connection.exec_driver_sql(before)
        for _ in range(2):
            operations.run(history.load(revision.path), Steps(Context(connection.dialect, connection, {}, None)))
            inspector = inspect(connection)
            columns = {column["name"] for column in inspector.get_columns("orders")}
            assert (columns, {index["name"] for index in inspector.get_indexes("orders")}) == AS_IT_SHOULD_BE
