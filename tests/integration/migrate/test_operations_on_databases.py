"""Each operation of Alembic is done once: killed after any of its statements, and asked for where a later one has been done."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from migrate_kit import Shop, revision_text
from products_kit import SERVERS, empty_database
from sqlalchemy import event, inspect

from shardctl.migrate import history, operations, sameness
from shardctl.migrate.looks import DiffersError
from shardctl.migrate.operations import Context, Steps
from shardctl.migrate.preview import preview
from shardctl.migrate.run import bring_up
from shardctl.provision import make_tables
from shardctl.shard import database

pytestmark = pytest.mark.slow

BIG = "existing_type=sa.BigInteger()"
C = (
    "op.create_table('c', sa.Column('id', sa.BigInteger(), primary_key=True, autoincrement=False), "
    "sa.Column('b', sa.BigInteger(){}))"
)
ADD_A, ADD_Z = (
    "op.add_column('orders', sa.Column('a', sa.Integer()))",
    "op.add_column('orders', sa.Column('z', sa.Integer()))",
)
REVISIONS = {
    "a column with an index": ("op.add_column('orders', sa.Column('a', sa.Integer(), index=True))",),
    "a column with a unique value": ("op.add_column('orders', sa.Column('a', sa.Integer(), unique=True))",),
    "a column that refers": (C.format(""), "op.add_column('orders', sa.Column('a', sa.BigInteger(), sa.ForeignKey('c.id')))"),
    "a table with an index": (C.format(", index=True"),),
    "a unique constraint without a name": ("op.create_unique_constraint(None, 'orders', ['amount'])",),
    "a foreign key": (C.format(""), "op.create_foreign_key('refers', 'orders', 'c', ['amount'], ['id'])"),
    "a foreign key without a name": (C.format(""), "op.create_foreign_key(None, 'orders', 'c', ['amount'], ['id'])"),
    "a check without a name": ("op.create_check_constraint(None, 'orders', 'amount > 0')",),
    "constraints that go again": (
        "op.create_check_constraint('positive', 'orders', 'amount > 0')",
        "op.create_unique_constraint('once', 'orders', ['amount'])",
        "op.drop_constraint('once', 'orders', type_='unique')",
        "op.drop_constraint('positive', 'orders', type_='check')",
    ),
    "another primary key": (
        C.format(", nullable=False"),
        "op.drop_constraint('c_pkey', 'c', type_='primary')",
        "op.create_primary_key('c_pkey', 'c', ['b'])",
    ),
    "a column that is renamed": (ADD_A, "op.alter_column('orders', 'a', new_column_name='b', existing_type=sa.Integer())"),
    "a name that is used again": (
        f"op.alter_column('orders', 'amount', new_column_name='old', {BIG})",
        "op.add_column('orders', sa.Column('amount', sa.Text()))",
    ),
    "a table that is renamed": (C.format(""), "op.rename_table('c', 'd')", "op.create_index('i', 'd', ['b'])"),
    "a type that is changed": (ADD_A, "op.alter_column('orders', 'a', type_=sa.BigInteger(), existing_type=sa.Integer())"),
    "an index that is made again": (
        "op.create_index('i', 'orders', ['amount'])",
        "op.drop_index('i', 'orders')",
        "op.create_index('i', 'orders', ['amount', 'slot'])",
    ),
    "a batch": (
        "with op.batch_alter_table('orders') as batch:",
        "    batch.add_column(sa.Column('a', sa.Integer(), index=True))",
        f"    batch.alter_column('amount', new_column_name='sum', {BIG})",
    ),
    "a table that is made and filled": (
        f"made = {C.format('')}",
        ADD_Z,
        "op.execute(made.delete())",
    ),
}  # fmt: skip


class KilledError(BaseException):
    """Stands for SIGKILL."""


class Database:
    """One table, `orders`, that each `renew` makes again, and nothing else."""

    def __init__(self, engine, revision):
        self.engine, self.revision = engine, revision
        self.known = preview(revision, engine.dialect)

    def renew(self):
        with self.engine.begin() as connection:
            for table in ("orders", "c", "d"):
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
            connection.exec_driver_sql(
                "CREATE TABLE orders (order_id varchar(20) PRIMARY KEY, amount bigint, slot int NOT NULL)"
            )

    def apply(self, statements=None):
        """How many statements changed tables; killed after the first `statements` of them."""
        count = 0

        def executed(connection, cursor, statement, *_):
            nonlocal count
            if statement.lstrip().upper().startswith(("ALTER", "CREATE", "DROP", "RENAME")):
                count += 1
                if count == statements:
                    raise KilledError

        event.listen(self.engine, "after_cursor_execute", executed)
        try:
            with database.writing(self.engine) as connection:
                steps = Steps(Context(connection.dialect, connection, {}, None), own=self.known.operations)
                operations.run(history.load(self.revision.path), steps)
        finally:
            event.remove(self.engine, "after_cursor_execute", executed)
        return count

    def tables(self):
        with self.engine.connect() as connection:
            inspector = inspect(connection)
            found = {}
            for table in sorted(inspector.get_table_names()):
                lines = connection.exec_driver_sql(f"SHOW CREATE TABLE {table}").one()[1].splitlines()
                found[table] = sorted(line.strip().rstrip(",") for line in lines)  # the order of indexes is nobody's
            return found


def written(folder: Path, *statements: str) -> history.Revision:
    path = folder / "r1.py"
    path.write_text(revision_text("r1", None, *statements))
    return history.Revision("r1", None, "Change", path)


@pytest.mark.parametrize("statements", REVISIONS.values(), ids=REVISIONS)
def test_what_was_killed_after_any_statement_ends_as_if_it_had_not_been(request, tmp_path, statements):
    with empty_database(request, "mariadb") as url:
        engine = database.connect(url)
        place = Database(engine, written(tmp_path, *statements))
        assert not place.known.fault
        place.renew()
        count = place.apply()
        expected = place.tables()
        assert count
        for killed_after in range(1, count + 1):
            place.renew()
            with pytest.raises(KilledError):
                place.apply(killed_after)
            place.apply()
            assert place.tables() == expected, killed_after
        engine.dispose()


NEW_SHARDS = {
    "a column with an index": (", a: integer", [REVISIONS["a column with an index"]]),
    "a column that refers": (", a: bigint", [REVISIONS["a column that refers"]]),
    "a column that is renamed": (
        ", b: integer",
        [
            (ADD_A, "op.create_index('i', 'orders', ['a'])"),
            ("op.alter_column('orders', 'a', existing_type=sa.Integer(), server_default='7')",),
            ("op.alter_column('orders', 'a', new_column_name='b', existing_type=sa.Integer(), existing_server_default='7')",),
        ],
    ),
    "a type that is changed": (
        ", a: bigint",
        [(ADD_A,), ("op.alter_column('orders', 'a', type_=sa.BigInteger(), existing_type=sa.Integer())",)],
    ),
    "a batch": (
        ", a: integer",
        [("with op.batch_alter_table('orders') as batch:", "    batch.add_column(sa.Column('a', sa.Integer(), index=True))")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("product", SERVERS)
@pytest.mark.parametrize(("columns", "revisions"), NEW_SHARDS.values(), ids=NEW_SHARDS)
def test_a_new_shard_becomes_what_the_others_have_become(request, tmp_path, product, columns, revisions):
    """Its tables are made from the file of today, and then every revision since the first is asked for."""
    with ExitStack() as databases:
        urls = {name: databases.enter_context(empty_database(request, product)) for name in ("s0", "s1")}
        shop = Shop(tmp_path, urls)
        for statements in revisions:
            shop.add(*statements)
        bring_up(shop.fleet, shop.history, "s0", shop.engines["s0"])
        with shop.engines["s1"].begin() as connection:
            connection.exec_driver_sql("DROP TABLE orders")
        shop.map(columns)
        make_tables(shop.fleet, shop.fleet.shard("s1"), urls["s1"])
        bring_up(shop.fleet, shop.history, "s1", shop.engines["s1"])
        assert sameness.compare(shop.fleet, shop.engines) == []
        shop.close()


@pytest.mark.parametrize("product", SERVERS)
def test_a_table_whose_columns_went_later_is_no_other_one(request, tmp_path, product):
    """A mapped table that a revision made, of which a later one took a column: a new shard's has it no more."""
    with empty_database(request, product) as url:
        engine = database.connect(url)
        place = Database(engine, written(tmp_path, C.format(""), "op.drop_column('c', 'b')"))
        place.renew()
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE c (id bigint PRIMARY KEY)")
        place.apply()
        with engine.connect() as connection:
            assert [column["name"] for column in inspect(connection).get_columns("c")] == ["id"]
        engine.dispose()


@pytest.mark.parametrize("product", SERVERS)
def test_a_constraint_of_that_name_with_another_content_is_refused(request, tmp_path, product):
    with empty_database(request, product) as url:
        engine = database.connect(url)
        place = Database(engine, written(tmp_path, "op.create_unique_constraint('once', 'orders', ['amount'])"))
        place.renew()
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE orders ADD CONSTRAINT once UNIQUE (slot)")
        with pytest.raises(DiffersError, match=r"constraint once is there already, and is UNIQUE \(slot\)"):
            place.apply()
        engine.dispose()
