"""The term on real databases: a replica that led before can't write, whatever it believes."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from datetime import timedelta

import pytest
from consumer_kit import Shard, write
from patience import PATIENCE_SECONDS
from products_kit import PRODUCTS, empty_database

from consumer.errors import TransientError
from consumer.sinks.sql import SqlSink
from consumer.store import Store
from consumer.store.fence import Fence
from consumer.store.sweep import Retention
from consumer.store.term import NotLeaderError, Term

pytestmark = pytest.mark.slow


@pytest.fixture(params=PRODUCTS)
def shard(request):
    limits = {"statement_timeout": timedelta(seconds=5), "concurrency": 4}
    with empty_database(request, request.param) as url, closing(Shard(url, **limits)) as made:
        yield made


def replica(shard, name):
    term = Term(shard.engine, shard.dialect, name)
    sink = SqlSink(shard.dialect, shard.config.message_types)
    return term, Store(shard.engine, shard.dialect, Fence(shard.dialect), sink, term)


def customer(key="1", **columns):
    return write("customer", {"customer_id": key, **columns})


def names(shard):
    return [name for (name,) in shard.rows("SELECT name FROM customers")]


def test_only_the_one_that_led_last_writes(shard):
    (old, old_store), (new, new_store) = replica(shard, "old"), replica(shard, "new")
    message = customer(name="x")
    with pytest.raises(NotLeaderError, match="doesn't lead, and term 0"):
        old_store.apply([message])
    assert old.begin() == 1
    assert old_store.apply([message]).applied == 1
    assert new.begin() == 2
    with pytest.raises(NotLeaderError, match="led in term 1, and term 2 is new's"):
        old_store.apply([customer(name="late")])
    assert names(shard) == ["x"]
    assert new_store.apply([message, customer(name="y")]).duplicates == 1
    assert names(shard) == ["y"]
    assert old.begin() == 3
    with pytest.raises(NotLeaderError):
        new_store.apply([customer(name="z")])


def test_nothing_that_writes_gets_past_the_term(shard):
    _, store = replica(shard, "standby")
    shard.settle(write("customer", b"{", key="1"))
    calls = {
        "apply": lambda: store.apply([customer()]),
        "a fault": lambda: store.apply([write("customer", b"{", key="1")]),
        "barrier": lambda: store.pass_barriers([]),
        "release": lambda: store.release((1, "customer", "1"), lambda _: None),
        "released": store.released_keys,
        "purge": lambda: store.purge(Retention(0, 0), 0, 10),
    }
    before = shard.inbox()
    for call in calls.values():
        with pytest.raises(NotLeaderError):
            call()
    assert shard.inbox() == before
    store.report_presence("standby", [1])  # a standby also reports that it is there


def test_once_ended_a_term_writes_nothing_more(shard):
    term, store = replica(shard, "a")
    term.begin()
    term.end()
    with pytest.raises(NotLeaderError):
        store.apply([customer()])


def test_a_new_term_waits_for_the_writes_of_the_one_before(shard):
    (old, _), (new, _) = replica(shard, "old"), replica(shard, "new")
    old.begin()
    begun = threading.Event()

    def begin():
        new.begin()
        begun.set()

    with shard.engine.connect() as connection, connection.begin():
        for statement in shard.dialect.begin:
            connection.exec_driver_sql(statement)
        old.check(connection)
        waiting = threading.Thread(target=begin)
        waiting.start()
        assert not begun.wait(0.3)
    assert begun.wait(PATIENCE_SECONDS)
    waiting.join()
    with pytest.raises(NotLeaderError), shard.engine.begin() as connection:
        old.check(connection)


def test_a_writer_that_waited_for_a_new_term_sees_it(shard):
    """It asked while the other was in the middle of raising the number."""
    if shard.dialect.begin:
        pytest.skip("SQLite has one writer")
    (old, old_store), (new, _) = replica(shard, "old"), replica(shard, "new")
    old.begin()
    errors = []

    def late():
        try:
            old_store.apply([customer(name="late")])
        except NotLeaderError as error:
            errors.append(error)

    with shard.engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("UPDATE shardctl_leader SET term = term + 1, holder = 'new'")
        writer = threading.Thread(target=late)
        writer.start()
        time.sleep(0.2)
    writer.join(5)
    assert len(errors) == 1
    assert shard.table("customer") == []
    assert new.begin() == 3


def test_a_stream_of_writes_doesnt_keep_a_new_term_waiting(shard):
    (old, old_store), (new, _) = replica(shard, "old"), replica(shard, "new")
    old.begin()
    stopped = threading.Event()

    def write_on(key):
        while not stopped.is_set():
            try:
                old_store.apply([customer(key)])
            except (NotLeaderError, TransientError):
                return

    writers = [threading.Thread(target=write_on, args=(str(number),)) for number in range(3)]
    for writer in writers:
        writer.start()
    try:
        time.sleep(0.1)
        assert new.begin() == 2
    finally:
        stopped.set()
        for writer in writers:
            writer.join(10)


def test_tables_from_before_there_were_leaders_are_reported(shard):
    term, store = replica(shard, "a")
    shard.run("DELETE FROM shardctl_leader")
    with pytest.raises(TransientError, match="shardctl provision"):
        term.begin()
    with pytest.raises(TransientError, match="shardctl provision"):
        store.apply([customer()])
    shard.run("INSERT INTO shardctl_leader VALUES (1, 0, '')")
    assert term.begin() == 1
