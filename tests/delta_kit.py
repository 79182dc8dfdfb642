"""A source whose rows change while they are copied, each change logged as a writer logs it."""

from __future__ import annotations

import random
from typing import Any

from names_kit import keyed
from rowcopy_kit import FLEET, THING, Side
from sqlalchemy import delete, insert, select, update

from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.rebalance.rows.delta import Log, apply_delta, read_log
from shardctl.rebalance.rows.rowcopy import copy_slots, pairs_of
from shardctl.rebalance.rows.transfer import read_back, read_there
from shardctl.shard import changes, database, schema
from shardctl.shard.changes import Change
from shardctl.shard.engine import MYSQL
from shardctl.shard.schema import LaneState

SLOT, OTHER = 5, 6
TABLES = """note: text}
    slot_tables:
      a_lines: {slot: its_slot, routing_key: order_id}
      audit: {slot: slot, routing_key: who}"""
TRACKED = FLEET.replace("note: text}", TABLES)
KINDS = fleet_from(parse(TRACKED, "test")).message_types
NAMES = "abcdefgh"


def sides(*urls: str) -> list[Side]:
    made = [Side(url, KINDS) for url in urls]
    for side in made:
        kind = "VARCHAR(255) COLLATE utf8mb4_general_ci" if side.engine.dialect.name in MYSQL else "TEXT"
        key = "VARCHAR(255) COLLATE utf8mb4_bin" if side.engine.dialect.name in MYSQL else "TEXT"
        side.run(
            f"CREATE TABLE a_lines (id {key} PRIMARY KEY, its_slot INTEGER NOT NULL, order_id {key} NOT NULL, "
            "FOREIGN KEY (order_id) REFERENCES a_orders (id) ON DELETE NO ACTION ON UPDATE NO ACTION)"
            .replace("id TEXT PRIMARY", "id VARCHAR(255) PRIMARY"),
            f"CREATE TABLE audit (who {kind}, slot INTEGER NOT NULL, said {kind}, number INTEGER)",
        )  # fmt: skip
    return made


class Changing:
    """Random writes at a source, in two slots; only those of the slot that is copied are logged."""

    def __init__(self, side: Side, seed: int) -> None:
        self.side, self.draw, self.number = side, random.Random(seed), 0
        self.orders = schema.table_of(KINDS["order"], schema.MetaData())
        for slot in (SLOT, OTHER):
            side.lane(slot, LaneState.ACTIVE)
        self.count = 0

    def many(self, count: int) -> None:
        for _ in range(count):
            self.one()

    def one(self) -> None:
        self.number += 1
        slot = self.draw.choice((SLOT, SLOT, SLOT, OTHER))
        name = self.draw.choice(NAMES) + ("" if slot == SLOT else "'")
        what = self.draw.choice(
            (
                self.thing,
                self.thing,
                self.order,
                self.no_order,
                self.line,
                self.say,
                self.record,
                self.park,
                self.let_go,
            )
        )
        with database.writing(self.side.engine) as connection:
            change = what(connection, slot, name)
            if slot == SLOT:
                changes.record(connection, change)

    def thing(self, connection: Any, slot: int, name: str) -> list[Change]:
        table = self.side.things
        connection.execute(delete(table).where(table.c.id == name))
        if self.draw.random() < 0.7:
            row = {**THING, "id": name, "a_text": f"{self.number}", "slot": slot}
            connection.execute(insert(table).values(row))
        return [Change(slot, "things", (name,))]

    def order(self, connection: Any, slot: int, name: str) -> list[Change]:
        changed = update(self.orders).where(self.orders.c.id == name).values(note=f"{self.number}")
        if connection.execute(changed).rowcount == 0:
            connection.execute(insert(self.orders).values(id=name, note="new", slot=slot))
        return [Change(slot, "a_orders", (name,)), changes.of_routing_key(slot, name)]

    def no_order(self, connection: Any, slot: int, name: str) -> list[Change]:
        connection.exec_driver_sql(f"DELETE FROM a_lines WHERE order_id = '{name.replace(chr(39), chr(39) * 2)}'")
        connection.execute(delete(self.orders).where(self.orders.c.id == name))
        return [Change(slot, "a_orders", (name,)), changes.of_routing_key(slot, name)]

    def line(self, connection: Any, slot: int, name: str) -> list[Change]:
        if connection.scalar(select(self.orders.c.id).where(self.orders.c.id == name)) is None:
            return []
        quoted = name.replace("'", "''")
        connection.exec_driver_sql(f"INSERT INTO a_lines VALUES ('{quoted}{self.number}', {slot}, '{quoted}')")
        return [changes.of_routing_key(slot, name)]

    def say(self, connection: Any, slot: int, name: str) -> list[Change]:
        name = name if self.draw.random() < 0.8 else name.upper()
        quoted = name.replace("'", "''")
        if self.draw.random() < 0.2:
            exact = (
                f"CAST(who AS BINARY) = CAST('{quoted}' AS BINARY)"
                if self.side.engine.dialect.name in MYSQL
                else f"who = '{quoted}'"
            )
            connection.exec_driver_sql(f"DELETE FROM audit WHERE {exact}")
        else:
            connection.exec_driver_sql(f"INSERT INTO audit VALUES ('{quoted}', {slot}, 'é', {self.number})")
        return [changes.of_routing_key(slot, name)]

    def record(self, connection: Any, slot: int, name: str) -> list[Change]:
        key = keyed("thing", f"{name}{self.draw.randrange(5)}", slot)
        its = (schema.inbox.c.slot == slot) & (schema.inbox.c.identity == key)
        connection.execute(delete(schema.inbox).where(its))
        if self.draw.random() < 0.8:
            row = {
                "slot": slot, "identity": key, "fingerprint": self.number, "key_hash": -self.number, "published": 1,
                "outcome": self.draw.choice(("applied", "dead")),
            }  # fmt: skip
            connection.execute(insert(schema.inbox).values(row))
        return [changes.of_inbox(slot, key)]

    def park(self, connection: Any, slot: int, name: str) -> list[Change]:
        keys = schema.parked_keys
        its = (keys.c.slot == slot) & (keys.c.partition_key == name)
        if connection.scalar(select(keys.c.slot).where(its)) is None:
            row = {
                "slot": slot,
                "message_type": "thing",
                "partition_key": name,
                "reason": "r",
                "detail": "d",
                "released": False,
            }
            connection.execute(insert(keys).values(row))
        row = {
            "slot": slot, "partition_key": name, "message_type": "thing", "operation": "upsert", "message_id": "m",
            "publish_time_us": 1, "attributes": "{}", "idempotency_key": f"{self.number}",
            "identity": keyed("thing", f"{self.number}", slot),
            "body": b"%d" % self.number,
        }  # fmt: skip
        connection.execute(insert(schema.parked).values(row))
        return [changes.of_parked(slot, "thing", name)]

    def let_go(self, connection: Any, slot: int, name: str) -> list[Change]:
        for table in (schema.parked, schema.parked_keys):
            connection.execute(delete(table).where((table.c.slot == slot) & (table.c.partition_key == name)))
        return [changes.of_parked(slot, "thing", name)]


def base(source: Side, destination: Side) -> None:
    with database.writing(destination.engine) as into, database.snapshot(source.engine) as out:
        copy_slots(out, into, KINDS, (SLOT,), active=True)


def catch_up(source: Side, destination: Side, *, most: int = 10_000, forget: bool = True) -> Log:
    with database.writing(destination.engine) as into, database.snapshot(source.engine) as out:
        log = read_log(out, SLOT, 0, most)
        apply_delta(out, into, KINDS, SLOT, log)
    if forget:
        with database.writing(source.engine) as connection:
            connection.execute(delete(schema.changes).where(schema.changes.c.position.in_(log.positions)))
    return log


def differences(source: Side, destination: Side) -> list[str]:
    """Tables of the slot that aren't the same. Parked messages are compared key by key: their order matters there alone."""
    differences_read = []
    with database.snapshot(destination.engine) as into, database.snapshot(source.engine) as out:
        for pair in pairs_of(out, into, KINDS):
            if pair.name == schema.parked.name:
                there, here = ([*connection.execute(_PARKED)] for connection in (out, into))
            else:
                there, here = read_there(out, pair, (SLOT,), lambda: None), read_back(into, pair, (SLOT,), lambda: None)
            if there != here:
                differences_read.append(f"{pair.name}: {there} {here}")
    return differences_read


_PARKED = (
    select(schema.parked.c.partition_key, schema.parked.c.body)
    .where(schema.parked.c.slot == SLOT)
    .order_by(schema.parked.c.partition_key, schema.parked.c.position)
)
