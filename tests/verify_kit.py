"""A small fleet for tests of `shardctl verify`: three shards, one of them for one message type alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

from names_kit import keyed
from sqlalchemy import MetaData, delete, insert, text, update

from shardctl.fleet.keyspace import slot_of, slot_of_time
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.shard import database, schema
from shardctl.verification import verify

BITS = 6
FLEET = """
fleet: shop
project: test-project
image: consumer:1
routing: {slot_bits: 6}
message_types:
  thing: {table: things, key: id, columns: {id: text, note: text}}
  number: {table: numbered, key: [id, line], columns: {id: bigint, line: integer}}
  timed: {table: timed, key: id, columns: {id: text, at: timestamp}, time_bucket: {field: at, unit: day}}
shards:
  - {name: s0, slots: 0-31, except_types: [timed]}
  - {name: s1, slots: 32-63, except_types: [timed]}
  - {name: s2, slots: 0-63, types: [timed]}
"""
MOMENT = datetime(2024, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


@cache
def key_in(slot: int) -> str:
    return next(key for number in range(100_000) if slot_of(key := f"k{number}", BITS) == slot)


@cache
def number_in(slot: int) -> int:
    return next(number for number in range(100_000) if slot_of(str(number), BITS) == slot)


@cache
def day_in(slot: int) -> datetime:
    days = (MOMENT + timedelta(days=number) for number in range(100))
    return next(day for day in days if slot_of_time(day, "day", BITS) == slot)


class Fleet:
    def __init__(self, folder, url_of) -> None:
        self.text, self._number = FLEET, 0
        self.urls = {shard.name: url_of(shard.name) for shard in self.spec.shards}
        self.engines = {name: database.connect(url) for name, url in self.urls.items()}
        for shard in self.spec.shards:
            kinds = verify.kinds_of(self.spec, shard)
            schema.create(self.engines[shard.name], kinds, shard.slots, shard.generation)

    @property
    def spec(self):
        return fleet_from(parse(self.text, "test"))

    def report(self):
        return verify.verify(self.spec, self.engines)

    def faults(self):
        return list(self.report().faults)

    def fill(self) -> None:
        """Some rows of each table in odd slots, and inbox rows beside them."""
        for shard, slots in (("s0", range(1, 16, 2)), ("s1", range(33, 48, 2))):
            for slot in slots:
                self.put(shard, id=key_in(slot), slot=slot, note="ü")
                self.put(shard, "number", id=number_in(slot), line=1, slot=slot)
                self.record(shard, slot, "k")
        for slot in (7, 40):
            self.put("s2", "timed", id=f"t{slot}", at=day_in(slot), slot=slot)

    def put(self, shard, kind="thing", **row) -> None:
        table = schema.table_of(self.spec.message_types[kind], MetaData())
        self._execute(shard, insert(table).values(row))

    def record(self, shard, slot, key) -> None:
        row = {
            "slot": slot, "identity": keyed("thing", key, slot), "fingerprint": 1, "key_hash": 1, "published": 1,
            "outcome": "applied",
        }  # fmt: skip
        self._execute(shard, insert(schema.inbox).values(row))

    def park(self, shard, slot, key, *, messages=1, with_key=True) -> None:
        if with_key:
            row = {
                "slot": slot,
                "message_type": "thing",
                "partition_key": key,
                "reason": "bad",
                "detail": "",
                "released": False,
            }
            self._execute(shard, insert(schema.parked_keys).values(row))
        for _ in range(messages):
            self._number += 1
            row = {
                "slot": slot, "partition_key": key, "message_type": "thing", "operation": "upsert",
                "idempotency_key": f"i{self._number}", "identity": keyed("thing", f"i{self._number}", slot), "message_id": "m",
                "publish_time_us": 1, "attributes": "{}", "body": b"{",
            }  # fmt: skip
            self._execute(shard, insert(schema.parked).values(row))

    def lane(self, shard, slot, state, generation=1) -> None:
        self._execute(shard, insert(schema.lanes).values(slot=slot, generation=generation, state=state))

    def set(self, shard, slot, of_generation=None, **values) -> None:
        change = update(schema.lanes).where(schema.lanes.c.slot == slot)
        if of_generation is not None:
            change = change.where(schema.lanes.c.generation == of_generation)
        self._execute(shard, change.values(values))

    def delete_lane(self, shard, slot) -> None:
        self._execute(shard, delete(schema.lanes).where(schema.lanes.c.slot == slot))

    def run(self, shard, *statements) -> None:
        for statement in statements:
            self._execute(shard, text(statement))

    def query(self, shard, statement):
        with database.snapshot(self.engines[shard]) as connection:
            return [tuple(row) for row in connection.execute(text(statement))]

    def close(self) -> None:
        for engine in self.engines.values():
            engine.dispose()

    def _execute(self, shard, statement) -> None:
        with database.writing(self.engines[shard]) as connection:
            connection.execute(statement)
