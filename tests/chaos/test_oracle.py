"""The judge is judged: what is planted is found, once and by its name, and nothing else is."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from sqlalchemy import create_engine, text

from tests.chaos.oracle import Anomaly, Database, Layout, Line, Observed, Record, Row, Truth, judge, read
from tests.chaos.writes import Operation, Poison, Stream

LAYOUT = Layout(4, {"a": ((0, 5), (8, 9)), "b": ((6, 7), (10, 15))})
OPERATIONS = [operation for operation, duplicate in Stream(seed=5, producer=0, operations=600) if not duplicate]


class World:
    """What a fleet without a fault leaves behind, to be spoilt."""

    def __init__(self) -> None:
        self.truth = Truth(OPERATIONS, {operation.key for operation in OPERATIONS})
        self.databases = {shard: Database() for shard in LAYOUT.shards}
        self.dead: dict[str, str] = {}
        self.backlog: dict[str, int] = {}
        counters: dict[str, Row] = {}
        for position, operation in enumerate(OPERATIONS):
            slot = LAYOUT.slot(operation.entity)
            database = self.databases[LAYOUT.shard(slot)]
            database.inbox.append(Record(slot, operation.key, "dead" if operation.poison else "applied"))
            row = Row(operation.entity, operation.number, operation.value, slot)
            if operation.poison:
                self.dead[operation.key] = "on purpose"
            elif operation.type == "journal":
                database.journal.append(replace(row, position=position))
            else:
                counters[operation.entity] = row
                database.log.append(Line(operation.entity, operation.number, position))
        for row in counters.values():
            self.databases[LAYOUT.shard(row.slot)].counter.append(row)

    @property
    def a(self) -> Database:
        return self.databases["a"]

    @property
    def b(self) -> Database:
        return self.databases["b"]

    def findings(self) -> list[tuple[Anomaly, str]]:
        observed = Observed(self.databases, self.dead, self.backlog)
        return [(finding.anomaly, finding.entity) for finding in judge(self.truth, observed, LAYOUT)]


def test_a_fleet_without_a_fault_has_no_anomaly():
    assert World().findings() == []


def test_the_stream_has_something_of_everything():
    kinds = {(operation.type, operation.poison) for operation in OPERATIONS}
    assert {("journal", None), ("counter", None), ("journal", Poison.REFUSED)} <= kinds
    assert any(poison is Poison.MALFORMED for _, poison in kinds)
    assert World().a.journal
    assert World().b.journal


Plant = Callable[[World], tuple[Anomaly, str]]


def lost_row(world: World):
    return Anomaly.LOST, world.a.journal.pop(7).entity


def lost_record(world: World):
    record = world.a.inbox.pop(7)
    return Anomaly.LOST, record.key.partition("#")[0]


def lost_last_upsert(world: World):
    row = next(row for row in world.b.counter if len([line for line in world.b.log if line.entity == row.entity]) > 1)
    lines = [line for line in world.b.log if line.entity == row.entity]
    before = next(op for op in OPERATIONS if (op.entity, op.number) == (row.entity, lines[-2].number))
    world.b.counter[world.b.counter.index(row)] = replace(row, number=before.number, value=before.value)
    world.b.log.remove(lines[-1])
    return Anomaly.LOST, row.entity


def lost_dead_letter(world: World):
    key, _ = world.dead.popitem()
    return Anomaly.LOST, key.partition("#")[0]


def good_write_given_up(world: World):
    operation = next(operation for operation in OPERATIONS if not operation.poison)
    world.dead[operation.key] = "by mistake"
    return Anomaly.LOST, operation.entity


def doubled_row(world: World):
    row = world.a.journal[7]
    world.a.journal.append(row)
    return Anomaly.DUPLICATED, row.entity


def doubled_upsert(world: World):
    entity = world.a.log[-1].entity
    last = max((line for line in world.a.log if line.entity == entity), key=lambda line: line.position)
    world.a.log.append(replace(last, position=10_000))
    return Anomaly.DUPLICATED, entity


def doubled_record(world: World):
    record = world.a.inbox[7]
    world.a.inbox.append(record)
    return Anomaly.DUPLICATED, record.key.partition("#")[0]


def delayed(rows):
    """Let the first of an entity that has several take effect behind all the others."""
    first = next(row for row in rows if len([other for other in rows if other.entity == row.entity]) > 1)
    rows[rows.index(first)] = replace(first, position=first.position + 10_000)
    return Anomaly.REORDERED, first.entity


def swapped_rows(world: World):
    return delayed(world.b.journal)


def swapped_upserts(world: World):
    """The last value is right: only the log tells."""
    return delayed(world.b.log)


def swapped_between_tables(world: World):
    """Each table by itself is in order."""
    for one, two in pairwise(OPERATIONS):
        if one.entity != two.entity or one.poison or two.poison or (one.type, two.type) != ("journal", "counter"):
            continue
        database = world.databases[LAYOUT.shard(LAYOUT.slot(one.entity))]
        row = next(row for row in database.journal if (row.entity, row.number) == (one.entity, one.number))
        line = next(line for line in database.log if (line.entity, line.number) == (two.entity, two.number))
        database.journal[database.journal.index(row)] = replace(row, position=line.position)
        database.log[database.log.index(line)] = replace(line, position=row.position)
        return Anomaly.REORDERED, one.entity
    raise AssertionError("the stream holds no such pair")


def misplaced_row(world: World):
    row = world.a.journal.pop(7)
    world.b.journal.append(row)
    return Anomaly.MISPLACED, row.entity


def misplaced_slot(world: World):
    row = world.a.counter[0]
    world.a.counter[0] = replace(row, slot=row.slot ^ 1)
    return Anomaly.MISPLACED, row.entity


def misplaced_record(world: World):
    record = world.b.inbox.pop(7)
    world.a.inbox.append(record)
    return Anomaly.MISPLACED, record.key.partition("#")[0]


def phantom_row(world: World):
    entity = next(op.entity for op in OPERATIONS if LAYOUT.shard(LAYOUT.slot(op.entity)) == "a")
    world.a.journal.append(Row(entity, 999_999, 1, LAYOUT.slot(entity), 999_999))
    return Anomaly.PHANTOM, entity


def phantom_value(world: World):
    row = world.a.journal[7]
    world.a.journal[7] = replace(row, value=row.value + 1)
    return Anomaly.PHANTOM, row.entity


def phantom_record(world: World):
    world.a.inbox.append(Record(0, "nobody#1", "applied"))
    return Anomaly.PHANTOM, "nobody#1"


def poison_applied(world: World):
    key = next(iter(world.dead))
    for database in world.databases.values():
        for at, record in enumerate(database.inbox):
            if record.key == key:
                database.inbox[at] = replace(record, outcome="applied")
    return Anomaly.PHANTOM, key.partition("#")[0]


def stuck_write(world: World):
    row = world.a.journal.pop(7)
    world.backlog["a"] = 1
    return Anomaly.STUCK, row.entity


PLANTS: list[Plant] = [
    lost_row,
    lost_record,
    lost_last_upsert,
    lost_dead_letter,
    good_write_given_up,
    doubled_row,
    doubled_upsert,
    doubled_record,
    swapped_rows,
    swapped_upserts,
    swapped_between_tables,
    misplaced_row,
    misplaced_slot,
    misplaced_record,
    phantom_row,
    phantom_value,
    phantom_record,
    poison_applied,
    stuck_write,
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_what_is_planted_is_found_and_nothing_else(plant):
    world = World()
    wanted = plant(world)
    assert set(world.findings()) == {wanted}


def test_a_write_that_was_never_acknowledged_may_be_there_or_not():
    world = World()
    row = world.a.journal.pop(7)
    key = Operation(row.entity, row.number, "journal", 0).key
    world.truth = Truth(OPERATIONS, world.truth.acked - {key})
    assert world.findings() == []


def test_rows_are_read_from_every_database(tmp_path):
    urls = {shard: f"sqlite:///{tmp_path / shard}.db" for shard in LAYOUT.shards}
    world = World()
    for shard, url in urls.items():
        engine = create_engine(url)
        with engine.begin() as connection:
            for table, columns, rows in (
                ("journal", "entity, number, value, slot, position", world.databases[shard].journal),
                ("counter", "entity, number, value, slot, position", world.databases[shard].counter),
                ("counter_log", "entity, number, position", world.databases[shard].log),
                ("shardctl_inbox", "slot, idempotency_key, outcome", world.databases[shard].inbox),
            ):
                connection.execute(text(f"CREATE TABLE {table} ({columns})"))
                names = [name.strip().replace("idempotency_key", "key") for name in columns.split(",")]
                values = [{name: getattr(row, name) for name in names} for row in rows]
                connection.execute(
                    text(f"INSERT INTO {table} VALUES ({', '.join(f':{name}' for name in names)})"), values
                )
        engine.dispose()
    assert read(urls) == world.databases
