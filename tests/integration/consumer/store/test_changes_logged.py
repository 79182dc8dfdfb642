"""While a lane is logged, whatever changes a row of its slot says so in the same transaction; on every kind of database."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from arrival_kit import Database
from products_kit import PRODUCTS, empty_database

from shardctl.fleet.keyspace import SlotSet
from shardctl.shard import changes, database, lanes, schema
from shardctl.shard import parked as people
from shardctl.shard.changes import Change

pytestmark = pytest.mark.slow
TYPES = """
  step:
    table: steps
    key: id
    routing_key: entity
    operation: insert
    on_poison: park
    columns: {id: text, entity: text, number: integer}
  reading:
    table: readings
    key: [sensor, at, level]
    columns: {sensor: text, at: timestamp, level: decimal, value: number}
  switch:
    table: switches
    key: [id, is_on, part]
    routing_key: name
    columns: {id: bigint, is_on: boolean, part: number, name: text}
"""
KEYS = {
    "steps": ("id",),
    "readings": ("sensor", "at", "level"),
    "switches": ("id", "is_on", "part"),
    "shardctl_inbox": ("identity",),
    "shardctl_parked_keys": ("message_type", "partition_key"),
    "shardctl_parked": ("message_type", "partition_key"),
}


@pytest.fixture(params=PRODUCTS)
def shard(request):
    with empty_database(request, request.param) as url, closing(Database(url, TYPES)) as made:
        yield made


def begin(shard):
    with database.writing(shard.engine) as connection:
        lanes.begin_logs(connection, SlotSet.of(range(64)), 1)


def place_of(table, key):
    """One text for a row's place, whichever way its database hands out the key."""
    return json.dumps([table, *map(key_text, key)])


def key_text(value):
    if isinstance(value, datetime):
        value = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        return value.isoformat(" ", "microseconds")
    if isinstance(value, UUID):
        return value.hex
    if isinstance(value, bytes):
        try:
            return value.decode("ascii")  # MariaDB's texts
        except UnicodeDecodeError:
            return value.hex()
    try:
        return float(value)
    except ValueError:
        return str(value)


def contents(shard):
    """Every row, by table and key."""
    rows_by_place = {}
    for table, key in KEYS.items():
        with shard.engine.connect() as connection:
            for row in connection.exec_driver_sql(f"SELECT * FROM {table}").mappings():
                place = place_of(table, [row[column] for column in key])
                rows_by_place.setdefault(place, []).append(sorted((name, repr(value)) for name, value in row.items()))
    return rows_by_place


def log(shard):
    rows = shard.rows("SELECT table_name, " + shard.dialect.quote("key") + " FROM shardctl_changes")
    places = set()
    for table, key in rows:
        both = (table, "shardctl_parked") if table == "shardctl_parked_keys" else (table,)
        places |= {place_of(name, json.loads(key)) for name in both}
    return places


@pytest.fixture
def logging(shard):
    """Does something, and asks whether all that has changed was logged."""
    begin(shard)

    def do(what, least=1):
        shard.run("DELETE FROM shardctl_changes")
        before = contents(shard)
        result = what()
        after = contents(shard)
        changed = {place for place in before.keys() | after.keys() if before.get(place) != after.get(place)}
        assert len(changed) >= least
        assert changed <= log(shard)
        return result

    return do


def step(shard, entity, number, *, bad=False):
    ident = f"{entity}/{number}"
    return shard.arrive(
        "step", {"id": "taken" if bad else ident, "entity": entity, "number": number}, entity, ident=ident
    )


def test_rows_and_inbox_rows(shard, logging):
    def write(kind, body, key, operation):
        return lambda: shard.settle(shard.arrive(kind, body, key, operation))

    reading = {"sensor": "s", "at": "2026-01-02T03:04:05.678+01:00", "level": 1.5, "value": 2.25}
    logging(write("reading", reading, "s", "upsert"), 2)
    logging(write("reading", {**reading, "value": 3}, "s", "update"), 2)
    logging(write("reading", {"sensor": "s", "at": "2026-01-02T02:04:05.678Z", "level": 1.50}, "s", "delete"), 2)
    logging(write("switch", {"id": 1 << 60, "is_on": True, "part": 0.1, "name": "é"}, "é", "insert"), 2)
    logging(write("step", {"id": 'a "b\\', "entity": "é'", "number": 1}, "é'", "insert"), 2)


def test_dead_and_parked_messages_and_their_release(shard, logging):
    logging(lambda: shard.settle(step(shard, "other", 0), shard.arrive("reading", b"{", "s")), 3)
    shard.run("UPDATE steps SET id = 'taken'")
    logging(lambda: shard.settle(*(step(shard, "k", n, bad=n == 2) for n in (1, 2, 3))), 6)
    logging(lambda: shard.settle(step(shard, "k", 4)), 2)
    logging(shard.release, 0)  # it fails again
    shard.run("DELETE FROM steps WHERE id = 'taken'")
    logging(shard.release, 6)


@pytest.mark.parametrize("every", [False, True])
def test_what_a_person_does_about_parked_keys(shard, logging, every):
    shard.settle(step(shard, "other", 0))
    shard.run("UPDATE steps SET id = 'taken'")
    shard.settle(*(step(shard, "k", n, bad=n == 1) for n in (1, 2, 3)))
    with database.snapshot(shard.engine) as connection:
        [key] = people.keys(connection, "s0")

    def by_a_person(act):
        with database.writing(shard.engine) as connection:
            return act(connection, key)

    logging(lambda: by_a_person(people.replay))
    logging(lambda: by_a_person(lambda *its: people.drop(*its, every=every)), 2)


def test_what_is_not_logged_costs_no_statement_and_leaves_no_trace(shard):
    shard.settle(step(shard, "k", 1))
    assert log(shard) == set()
    begin(shard)
    shard.settle(step(shard, "k", 2))
    assert len(log(shard)) == 2
    with database.writing(shard.engine) as connection:
        lanes.end_logs(connection)
    shard.settle(step(shard, "k", 3))
    assert len(log(shard)) == 2
    changes.empty(shard.engine)
    assert log(shard) == set()


def test_a_log_for_the_way_back_ends_once_it_has_outgrown_its_room(shard):
    """And what it left is deleted, though another slot is logged."""
    with database.writing(shard.engine) as connection:
        lanes.take_fence_alone(connection)
        its = schema.lanes.update().where(schema.lanes.c.slot.in_((1, 2)), schema.lanes.c.generation == 1)
        connection.execute(its.values(log=lanes.log_since(1_000), barrier_time_us=1_000))
        changes.record(connection, [changes.of_routing_key(1, str(number)) for number in range(30)])
        changes.record(connection, [changes.of_routing_key(2, "k")])
    with database.writing(shard.engine) as connection:
        assert changes.outgrown(connection, lanes.logged_for_the_way_back(connection), most=1_000) == []
        assert changes.outgrown(connection, lanes.logged_for_the_way_back(connection), most=30) == [1]
        assert lanes.end_logs_for_the_way_back(connection, [1]) == 1
        assert lanes.logged_for_the_way_back(connection) == [2]
    with database.writing(shard.engine) as connection:
        assert (changes.delete_some(connection), changes.most_rows(connection)) == (30, 1)


def test_a_transaction_that_began_before_the_log_has_committed_when_it_begins(shard):
    """Else its rows are neither in a snapshot that is taken next nor in the log."""
    if "sqlite" in str(shard.url):
        pytest.skip("has one writer at a time")
    from threading import Thread

    from patience import PATIENCE_SECONDS

    with shard.engine.begin() as connection:
        shard.store._fence.share(connection)
        thread = Thread(target=begin, args=(shard,))
        thread.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted" if "postgres" in str(shard.url) else None
        deadline = datetime.now(UTC) + timedelta(seconds=PATIENCE_SECONDS)
        while waiting and shard.rows(waiting)[0][0] == 0:
            assert datetime.now(UTC) < deadline
        assert shard.rows("SELECT count(*) FROM shardctl_lanes WHERE log IS NOT NULL") == [(0,)]
    thread.join()
    assert shard.rows("SELECT count(*) FROM shardctl_lanes WHERE log IS NOT NULL") == [(64,)]


def test_many_changes_go_in_as_many_statements_as_it_takes(shard):
    begin(shard)
    wide = "x" * 1_000
    with database.writing(shard.engine) as connection:
        changes.record(connection, [Change(1, "steps", (f"{wide}{n}",)) for n in range(1_000)])
    assert shard.rows("SELECT count(*) FROM shardctl_changes") == [(1_000,)]
