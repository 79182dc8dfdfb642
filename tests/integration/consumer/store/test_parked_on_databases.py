"""Parked keys on real databases: what fails holds its key up and nothing else, and every release keeps order."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import pytest
from arrival_kit import Database
from names_kit import age
from products_kit import PRODUCTS, SERVERS, empty_database
from sqlalchemy import Column, Integer, MetaData, String, Table, text
from sqlalchemy.exc import OperationalError

from consumer.errors import DataFaultError, TransientError
from consumer.store import parked
from consumer.store.sweep import Retention
from consumer.store.transaction import Released
from shardctl.shard import database
from shardctl.shard import parked as people
from shardctl.shard.membership import Membership

pytestmark = pytest.mark.slow
TYPES = """
  step:
    table: steps
    key: id
    routing_key: entity
    operation: insert
    on_poison: park
    columns: {id: text, entity: text, number: integer}
  entity:
    table: entities
    key: entity
    on_poison: park
    columns: {entity: text, step: integer}
  note:  # of the same entities, but a bad one may go
    table: notes
    key: id
    routing_key: entity
    operation: update
    columns: {id: text, entity: text}
"""


def step(shard, entity, number, *, ident=None, bad=False, **more):
    """A bad one has an id that is there already, so it can be applied once that is gone."""
    ident = ident or f"{entity}/{number}"
    body = {"id": "taken" if bad else ident, "entity": entity, "number": number}
    return shard.arrive("step", body, entity, ident=ident, **more)


def taken(shard):
    """The row that bad steps run into."""
    shard.settle(shard.arrive("step", {"id": "taken", "entity": "other", "number": 0}, "other", ident="taken"))


def numbers(shard, entity):
    return [n for (n,) in shard.rows(f"SELECT number FROM steps WHERE entity = '{entity}' ORDER BY number")]


def test_a_failed_message_holds_its_key_up_and_nothing_else(shard):
    taken(shard)
    [slot_mate] = [f"x{n}" for n in range(500) if step(shard, f"x{n}", 1).slot == step(shard, "k", 1).slot][:1]
    batch = [
        step(shard, "k", 1),
        step(shard, "k", 2, bad=True),
        step(shard, slot_mate, 1),
        step(shard, "k", 3),
        shard.arrive("entity", {"entity": "k", "step": 3}, "k", ident="k/entity"),
        step(shard, slot_mate, 2),
    ]
    outcome = shard.settle(*batch)
    assert (outcome.applied, outcome.parked, outcome.dead) == (4, 2, 0)
    assert outcome.newly_parked == (batch[1],)
    assert (numbers(shard, "k"), numbers(shard, slot_mate)) == ([1], [1, 2])
    assert shard.parked() == {"k": ["k/2", "k/3"]}
    assert shard.parked_keys() == {"k": "constraint"}
    later = shard.settle(step(shard, "k", 4), step(shard, slot_mate, 3))
    assert (later.applied, later.parked, later.newly_parked) == (1, 1, ())
    assert shard.parked() == {"k": ["k/2", "k/3", "k/4"]}
    assert {key: how for key, how in shard.inbox().items() if how == "parked"} == dict.fromkeys(
        ["k/2", "k/3", "k/4"], "parked"
    )


@pytest.mark.parametrize("first", ["step", "entity"])
def test_a_parked_key_holds_up_its_own_type_alone(shard, first):
    """Who may write only one type must not stop the other types of any key."""
    taken(shard)
    poison = {
        "step": step(shard, "k", 1, bad=True),
        "entity": shard.arrive("entity", b"{", "k", ident="k/entity/0"),
    }[first]
    assert shard.settle(poison).parked == 1
    steps, entity = step(shard, "k", 2), shard.arrive("entity", {"entity": "k", "step": 2}, "k", ident="k/entity")
    outcome = shard.settle(steps, entity)
    assert (outcome.applied, outcome.parked, outcome.newly_parked) == (1, 1, ())
    waits = steps if first == "step" else entity
    assert shard.parked() == {"k": [poison.idempotency_key, waits.idempotency_key]}


def test_a_type_of_the_same_batch_and_key_is_applied_beside_the_one_that_fails(shard):
    taken(shard)
    entity = shard.arrive("entity", {"entity": "k", "step": 2}, "k", ident="k/entity")
    outcome = shard.settle(step(shard, "k", 1, bad=True), entity, step(shard, "k", 2))
    assert (outcome.applied, outcome.parked) == (1, 2)
    assert shard.rows("SELECT step FROM entities") == [(2,)]


def test_a_key_parked_for_two_types_is_released_by_type(shard):
    shard.settle(shard.arrive("step", b"{", "k", ident="s"), shard.arrive("entity", b"{", "k", ident="e"))
    with people.opened(Membership("shop", "s0"), shard.url.render_as_string(hide_password=False)) as connection:
        parked_keys = people.keys(connection, "s0", "k")
        assert sorted(parked_key.message_type for parked_key in parked_keys) == ["entity", "step"]
        [of_entity] = [parked_key for parked_key in parked_keys if parked_key.message_type == "entity"]
        assert people.drop(connection, of_entity) == 1
    assert shard.parked() == {"k": ["s"]}


def test_the_dead_of_other_types_dont_wait(shard):
    taken(shard)
    shard.settle(step(shard, "k", 1, bad=True))
    dead = shard.arrive("note", b"{", "k", ident="dead")
    outcome = shard.settle(dead, step(shard, "k", 2))
    assert (outcome.dead, outcome.parked) == (1, 1)
    assert shard.inbox()["dead"] == "dead"


def test_a_parked_message_that_comes_again_is_a_duplicate(shard):
    taken(shard)
    batch = [step(shard, "k", 1, bad=True), step(shard, "k", 2)]
    shard.settle(*batch)
    again = shard.settle(*[step(shard, "k", n, bad=n == 1) for n in (1, 2)])
    assert (again.applied, again.parked, again.duplicates) == (0, 0, 2)
    assert shard.parked() == {"k": ["k/1", "k/2"]}
    assert shard.store.known(batch) == set(batch)


def test_a_released_key_is_applied_in_order_and_free(shard):
    taken(shard)
    shard.settle(step(shard, "k", 1, bad=True), *[step(shard, "k", n) for n in (2, 3)])
    shard.settle(step(shard, "k", 4))
    assert shard.settle(shard.arrive("entity", {"entity": "k", "step": 4}, "k")).applied == 1
    shard.run("DELETE FROM steps")
    assert shard.release() == [Released(4)]
    assert numbers(shard, "k") == [1, 2, 3, 4]
    assert shard.rows("SELECT step FROM entities") == [(4,)]
    assert (shard.parked_keys(), shard.parked()) == ({}, {})
    assert set(shard.inbox().values()) == {"applied"}
    assert shard.settle(step(shard, "k", 5)).applied == 1


def test_failing_again_it_stays_parked_at_the_right_place_with_the_reason(shard):
    taken(shard)
    batch = [step(shard, "k", n, bad=n in (1, 4)) for n in range(1, 7)]
    shard.settle(*batch)
    assert shard.release()[0].fault.reason == "constraint"
    assert shard.parked()["k"] == [f"k/{n}" for n in range(1, 7)]
    shard.run("DELETE FROM steps WHERE id = 'taken'")
    [released] = shard.release()  # the first bad one lands, and so the second is bad
    assert (released.applied, released.fault.reason, released.more) == (3, "constraint", False)
    assert shard.parked() == {"k": ["k/4", "k/5", "k/6"]}
    assert numbers(shard, "k") == [1, 2, 3]
    assert [shard.inbox()[f"k/{n}"] for n in range(1, 7)] == ["applied"] * 3 + ["parked"] * 3
    assert shard.store.released_keys() == []  # it waits for a person again


UNREADABLE = {
    "bad_json": {"body": b"{"},
    "unknown_column": {"body": {"id": "1", "entity": "k", "nmae": 1}},
    "bad_operation": {"operation": "explode"},
    "wrong_slot": {"slot": 1},
}


@pytest.mark.parametrize("reason", UNREADABLE)
def test_what_cant_be_read_is_parked_and_no_release_applies_it(shard, reason):
    """The operation that isn't one must not come back as the default, nor a message in the wrong slot as one in the right."""
    wrong = {"body": {"id": "1", "entity": "k", "number": 1}, "operation": "insert", **UNREADABLE[reason]}
    shard.settle(shard.arrive("step", wrong.pop("body"), "k", wrong.pop("operation"), ident="bad", **wrong))
    shard.settle(step(shard, "k", 2, slot=wrong.get("slot", -1)))
    [released] = shard.release()
    assert (released.applied, released.fault.reason) == (0, reason)
    assert shard.parked_keys() == {"k": reason}
    assert shard.rows("SELECT * FROM steps") == []


def test_a_type_that_is_gone_keeps_its_messages_parked(shard):
    taken(shard)
    shard.settle(step(shard, "k", 1, bad=True))
    kinds = {name: kind for name, kind in shard.config.message_types.items() if name != "step"}
    before, shard.config = shard.config, shard.config.model_copy(update={"message_types": kinds})
    shard.read = type(shard.read)(shard.read.func, check=shard.sink.check, config=shard.config)
    try:
        assert shard.release()[0].fault.reason == "unknown_type"
    finally:
        shard.config = before
        shard.read = type(shard.read)(shard.read.func, check=shard.sink.check, config=before)


def test_keys_of_slots_that_arent_active_here_are_left_alone_and_dont_stand_in_the_way(shard, monkeypatch):
    monkeypatch.setattr(parked, "KEYS_LOOKED_AT", 1)
    taken(shard)
    gone, here = step(shard, "gone", 1, bad=True), step(shard, "here", 1, bad=True)
    assert gone.slot != here.slot
    shard.settle(gone)
    shard.settle(here)
    shard.run("DELETE FROM steps")
    shard.run(f"UPDATE shardctl_lanes SET state = 'left' WHERE slot = {gone.slot}")
    shard.run("UPDATE shardctl_fence SET version = version + 1")
    try:
        assert shard.store.release((gone.slot, "step", "gone"), shard.read) is None
        assert shard.release() == [Released(1)]
        assert shard.parked() == {"gone": ["gone/1"]}
    finally:
        shard.run("UPDATE shardctl_lanes SET state = 'active'")
        shard.run("UPDATE shardctl_fence SET version = version + 1")


def test_more_than_one_transaction_takes(shard, monkeypatch):
    monkeypatch.setattr(parked, "RELEASED_AT_ONCE", 7)
    taken(shard)
    shard.settle(*[step(shard, "k", n, bad=n == 1) for n in range(1, 23)])
    shard.run("DELETE FROM steps")
    assert [release.applied for release in shard.release()] == [7, 7, 7, 1]
    assert numbers(shard, "k") == list(range(1, 23))
    assert shard.parked_keys() == {}


def test_messages_too_large_for_one_transaction(shard, monkeypatch):
    monkeypatch.setattr(parked, "RELEASED_BYTES_AT_ONCE", 100)
    taken(shard)
    shard.settle(*[step(shard, "k", n, bad=n == 1) for n in range(1, 8)])  # some 40 bytes each
    shard.run("DELETE FROM steps")
    assert [release.applied for release in shard.release()] == [3, 3, 1]


@pytest.mark.proof
def test_many_keys(shard):
    """Hundreds of parked keys in one batch, then a batch for all of them and as many others, then all released."""
    taken(shard)
    keys = [f"k{n}" for n in range(400)]
    shard.settle(*[step(shard, key, 1, bad=True) for key in keys])
    outcome = shard.settle(*[step(shard, key, 2) for n in range(400) for key in (f"k{n}", f"free{n}")])
    assert (outcome.applied, outcome.parked) == (400, 400)
    assert len(shard.parked_keys()) == 400
    shard.run("DELETE FROM steps")
    results = shard.release()
    assert len(results) == 400
    assert sum(release.applied for release in results) == 2  # the others want the id that one has now
    assert len(shard.parked_keys()) == 399
    assert list(shard.parked().values()) == [[f"{key}/1", f"{key}/2"] for key in keys if key in shard.parked_keys()]


def test_a_purge_leaves_what_is_parked(shard):
    taken(shard)
    shard.settle(step(shard, "k", 1, bad=True), step(shard, "j", 1))
    age(shard.engine, 2 * 86_400)
    shard.settle(step(shard, "i", 1))
    age(shard.engine, 3_600, "i/1")
    assert swept(shard, 86_400) == 2
    assert shard.inbox() == {"k/1": "parked", "i/1": "applied"}


def test_a_release_and_a_drop_count_from_when_they_happen(shard):
    """A copy may have been published while the message waited."""
    taken(shard)
    shard.settle(step(shard, "k", 1, bad=True), step(shard, "j", 1, bad=True))
    age(shard.engine, 9 * 86_400)
    with database.writing(shard.engine) as connection:
        (key,) = people.keys(connection, "s0", "j")
        assert people.drop(connection, key) == 1
    shard.run("DELETE FROM steps")
    shard.release("k")
    assert swept(shard, 86_400) == 1  # what had taken the rows' place
    assert shard.inbox() == {"k/1": "applied", "j/1": "dead"}


def swept(shard, older_than_seconds):
    """A walk through the whole inbox: how many rows went."""
    gone, at = 0, 0 if shard.engine.dialect.name == "postgresql" else (0, bytes(16))
    while True:
        chunk = shard.store.purge(Retention(older_than_seconds, older_than_seconds), at, 1)
        gone, at = gone + chunk.gone, chunk.at
        if chunk.over:
            return gone


def test_a_commit_that_fails_parks_the_key_again(shard):
    """Where no single message is to blame and nobody looks, a released key would be tried for ever."""
    taken(shard)
    shard.settle(step(shard, "k", 1, bad=True))
    shard.run("DELETE FROM steps")
    shard.run("UPDATE shardctl_parked_keys SET released = true")
    finish_release = shard.store._parked.finish_release

    def fails_once(connection, key, done, fault):
        if fault is None:
            raise DataFaultError("constraint", "at the commit")
        return finish_release(connection, key, done, fault)

    shard.store._parked.finish_release = fails_once
    try:
        [key] = shard.store.released_keys()
        assert shard.store.release(key, shard.read).fault.detail == "at the commit"
        assert shard.store.released_keys() == []
        assert shard.rows("SELECT * FROM steps") == []
    finally:
        del shard.store._parked.finish_release


def test_a_person_drops_what_failed_and_the_rest_goes_on(shard):
    taken(shard)
    shard.settle(*[step(shard, "k", n, bad=n == 1) for n in (1, 2, 3)])
    url = shard.url.render_as_string(hide_password=False)
    with people.opened(Membership("shop", "s0"), url) as connection:
        [key] = people.keys(connection, "s0")
        assert (key.key, key.reason, key.messages, key.released) == ("k", "constraint", 3, False)
        assert 0 <= (datetime.now(UTC) - key.parked_time).total_seconds() < 100
        assert [message.idempotency_key for message in people.messages(connection, key)] == ["k/1", "k/2", "k/3"]
        assert people.drop(connection, key) == 1
    assert shard.store.released_keys() == [(key.slot, "step", "k")]
    assert shard.store.release((key.slot, "step", "k"), shard.read) == Released(2)
    assert {key: how for key, how in shard.inbox().items() if key != "taken"} == {
        "k/1": "dead",
        "k/2": "applied",
        "k/3": "applied",
    }
    assert shard.rows("SELECT reason FROM shardctl_inbox WHERE outcome = 1") == [("constraint",)]
    with people.opened(Membership("shop", "s0"), url) as connection:
        assert people.keys(connection, "s0") == ()
        assert people.drop(connection, key) == 0
        assert not people.replay(connection, key)


def test_a_person_drops_everything(shard):
    taken(shard)
    shard.settle(*[step(shard, "k", n, bad=n == 1) for n in range(1, 1_101)])
    with people.opened(Membership("shop", "s0"), shard.url.render_as_string(hide_password=False)) as connection:
        [key] = people.keys(connection, "s0", "k")
        assert people.drop(connection, key, every=True) == 1_100
        assert people.keys(connection, "s0") == ()
    assert (shard.parked(), shard.store.released_keys()) == ({}, [])
    reasons = shard.rows(
        "SELECT reason, count(*) FROM shardctl_inbox WHERE outcome = 1 GROUP BY reason ORDER BY reason"
    )
    assert reasons == [("behind_parked", 1_099), ("constraint", 1)]
    assert shard.settle(step(shard, "k", 5_000)).applied == 1


# --- races ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=SERVERS)
def server_shard(request):
    with empty_database(request, request.param) as url, closing(Database(url, TYPES)) as shard:
        yield shard


def test_a_release_waits_for_a_writer_and_applies_what_it_stored(server_shard):
    """The writer has stored a message and not committed. A release that didn't wait would free the key before it."""
    shard = server_shard
    taken(shard)
    shard.settle(step(shard, "k", 1, bad=True))
    shard.run("DELETE FROM steps")
    shard.run("UPDATE shardctl_parked_keys SET released = true")
    late = step(shard, "k", 2)
    with shard.engine.connect() as writer, writer.begin():
        fresh = shard.store._inbox.add(writer, [late]).fresh
        keys = shard.store._parked.keys_of(writer, fresh)
        assert keys == {(late.slot, "step", "k")}
        shard.store._parked.park(writer, fresh, keys)
        with ThreadPoolExecutor(1) as threads:
            releasing = threads.submit(shard.store.release, (late.slot, "step", "k"), shard.read)
            until_someone_waits(shard, releasing)
            writer.commit()
            assert releasing.result() == Released(2)
    assert numbers(shard, "k") == [1, 2]
    assert shard.parked_keys() == {}


def test_a_writer_waits_for_a_release_and_finds_the_key_free(server_shard):
    shard = server_shard
    taken(shard)
    shard.settle(step(shard, "k", 1, bad=True))
    shard.run("UPDATE shardctl_parked_keys SET released = true")
    late = step(shard, "k", 2)
    key = (late.slot, "step", "k")
    with shard.engine.connect() as releaser, releaser.begin():
        store = shard.store
        assert store._parked.take(releaser, key)
        with ThreadPoolExecutor(1) as threads:
            writing = threads.submit(store.apply, [late])
            until_someone_waits(shard, writing)
            store._parked.finish_release(releaser, key, store._parked.first(releaser, key), None)
            releaser.commit()
            assert (writing.result().applied, writing.result().parked) == (1, 0)
    assert numbers(shard, "k") == [2]


def until_someone_waits(shard, work):
    query = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        "mysql": "SELECT variable_value FROM information_schema.global_status "
        "WHERE variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS'",
    }[shard.url.get_backend_name()]
    with shard.engine.connect() as watcher:
        while not work.done():
            if int(watcher.scalar(text(query))):
                return
            watcher.rollback()  # else the answer is a snapshot's
    pytest.fail(f"nobody waited: {work.result()}")


class Moody:
    """A sink that writes down what it applied, in order, and refuses some messages until somebody persuades it."""

    def __init__(self):
        self.refused = set()

    def check(self, delivery):
        pass

    def apply(self, connection, writes):
        if refused := [write.idempotency_key for write in writes if write.idempotency_key in self.refused]:
            raise DataFaultError("refused", refused[0])
        rows = [{"entity": write.partition_key, "number": int(write.message.data)} for write in writes]
        connection.execute(LOG.insert(), rows)
        return 0


LOG = Table(
    "log",
    MetaData(),
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("entity", String(20)),
    Column("number", Integer),
)


@pytest.fixture(params=PRODUCTS)
def race_shard(request):
    with empty_database(request, request.param) as url, closing(Database(url, TYPES, Moody())) as shard:
        LOG.create(shard.engine)
        yield shard


@pytest.mark.parametrize("seed", range(3))
def test_writers_and_releasers_at_once_lose_double_and_swap_nothing(race_shard, seed):
    """Two replicas with overlapping batches of one stream, redeliveries and no locks, two more that release all the while."""
    shard, dice = race_shard, random.Random(seed)
    stream = [(f"e{entity}", number) for number in range(1, 41) for entity in range(6)]
    shard.sink.refused = {f"{entity}/{number}" for entity, number in stream if dice.random() < 0.15}
    written = threading.Event()

    def again(call):
        for _ in range(2_000):
            try:
                return call()
            except (TransientError, OperationalError):  # deadlocks, and SQLite's one writer
                continue
        return pytest.fail("in trouble for ever")

    def replicate(number):
        store, cut, at = shard.new_store(), random.Random(f"{seed}/{number}"), 0
        while at < len(stream):
            batch = stream[at : at + cut.randrange(1, 30)]
            deliveries = [
                shard.arrive("step", str(number).encode(), entity, ident=f"{entity}/{number}")
                for entity, number in batch
            ]
            again(lambda: shard.settle(*deliveries, store=store))  # noqa: B023
            at += len(batch)
            if cut.random() < 0.3:
                at = max(0, at - cut.randrange(20))  # redelivered

    def release(number):
        store, moods = shard.new_store(), random.Random(f"{seed}/{number}")
        while not (written.is_set() and again(lambda: not shard.parked_keys())):
            for key in sorted(shard.sink.refused):
                if moods.random() < 0.3:
                    shard.sink.refused.discard(key)
            again(lambda: shard.release(store=store))

    with ThreadPoolExecutor(4) as threads:
        releasers = [threads.submit(release, number) for number in range(2)]
        try:
            list(threads.map(replicate, range(2)))
        finally:
            written.set()
        for releaser in releasers:
            releaser.result()
    applied = defaultdict(list)
    for entity, number in shard.rows("SELECT entity, number FROM log ORDER BY seq"):
        applied[entity].append(number)
    assert applied == {f"e{entity}": list(range(1, 41)) for entity in range(6)}
    assert shard.inbox() == {f"{entity}/{number}": "applied" for entity, number in stream}
    assert shard.parked() == {}
