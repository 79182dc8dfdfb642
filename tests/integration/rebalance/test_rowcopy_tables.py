"""Which tables can be moved on real databases, how foreign keys are kept, and how what moved away is deleted."""

from __future__ import annotations

import re
from contextlib import ExitStack, closing

import pytest
from rowcopy_kit import FLEET, KINDS, Side, copy
from rowcopy_places import BOTH, POSTGRES, PRODUCTS, REAL, places, sides
from sqlalchemy import text

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.local.servers import MariaDBServer
from shardctl.rebalance.rows.fitness import unfit
from shardctl.rebalance.rows.removal import RemovalError, _check_nobodys, delete_slots
from shardctl.rebalance.rows.tables import row_counts
from shardctl.shard import database
from shardctl.shard.schema import LaneState

pytestmark = pytest.mark.slow
__all__ = ["places", "sides"]


@pytest.fixture(params=PRODUCTS)
def product(request):
    return request.param


# --- foreign keys -------------------------------------------------------------------------------------------------------

LINES = FLEET.replace("note: text}", "note: text}\n    slot_tables: {a_lines: its_slot}")
LINE_KINDS = fleet_from(parse(LINES, "test")).message_types
CHILD = "CREATE TABLE a_lines (id varchar(20) PRIMARY KEY, its_slot int NOT NULL, order_id varchar(255) {}{})"
OF_ORDER = "REFERENCES a_orders (id)"


def with_lines(places, product, more=""):
    made = []
    for _ in range(2):
        side = places.side(product, LINE_KINDS)
        collation = " COLLATE utf8mb4_bin" if product == "mariadb" else ""
        side.run(
            CHILD.format(collation, f"{', ' * bool(collation)}FOREIGN KEY (order_id) {OF_ORDER}{more}")
            if collation
            else CHILD.format(OF_ORDER, more)
        )
        made.append(side)
    return made


def test_parents_come_before_children_and_go_after_them(places, product):
    source, destination = with_lines(places, product)
    for side, order in ((source, "new"), (destination, "old")):
        side.run(
            f"INSERT INTO a_orders (id, slot) VALUES ('{order}', 5)", f"INSERT INTO a_lines VALUES ('l', 5, '{order}')"
        )
    assert unfit(source.engine, destination.engine, LINE_KINDS) == []
    copy(source, destination)
    assert destination.query("SELECT order_id FROM a_lines") == [("new",)]
    assert delete_slots(source.engine, LINE_KINDS, {5}) == 2


def test_rows_that_refer_to_another_slot_are_refused(places, product):
    source, destination = with_lines(places, product, " ON DELETE CASCADE")
    source.run(
        "INSERT INTO a_orders (id, slot) VALUES ('o', 5)",
        "INSERT INTO a_lines VALUES ('mine', 5, 'o')",
        "INSERT INTO a_lines VALUES ('theirs', 6, 'o')",
    )
    [reason] = unfit(source.engine, destination.engine, LINE_KINDS)
    assert "a_lines: rows refer to rows of a_orders in other slots" in reason
    with pytest.raises(RemovalError, match="a_lines in slots that stay"):
        delete_slots(source.engine, LINE_KINDS, {5})
    assert ("theirs",) in source.query("SELECT id FROM a_lines")


@pytest.fixture
def folding_server(tmp_path, mariadb_server):
    """As on Windows and macOS; `mariadb_server` skips where there is none."""
    server = MariaDBServer(tmp_path / "server", durable=False, settings={"lower-case-table-names": "1"})
    yield server.start()
    server.delete()


def test_references_are_known_where_the_server_folds_the_case_of_tables(folding_server):
    """The file says `A_Orders`, the server's catalog `a_orders`: one table."""
    text = FLEET.replace("a_orders", "A_Orders").replace(
        "note: text}", "note: text}\n    slot_tables: {A_Lines: its_slot}"
    )
    kinds = fleet_from(parse(text, "test")).message_types
    with ExitStack() as stack:
        source, destination = (
            stack.enter_context(closing(Side(folding_server.create_database(name), kinds))) for name in ("s0", "s1")
        )
        for side in (source, destination):
            side.run(CHILD.format(" COLLATE utf8mb4_bin", f", FOREIGN KEY (order_id) {OF_ORDER} ON DELETE CASCADE"))
        source.run("INSERT INTO a_orders (id, slot) VALUES ('o', 5)", "INSERT INTO a_lines VALUES ('mine', 5, 'o')")
        assert unfit(source.engine, destination.engine, kinds) == []
        copy(source, destination)
        assert destination.query("SELECT id FROM a_lines") == [("mine",)]
        source.run("INSERT INTO a_lines VALUES ('theirs', 6, 'o')")
        [reason] = unfit(source.engine, destination.engine, kinds)
        assert "A_Lines: rows refer to rows of A_Orders in other slots" in reason


@POSTGRES
def test_a_tree_in_one_table_comes_over_and_goes(sides):
    source, destination = sides
    for side in sides:
        side.run("ALTER TABLE things ADD parent text REFERENCES things (id)")
    for name in ("c", "b", "a"):
        source.thing(id=name)
    source.run("UPDATE things SET parent = 'a' WHERE id = 'b'", "UPDATE things SET parent = 'b' WHERE id = 'c'")
    assert unfit(source.engine, destination.engine, KINDS) == []
    copy(source, destination)
    copy(source, destination)
    assert delete_slots(source.engine, KINDS, {5}, rows_at_once=1) == 3


def test_a_tree_in_mariadb_is_refused_beforehand(places):
    side, other = places.side("mariadb"), places.side("mariadb")
    for place in (side, other):
        place.run(
            "ALTER TABLE things ADD parent varchar(255) COLLATE utf8mb4_bin, ADD FOREIGN KEY (parent) REFERENCES things (id)"
        )
    [reason] = unfit(side.engine, other.engine, KINDS)
    assert "foreign key to things closes a ring" in reason


@pytest.mark.parametrize(("deferrable", "reasons"), [("DEFERRABLE", 0), ("", 2)])
def test_a_ring_of_tables_needs_deferrable_keys(places, deferrable, reasons):
    source, destination = sides = with_lines(places, "postgresql", f" {deferrable}")
    for side in sides:
        side.run(f"ALTER TABLE a_orders ADD first_line varchar(20) REFERENCES a_lines (id) {deferrable}")
    assert len(unfit(source.engine, destination.engine, LINE_KINDS)) == reasons
    if deferrable:
        source.run(
            "INSERT INTO a_orders (id, slot) VALUES ('o', 5)",
            "INSERT INTO a_lines VALUES ('l', 5, 'o')",
            "UPDATE a_orders SET first_line = 'l'",
        )
        for _ in range(2):
            copy(source, destination)
        assert destination.query("SELECT first_line FROM a_orders") == [("l",)]


@pytest.mark.parametrize(
    ("product", "table"),
    [
        ("postgresql", "id serial PRIMARY KEY, its_slot int"),
        ("postgresql", "id bigint GENERATED ALWAYS AS IDENTITY, its_slot int, PRIMARY KEY (its_slot, id)"),
        ("postgresql", "x text PRIMARY KEY, its_slot int, id bigserial UNIQUE"),
        ("mariadb", "id int AUTO_INCREMENT PRIMARY KEY, its_slot int"),
        ("sqlite", "id INTEGER PRIMARY KEY, its_slot int"),
    ],
)
def test_numbers_that_each_database_gives_are_refused(places, product, table):
    source, destination = (places.side(product, LINE_KINDS) for _ in range(2))
    for side in (source, destination):
        side.run(f"CREATE TABLE a_lines ({table})")
    [reason] = unfit(source.engine, destination.engine, LINE_KINDS)
    assert "table a_lines: the database itself numbers column id" in reason


@pytest.mark.parametrize(
    ("product", "ours", "theirs", "message"),
    [
        ("postgresql", "bigint", "int", "INTEGER|integer"),
        ("postgresql", "text", "varchar(10)", "varchar|character varying"),
        ("postgresql", "numeric(20, 5)", "numeric(19, 4)", "numeric"),
        ("postgresql", "double precision", "real", "real"),
        ("postgresql", "timestamptz", "timestamptz(3)", "timestamp"),
        ("postgresql", "text", "bigint", "can't become"),
        ("mariadb", "datetime(6)", "datetime", "DATETIME"),
        ("mariadb", "double", "float", "FLOAT"),
        ("mariadb", "bigint", "mediumint", "MEDIUMINT"),
    ],
)
def test_a_column_that_holds_less_is_refused(places, product, ours, theirs, message):
    source, destination = places.side(product), places.side(product)
    source.run(f"ALTER TABLE things ADD x {ours}")
    destination.run(f"ALTER TABLE things ADD x {theirs}")
    [reason] = unfit(source.engine, destination.engine, KINDS)
    assert reason.startswith("table things, column x: ")
    assert re.search(message, reason)
    if "can't become" not in message:
        assert unfit(destination.engine, source.engine, KINDS) == []


@pytest.mark.parametrize("pair", [(a, b) for a in PRODUCTS for b in PRODUCTS], ids=" to ".join)
def test_what_provision_makes_is_fit_for_any_other(places, pair):
    source, destination = map(places.side, pair)
    assert unfit(source.engine, destination.engine, KINDS) == []


# --- deleting -----------------------------------------------------------------------------------------------------------


@BOTH
def test_what_moved_away_is_deleted_in_small_transactions(sides):
    side = sides[0]
    side.record(5, *(f"k{number}" for number in range(25)))
    side.record(6, *(f"k{number}" for number in range(5)))
    side.record(7, "stays")
    side.lane(5, LaneState.LEFT)
    heard = []
    assert delete_slots(side.engine, KINDS, {5, 6}, 10, progress=heard.append) == 30
    if side.engine.dialect.name != "sqlite":
        assert heard == [10, 10, 10]
    with database.snapshot(side.engine) as connection:
        assert row_counts(connection, KINDS) == {7: 1}


@REAL
def test_a_lane_cannot_change_while_rows_are_deleted(sides):
    """The fence is shared: a session that takes it alone waits."""
    side = sides[0]
    side.record(5, "k")
    with database.writing(side.engine) as mover:
        mover.execute(text("UPDATE shardctl_fence SET version = version + 1"))
        with database.writing(side.engine) as connection:
            wait = "SET LOCAL lock_timeout = '200ms'" if side.engine.dialect.name == "postgresql" else None
            if wait is None:
                wait = "SET SESSION innodb_lock_wait_timeout = 1"
            connection.exec_driver_sql(wait)
            with pytest.raises(Exception, match=r"lock timeout|Lock wait timeout"):
                _check_nobodys(connection, [5])
