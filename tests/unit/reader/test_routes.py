"""Of which slot a read is."""

from datetime import UTC, datetime

import pytest
from fleets import yamlfile
from sqlalchemy import Column, DateTime, MetaData, Table, create_engine

from shardctl.errors import UsageError
from shardctl.fleet.load import fleet_from
from shardctl.reader.reader import Reader
from shardctl.reader.routes import Routes

FILE_OF_KEYS = """
fleet: shop
project: my-project
image: example.com/consumer:1.0
routing: {slot_bits: 3}
message_types:
  cart: {table: carts, key: cart_id, columns: {cart_id: uuid}}
  visit: {table: visits, key: day, columns: {day: date}}
  user: {table: users, key: user_id, columns: {user_id: bigint}}
  tick: {table: ticks, key: at, columns: {at: timestamp}}
  note: {table: notes, key: note_id, routing_key: user_id, columns: {note_id: text, user_id: bigint}}
shards:
  - {name: s0, slots: 0-7}
"""


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("cart", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"),
        ("cart", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"),
        ("visit", "20261130"),
        ("user", "007"),
        ("user", "+7"),
        ("user", "7.0"),
        ("user", "\u0667"),
        ("user", str(2**63)),
    ],
)
def test_another_spelling_of_a_key_is_refused_and_not_looked_for_in_another_slot(kind, key):
    routes = Routes(fleet_from(yamlfile.parse(FILE_OF_KEYS)))
    with pytest.raises(UsageError, match="no write has the key"):
        routes.slot(key, kind, None)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("cart", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("visit", "2026-11-30"),
        ("user", "-7"),
        ("user", 7),
        ("user", "0"),
        ("note", "a key that the body doesn't hold"),
    ],
)
def test_a_key_as_writes_have_it_has_a_slot(kind, key):
    assert Routes(fleet_from(yamlfile.parse(FILE_OF_KEYS))).slot(key, kind, None) in range(8)


def test_a_time_is_not_looked_for_in_the_slot_of_one_of_its_spellings():
    ticks = Table("ticks", MetaData(), Column("at", DateTime, primary_key=True))
    reader = Reader(fleet_from(yamlfile.parse(FILE_OF_KEYS)), {"s0": create_engine("sqlite://")})
    with pytest.raises(UsageError, match="pass it with key="):
        reader.get(ticks, datetime(2026, 11, 30, tzinfo=UTC))
