"""Copying a slot between SQLite databases: everything comes over, nothing else is touched, and what went wrong is reported."""

from __future__ import annotations

import pytest
from rowcopy_kit import FLEET, Side, copy
from sqlalchemy import event, text

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.rebalance.rows import transfer
from shardctl.rebalance.rows.rowcopy import CopyCancelledError, CopyError, CopyMismatchError
from shardctl.rebalance.rows.shape import SlotTableError
from shardctl.rebalance.rows.tables import named, row_counts
from shardctl.shard import database, schema
from shardctl.shard.database import DatabaseError
from shardctl.shard.schema import LaneState

LINES = FLEET.replace("note: text}", "note: text}\n    slot_tables: {a_lines: its_slot}")


@pytest.fixture
def sides(tmp_path):
    made = [Side(f"sqlite:///{tmp_path}/{name}.db") for name in ("source", "destination")]
    yield made
    for side in made:
        side.close()


@pytest.fixture
def with_lines(tmp_path):
    """Two tables whose names sort against their foreign key, one of them only named under slot_tables."""
    kinds = fleet_from(parse(LINES, "test")).message_types
    made = [Side(f"sqlite:///{tmp_path}/{name}.db", kinds) for name in ("source", "destination")]
    for side in made:
        side.run(
            "CREATE TABLE a_lines (id TEXT PRIMARY KEY, its_slot INTEGER NOT NULL, order_id TEXT REFERENCES a_orders (id))"
        )
    yield made
    for side in made:
        side.close()


def test_rows_inbox_and_parked_messages_come_over(sides):
    source, destination = sides
    source.thing(id="a")
    source.thing(id="b", **dict.fromkeys(("an_integer", "a_number", "a_decimal", "a_time", "a_json", "a_text")))
    source.record(5, "k1", "k2")
    source.park(5, "ä", b"\x00\xff", b"{}")
    copied = copy(source, destination)
    assert dict(copied.rows) == {
        "things": 2, "a_orders": 0, "shardctl_inbox": 2, "shardctl_parked_keys": 1, "shardctl_parked": 2,
    }  # fmt: skip
    assert copied.total_rows == 7
    assert copied.bytes > 100
    for table in (source.things, schema.inbox, schema.parked_keys):
        assert destination.rows(table) == source.rows(table)


def test_several_slots_take_as_many_statements_as_one(sides):
    source, destination = sides
    for slot in range(20):
        source.thing(slot, id=f"a{slot}")
        source.record(slot, "k")
    copy(source, destination, 0)  # which also looks at the tables, once
    statements = []
    for side in sides:
        event.listen(side.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    copy(source, destination, 1)
    alone = len(statements)
    copy(source, destination, *range(2, 20))
    assert len(statements) == 2 * alone
    assert [len(destination.rows(source.things, slot)) for slot in range(20)] == [1] * 20


def test_of_several_slots_a_change_on_the_way_to_one_is_found(sides):
    source, destination = sides
    for slot in (5, 6):
        source.thing(slot, id=f"a{slot}")
    destination.run(
        "CREATE TRIGGER planted AFTER INSERT ON things WHEN new.slot = 6 BEGIN DELETE FROM things WHERE id = new.id; END"
    )
    with pytest.raises(CopyMismatchError, match=r"table things, slots 5-6: 2 rows were read and 1 are stored"):
        copy(source, destination, 5, 6)


def test_other_slots_and_the_source_stay_as_they_are(sides):
    source, destination = sides
    for side in sides:
        side.thing(id=f"five {side is source}")
        side.thing(6, id=f"six {side is source}")
    before = source.rows(source.things), destination.rows(destination.things, 6)
    copy(source, destination)
    assert (source.rows(source.things), destination.rows(destination.things, 6)) == before


def test_what_the_slot_had_left_at_the_destination_goes(sides):
    source, destination = sides
    destination.thing(id="old")
    destination.thing(id="same", a_text="old")
    destination.record(5, "old")
    destination.park(5, "old", b"1")
    source.thing(id="same", a_text="new")
    copy(source, destination)
    assert [(row["id"], row["a_text"]) for row in destination.rows(destination.things)] == [("same", "new")]
    assert not destination.rows(schema.inbox)
    assert not destination.rows(schema.parked)
    assert not destination.rows(schema.parked_keys)


def test_copying_again_changes_nothing(sides):
    source, destination = sides
    source.thing()
    source.park(5, "k", b"1", b"2")
    first = copy(source, destination)
    assert copy(source, destination) == first
    assert destination.rows(destination.things) == source.rows(source.things)


def test_parked_messages_keep_their_order_and_get_positions_of_their_own(sides):
    source, destination = sides
    destination.park(6, "other", b"x")
    source.park(5, "b", b"0", b"1")
    source.park(5, "a", b"2", b"3")
    copy(source, destination)
    rows = sorted(destination.rows(schema.parked), key=lambda row: row["position"])
    assert [row["body"] for row in rows] == [b"0", b"1", b"2", b"3"]
    assert rows[0]["position"] > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        ("AFTER INSERT ON things BEGIN UPDATE things SET a_text = 'x' WHERE id = new.id; END", "not all as they were"),
        ("BEFORE INSERT ON things BEGIN SELECT RAISE (IGNORE); END", "2 rows were read and 0 are stored"),
        (
            "AFTER INSERT ON things WHEN new.id = 'a' BEGIN INSERT INTO things (id, slot) VALUES ('c', 5); END",
            "2 rows were read and 3 are stored",
        ),
    ],
)
def test_a_row_that_is_changed_dropped_or_added_on_the_way_is_found(sides, trigger, message):
    source, destination = sides
    source.thing(id="a")
    source.thing(id="b")
    destination.run(f"CREATE TRIGGER planted {trigger}")
    with pytest.raises(CopyMismatchError, match=f"table things, slot 5: .*{message}") as caught:
        copy(source, destination)
    assert (caught.value.table, caught.value.slots, caught.value.sent.rows) == ("things", (5,), 2)
    assert not destination.rows(destination.things)


def test_parked_messages_in_another_order_are_found(sides, monkeypatch):
    source, destination = sides
    source.park(5, "k", b"1", b"2")
    insert = transfer._insert
    monkeypatch.setattr(transfer, "_insert", lambda connection, sql, rows: insert(connection, sql, rows[::-1]))
    with pytest.raises(CopyMismatchError, match="shardctl_parked"):
        copy(source, destination)


def test_columns_outside_the_file_are_copied_and_generated_ones_are_computed_again(sides):
    source, destination = sides
    for side in sides:
        side.run("ALTER TABLE things ADD COLUMN extra BLOB")
        side.run("ALTER TABLE things ADD COLUMN loud TEXT GENERATED ALWAYS AS (upper(a_text)) VIRTUAL")
    source.thing(a_text="quiet")
    source.run("UPDATE things SET extra = x'00ff'")
    copy(source, destination)
    assert destination.query("SELECT extra, loud FROM things") == [(b"\x00\xff", "QUIET")]


def test_a_column_added_after_the_first_slot_does_not_stay_behind(sides):
    source, destination = sides
    source.thing()
    copy(source, destination)
    source.run("ALTER TABLE things ADD COLUMN extra TEXT")
    with pytest.raises(SlotTableError, match="table things: its columns have changed"):
        copy(source, destination)


def test_a_column_missing_at_the_destination_is_reported(sides):
    source, destination = sides
    source.run("ALTER TABLE things ADD COLUMN extra TEXT")
    with pytest.raises(SlotTableError, match="no column extra at the destination"):
        copy(source, destination)


def test_parents_come_before_children_and_go_after_them(with_lines):
    source, destination = with_lines
    for side, order in ((source, "new"), (destination, "old")):
        side.run(
            f"INSERT INTO a_orders (id, slot) VALUES ('{order}', 5)", f"INSERT INTO a_lines VALUES ('l', 5, '{order}')"
        )
    assert copy(source, destination).rows["a_lines"] == 1
    assert destination.query("SELECT l.id, o.id FROM a_lines l JOIN a_orders o ON o.id = l.order_id") == [("l", "new")]


def test_tables_that_refer_to_each_other_come_over(with_lines):
    source, destination = with_lines
    for side in with_lines:
        side.run("ALTER TABLE a_orders ADD COLUMN first_line TEXT REFERENCES a_lines (id)")
    source.run(
        "INSERT INTO a_orders (id, slot) VALUES ('o', 5)",
        "INSERT INTO a_lines VALUES ('l', 5, 'o')",
        "UPDATE a_orders SET first_line = 'l'",
    )
    for _ in range(2):  # the second time over what the first has left
        copy(source, destination)
    assert destination.query("SELECT first_line FROM a_orders") == [("l",)]


def test_a_row_whose_parent_did_not_come_is_refused(with_lines):
    source, destination = with_lines
    source.run("INSERT INTO a_orders (id, slot) VALUES ('o', 6)", "INSERT INTO a_lines VALUES ('l', 5, 'o')")
    with pytest.raises(DatabaseError, match=r"destination\.db: FOREIGN KEY"):
        copy(source, destination)


def test_a_large_slot_comes_in_chunks_and_can_be_stopped_between_them(sides, monkeypatch):
    source, destination = sides
    monkeypatch.setattr(transfer, "ROWS_AT_ONCE", 10)
    source.record(5, *(f"k{number}" for number in range(95)))
    asked = []
    copied = copy(source, destination, cancelled=lambda: asked.append(1))
    assert (copied.rows["shardctl_inbox"], len(asked)) == (
        95,
        9 + 9,
    )  # while they are stored and while they are read back
    destination.clear()
    asked.clear()
    with pytest.raises(CopyCancelledError, match="slot 5: stopped"):
        copy(source, destination, cancelled=lambda: asked.append(1) or len(asked) == 4)
    assert len(asked) == 4
    assert not destination.rows(schema.inbox)


@pytest.mark.parametrize("side", [0, 1], ids=["source", "destination"])
def test_a_slot_that_is_written_to_is_not_copied(sides, side):
    sides[side].lane(5, LaneState.ACTIVE)
    with pytest.raises(CopyError, match="slot 5 is active at the"):
        copy(*sides)


@pytest.mark.parametrize("state", [LaneState.ARRIVING, LaneState.DUE, LaneState.LEFT])
def test_a_slot_that_nobody_writes_to_is_copied(sides, state):
    source, destination = sides
    source.lane(5, LaneState.LEFT)
    destination.lane(5, state)
    destination.lane(6, LaneState.ACTIVE)
    copy(source, destination)


def test_values_that_python_would_call_equal_are_distinguished(sides):
    """SQLite holds 1, 1.0 and '1' in one column; each must stay what it is."""
    source, destination = sides
    for number, value in enumerate(("1", "1.5", "'1x'", "x'31'", "NULL", "9007199254740993", "1e300", "''")):
        source.run(f"INSERT INTO things (id, slot, a_number) VALUES ('{number}', 5, {value})")
    copy(source, destination)
    query = "SELECT id, typeof(a_number), quote(a_number) FROM things ORDER BY id"
    assert destination.query(query) == source.query(query)


def test_rows_are_counted_by_slot_over_all_tables(sides):
    source, _ = sides
    source.thing(5)
    source.thing(7, id="b")
    source.record(5, "k")
    source.park(5, "k", b"1", b"2")
    with database.snapshot(source.engine) as connection:
        assert row_counts(connection, source.kinds) == {5: 5, 7: 1}


def test_two_types_with_another_slot_column_each_for_one_table_are_refused():
    text_of = FLEET.replace("note: text}", "note: text}\n    slot_tables: {things: other}")
    with pytest.raises(
        SlotTableError, match="table things: one message type has its slot in 'slot', another in 'other'"
    ):
        named(fleet_from(parse(text_of, "test")).message_types)


def test_a_missing_table_is_reported(sides):
    sides[0].run("DROP TABLE things")
    with pytest.raises(SlotTableError, match=r"no table things\. `shardctl provision`"):
        copy(*sides)


# --- the engine -------------------------------------------------------------------------------------------------------


def test_a_snapshot_sees_nothing_that_commits_later_and_cannot_write(sides):
    side = sides[0]
    with database.snapshot(side.engine) as view:
        side.thing()
        assert view.execute(text("SELECT count(*) FROM things")).scalar() == 0
        with pytest.raises(Exception, match="readonly"):
            view.execute(text("DELETE FROM things"))
    assert len(side.rows(side.things)) == 1


def test_a_transaction_that_fails_leaves_nothing(sides):
    side = sides[0]
    with pytest.raises(DatabaseError, match="nowhere"):
        side.run("INSERT INTO things (id, slot) VALUES ('a', 5)", "INSERT INTO nowhere DEFAULT VALUES")
    assert not side.rows(side.things)


def test_of_two_databases_in_one_block_the_one_that_refused_is_named(sides):
    source, other = sides
    with (
        pytest.raises(DatabaseError, match=r"source\.db: no such table: nowhere"),
        database.writing(source.engine) as connection,
        database.snapshot(other.engine),
    ):
        connection.execute(text("SELECT * FROM nowhere"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@127.0.0.1:1/x",
        "postgresql://me:hunter2@127.0.0.1:1,127.0.0.1:2/x",
        "mysql://me:hunter2@127.0.0.1:1/x",
        "oracle://me:hunter2@127.0.0.1/x",
        "no url hunter2",
    ],
)
def test_no_error_shows_a_password(url):
    with pytest.raises(DatabaseError) as caught, database.writing(database.connect(url)):
        pass
    assert "hunter2" not in str(caught.value)
