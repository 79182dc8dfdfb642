"""Which messages are one write, on real databases: nobody's write is dropped for another's, and none is dropped unseen."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from sqlalchemy import event

from consumer.delivery import decode
from consumer.errors import PermanentError
from shardctl.shard import schema
from shardctl.wire import identity
from shardctl.wire.deadletters import KEY_REUSED

pytestmark = pytest.mark.slow
KEY = "x"
TYPES = """
  entry:
    table: entries
    key: id
    routing_key: owner
    operation: insert
    columns: {id: text, owner: text, note: text}
  other:
    table: others
    key: id
    routing_key: owner
    operation: insert
    columns: {id: text, owner: text, note: text}
  step:
    table: steps
    key: id
    routing_key: owner
    operation: insert
    on_poison: park
    columns: {id: text, owner: text, note: text}
"""


def arrive(shard, number, kind="entry", note="n", **more):
    return shard.arrive(kind, {"id": str(number), "owner": KEY, "note": note}, KEY, **more)


def redelivered(shard, delivery):
    """The same message once more, as Pub/Sub brings it."""
    received = _Received(delivery.message)
    again = decode(received, delivery.subscription, 1, shard.config, 0.0)
    shard.sink.check(again)
    return again


class _Received:
    ack_id, delivery_attempt = "again", 2

    def __init__(self, message):
        self.message = message

    def ByteSize(self):  # noqa: N802 - protobuf's name
        return 1


def ids(shard, table="entries"):
    return sorted(row_id for (row_id,) in shard.rows(f"SELECT id FROM {table}"))


# --- other writes -----------------------------------------------------------------------------------------------------


def test_one_key_of_two_callers_is_two_writes(shard):
    outcome = shard.settle(*(arrive(shard, n, ident="k", caller=caller) for n, caller in enumerate(("", "a", "b"))))
    assert (outcome.applied, outcome.duplicates) == (3, 0)
    assert shard.settle(arrive(shard, 1, ident="k", caller="a")).duplicates == 1


def test_one_key_of_two_types_is_two_writes(shard):
    assert shard.settle(arrive(shard, 1, ident="k"), arrive(shard, 1, "other", ident="k")).applied == 2
    assert (ids(shard), ids(shard, "others")) == (["1"], ["1"])


@pytest.mark.parametrize("keyed_first", [True, False])
def test_a_key_that_is_another_messages_id_is_another_write(shard, keyed_first):
    bare = arrive(shard, 1)
    both = [arrive(shard, 2, ident=bare.message_id), bare]
    assert shard.settle(*(both if keyed_first else reversed(both))).applied == 2


def test_a_copy_of_a_message_without_a_key_is_the_same_write(shard):
    bare = arrive(shard, 1)
    copy = arrive(shard, 1, **{identity.COPY_OF: bare.message_id})
    assert shard.settle(bare).applied == 1
    assert shard.settle(copy).duplicates == 1
    copy_of_copy = arrive(shard, 1, **{identity.COPY_OF: copy.idempotency_key})
    assert shard.settle(copy_of_copy).duplicates == 1


# --- the same key, another write --------------------------------------------------------------------------------------

REUSES = {
    "body": {"note": "other"},
    "operation": {"operation": "upsert"},
}


@pytest.mark.parametrize("what", REUSES)
@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "later"])
def test_a_key_used_for_another_write_is_a_dead_letter_and_no_duplicate(shard, what, together):
    first, second, third = arrive(shard, 1, ident="k"), arrive(shard, 1, ident="k", **REUSES[what]), arrive(shard, 3)
    if not together:
        shard.settle(first)
    batch = [first, second, third] if together else [second, third]
    outcome = shard.store.apply(batch)
    assert [delivery.fault.reason for delivery in outcome.poison] == [KEY_REUSED]
    assert outcome.poison == (second,)
    assert ids(shard) == ([] if together else ["1"])  # nothing commits before the letter is out
    outcome = shard.settle(*batch)
    assert (outcome.applied, outcome.dead) == (2, 1) if together else (1, 1)
    assert ids(shard) == ["1", "3"]
    assert shard.inbox() == {
        "k": "applied",
        third.message_id: "applied",
        f"refusal of {second.message_id}": "dead",
    }


def test_another_routing_key_is_another_write_too(shard):
    """Of one slot, where the inbox can see it."""
    other = next(
        key for key in map(str, range(10_000)) if shard.config.rule.slot_of(key) == shard.config.rule.slot_of(KEY)
    )
    first = arrive(shard, 1, ident="k")
    second = shard.arrive("entry", {"id": "2", "owner": other, "note": "n"}, other, ident="k")
    shard.settle(first)
    assert shard.store.apply([second]).poison == (second,)


def test_a_refused_message_that_comes_again_is_refused_once(shard):
    shard.settle(arrive(shard, 1, ident="k"))
    second = arrive(shard, 2, ident="k")
    shard.settle(second)
    again = redelivered(shard, second)
    outcome = shard.store.apply([again])
    assert (outcome.poison, outcome.duplicates) == ((), 1)
    third = arrive(shard, 3, ident="k")  # another message: refused for itself
    assert shard.store.apply([third]).poison == (third,)


def test_a_forged_copy_is_reported_and_the_write_it_stands_for_is_not_lost_unseen(shard):
    """A publisher can name another's message: what says something else can't pass for it."""
    bare = arrive(shard, 1)
    forged = arrive(shard, 2, **{identity.COPY_OF: bare.message_id})
    shard.settle(forged)
    outcome = shard.store.apply([bare])
    assert [delivery.fault.reason for delivery in outcome.poison] == [KEY_REUSED]
    shard.settle(bare)
    again = redelivered(shard, bare)
    assert (shard.store.apply([again]).poison, shard.store.apply([again]).duplicates) == ((), 1)


def test_a_reused_key_parks_nothing(shard):
    shard.settle(arrive(shard, 1, "step", ident="k"))
    second = arrive(shard, 2, "step", ident="k")
    shard.settle(second, arrive(shard, 3, "step"))
    assert (shard.parked_keys(), ids(shard, "steps")) == ({}, ["1", "3"])


def test_a_parked_message_stays_the_same_write(shard):
    """Its redelivery and its release meet the row that it was parked with."""
    shard.run("INSERT INTO steps (id, owner, note, slot) VALUES ('1', 'x', 'taken', 0)")
    bare, keyed = arrive(shard, 1, "step"), arrive(shard, 2, "step", ident="k", caller="c")
    shard.settle(bare, keyed)
    assert shard.inbox() == {bare.message_id: "parked", "k": "parked"}
    assert shard.store.apply([redelivered(shard, bare), redelivered(shard, keyed)]).duplicates == 2
    shard.run("DELETE FROM steps")
    assert [released.applied for released in shard.release()] == [2]
    assert shard.inbox() == {bare.message_id: "applied", "k": "applied"}


def test_only_the_same_write_is_known(shard):
    first = arrive(shard, 1, ident="k")
    shard.settle(first)
    same, other = arrive(shard, 1, ident="k"), arrive(shard, 1, ident="k", note="other")
    assert shard.store.known([same, other]) == {same}


def test_a_row_of_0_1_0_equals_every_write_of_its_identity(shard):
    shard.settle(arrive(shard, 1, ident="k"))
    shard.run("UPDATE shardctl_inbox SET fingerprint = NULL")
    assert shard.settle(arrive(shard, 2, ident="k")).duplicates == 1


def test_a_duplicate_that_was_published_much_later_is_remembered_from_then_on(shard):
    first = arrive(shard, 1, ident="k")
    shard.settle(first)
    soon, later, latest, other = (arrive(shard, 1, ident="k") for _ in range(4))
    soon.publish_time_us = first.publish_time_us + 3_000 * 1_000_000
    assert shard.settle(soon).duplicates == 1
    assert published(shard) == [schema.published(first.publish_time_us)]
    later.publish_time_us = first.publish_time_us + 86_400 * 1_000_000
    latest.publish_time_us = later.publish_time_us + 86_400 * 1_000_000
    other.publish_time_us, other.fingerprint = latest.publish_time_us * 2, 1
    assert shard.settle(latest, later).duplicates == 2
    assert published(shard) == [schema.published(latest.publish_time_us)]
    assert shard.store.apply([other]).poison == (other,)  # another write's: not a duplicate
    assert shard.settle(first).duplicates == 1
    assert published(shard) == [schema.published(latest.publish_time_us)]


def published(shard):
    return [moment for (moment,) in shard.rows("SELECT published FROM shardctl_inbox")]


def test_only_some_of_a_batch_may_be_new(shard):
    """What one statement says of a thousand rows must distinguish them."""
    batch = [arrive(shard, number, ident=f"k{number}") for number in range(50)]
    shard.settle(*batch[10:20], batch[33])
    outcome = shard.settle(*batch)
    assert (outcome.applied, outcome.duplicates) == (39, 11)
    assert len(ids(shard)) == 50


def test_one_key_in_two_slots_is_two_writes(shard):
    """Wherever the slots lie: a rebalance must not change what a key means."""
    other = next(key for key in map(str, range(99)) if shard.config.rule.slot_of(key) != shard.config.rule.slot_of(KEY))
    first, two = (
        arrive(shard, 1, ident="k"),
        shard.arrive("entry", {"id": "2", "owner": other, "note": "n"}, other, ident="k"),
    )
    assert shard.settle(first, two).applied == 2


def test_a_message_at_fault_is_reported_by_its_fault_and_not_by_its_key(shard):
    bad = arrive(shard, 1, ident="k")
    bad.fault = PermanentError("bad_json", "x")
    shard.settle(bad)
    again = redelivered(shard, bad)
    again.fault = bad.fault
    assert shard.store.apply([again]).duplicates == 1


# --- what it costs ----------------------------------------------------------------------------------------------------


@contextmanager
def statements(shard):
    """Those that mention the inbox."""
    verbs = []

    def note(_connection, _cursor, statement, *_):
        if "shardctl_inbox" in statement:
            verbs.append("INSERT" if "INSERT" in statement else statement.partition(" ")[0])

    event.listen(shard.engine, "before_cursor_execute", note)
    yield verbs
    event.remove(shard.engine, "before_cursor_execute", note)


def test_new_messages_cost_one_statement_and_only_duplicates_a_second(shard):
    usual = ["INSERT"] if shard.dialect.has_on_conflict else ["SELECT", "INSERT"]
    batch = [arrive(shard, number, ident=f"k{number}") for number in range(20)]
    with statements(shard) as verbs:
        shard.store.apply(batch)
    assert verbs == usual
    with statements(shard) as verbs:
        shard.store.apply(batch)
    assert verbs == (["INSERT", "SELECT"] if shard.dialect.has_on_conflict else ["SELECT"])
    with statements(shard) as verbs:
        shard.store.apply([arrive(shard, 99, ident="k99")] * 2)
    assert verbs == usual
