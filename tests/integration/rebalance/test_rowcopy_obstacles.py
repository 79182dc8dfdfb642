"""What stands in a move's way: mostly that deleting rows which have moved away would touch others, by keys, triggers or rules."""

from __future__ import annotations

import re

import pymysql
import pytest
from rowcopy_kit import FLEET, KINDS, copy
from rowcopy_places import POSTGRES, PRODUCTS, places, sides
from sqlalchemy.engine import make_url

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.rebalance.rows.fitness import unfit
from shardctl.rebalance.rows.removal import RemovalError, delete_slots, not_deletable
from shardctl.shard import database

pytestmark = pytest.mark.slow
__all__ = ["places", "sides"]

LINE_KINDS = fleet_from(
    parse(FLEET.replace("note: text}", "note: text}\n    slot_tables: {a_lines: its_slot}"), "test")
).message_types
MARIADB = pytest.mark.parametrize("sides", [("mariadb", "mariadb")], ids=["mariadb"], indirect=True)


def only_reason(reasons):
    (reason,) = reasons
    return reason


def filled(side, rows=10):
    """Slot 5, which is to go, and slot 6, which stays."""
    for slot in (5, 6):
        for number in range(rows):
            side.thing(slot=slot, id=f"{slot}/{number}")
    return side


def refused(source, destination, kinds=KINDS):
    """The only reason that preflight gives; `finish` gives it too, and deletes nothing."""
    reason = only_reason(unfit(source.engine, destination.engine, kinds))
    assert reason in not_deletable(source.engine, kinds)
    before = source.query("SELECT count(*) FROM things")
    with pytest.raises(RemovalError) as refusal:
        delete_slots(source.engine, kinds, {5})
    assert reason in str(refusal.value)
    assert source.query("SELECT count(*) FROM things") == before
    return reason


# --- foreign keys from tables that don't move ---------------------------------------------------------------------------

NOTES = "(id int PRIMARY KEY, thing text REFERENCES {} (id) ON DELETE CASCADE)"


@POSTGRES
@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (
            [f"CREATE TABLE crm.notes {NOTES.format('things')}"],
            (
                "table crm.notes refers to things by its foreign key notes_thing_fkey, .* "
                "`ALTER TABLE crm.notes DROP CONSTRAINT notes_thing_fkey`"
            ),
        ),
        (
            [
                "CREATE TABLE crm.notes (id int, thing text REFERENCES things (id) ON DELETE CASCADE) PARTITION BY LIST (id)",
                "CREATE TABLE crm.notes_1 PARTITION OF crm.notes FOR VALUES IN (1)",
            ],
            "table crm.notes refers to things by its foreign key notes_thing_fkey, .*",
        ),
        (
            [
                "CREATE TABLE crm.notes (id int, thing text) PARTITION BY LIST (id)",
                f"CREATE TABLE crm.notes_1 {NOTES.format('things')}",
                "ALTER TABLE crm.notes ATTACH PARTITION crm.notes_1 FOR VALUES IN (1)",
            ],
            "table crm.notes_1 refers to things by its foreign key notes_1_thing_fkey, .*",
        ),
        (
            [
                "CREATE TABLE crm.plain (id int, thing text)",
                "CREATE TABLE crm.notes () INHERITS (crm.plain)",
                "ALTER TABLE crm.notes ADD FOREIGN KEY (thing) REFERENCES things ON DELETE SET NULL NOT VALID",
            ],
            "table crm.notes refers to things by its foreign key notes_thing_fkey, .*",
        ),
        (
            [
                'CREATE TABLE crm."odd %, ""name""" (id int, thing text, CONSTRAINT "a.b" FOREIGN KEY (thing) REFERENCES things)'
            ],
            'table crm."odd %, ""name""" refers to things by its foreign key a.b, .*',
        ),
    ],
    ids=["another schema", "partitioned", "a partition", "an heir", "odd names"],
)
def test_a_key_from_anywhere_in_the_database_is_refused(sides, statements, message):
    source, destination = sides
    filled(source).run("CREATE SCHEMA crm", *statements)
    assert re.match(message, refused(source, destination))


@POSTGRES
def test_keys_around_partitions_are_refused(sides):
    """A key to a partition of a moved table, or to the table whose partition it is; or one that only a moved partition has."""
    source, destination = sides
    for side in sides:
        side.run(
            "DROP TABLE a_orders",
            "CREATE SCHEMA crm",
            "CREATE TABLE whole (id text, note text, slot int, PRIMARY KEY (id, slot)) PARTITION BY RANGE (slot)",
            "CREATE TABLE a_orders PARTITION OF whole FOR VALUES FROM (0) TO (64) PARTITION BY RANGE (slot)",
            "CREATE TABLE crm.low PARTITION OF a_orders FOR VALUES FROM (0) TO (32)",
            "CREATE TABLE crm.high PARTITION OF a_orders FOR VALUES FROM (32) TO (64)",
            "CREATE INDEX ON a_orders (slot)",
        )
    assert unfit(source.engine, destination.engine, KINDS) == []
    key = "(order_id text, slot int, CONSTRAINT k FOREIGN KEY (order_id, slot) REFERENCES {} (id, slot) ON DELETE CASCADE)"
    source.run("CREATE TABLE crm.to_low " + key.format("crm.low"))
    assert refused(source, destination).startswith("table crm.to_low: its foreign key k refers to crm.low, ")
    source.run("DROP TABLE crm.to_low", "CREATE TABLE crm.to_whole " + key.format("whole"))
    assert refused(source, destination).startswith(
        "table crm.to_whole: its foreign key k refers to whole, of which a moved table is a part. Let it refer to the moved"
    )
    source.run("DROP TABLE crm.to_whole", "ALTER TABLE crm.low ADD CONSTRAINT own FOREIGN KEY (note) REFERENCES things")
    assert refused(source, destination).startswith(
        "table crm.low, a part of a_orders, has a foreign key own of its own to things. Declare it on a_orders, or run"
    )


@pytest.fixture
def other_mariadb(mariadb_server):
    """Another database, whose name needs quoting; and what takes it away."""
    name = "crm-ü"
    mariadb_server.create_database(name)
    yield name
    mariadb_server.drop_database(name)


def notes_in(name, side, rule="ON DELETE CASCADE"):
    own = side.engine.url.database
    return (
        f"CREATE TABLE `{name}`.notes (id int PRIMARY KEY AUTO_INCREMENT, thing varchar(255) COLLATE utf8mb4_bin, "
        f"CONSTRAINT to_thing FOREIGN KEY (thing) REFERENCES `{own}`.things (id) {rule})"
    )


@MARIADB
def test_a_key_from_another_database_is_refused(sides, other_mariadb):
    source, destination = sides
    filled(source).run(
        notes_in(other_mariadb, source), f"INSERT INTO `{other_mariadb}`.notes (thing) SELECT id FROM things"
    )
    reason = refused(source, destination)
    assert reason.startswith(
        "table crm-ü.notes refers to things by its foreign key to_thing, but its own rows don't belong"
    )
    assert reason.endswith("DROP FOREIGN KEY to_thing`.")
    assert source.query(f"SELECT count(*) FROM `{other_mariadb}`.notes") == [(20,)]


@pytest.fixture
def account(mariadb_server):
    """A user of MariaDB, made with the rights that are asked for; a connection of the administrator's to change them."""
    url = make_url(mariadb_server.url("mysql"))
    administrator = {"user": url.username, "password": url.password, "autocommit": True}
    with pymysql.connect(host=url.host, port=url.port, **administrator) as admin, admin.cursor() as cursor:
        cursor.execute("CREATE USER mover@'127.0.0.1' IDENTIFIED BY %s", (url.password,))
        yield cursor.execute
        cursor.execute("DROP USER mover@'127.0.0.1'")


@MARIADB
def test_a_user_who_may_not_see_keys_or_triggers_is_refused(sides, other_mariadb, account):
    """What can't be seen is not taken to be absent."""
    source, _destination = sides
    filled(source).run(notes_in(other_mariadb, source))
    names = [side.engine.url.database for side in sides]
    for name in names:
        account(f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{name.replace('_', chr(92) + '_')}`.* TO mover@'127.0.0.1'")
    engines = [database.connect(side.engine.url.set(username="mover").render_as_string(False)) for side in sides]
    try:
        reasons = unfit(*engines, KINDS)
        assert any("`GRANT PROCESS ON *.* TO 'mover'@'127.0.0.1'`" in reason for reason in reasons)
        assert any(f"`GRANT TRIGGER ON `{names[0]}`.`things` TO 'mover'@'127.0.0.1'`" in reason for reason in reasons)
        with pytest.raises(RemovalError, match="PROCESS privilege"):
            delete_slots(engines[0], KINDS, {5})
        account("GRANT PROCESS ON *.* TO mover@'127.0.0.1'")
        for name in names:
            account(f"GRANT TRIGGER ON `{name.replace('_', chr(92) + '_')}`.* TO mover@'127.0.0.1'")
        for engine in engines:
            engine.dispose()
        assert only_reason(unfit(*engines, KINDS)).startswith("table crm-ü.notes refers to things")
        source.run(f"DROP TABLE `{other_mariadb}`.notes")
        assert unfit(*engines, KINDS) == []
        assert delete_slots(engines[0], KINDS, {5}) == 10
    finally:
        for engine in engines:
            engine.dispose()


@pytest.mark.parametrize("product", PRODUCTS[:2])
def test_a_key_that_is_added_while_rows_are_deleted_stops_it(places, product, request):
    """Right before a deletion: what it has taken along by then comes back with it."""
    side = filled(places.side(product))
    if product == "mariadb":
        name = request.getfixturevalue("other_mariadb")
        notes, make = f"`{name}`.notes", notes_in(name, side)
    else:
        side.run("CREATE SCHEMA crm")
        notes = "crm.notes"
        make = "CREATE TABLE crm.notes (id serial, thing text REFERENCES things ON DELETE CASCADE)"

    def add(_):
        if len(calls) == 1:
            side.run(make, f"INSERT INTO {notes} (thing) SELECT id FROM things")
        calls.append(None)

    calls = []
    with pytest.raises(RemovalError, match=r"notes refers to things"):
        delete_slots(side.engine, {"thing": KINDS["thing"]}, {5}, check=add, rows_at_once=4)
    assert side.query("SELECT count(*) FROM things") == side.query(f"SELECT count(*) FROM {notes}")


@POSTGRES
def test_leftovers_are_deleted_only_where_nothing_goes_along(sides):
    source, destination = sides
    source.thing(id="new")
    destination.thing(id="old")
    destination.run(
        "CREATE TABLE notes (thing text REFERENCES things ON DELETE CASCADE)", "INSERT INTO notes VALUES ('old')"
    )
    with pytest.raises(RemovalError, match="table notes refers to things"):
        copy(source, destination)
    assert destination.query("SELECT thing FROM notes") == [("old",)]


# --- foreign keys between tables that move ------------------------------------------------------------------------------

LINES = "CREATE TABLE a_lines (id varchar(20) PRIMARY KEY, its_slot int NOT NULL, order_id varchar(255){})"
TO_ORDER = ", CONSTRAINT to_order FOREIGN KEY (order_id) REFERENCES a_orders (id)"


@pytest.fixture(params=PRODUCTS)
def with_lines(places, request):
    def make(key):
        collation = " COLLATE utf8mb4_bin" if request.param == "mariadb" else ""
        for side in made:
            side.run(LINES.format(collation + key))
        return made

    made = [places.side(request.param, LINE_KINDS) for _ in range(2)]
    return make


@pytest.mark.parametrize("rule", ["CASCADE", "SET NULL", "RESTRICT", "NO ACTION"])
def test_keys_inside_a_slot_are_as_free_as_ever(with_lines, rule):
    source, destination = with_lines(f"{TO_ORDER} ON DELETE {rule}")
    for slot in (5, 6):
        source.run(
            f"INSERT INTO a_orders (id, slot) VALUES ('o{slot}', {slot})",
            f"INSERT INTO a_lines VALUES ('l{slot}', {slot}, 'o{slot}')",
        )
    assert unfit(source.engine, destination.engine, LINE_KINDS) == []
    assert not_deletable(source.engine, LINE_KINDS) == []
    for _ in range(2):
        copy(source, destination)
    assert delete_slots(source.engine, LINE_KINDS, {5}) == 2
    assert source.query("SELECT id, order_id FROM a_lines") == [("l6", "o6")]
    assert destination.query("SELECT id, order_id FROM a_lines") == [("l5", "o5")]


@pytest.mark.parametrize("product", PRODUCTS[:2])
def test_a_key_that_is_changed_while_rows_are_deleted_stops_it(places, product):
    """Its rule decides in which order rows go, and whether rows of other slots would follow."""
    side = places.side(product, LINE_KINDS)
    side.run(LINES.format((" COLLATE utf8mb4_bin" if product == "mariadb" else "") + TO_ORDER))
    side.run("INSERT INTO a_orders (id, slot) VALUES ('o', 5)", "INSERT INTO a_lines VALUES ('l', 6, 'o')")
    side.record(5, "k")
    calls = []

    def change(_):
        calls.append(None)
        if len(calls) == 1:
            drop = "CONSTRAINT" if product == "postgresql" else "FOREIGN KEY"
            side.run(f"ALTER TABLE a_lines DROP {drop} to_order")
            side.run(f"ALTER TABLE a_lines ADD {TO_ORDER[2:]} ON DELETE CASCADE")

    with pytest.raises(RemovalError, match="table a_lines: its foreign keys have changed"):
        delete_slots(side.engine, LINE_KINDS, {5}, check=change)
    assert side.query("SELECT id FROM a_lines") == [("l",)]


# --- triggers and rules -------------------------------------------------------------------------------------------------

FUNCTION = """CREATE FUNCTION drop_notes() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN {} DELETE FROM notes WHERE thing = old.id; RETURN old; END $$"""
TRIGGER = "CREATE TRIGGER t AFTER DELETE ON things FOR EACH ROW {} EXECUTE FUNCTION drop_notes()"
MOVING = "current_setting('shardctl.moving', true)"


@POSTGRES
@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ([FUNCTION.format(""), TRIGGER.format("")], "table things: its trigger t would run"),
        (
            [
                FUNCTION.format("").replace("WHERE thing = old.id", ""),
                TRIGGER.format("").replace("EACH ROW", "EACH STATEMENT"),
            ],
            "table things: its trigger t would run",
        ),
        (["CREATE RULE r AS ON DELETE TO things DO ALSO DELETE FROM notes"], "table things: its rule r would run"),
        (["CREATE RULE r AS ON DELETE TO things DO INSTEAD NOTHING"], "table things: its rule r would run"),
    ],
    ids=["row trigger", "statement trigger", "rule", "rule instead"],
)
def test_what_a_deletion_would_set_off_is_refused(sides, statements, message):
    source, destination = sides
    filled(source).run("CREATE TABLE notes (thing text)", "INSERT INTO notes SELECT id FROM things", *statements)
    reason = refused(source, destination)
    assert reason.startswith(message)
    assert reason.endswith("Disable it, or have it do nothing where current_setting('shardctl.moving', true) = 'on'.")
    assert source.query("SELECT count(*) FROM notes") == [(20,)]


@POSTGRES
@pytest.mark.parametrize(
    "statements",
    [
        [FUNCTION.format(f"IF {MOVING} = 'on' THEN RETURN old; END IF;"), TRIGGER.format("")],
        [FUNCTION.format(""), TRIGGER.format(f"WHEN ({MOVING} IS DISTINCT FROM 'on')")],
        [FUNCTION.format(""), TRIGGER.format(""), "ALTER TABLE things DISABLE TRIGGER t"],
        [FUNCTION.format(""), TRIGGER.format("").replace("DELETE", "UPDATE")],
    ],
    ids=["function asks", "trigger asks", "disabled", "on update"],
)
def test_a_trigger_that_leaves_moved_rows_alone_is_fit(sides, statements):
    source, destination = sides
    filled(source).run("CREATE TABLE notes (thing text)", "INSERT INTO notes SELECT id FROM things", *statements)
    assert unfit(source.engine, destination.engine, KINDS) == []
    assert delete_slots(source.engine, KINDS, {5}) == 10
    assert source.query("SELECT count(*) FROM notes") == [(20,)]


@MARIADB
def test_a_trigger_of_mariadb_asks_a_variable(sides):
    source, destination = sides
    body = "CREATE TRIGGER t AFTER DELETE ON things FOR EACH ROW {} DELETE FROM notes WHERE thing = old.id"
    filled(source).run(
        "CREATE TABLE notes (thing varchar(255))", "INSERT INTO notes SELECT id FROM things", body.format("")
    )
    assert refused(source, destination).endswith("Drop it, or have it do nothing where @shardctl_moving = 1.")
    source.run("DROP TRIGGER t")
    with pymysql.connect(**_plain(source), autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(body.format("IF @shardctl_moving IS NULL THEN") + "; END IF")
    assert unfit(source.engine, destination.engine, KINDS) == []
    assert delete_slots(source.engine, KINDS, {5}) == 10
    assert source.query("SELECT count(*) FROM notes") == [(20,)]


@pytest.mark.parametrize("sides", [(product, product) for product in PRODUCTS[:2]], ids=PRODUCTS[:2], indirect=True)
def test_a_trigger_distinguishes_a_moved_row_from_a_new_one(sides):
    source, destination = sides
    if destination.engine.dialect.name == "postgresql":
        destination.run(
            "CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.a_text \\:= 'new'; RETURN NEW; END $$",
            f"CREATE TRIGGER t BEFORE INSERT ON things FOR EACH ROW WHEN ({MOVING} IS DISTINCT FROM 'on') "
            "EXECUTE FUNCTION stamp()",
        )
    else:
        destination.run(
            "CREATE TRIGGER t BEFORE INSERT ON things FOR EACH ROW SET NEW.a_text = "
            "IF(@shardctl_moving IS NULL, 'new', NEW.a_text)"
        )
    destination.thing(slot=6, id="new", a_text="given")
    source.thing(id="moved", a_text="given")
    copy(source, destination)
    query = "SELECT id, a_text FROM things ORDER BY id"
    assert destination.query(query) == [("moved", "given"), ("new", "new")]


def _plain(side):
    url = side.engine.url
    return {
        "host": url.host, "port": url.port, "user": url.username, "password": url.password, "database": url.database,
    }  # fmt: skip


@MARIADB
def test_a_destination_that_takes_smaller_requests_is_refused(sides, mariadb_server):
    """A row near the source's limit would end the copy's session, at each try again."""
    source, destination = sides
    with source.engine.connect() as connection:
        usual = connection.exec_driver_sql("SELECT @@GLOBAL.max_allowed_packet").scalar_one()
        connection.exec_driver_sql(f"SET GLOBAL max_allowed_packet = {usual // 2}")
    destination.engine.dispose()  # a session keeps the limit that it began with
    try:
        assert f"max_allowed_packet is {usual // 2:,}" in only_reason(unfit(source.engine, destination.engine, KINDS))
    finally:
        with source.engine.connect() as connection:
            connection.exec_driver_sql(f"SET GLOBAL max_allowed_packet = {usual}")
