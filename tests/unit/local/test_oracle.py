"""The oracle finds and names what a fleet could get wrong. Databases are SQLite's, filled by hand and then spoilt."""

import sqlite3
from datetime import UTC, datetime

import orjson
import pytest

from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.local.load import Stream
from shardctl.local.oracle import Difference, verify
from shardctl.provision import provision_database
from shardctl.shard.schema import OUTCOME_CODES
from shardctl.wire import identity
from shardctl.wire.message import Write, encode

FLEET = """
fleet: f
project: my-project
image: example.com/c:1
routing: {slot_bits: 6}
message_types:
  customer:
    table: customers
    key: customer_id
    columns: {customer_id: text, name: text, credit: decimal, since: timestamp, vip: boolean, tags: json, score: number}
  reading:
    table: readings
    key: [sensor, at]
    columns: {sensor: bigint, at: timestamp, value: number}
    time_bucket: {field: at, unit: hour}
shards:
  - {name: s0, slots: 0-31, except_types: [reading]}
  - {name: s1, slots: 32-63, except_types: [reading]}
  - {name: old, slots: 0-31, types: [reading]}
  - {name: new, slots: 32-63, types: [reading]}
"""


def identity_of(write, slot=None):
    if slot is None:
        slot = encode(fleet_from(yamlfile.parse(FLEET, "shards.yaml")), write, datetime(2026, 1, 1, tzinfo=UTC)).slot
    return identity.in_slot(identity.of_key("", write.type, write.idempotency_key), slot)


class World:
    """The fleet's databases after a perfect consumer's work."""

    def __init__(self, folder):
        self.fleet = fleet_from(yamlfile.parse(FLEET, "shards.yaml"))
        self.files = {shard.name: folder / f"{shard.name}.db" for shard in self.fleet.shards}
        self.urls = {name: f"sqlite:///{file}" for name, file in self.files.items()}
        for shard in self.fleet.shards:
            provision_database(self.fleet, shard, self.urls[shard.name])
        self.databases = {name: sqlite3.connect(file, isolation_level=None) for name, file in self.files.items()}
        self.writes = [step.write for step in Stream(self.fleet, 300, 80, duplicate_rate=0)]
        for database in self.databases.values():
            database.execute("BEGIN")
        for write in self.writes:
            self.apply(write)
        for database in self.databases.values():
            database.execute("COMMIT")

    def home(self, write):
        slot = encode(self.fleet, write, datetime.now(UTC)).slot
        owner = next(shard for shard in self.fleet.shards if shard.takes(write.type) and slot in shard.slots)
        return slot, owner.name

    def apply(self, write):
        slot, owner = self.home(write)
        kind = self.fleet.message_types[write.type]
        row = {column: _stored(kind.columns[column], value) for column, value in write.body.items()} | {"slot": slot}
        same = " AND ".join(f"{column} = :{column}" for column in kind.key)
        assigned = ", ".join(f"{column} = :{column}" for column in row)
        marks = ", ".join(f":{column}" for column in row)
        database = self.databases[owner]
        match write.operation:
            case "delete":
                database.execute(f"DELETE FROM {kind.table} WHERE {same}", row)
            case "update":
                database.execute(f"UPDATE {kind.table} SET {assigned} WHERE {same}", row)
            case _:
                database.execute(
                    f"INSERT INTO {kind.table} ({', '.join(row)}) VALUES ({marks}) "
                    f"ON CONFLICT ({', '.join(kind.key)}) DO UPDATE SET {assigned}",
                    row,
                )
        self.record(owner, slot, write)

    def record(self, shard, slot, write, outcome="applied"):
        self.databases[shard].execute(
            "INSERT INTO shardctl_inbox (slot, identity, key_hash, published, outcome) VALUES (?, ?, 0, 0, ?)",
            (slot, identity_of(write, slot), OUTCOME_CODES.get(outcome)),
        )

    def verify(self):
        return verify(self.fleet, self.writes, self.urls)

    def last_of(self, type_, operation=("insert", "upsert", "update")):
        """The last write of an entity of a type that it left standing."""
        last = {}
        for write in self.writes:
            if write.type == type_:
                last[tuple(write.body[column] for column in self.fleet.message_types[type_].key)] = write
        return next(write for write in last.values() if write.operation in operation)


def _stored(kind, value):
    match kind:
        case "json":
            return orjson.dumps(value).decode()
        case "timestamp":
            return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M:%S.%f")
        case _:
            return value


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def differences(verdict):
    return {(finding.difference, finding.shard) for finding in verdict.findings}


def test_a_perfect_outcome_is_verified_and_counted(world):
    verdict = world.verify()
    assert verdict.ok
    assert not verdict.findings
    assert sum(shard.writes for shard in verdict.shards) == sum(shard.applied for shard in verdict.shards) == 300
    assert all(shard.rows == shard.rows_expected > 0 for shard in verdict.shards)
    assert {shard.shard: shard.slots for shard in verdict.shards} == {"s0": 32, "s1": 32, "old": 32, "new": 32}


def test_a_lost_write_is_named_even_when_a_later_one_hides_it(world):
    write = next(write for write in world.writes if write is not world.last_of(write.type))
    _, owner = world.home(write)
    world.databases[owner].execute("DELETE FROM shardctl_inbox WHERE identity = ?", (identity_of(write),))
    verdict = world.verify()
    assert not verdict.ok
    assert differences(verdict) == {(Difference.LOST, owner)}
    assert write.idempotency_key in str(verdict.findings[0])


def test_a_lost_row_is_named(world):
    write = world.last_of("customer")
    _, owner = world.home(write)
    world.databases[owner].execute("DELETE FROM customers WHERE customer_id = ?", (write.body["customer_id"],))
    (finding,) = world.verify().findings
    assert (finding.difference, finding.shard) == (Difference.LOST, owner)
    assert write.body["customer_id"] in finding.what
    assert write.idempotency_key in finding.what


def test_a_lost_delete_is_named(world):
    write = world.last_of("customer")
    world.writes.append(
        Write("customer", {"customer_id": write.body["customer_id"]}, operation="delete", idempotency_key="gone")
    )
    slot, owner = world.home(write)
    world.record(owner, slot, world.writes[-1])
    (finding,) = world.verify().findings
    assert (finding.difference, finding.shard) == (Difference.LOST, owner)
    assert "still there after delete gone" in finding.what


def test_a_write_doubled_on_another_shard_is_named_on_both(world):
    write = world.last_of("customer")
    slot, owner = world.home(write)
    other = "s1" if owner == "s0" else "s0"
    world.record(other, slot, write)
    assert differences(world.verify()) == {(Difference.DOUBLED, owner), (Difference.MISPLACED, other)}


def test_a_write_doubled_in_another_slot_of_its_shard_is_named(world):
    write = world.last_of("customer")
    slot, owner = world.home(write)
    world.record(owner, (slot + 1) % 32 + (slot // 32) * 32, write)
    assert differences(world.verify()) == {(Difference.DOUBLED, owner), (Difference.MISPLACED, owner)}


def test_a_duplicate_taken_for_a_new_write_is_named(world):
    world.record("s0", 1, Write("customer", {}, idempotency_key="message-4711"))
    (finding,) = world.verify().findings
    assert (finding.difference, finding.shard) == (Difference.PHANTOM, "s0")
    assert identity.in_slot(identity.of_key("", "customer", "message-4711"), 1).hex() in finding.what


WRONG = {
    "name": "Nobody",
    "credit": "0.01",
    "since": "1999-01-01 00:00:00.000000",
    "tags": '{"tags": []}',
    "score": -1.5,
    "slot": 99,
}


@pytest.mark.slow
@pytest.mark.parametrize("column", [*WRONG, "vip"])
def test_a_wrong_value_is_named_with_what_it_should_be(world, column):
    write = world.last_of("customer", ("insert", "upsert"))
    _, owner = world.home(write)
    value = WRONG.get(column, not write.body.get("vip"))
    world.databases[owner].execute(
        f"UPDATE customers SET {column} = ? WHERE customer_id = ?", (value, write.body["customer_id"])
    )
    (finding,) = world.verify().findings
    assert (finding.difference, finding.shard) == (Difference.WRONG_VALUE, owner)
    assert f"{column} is " in finding.what
    assert write.idempotency_key in finding.what


def test_an_earlier_write_that_came_last_is_a_wrong_value(world):
    write = world.last_of("customer", ("upsert",))
    world.writes.append(Write("customer", {**write.body, "name": "New"}, operation="upsert", idempotency_key="newest"))
    slot, owner = world.home(write)
    world.record(owner, slot, world.writes[-1])
    (finding,) = world.verify().findings
    assert finding.difference is Difference.WRONG_VALUE
    assert f"{write.body['name']!r}, not 'New'" in finding.what


@pytest.mark.slow
@pytest.mark.parametrize(("type_", "table"), [("customer", "customers"), ("reading", "readings")])
def test_a_row_moved_to_the_wrong_shard_is_named_on_both(world, type_, table):
    write = world.last_of(type_)
    slot, owner = world.home(write)
    other = {"s0": "s1", "s1": "s0", "old": "new", "new": "old"}[owner]
    row = world.databases[owner].execute(f"SELECT * FROM {table} WHERE slot = ? LIMIT 1", (slot,)).fetchone()
    world.databases[other].execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    (copied,) = world.verify().findings
    assert (copied.difference, copied.shard) == (Difference.MISPLACED, other)
    assert f"belongs on {owner}" in copied.what

    key = "customer_id = ?" if type_ == "customer" else "sensor = ? AND at = ?"
    world.databases[owner].execute(f"DELETE FROM {table} WHERE {key}", row[: key.count("?")])
    assert differences(world.verify()) == {(Difference.MISPLACED, other), (Difference.LOST, owner)}


def test_a_phantom_row_is_named(world):
    world.databases["s1"].execute("INSERT INTO customers (customer_id, slot) VALUES ('ghost', 40)")
    (finding,) = world.verify().findings
    assert (finding.difference, finding.shard) == (Difference.PHANTOM, "s1")
    assert "ghost" in finding.what


def test_a_dead_lettered_write_is_named(world):
    write = world.last_of("reading")
    _, owner = world.home(write)
    world.databases[owner].execute("UPDATE shardctl_inbox SET outcome = 1 WHERE identity = ?", (identity_of(write),))
    verdict = world.verify()
    assert differences(verdict) == {(Difference.DEAD_LETTERED, owner)}
    assert verdict.counts == {"dead-lettered": 1}


def test_a_write_without_a_key_can_not_be_judged(world):
    world.writes.append(Write("customer", {"customer_id": "x"}))
    with pytest.raises(ValueError, match="idempotency key"):
        world.verify()
