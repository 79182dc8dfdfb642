"""A table that no `shardctl provision` made, with the types that each database's own applications use."""

from __future__ import annotations

import json
from types import SimpleNamespace

from sqlalchemy import text
from sqlalchemy.engine import make_url

from consumer.database import sessions
from consumer.delivery import Delivery
from consumer.sinks.sql import SqlSink
from shardctl.fleet.load import fleet_from
from shardctl.fleet.settings.consuming import Batching
from shardctl.fleet.yamlfile import parse
from shardctl.shard import changes

FLEET = """
fleet: shop
project: test-project
image: example.com/shardctl:1.0.0
routing: {slot_bits: 6}
databases: [postgresql, mariadb, sqlite]
message_types:
  sale:
    table: sales
    key: [id, day]
    version_column: revision
    columns: {id: uuid, day: date, revision: bigint, name: text, code: varchar(9), state: text, price: "numeric(10,2)",
              photo: bytes, doc: json, other: uuid, at: timestamp, small: integer, old: text, new: text}
shards:
  - {name: s0, slots: 0-63}
"""
KINDS = fleet_from(parse(FLEET, "test")).message_types
TABLES = {
    "postgresql": """
CREATE TYPE "a state" AS ENUM ('new', 'it''s 100%%', '1');
CREATE DOMAIN short AS varchar(5);
CREATE TABLE sales (id uuid, day date, revision bigint, name short, code char(9), state "a state", price numeric(8,1),
    photo bytea, doc jsonb, other char(36), at date, small smallint,
    old varchar(255), new text, slot integer NOT NULL, PRIMARY KEY (id, day))""",
    "mariadb": """
CREATE TABLE sales (id binary(16), day date, revision bigint, name varchar(5), code char(9),
    state enum('new', 'it''s 100%%', '1'), price decimal(8,1), photo binary(4), doc json, other uuid, at date,
    old tinytext CHARACTER SET latin1, new tinytext, small smallint,
    slot integer NOT NULL, PRIMARY KEY (id, day)) CHARACTER SET utf8mb4""",
    "sqlite": """
CREATE TABLE sales (id CHAR(36), day DATE, revision BIGINT, name VARCHAR(5), code CHAR(9),
    state TEXT CHECK (state IN ('new', 'it''s 100%', '1')), price NUMERIC(8,1), photo BLOB, doc JSON, other CHAR(36), at DATE,
    small SMALLINT, old TEXT, new TEXT, slot INTEGER NOT NULL, PRIMARY KEY (id, day))""",
}
SLOT = 0
ID, DAY, OTHER = "6f1c6b0a-0000-4000-8000-00000000000a", "2024-02-29", "00000000-1234-5678-9abc-def012345678"
GOOD = {
    "id": ID, "day": DAY, "revision": 1, "name": "\u00e9\u674e\U0001f600", "code": "x", "state": "it's 100%", "price": "12.5",
    "photo": "AP8nXA==", "doc": {"a": [1]}, "other": OTHER, "at": "2024-02-29T00:00:00Z", "small": 7,
}  # fmt: skip


class Existing:
    def __init__(self, product: str, url: str) -> None:
        self.product, self.logs = product, False
        self.engine = sessions.engine_of(make_url(url), Batching())
        self.dialect = sessions.dialect_of(self.engine.url)
        self.sink = SqlSink(self.dialect, KINDS)

    def run(self, *statements: str) -> None:
        with sessions.transaction(self.engine, self.dialect) as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def create(self) -> None:
        self.run(*TABLES[self.product].split(";"))

    def write(self, operation: str = "upsert", **values: object) -> int:
        """How many writes were stale. `...` leaves a column out. The row that changes is logged, as the store does it."""
        body = {"id": ID, "day": DAY, "revision": 1, **values}
        data = json.dumps({name: value for name, value in body.items() if value is not ...}).encode()
        message = SimpleNamespace(data=data, attributes={})
        delivery = Delivery(
            "", "", message, "m", 0, len(data), slot=SLOT, partition_key=body["id"], message_type="sale"
        )
        delivery.operation = operation
        self.sink.check(delivery)
        with sessions.transaction(self.engine, self.dialect) as connection:
            stale = self.sink.apply(connection, [delivery])
            if self.logs:
                changes.record(connection, self.sink.changes([delivery]))
            return stale

    def rows(self, *columns: str) -> list[tuple[str | None, ...]]:
        listed = ", ".join(_as_text(self.product, self.dialect.quote(column)) for column in columns)
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(f"SELECT {listed} FROM sales"))]


def _as_text(product: str, column: str) -> str:
    if column[1:-1] == "photo" or (column[1:-1] == "id" and product == "mariadb"):
        return f"encode({column}, 'hex')" if product == "postgresql" else f"lower(hex({column}))"
    return f"CAST({column} AS {'char' if product == 'mariadb' else 'text'})"
