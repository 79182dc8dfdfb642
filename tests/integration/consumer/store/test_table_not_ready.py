"""A type whose table isn't as shards.yaml has it holds up its own writes alone, in order, until the table is."""

from __future__ import annotations

from contextlib import closing, contextmanager

import pytest

from consumer.errors import TransientError
from shardctl.shard.membership import Membership
from shardctl.shard.schema import TABLE_NOT_READY
from shardctl.status.databases import Databases

pytestmark = pytest.mark.slow
TYPES = """
  order:
    table: orders
    key: id
    routing_key: customer
    columns: {id: text, customer: text, note: text}
  customer:
    table: customers
    key: customer
    columns: {customer: text, name: text}
  both:
    sink: not_ready_sink:Both
    routing_key: id
  other:
    sink: not_ready_sink:Both
    routing_key: id
"""
# How each table or column goes away and comes back: the same in every product.
FAULTS = {
    "table": ("ALTER TABLE orders RENAME TO kept", "ALTER TABLE kept RENAME TO orders", "shardctl provision"),
    "column": (
        "ALTER TABLE orders RENAME COLUMN note TO kept",
        "ALTER TABLE orders RENAME COLUMN kept TO note",
        "shardctl migrate plan",
    ),
}


def order(shard, key, note):
    return shard.arrive("order", {"id": key, "customer": key, "note": note}, key, ident=f"{key}/{note}")


def customer(shard, key, name):
    return shard.arrive("customer", {"customer": key, "name": name}, key, ident=f"{key}/{name}")


def retry(shard):
    """As maintenance does; the reasons of what failed again."""
    faults = []
    for message_type in shard.store.not_ready_types():
        for key in shard.store.not_ready_keys(message_type):
            released = shard.store.release(key, shard.read)
            faults += [released.fault.reason] if released and released.fault else []
    return faults


@pytest.mark.parametrize("fault", FAULTS)
def test_its_writes_wait_in_order_and_all_others_go_on(shard, fault):
    breaks, repairs, fix = FAULTS[fault]
    shard.settle(order(shard, "a", "0"))
    shard.run(breaks)
    try:
        outcome = shard.settle(
            order(shard, "a", "1"), customer(shard, "a", "1"), customer(shard, "b", "1"), order(shard, "a", "2")
        )
        assert (outcome.applied, outcome.parked, outcome.dead) == (2, 2, 0)
        outcome = shard.settle(order(shard, "b", "1"), customer(shard, "a", "2"), order(shard, "a", "3"))
        assert (outcome.applied, outcome.parked, outcome.dead) == (1, 2, 0)
        assert shard.parked() == {"a": ["a/1", "a/2", "a/3"], "b": ["b/1"]}
        assert shard.rows("SELECT customer, name FROM customers ORDER BY customer") == [("a", "2"), ("b", "1")]
        assert retry(shard) == [TABLE_NOT_READY] * 2  # they stay, and are tried again
        assert shard.parked() == {"a": ["a/1", "a/2", "a/3"], "b": ["b/1"]}
        with closing(Databases()) as databases:
            [trouble] = databases.look(
                Membership("shop", "s0"), shard.url.render_as_string(hide_password=False)
            ).not_ready
        assert (trouble.message_type, trouble.keys) == ("order", 2)
        assert fix in trouble.why
    finally:
        shard.run(repairs)
    assert retry(shard) == []
    assert (shard.parked(), shard.parked_keys()) == ({}, {})
    assert shard.rows("SELECT id, note FROM orders ORDER BY id") == [("a", "3"), ("b", "1")]
    assert set(shard.inbox().values()) == {"applied"}
    assert shard.settle(order(shard, "a", "4")).applied == 1


def test_a_column_that_no_message_can_fill_holds_up_its_type_alone(shard):
    with other_orders(shard):
        outcome = shard.settle(order(shard, "a", "1"), customer(shard, "a", "1"))
        assert (outcome.applied, outcome.parked) == (1, 1)
        [trouble] = shard.rows("SELECT detail FROM shardctl_parked_keys")
        assert "orders.must is NOT NULL" in trouble[0]
    assert retry(shard) == []
    assert shard.rows("SELECT id, note FROM orders") == [("a", "1")]


@contextmanager
def other_orders(shard):
    """Another table takes the place of `orders` for a while: one with a column that the type doesn't map."""
    shard.run("ALTER TABLE orders RENAME TO kept")
    text = "VARCHAR(100)"
    columns = f"id {text} PRIMARY KEY, customer {text}, note {text}, must {text} NOT NULL, slot INT"
    shard.run(f"CREATE TABLE orders ({columns})")
    try:
        yield
    finally:
        shard.run("DROP TABLE orders")
        shard.run("ALTER TABLE kept RENAME TO orders")


def test_a_missing_table_of_shardctls_holds_up_the_shard(shard):
    """Nothing could be recorded: the batch is tried again as a whole."""
    shard.run("ALTER TABLE shardctl_inbox RENAME TO kept_inbox")
    try:
        with pytest.raises(TransientError, match="inbox"):
            shard.settle(customer(shard, "a", "1"))
    finally:
        shard.run("ALTER TABLE kept_inbox RENAME TO shardctl_inbox")


def test_types_of_one_sink_wait_each_for_itself(shard):
    outcome = shard.settle(
        shard.arrive("both", {"id": "a", "table": "missing"}, "a", ident="bad"),
        shard.arrive("other", {"id": "a", "table": "customers"}, "a", ident="good"),
    )
    assert (outcome.applied, outcome.parked) == (1, 1)
    assert shard.parked() == {"a": ["bad"]}
