"""What tests of the gateway share: a fleet with bodies of every kind."""

from __future__ import annotations

from typing import Any

from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec import Fleet
from shardctl.fleet.yamlfile import parse

FLEET = """
fleet: shop
project: test-project
image: example.com/shardctl:1.0.0
topic: shop-writes
routing: {slot_bits: 6, topic_bits: 1}
message_types:
  order:
    table: orders
    key: order_id
    columns: {order_id: text, status: text, amount: decimal, lines: json, placed_at: timestamp}
  counter:
    table: counters
    key: [id, day]
    routing_key: id
    version_column: revision
    operation: insert
    columns: {id: bigint, day: integer, revision: bigint, share: number, open: boolean}
  daily:
    table: dailies
    key: id
    columns: {id: text, at: timestamp}
    time_bucket: {field: at, unit: day}
  stock/level: {sink: "shop.sinks:make", routing_key: sku}
shards:
  - {name: s0, slots: 0-31}
  - {name: s1, slots: 32-63, except_types: [counter]}
  - {name: s2, slots: 32-63, types: [counter]}
gateway:
"""


def fleet(gateway: str = "{}", **settings: Any) -> Fleet:
    """`gateway` is YAML in one line, by default with `auth: none`; `settings` replace the fleet's own."""
    if "auth:" not in gateway:
        gateway = gateway.replace("{", "{auth: none, ", 1)
    return fleet_from(parse(FLEET.rstrip() + f" {gateway}\n", "test")).model_copy(update=settings)
