"""Deleting what moved away, and refusing what can't be moved, on SQLite."""

from __future__ import annotations

import pytest
from rowcopy_kit import FLEET, Side

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.rebalance.rows.fitness import doubts, unfit
from shardctl.rebalance.rows.removal import RemovalError, delete_slots
from shardctl.shard import schema
from shardctl.shard.schema import LaneState

LINES = FLEET.replace("note: text}", "note: text}\n    slot_tables: {a_lines: its_slot}")
LINE_TABLE = "CREATE TABLE a_lines (id TEXT PRIMARY KEY, its_slot INTEGER NOT NULL, order_id TEXT{})"


@pytest.fixture
def sides(tmp_path):
    kinds = fleet_from(parse(LINES, "test")).message_types
    made = [Side(f"sqlite:///{tmp_path}/{name}.db", kinds) for name in ("source", "destination")]
    yield made
    for side in made:
        side.close()


@pytest.fixture
def side(sides):
    sides[0].run(LINE_TABLE.format(" REFERENCES a_orders (id)"))
    return sides[0]


def fill(side):
    for slot in (5, 6, 7):
        side.thing(slot, id=f"thing {slot}")
        side.record(slot, "k1", "k2")
        side.park(slot, "k", b"1")
        side.run(f"INSERT INTO a_orders (id, slot) VALUES ('o{slot}', {slot})")
        side.run(f"INSERT INTO a_lines VALUES ('l{slot}', {slot}, 'o{slot}')")


@pytest.mark.slow
def test_all_rows_of_the_slots_go_and_no_others(side):
    fill(side)
    side.lane(5, LaneState.LEFT)
    heard = []
    assert delete_slots(side.engine, side.kinds, {5, 6, 40}, progress=heard.append) == 14
    assert sum(heard) == 14
    for table in (side.things, schema.inbox, schema.parked, schema.parked_keys):
        assert not side.rows(table, 5)
        assert side.rows(table, 7)
    assert side.query("SELECT id FROM a_lines") == [("l7",)]
    assert delete_slots(side.engine, side.kinds, {5, 6}) == 0


@pytest.mark.parametrize("state", [LaneState.ACTIVE, LaneState.DUE, LaneState.ARRIVING])
def test_rows_that_are_somebodys_stay(side, state):
    fill(side)
    side.lane(5, LaneState.LEFT, generation=1)
    side.lane(5, state, generation=2)
    with pytest.raises(RemovalError, match="slots 5 are active here, or on their way"):
        delete_slots(side.engine, side.kinds, {5})
    assert side.rows(side.things, 5)
    assert side.rows(schema.inbox, 5)


def test_rows_of_slots_that_stay_are_not_deleted_along(sides):
    side = sides[0]
    side.run(LINE_TABLE.format(" REFERENCES a_orders (id) ON DELETE CASCADE"))
    fill(side)
    side.run("UPDATE a_lines SET order_id = 'o5' WHERE its_slot = 7")
    with pytest.raises(RemovalError, match=r"rows of a_lines in slots that stay refer to rows of a_orders"):
        delete_slots(side.engine, side.kinds, {5})
    assert side.query("SELECT id FROM a_lines WHERE its_slot = 7") == [("l7",)]
    assert side.query("SELECT id FROM a_orders WHERE id = 'o5'") == [("o5",)]


# --- what can't be moved ----------------------------------------------------------------------------------------------


def test_equal_databases_are_fit(sides):
    for side in sides:
        side.run(LINE_TABLE.format(" REFERENCES a_orders (id)"), "CREATE INDEX a_lines_slot ON a_lines (its_slot)")
        fill(side)
    engines = [side.engine for side in sides]
    assert unfit(*engines, sides[0].kinds) == []
    assert doubts(*engines, sides[0].kinds) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at_source", "at_destination", "message"),
    [
        ([LINE_TABLE], [], "table a_lines is missing at the destination. `shardctl provision`"),
        ([], [LINE_TABLE], "table a_lines is missing at the source"),
        ([LINE_TABLE.replace("its_slot", "slot")], [LINE_TABLE], "table a_lines has no slot column 'its_slot'. Add it"),
        (
            [LINE_TABLE.replace("its_slot INTEGER", "its_slot TEXT")],
            [LINE_TABLE.replace("its_slot INTEGER", "its_slot TEXT")],
            "its_slot is TEXT. Make it an integer",
        ),
        ([LINE_TABLE, "ALTER TABLE a_lines ADD COLUMN x TEXT"], [LINE_TABLE], "column x is missing at the destination"),
        ([LINE_TABLE], [LINE_TABLE, "ALTER TABLE a_lines ADD COLUMN x TEXT"], "column x is missing at the source"),
        (
            [LINE_TABLE, "ALTER TABLE a_lines ADD COLUMN x TEXT"],
            [LINE_TABLE, "ALTER TABLE a_lines ADD COLUMN x TEXT AS ('y')"],
            "column x is generated at one side alone",
        ),
        (
            [LINE_TABLE, "ALTER TABLE a_lines ADD COLUMN x TEXT"],
            [LINE_TABLE, "ALTER TABLE a_lines ADD COLUMN x INTEGER"],
            "column x: TEXT can't become INTEGER",
        ),
        (
            [LINE_TABLE.replace("id TEXT PRIMARY", "id INTEGER PRIMARY")],
            [LINE_TABLE.replace("id TEXT PRIMARY", "id INTEGER PRIMARY")],
            "the database itself numbers column id",
        ),
        (
            [LINE_TABLE, "CREATE TABLE other (id TEXT, thing TEXT REFERENCES things (id))"],
            [LINE_TABLE],
            "table other refers to things, but its own rows don't belong to slots",
        ),
        (
            [LINE_TABLE, "CREATE TRIGGER t AFTER DELETE ON things BEGIN DELETE FROM a_orders; END"],
            [LINE_TABLE],
            "table things: its trigger t would run when rows that have moved away are deleted",
        ),
        (
            [
                LINE_TABLE.replace("{}", " REFERENCES a_orders (id)"),
                "INSERT INTO a_orders (id, slot) VALUES ('o', 5)",
                "INSERT INTO a_lines VALUES ('l', 6, 'o')",
            ],
            [LINE_TABLE],
            "table a_lines: rows refer to rows of a_orders in other slots",
        ),
        (
            [
                LINE_TABLE.replace("{}", " REFERENCES A_Orders (id)"),
                "INSERT INTO a_orders (id, slot) VALUES ('o', 5)",
                "INSERT INTO a_lines VALUES ('l', 6, 'o')",
            ],
            [LINE_TABLE],
            "table a_lines: rows refer to rows of a_orders in other slots",
        ),
    ],
)
def test_what_cannot_be_moved_is_reported_with_the_way_out(sides, at_source, at_destination, message):
    for side, statements in zip(sides, (at_source, at_destination), strict=True):
        side.run(*(statement.replace("{}", "") for statement in statements))
    reasons = unfit(*(side.engine for side in sides), sides[0].kinds)
    assert len(reasons) == 1, reasons
    [reason] = reasons
    assert message in reason
    assert reason.endswith(".")


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ([LINE_TABLE], "no index at the source begins with its_slot"),
        (
            ["CREATE TRIGGER t AFTER INSERT ON a_orders BEGIN SELECT 1; END", LINE_TABLE],
            "table a_orders has a trigger at the destination",
        ),
        (
            ["CREATE TRIGGER t AFTER INSERT ON A_Orders BEGIN SELECT 1; END", LINE_TABLE],
            "table a_orders has a trigger at the destination",
        ),
        (
            ["CREATE TABLE countries (id TEXT PRIMARY KEY)", LINE_TABLE.replace("{}", " REFERENCES countries (id)")],
            "table a_lines refers to countries, whose rows aren't moved",
        ),
    ],
)
def test_what_may_go_wrong_is_reported(sides, statements, message):
    for side in sides:
        side.run(*(statement.replace("{}", "") for statement in statements))
    engines = [side.engine for side in sides]
    assert unfit(*engines, sides[0].kinds) == []
    assert any(message in doubt for doubt in doubts(*engines, sides[0].kinds))
