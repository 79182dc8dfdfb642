from collections import Counter
from datetime import UTC, datetime
from itertools import islice

import pytest

from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.local.load import Stream
from shardctl.wire.message import encode

HEAD = """
fleet: f
project: my-project
image: example.com/c:1
shards: [{name: all, slots: 0-1023}]
message_types:
"""

KINDS = {
    "customers and orders": """
  customer: {table: customers, key: customer_id, columns: {customer_id: text, name: text, tier: text, revision: bigint}}
  order: {table: orders, key: order_id, columns: {order_id: text, customer_id: text, amount: decimal, lines: json}}
""",
    "every column type": """
  a: {table: a, key: id, columns: {id: integer, t: text, i: integer, b: bigint, n: number, d: decimal, f: boolean,
      m: timestamp, j: json}}
""",
    "a key of two columns, routed by a third": """
  a: {table: a, key: [x, y], routing_key: z, columns: {x: bigint, y: timestamp, z: text, v: text}}
""",
    "routed by another entity": """
  customer: {table: customers, key: customer_id, columns: {customer_id: text, name: text}}
  order: {table: orders, key: order_id, routing_key: customer_id, columns: {order_id: text, customer_id: text, n: number}}
""",
    "a time bucket and a version": """
  a: {table: a, key: id, columns: {id: text, at: timestamp, v: bigint, t: text}, version_column: v,
      time_bucket: {field: at, unit: day}}
""",
    "versions of other types": """
  t: {table: t, key: id, columns: {id: text, v: text}, version_column: v}
  m: {table: m, key: id, columns: {id: text, v: timestamp}, version_column: v}
  d: {table: d, key: id, columns: {id: text, v: date}, version_column: v}
  n: {table: n, key: id, columns: {id: text, v: decimal}, version_column: v}
""",
    "nothing but a key": """
  a: {table: a, key: id, columns: {id: text}}
""",
}


def fleet_of(kinds):
    return fleet_from(yamlfile.parse(HEAD + KINDS[kinds], "shards.yaml"))


@pytest.fixture(params=KINDS)
def fleet(request):
    return fleet_of(request.param)


def test_one_seed_gives_one_history(fleet):
    assert list(Stream(fleet, 200, 50, 7)) == list(Stream(fleet, 200, 50, 7))
    assert list(Stream(fleet, 200, 50, 7)) != list(Stream(fleet, 200, 50, 8))


def test_every_entity_is_written_and_every_write_can_be_sent(fleet):
    unique = [step.write for step in Stream(fleet, 400, 100) if not step.duplicate]
    assert len(unique) == 400
    assert len({write.idempotency_key for write in unique}) == 400
    rows = {(write.type, *(write.body[column] for column in fleet.message_types[write.type].key)) for write in unique}
    assert len(rows) == 100
    for write in unique:
        encode(fleet, write, datetime.now(UTC))


def test_an_entity_never_leaves_its_slot(fleet):
    slots = {}
    for step in Stream(fleet, 400, 60):
        row = (step.write.type, *(step.write.body[column] for column in fleet.message_types[step.write.type].key))
        assert slots.setdefault(row, encode(fleet, step.write, datetime.now(UTC)).slot) == slots[row]


@pytest.mark.slow
def test_every_operation_can_succeed(fleet):
    there = set()
    for step in Stream(fleet, 2_000, 60):
        if step.duplicate:
            continue
        write = step.write
        row = (write.type, *(write.body[column] for column in fleet.message_types[write.type].key))
        assert write.operation != "insert" or row not in there
        assert write.operation not in ("update", "delete") or row in there
        (there.discard if write.operation == "delete" else there.add)(row)


@pytest.mark.parametrize("kinds", ["a time bucket and a version", "versions of other types"])
def test_versions_grow_with_each_write(kinds):
    versions = {}
    for step in Stream(fleet_of(kinds), 500, 20, duplicate_rate=0):
        before = versions.get(step.write.body["id"])
        assert before is None or step.write.body["v"] > before
        versions[step.write.body["id"]] = step.write.body["v"]


@pytest.mark.slow
def test_two_in_a_hundred_come_again_after_the_first():
    fleet = fleet_of("customers and orders")
    seen = set()
    counts = Counter()
    for step in Stream(fleet, 20_000, 5_000):
        assert step.duplicate == (step.write.idempotency_key in seen)
        seen.add(step.write.idempotency_key)
        counts[step.duplicate] += 1
    assert counts[False] == 20_000
    assert counts[True] == pytest.approx(400, rel=0.2)


def test_all_operations_occur_and_favourites_get_more():
    unique = [step.write for step in Stream(fleet_of("customers and orders"), 5_000, 500)]
    assert {write.operation for write in unique} == {"insert", "upsert", "update", "delete"}
    per_entity = Counter(next(iter(write.body.values())) for write in unique).most_common()
    assert per_entity[0][1] > 10 * per_entity[-1][1]


def test_a_stream_without_a_count_never_ends():
    assert len(list(islice(Stream(fleet_of("customers and orders"), None, 100), 5_000))) == 5_000
