"""The judge is judged: what is planted is found, once and by its name, and nothing else is."""

from dataclasses import replace
from typing import NamedTuple

import pytest
from sqlalchemy import create_engine, text

from tests.chaos.observed import OUTCOMES, read
from tests.chaos.oracle import Truth
from tests.chaos.plants import (
    LAYOUT,
    OPERATIONS,
    PLANTS,
    World,
    doubled_row,
    doubled_upsert_of_old,
    effect_that_vanished,
    lost_record,
    lost_row,
    swapped,
)
from tests.chaos.writes import Operation, Poison


class Witness(NamedTuple):
    entity: str
    effects: int


def test_a_fleet_without_a_fault_has_no_anomaly():
    assert World().findings() == []


def test_the_stream_has_something_of_everything():
    kinds = {(operation.type, operation.poison) for operation in OPERATIONS}
    assert {("journal", None), ("counter", None), ("journal", Poison.REFUSED)} <= kinds
    assert any(poison is Poison.MALFORMED for _, poison in kinds)
    assert World().a.journal
    assert World().b.journal


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_what_is_planted_is_found_and_nothing_else(plant):
    world = World()
    wanted = plant(world)
    assert set(world.findings()) == (wanted if isinstance(wanted, set) else {wanted})


def test_order_is_not_asked_of_those_who_did_not_keep_it():
    world = World()
    for rows in (world.a.journal, world.b.log):
        _, entity = swapped(rows)
        world.truth = replace(world.truth, unordered={*world.truth.unordered, entity})
    last = world.b.counter[0]
    before = next(line for line in world.b.log if line.entity == last.entity)
    written = next(
        operation for operation in OPERATIONS if (operation.entity, operation.number) == (before.entity, before.number)
    )
    world.b.counter[0] = replace(last, number=written.number, value=written.value)
    world.truth = replace(world.truth, unordered={*world.truth.unordered, last.entity})
    assert world.findings() == []


@pytest.mark.parametrize("plant", [lost_row, lost_record, doubled_row, doubled_upsert_of_old, effect_that_vanished])
def test_what_is_lost_or_doubled_is_found_without_order_too(plant):
    world = World()
    anomaly, entity = plant(world)
    world.truth = replace(world.truth, unordered={operation.entity for operation in OPERATIONS})
    assert (anomaly, entity) in world.findings()


def test_a_write_that_was_never_acknowledged_may_be_there_or_not():
    world = World()
    row = world.pop_last(world.a)
    key = Operation(row.entity, row.number, "journal", 0).key
    world.truth = Truth(OPERATIONS, world.truth.acked - {key})
    assert world.findings() == []


def _stored(row, name):
    if name == "identity":
        return (int(row.key, 16) ^ row.slot).to_bytes(len(row.key) // 2)
    if name == "outcome":
        return next(code for code, outcome in OUTCOMES.items() if outcome == row.outcome)
    return getattr(row, name)


def test_rows_are_read_from_every_database(tmp_path):
    urls = {shard: f"sqlite:///{tmp_path / shard}.db" for shard in LAYOUT.shards}
    world = World()
    for database in world.databases.values():
        database.inbox[:] = [replace(record, key=record.key.encode().hex()) for record in database.inbox]
    for shard, url in urls.items():
        engine = create_engine(url)
        with engine.begin() as connection:
            for table, columns, rows in (
                ("journal", "entity, number, value, slot, position", world.databases[shard].journal),
                ("counter", "entity, number, value, slot, position", world.databases[shard].counter),
                ("counter_log", "entity, number, position", world.databases[shard].log),
                ("shardctl_inbox", "slot, identity, outcome", world.databases[shard].inbox),
                ("witness", "entity, effects", [Witness(*effect) for effect in world.databases[shard].effects.items()]),
            ):
                connection.execute(text(f"CREATE TABLE {table} ({columns})"))
                names = [name.strip() for name in columns.split(",")]
                values = [{name: _stored(row, name) for name in names} for row in rows]
                connection.execute(
                    text(f"INSERT INTO {table} VALUES ({', '.join(f':{name}' for name in names)})"), values
                )
        engine.dispose()
    assert read(urls) == world.databases
