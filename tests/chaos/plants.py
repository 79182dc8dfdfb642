"""What a fleet without a fault leaves behind, and ways to spoil it: each returns what the judge has to find."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise

from tests.chaos.observed import Database, Line, Observed, Record, Row
from tests.chaos.oracle import Anomaly, Layout, Truth, judge
from tests.chaos.writes import Stream

LAYOUT = Layout(4, {"a": ((0, 5), (8, 9)), "b": ((6, 7), (10, 15))})
OPERATIONS = [operation for operation, duplicate in Stream(seed=5, producer=0, operations=600) if not duplicate]


class World:
    """Two databases whose every write took effect."""

    def __init__(self) -> None:
        self.truth = Truth(OPERATIONS, {operation.key for operation in OPERATIONS})
        self.databases = {shard: Database() for shard in LAYOUT.shards}
        self.dead: dict[str, str] = {}
        self.backlog: dict[str, int] = {}
        counters: dict[str, Row] = {}
        positions: Counter[str] = Counter()
        for operation in OPERATIONS:
            slot = LAYOUT.slot(operation.entity)
            database = self.databases[LAYOUT.shard(slot)]
            database.inbox.append(Record(slot, operation.key, "dead" if operation.poison else "applied"))
            row = Row(operation.entity, operation.number, operation.value, slot)
            if operation.poison:
                self.dead[operation.key] = "on purpose"
                continue
            positions[operation.entity] += 1
            position = positions[operation.entity]
            if operation.type == "journal":
                database.journal.append(replace(row, position=position))
            else:
                counters[operation.entity] = row
                database.log.append(Line(operation.entity, operation.number, position))
        for row in counters.values():
            self.databases[LAYOUT.shard(row.slot)].counter.append(row)
        for entity, effects in positions.items():
            self.databases[LAYOUT.shard(LAYOUT.slot(entity))].effects[entity] = effects

    @property
    def a(self) -> Database:
        return self.databases["a"]

    @property
    def b(self) -> Database:
        return self.databases["b"]

    def pop_last(self, database: Database) -> Row:
        """Take a row of the journal away that was its entity's last write, as if it had never been."""
        row = next(row for row in database.journal if row.position == database.effects[row.entity])
        database.journal.remove(row)
        database.effects[row.entity] -= 1
        return row

    def findings(self) -> list[tuple[Anomaly, str]]:
        observed = Observed(self.databases, self.dead, self.backlog)
        return [(finding.anomaly, finding.entity) for finding in judge(self.truth, observed, LAYOUT)]


Found = tuple[Anomaly, str]
Plant = Callable[[World], Found | set[Found]]


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
    world.a.effects[entity] += 1
    world.a.log.append(replace(last, position=world.a.effects[entity]))
    return Anomaly.DUPLICATED, entity


def doubled_upsert_of_old(world: World):
    """Written again behind later ones, as by a message that came again where the inbox wasn't copied."""
    entity = world.a.log[-1].entity
    first = next(line for line in world.a.log if line.entity == entity)
    world.a.effects[entity] += 1
    world.a.log.append(replace(first, position=world.a.effects[entity]))
    return Anomaly.DUPLICATED, entity


def doubled_record(world: World):
    record = world.a.inbox[7]
    world.a.inbox.append(record)
    return Anomaly.DUPLICATED, record.key.partition("#")[0]


def swapped(rows):
    """Let two of an entity's change places."""
    first, second = next(pair for pair in combinations(rows, 2) if pair[0].entity == pair[1].entity)
    rows[rows.index(first)] = replace(first, position=second.position)
    rows[rows.index(second)] = replace(second, position=first.position)
    return Anomaly.REORDERED, first.entity


def swapped_rows(world: World):
    return swapped(world.b.journal)


def swapped_upserts(world: World):
    """The last value is right: only the log shows it."""
    return swapped(world.b.log)


def swapped_between_tables(world: World):
    """Each table by itself is in order."""
    for first, two in pairwise(OPERATIONS):
        if first.entity != two.entity or first.poison or two.poison or (first.type, two.type) != ("journal", "counter"):
            continue
        database = world.databases[LAYOUT.shard(LAYOUT.slot(first.entity))]
        row = next(row for row in database.journal if (row.entity, row.number) == (first.entity, first.number))
        line = next(line for line in database.log if (line.entity, line.number) == (two.entity, two.number))
        database.journal[database.journal.index(row)] = replace(row, position=line.position)
        database.log[database.log.index(line)] = replace(line, position=row.position)
        return Anomaly.REORDERED, first.entity
    raise AssertionError("the stream holds no such pair")


def swapped_before_its_slot_moved(world: World):
    """One was written here, the other in the database where the slot was before: positions go on, and so does the judge."""
    anomaly, entity = swapped(world.a.journal)
    rows = [row for row in world.a.journal if row.entity == entity]
    world.a.journal.remove(rows[0])
    world.b.journal.append(rows[0])
    return {(anomaly, entity), (Anomaly.MISPLACED, entity)}


def two_databases_write(world: World):
    """Each counts on from what both had. The row of one of them has been moved to the other since."""
    first, second = next(pair for pair in combinations(world.b.journal, 2) if pair[0].entity == pair[1].entity)
    world.b.journal[world.b.journal.index(second)] = replace(second, position=first.position)
    return {(Anomaly.REORDERED, second.entity), (Anomaly.LOST, second.entity)}  # nothing has its place now


def effect_that_vanished(world: World):
    """An upsert that later ones replaced: no row and no record shows it."""
    line = next(line for line in world.a.log if [entry.entity for entry in world.a.log].count(line.entity) > 1)
    world.a.log.remove(line)
    return Anomaly.LOST, line.entity


def count_that_began_anew(world: World):
    """The slot came, what was counted of it didn't: the last write counts as the first one."""
    row = next(row for row in world.b.journal if row.position == world.b.effects[row.entity] > 1)
    world.b.journal[world.b.journal.index(row)] = replace(row, position=1)
    world.b.effects[row.entity] = 1
    return Anomaly.REORDERED, row.entity


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
    world.a.effects[entity] += 1
    world.a.journal.append(Row(entity, 999_999, 1, LAYOUT.slot(entity), world.a.effects[entity]))
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
    row = world.pop_last(world.a)
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
    doubled_upsert_of_old,
    doubled_record,
    swapped_rows,
    swapped_upserts,
    swapped_between_tables,
    swapped_before_its_slot_moved,
    two_databases_write,
    effect_that_vanished,
    count_that_began_anew,
    misplaced_row,
    misplaced_slot,
    misplaced_record,
    phantom_row,
    phantom_value,
    phantom_record,
    poison_applied,
    stuck_write,
]
