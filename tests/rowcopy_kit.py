"""What tests of copied rows share: two shards' databases with tables of every kind."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from names_kit import keyed
from sqlalchemy import MetaData, select, text, update
from sqlalchemy import insert as insert_into

from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.load import fleet_from
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.yamlfile import parse
from shardctl.rebalance.rows.rowcopy import copy_slots
from shardctl.shard import database, schema
from shardctl.shard.schema import InboxOutcome, LaneState

FLEET = """
fleet: shop
project: test-project
image: consumer:1
routing: {slot_bits: 6}
message_types:
  thing:
    table: things
    key: id
    columns:
      {id: text, an_integer: integer, a_bigint: bigint, a_number: number, a_decimal: decimal, a_boolean: boolean,
       a_time: timestamp, a_json: json, a_text: text}
  order:
    table: a_orders
    key: id
    columns: {id: text, note: text}
shards:
  - {name: s0, slots: 0-63}
"""
KINDS = fleet_from(parse(FLEET, "test")).message_types
MOMENT = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)
THING = {
    "id": "a",
    "an_integer": -5,
    "a_bigint": 2**63 - 1,
    "a_number": 0.1,
    "a_decimal": Decimal("12.5"),
    "a_boolean": True,
    "a_time": MOMENT,
    "a_json": {"b": [1, 2.5, None], "a": "ü"},
    "a_text": "Zoë 🦓 'quoted' \\ \t\n%s",
}


class Side:
    """One shard's database. Its slots have left it, as at a source, or aren't there yet."""

    def __init__(self, url: str, kinds: dict[str, MessageType] = KINDS) -> None:
        self.kinds = kinds
        self.engine = database.connect(url)
        self.mapped = MetaData()
        self.things = schema.table_of(KINDS["thing"], self.mapped)
        schema.create(self.engine, kinds, SlotSet(), 1)

    def run(self, *statements: str) -> None:
        with database.writing(self.engine) as connection:
            for statement in statements:
                connection.execute(text(statement))

    def put(self, table: Any, *rows: dict[str, Any]) -> None:
        with database.writing(self.engine) as connection:
            connection.execute(insert_into(table), list(rows))

    def thing(self, slot: int = 5, **values: Any) -> None:
        self.put(self.things, {**THING, **values, "slot": slot})

    def record(self, slot: int, *keys: str) -> None:
        common = {"key_hash": 1 << 30, "fingerprint": -1, "published": -1, "outcome": InboxOutcome.DEAD, "slot": slot}
        common["reason"] = "bad_json"
        rows = [common | {"identity": keyed("thing", key, slot)} for key in keys]
        self.put(schema.inbox, *rows)

    def park(self, slot: int, key: str, *bodies: bytes, with_key: bool = True) -> None:
        if with_key:
            row = {
                "slot": slot, "message_type": "thing", "partition_key": key, "reason": "bad_json", "detail": "…",
                "released": False,
            }  # fmt: skip
            self.put(schema.parked_keys, row)
        common = {
            "slot": slot, "partition_key": key, "message_type": "thing", "operation": "upsert", "message_id": "m",
            "publish_time_us": 1_700_000_000_123_456, "attributes": '{"ü": "🦓"}',
        }  # fmt: skip
        for number, body in enumerate(bodies):
            name = f"{key}/{number}"
            its_own = {"idempotency_key": name, "identity": keyed("thing", name, slot), "body": body}
            self.put(schema.parked, {**common, **its_own})

    def lane(self, slot: int, state: LaneState, generation: int = 1) -> None:
        self.put(schema.lanes, {"slot": slot, "generation": generation, "state": state})

    def set_lanes(self, state: LaneState) -> None:
        with database.writing(self.engine) as connection:
            connection.execute(update(schema.lanes).values(state=state))

    def rows(self, table: Any, slot: int = 5) -> list[dict[str, Any]]:
        """In UTC, whatever the database makes of time zones."""
        with database.snapshot(self.engine) as connection:
            rows = connection.execute(select(table).where(table.c.slot == slot)).mappings()
            return [{name: _utc(value) for name, value in row.items()} for row in rows]

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with database.snapshot(self.engine) as connection:
            return [tuple(row) for row in connection.execute(text(statement))]

    def clear(self) -> None:
        with database.writing(self.engine) as connection:
            for table in (self.things, schema.inbox, schema.parked, schema.parked_keys, schema.lanes):
                connection.execute(table.delete())

    def close(self) -> None:
        self.engine.dispose()


def copy(source: Side, destination: Side, *slots: int, **more: Any) -> Any:
    """Copy these slots together; slot 5 where none is given."""
    with database.writing(destination.engine) as into, database.snapshot(source.engine) as out:
        return copy_slots(out, into, source.kinds, slots or (5,), **more)


def _utc(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
