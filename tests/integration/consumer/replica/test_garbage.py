"""What fails leaves nothing that only a search for garbage would find: the collector seldom looks, and a batch is large."""

from __future__ import annotations

import gc
from contextlib import contextmanager

import pytest
from consumer_kit import Shard, write

from consumer.errors import BlockedError

pytestmark = pytest.mark.slow
TIMES = 10
BIG = 100_000


@contextmanager
def nothing_left(is_kind):
    """No object of the block's that `of` says is a large one."""
    gc.collect()
    gc.disable()
    try:
        before = sum(map(is_kind, gc.get_objects()))
        yield
        assert sum(map(is_kind, gc.get_objects())) == before
    finally:
        gc.enable()


def is_batch(value):
    """The parameters of a statement: a tuple of one large text."""
    return type(value) is tuple and len(value) == 1 and type(value[0]) is str and len(value[0]) > BIG


def customer(name, credit=1):
    return write("customer", {"customer_id": name, "name": "x" * BIG, "email": "", "credit": credit})


def test_a_refused_write(database_url):
    shard = Shard(database_url)
    shard.settle(customer("a"))
    shard.run("ALTER TABLE customers ADD CONSTRAINT few CHECK (credit < 5)")
    with nothing_left(is_batch):
        for number in range(TIMES):
            assert shard.store.apply([customer(f"b{number}", credit=5)]).poison
    shard.close()


def test_a_blocked_write(database_url):
    shard = Shard(database_url)
    shard.settle(customer("a"))
    with shard.engine.connect() as holder, nothing_left(is_batch):
        holder.exec_driver_sql("SELECT 1 FROM customers FOR UPDATE")
        for _ in range(TIMES):
            with pytest.raises(BlockedError):
                shard.store.apply([customer("a")], 0.01)
    shard.close()
