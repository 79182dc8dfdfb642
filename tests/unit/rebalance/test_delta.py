"""A copy that is brought up to date by the source's log is the source's slot, whatever changed meanwhile; on SQLite."""

from __future__ import annotations

import pytest
from delta_kit import KINDS, SLOT, Changing, base, catch_up, differences, sides
from sqlalchemy import delete

from shardctl.rebalance.rows.delta import Log, apply_delta, read_log
from shardctl.rebalance.rows.tables import slot_tables
from shardctl.rebalance.rows.tracking import untracked
from shardctl.shard import database, schema


@pytest.fixture
def pair(tmp_path):
    made = sides(*(f"sqlite:///{tmp_path}/{name}.db" for name in ("source", "destination")))
    yield made
    for side in made:
        side.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_round_by_round_the_copy_becomes_the_source(pair, seed):
    source, destination = pair
    writes = Changing(source, seed)
    writes.many(40)
    base(source, destination)
    assert not differences(source, destination)
    for _ in range(4):
        writes.many(15)
        catch_up(source, destination)
        assert not differences(source, destination)


def test_a_delta_that_comes_again_changes_nothing(pair):
    """As after a crash between the commit at the destination and the deletion of what was read."""
    source, destination = pair
    writes = Changing(source, 1)
    writes.many(40)
    base(source, destination)
    writes.many(20)
    catch_up(source, destination, forget=False)
    writes.many(20)
    log = catch_up(source, destination)
    assert not differences(source, destination)
    with database.snapshot(source.engine) as out:
        assert read_log(out, SLOT, 0, 99) == Log()
    assert len(set(log.positions)) == len(log.positions) > 20


def test_a_position_is_given_out_once(pair):
    """A reader of a change deletes it by its position, perhaps when the log has long been emptied and begun again."""
    source, _ = pair
    writes = Changing(source, 1)
    writes.many(10)
    with database.writing(source.engine) as connection:
        first = read_log(connection, SLOT, 0, 99).positions
        connection.execute(delete(schema.changes))
    writes.many(10)
    with database.snapshot(source.engine) as connection:
        assert not set(first) & set(read_log(connection, SLOT, 0, 99).positions)


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_delta_that_misses_a_change_is_found_by_these_tests(pair, part):
    """The mutants: it misses a deletion, an insertion, or all of a table."""
    source, destination = pair
    writes = Changing(source, 2)
    writes.many(80)
    base(source, destination)
    writes.many(80)
    with database.writing(destination.engine) as into, database.snapshot(source.engine) as out:
        log = read_log(out, SLOT, 0, 999)
        there = {row[0] for row in out.exec_driver_sql("SELECT id FROM things WHERE slot = 5")}
        keys = {
            0: {**log.keys, "things": [key for key in log.keys["things"] if key[2:-2] in there]},
            1: {**log.keys, "things": [key for key in log.keys["things"] if key[2:-2] not in there]},
            2: {table: its for table, its in log.keys.items() if table != "shardctl_inbox"},
        }[part]
        assert keys != log.keys
        apply_delta(out, into, KINDS, SLOT, Log(log.positions, keys))
    assert differences(source, destination)


def test_the_log_has_every_change_of_these_tables(pair):
    with database.snapshot(pair[0].engine) as out:
        assert list(untracked(out, slot_tables(out, KINDS))) == []


UNTRACKED = {
    "a trigger that writes to another table": (
        "CREATE TRIGGER t AFTER INSERT ON things BEGIN UPDATE a_orders SET note = 'x' WHERE id = new.id; END",
        "table things: its trigger t names a_orders",
    ),
    "a unique value that another slot may take": (
        "CREATE UNIQUE INDEX u ON a_orders (note)",
        "table a_orders: values that are unique in note may pass from one slot to another",
    ),
}


@pytest.mark.parametrize("columns", ["note, id", "slot, note"])
def test_values_that_are_unique_within_a_slot_do_no_harm(pair, columns):
    pair[0].run(f"CREATE UNIQUE INDEX u ON a_orders ({columns})")
    with database.snapshot(pair[0].engine) as out:
        assert list(untracked(out, slot_tables(out, KINDS))) == []


@pytest.mark.parametrize("case", UNTRACKED)
def test_what_the_log_may_miss_is_reported(pair, case):
    statement, message = UNTRACKED[case]
    pair[0].run(statement)
    with database.snapshot(pair[0].engine) as out:
        [reason] = untracked(out, slot_tables(out, KINDS))
    assert message in reason
