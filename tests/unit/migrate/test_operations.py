"""What is there already and what is gone, by the names as the database compares them. On databases: tests/integration/migrate."""

from __future__ import annotations

import pytest
from migrate_kit import FILE, revision_text
from sqlalchemy import create_engine, inspect
from sqlalchemy.dialects import mysql, postgresql

from shardctl.fleet.load import load_fleet
from shardctl.migrate import history, operations
from shardctl.migrate.operations import Context, Steps
from shardctl.migrate.preview import preview, still_mapped


@pytest.fixture
def revision(tmp_path):
    def written(operation):
        path = tmp_path / "r1.py"
        path.write_text(revision_text("r1", None, operation))
        return history.Revision("r1", None, "Change", path)

    return written


@pytest.mark.parametrize(
    ("dialect", "refused"), [(mysql.dialect(), True), (postgresql.dialect(), False)], ids=["mysql", "postgresql"]
)
def test_a_mapped_column_is_known_in_any_case_that_the_database_takes_for_it(tmp_path, revision, dialect, refused):
    file = tmp_path / "shards.yaml"
    file.write_text(FILE % "")
    seen = preview(revision("op.drop_column('orders', 'Amount')"), dialect)
    assert any(still_mapped(seen, load_fleet(file).message_types, dialect)) == refused


@pytest.mark.parametrize(
    ("operation", "left"),
    [
        ("op.drop_index('AMOUNTS', 'orders')", ["order_id", "amount", "a"]),
        ("op.drop_column('orders', 'A')", ["order_id", "amount", "amounts"]),
        ("op.add_column('orders', sa.Column('AMOUNT', sa.Integer()))", ["order_id", "amount", "a", "amounts"]),
        ("op.create_index('Amounts', 'orders', ['AMOUNT'])", ["order_id", "amount", "a", "amounts"]),
        ("op.alter_column('orders', 'b', new_column_name='A')", ["order_id", "amount", "a", "amounts"]),
    ],
    ids=["drop an index", "drop a column", "add a column", "create an index", "rename a column"],
)
def test_what_the_database_writes_in_another_case_is_found(revision, operation, left):
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (order_id TEXT PRIMARY KEY, amount INTEGER, a INTEGER)")
        connection.exec_driver_sql("CREATE INDEX amounts ON orders (amount)")
        operations.run(history.load(revision(operation).path), Steps(Context(connection.dialect, connection, {}, None)))
        inspector = inspect(connection)
        names = [entry["name"] for entry in (*inspector.get_columns("orders"), *inspector.get_indexes("orders"))]
    assert names == left
