"""What a copy of rows wouldn't see is refused beforehand, or copied."""

from __future__ import annotations

import pytest
from rowcopy_kit import KINDS, copy
from rowcopy_places import POSTGRES, PRODUCTS, places, sides

from shardctl.rebalance.rows.fitness import unfit
from shardctl.rebalance.rows.removal import RemovalError, delete_slots
from shardctl.rebalance.rows.shape import SlotTableError

pytestmark = pytest.mark.slow
__all__ = ["places", "sides"]

MARIADB = pytest.mark.parametrize("sides", [("mariadb", "mariadb")], ids=["mariadb"], indirect=True)


def only_reason(reasons):
    (reason,) = reasons
    return reason


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_view_is_refused(places, product):
    source, destination = places.side(product), places.side(product)
    for side in (source, destination):
        side.run("DROP TABLE a_orders", "CREATE TABLE hidden (id text, note text, slot int)")
        side.run("CREATE VIEW a_orders AS SELECT id, note, slot FROM hidden WHERE note IS NULL")
    assert "a_orders is a view or a foreign table" in only_reason(unfit(source.engine, destination.engine, KINDS))


@POSTGRES
def test_columns_of_heirs_are_not_lost(sides):
    source, destination = sides
    for side in sides:
        side.run("CREATE TABLE heir (precious text) INHERITS (things)")
    source.run("INSERT INTO heir (id, slot, precious) VALUES ('h', 5, 'x')")
    message = "table things: heir inherit from it"
    assert only_reason(unfit(source.engine, destination.engine, KINDS)).startswith(message)
    with pytest.raises(RemovalError, match=message):  # should one have come since
        delete_slots(source.engine, KINDS, {5})
    for side in sides:
        side.run("ALTER TABLE heir NO INHERIT things")
    assert unfit(source.engine, destination.engine, KINDS) == []


@POSTGRES
def test_large_objects_are_not_left_behind(sides):
    for side in sides:
        side.run("ALTER TABLE things ADD photo oid")
    assert "column photo is oid, which names a large object" in only_reason(
        unfit(*(side.engine for side in sides), KINDS)
    )


@MARIADB
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ADD SYSTEM VERSIONING", "table things is system-versioned, and the history of its rows would stay behind"),
        (
            (
                "ADD begun timestamp(6) GENERATED ALWAYS AS ROW START INVISIBLE, "
                "ADD ended timestamp(6) GENERATED ALWAYS AS ROW END INVISIBLE, ADD PERIOD FOR SYSTEM_TIME (begun, ended), "
                "ADD SYSTEM VERSIONING"
            ),
            "table things is system-versioned",
        ),
        ("ENGINE = Aria", "table things: its engine Aria has no transactions"),
    ],
    ids=["system-versioned", "with columns", "no transactions"],
)
def test_tables_of_mariadb_that_are_more_than_their_rows_are_refused(sides, change, message):
    for side in sides:
        side.run(f"ALTER TABLE things {change}")
    assert only_reason(unfit(*(side.engine for side in sides), KINDS)).startswith(message)


@MARIADB
def test_invisible_columns_are_copied(sides):
    source, destination = sides
    for side in sides:
        side.run(
            "ALTER TABLE things ADD seen int, ADD unseen int INVISIBLE DEFAULT 1, ADD made int AS (unseen + 1) STORED INVISIBLE, "
            "ADD virtual int AS (unseen + 2) VIRTUAL INVISIBLE"
        )
    source.thing()
    source.run("UPDATE things SET unseen = 7")
    assert unfit(source.engine, destination.engine, KINDS) == []
    copy(source, destination)
    assert destination.query("SELECT unseen, made, virtual FROM things") == [(7, 8, 9)]
    source.run("ALTER TABLE things ADD later int INVISIBLE")
    with pytest.raises(SlotTableError, match="table things: its columns have changed"):
        copy(source, destination)


@POSTGRES
def test_generated_identity_and_dropped_columns_leave_nothing_out(sides):
    source, destination = sides
    for number, side in enumerate(sides):
        side.run(
            *["ALTER TABLE things ADD gone int", "ALTER TABLE things DROP gone"] * number,
            "ALTER TABLE things ADD twice int GENERATED ALWAYS AS (an_integer * 2) STORED, "
            "ADD counted int GENERATED ALWAYS AS IDENTITY",
        )
    destination.thing(slot=6, id="first", an_integer=1)
    source.thing(an_integer=21)
    source.run("ALTER TABLE things DROP a_text, ADD a_text text DEFAULT 'again'")
    assert unfit(source.engine, destination.engine, KINDS) == []
    copy(source, destination)
    query = "SELECT id, an_integer, twice, counted, a_text FROM things WHERE slot = 5"
    assert destination.query(query) == source.query(query) == [("a", 21, 42, 1, "again")]


@pytest.mark.parametrize("product", PRODUCTS)
def test_columns_that_are_generated_otherwise_are_refused(places, product):
    source, destination = places.side(product), places.side(product)
    stored = "STORED" if product != "sqlite" else "VIRTUAL"
    for factor, side in enumerate((source, destination)):
        side.run(f"ALTER TABLE things ADD made int GENERATED ALWAYS AS (an_integer * {factor + 2}) {stored}")
    reason = only_reason(unfit(source.engine, destination.engine, KINDS))
    assert reason.startswith("table things: column made is generated as ")
