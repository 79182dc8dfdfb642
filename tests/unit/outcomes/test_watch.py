"""What a watch says of writes: by the inbox of the slot's owner, never before the commit, and unknown where nobody could look."""

from concurrent.futures import CancelledError

import pytest
from outcomes_kit import BODY
from sqlalchemy import create_engine

from shardctl.errors import UsageError
from shardctl.outcomes.effect import Effect, State
from shardctl.outcomes.watch import FRESH_SECONDS, Waiter, Watch
from shardctl.shard.schema import InboxOutcome

PATIENCE_SECONDS = 60


@pytest.fixture
def watch(inboxes):
    return Watch(inboxes.fleet, inboxes.engines)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(InboxOutcome.APPLIED, State.APPLIED), (InboxOutcome.DEAD, State.DEAD), (None, State.NOT_SEEN)],
)
def test_a_write_is_what_its_inbox_row_says(inboxes, watch, outcome, state):
    write = inboxes.sought()
    if outcome:
        inboxes.settle(write, outcome)
    effect = watch.effect(write, 0)
    assert (effect.state, effect.reason, effect.shard, bool(effect)) == (
        state,
        "",
        inboxes.home(write),
        state == "applied",
    )


def test_a_parked_write_has_the_reason_of_its_own_failure_alone(inboxes, watch):
    first, second = inboxes.sought(), inboxes.sought(idempotency_key="i-2", caller="erp")
    inboxes.park(first, second)
    assert watch.effect(first, 0) == Effect(State.PARKED, "constraint", inboxes.home(first))
    assert watch.effect(second, 0) == Effect(State.PARKED, "behind_parked", inboxes.home(first))


@pytest.mark.parametrize(
    ("asked", "state"),
    [
        ({"caller": "erp"}, State.NOT_SEEN),
        ({"caller": ""}, State.NOT_SEEN),
        ({"kind": "audit"}, None),
        ({"body": BODY + b" "}, State.DEAD),
        ({"body": None}, State.APPLIED),
    ],
    ids=["other-client", "no-client", "other-type", "other-body", "body-unknown"],
)
def test_another_write_is_not_taken_for_it(inboxes, watch, asked, state):
    inboxes.settle(inboxes.sought())
    write = inboxes.sought(**asked)
    if state is None:
        with pytest.raises((KeyError, UsageError)):
            watch.effect(write, 0)
        return
    effect = watch.effect(write, 0)
    assert effect.state is state
    assert effect.reason == ("key_reused" if state is State.DEAD else "")


def test_it_waits_for_the_commit(inboxes, watch):
    write = inboxes.sought()
    waiter = watch.begin(write, patient=True)
    engine = inboxes.engines[inboxes.home(write)]
    with engine.connect() as connection:
        inboxes.record(connection, write)
        assert watch.effect(write, 0).state is State.NOT_SEEN
        assert not waiter.future.done()
        connection.commit()
    assert waiter.future.result(PATIENCE_SECONDS)


def test_a_slot_that_moves_while_one_waits_is_followed(inboxes, watch):
    write = inboxes.sought()
    home, other = inboxes.home(write), "s1" if inboxes.home(write) == "s0" else "s0"
    waiter = watch.begin(write, patient=True)
    assert watch.effect(write, 0).state is State.NOT_SEEN
    inboxes.lane(other, write.slot, "due")
    inboxes.lane(home, write.slot, "left")
    assert watch.effect(write, 0).state is State.UNKNOWN
    inboxes.settle(write, shard=other)
    inboxes.lane(other, write.slot, "active")
    assert waiter.future.result(PATIENCE_SECONDS).shard == other


def test_the_row_of_a_database_that_has_handed_the_slot_over_counts_for_nothing(inboxes, watch):
    write = inboxes.sought()
    inboxes.settle(write, InboxOutcome.DEAD)
    other = "s1" if inboxes.home(write) == "s0" else "s0"
    inboxes.lane(inboxes.home(write), write.slot, "left")
    inboxes.lane(other, write.slot, "active")
    assert watch.effect(write, 0) == Effect(State.NOT_SEEN, shard=other)


def test_a_database_that_cannot_be_read_leaves_it_unknown(inboxes, tmp_path):
    write = inboxes.sought()
    broken = {**inboxes.engines, inboxes.home(write): create_engine(f"sqlite:///{tmp_path}/nowhere/s.db")}
    watch = Watch(inboxes.fleet, broken)
    for seconds in (0, 0.05):
        effect = watch.effect(write, seconds)
        assert effect.state is State.UNKNOWN
        assert effect.reason
        assert "nowhere" not in effect.reason


def test_many_waiters_share_each_look(inboxes, watch):
    writes = [inboxes.sought(f"o-{number}", f"i-{number}") for number in range(300)]
    waiters = [watch.begin(write, patient=True) for write in writes]
    before = watch.looks
    for shard, engine in inboxes.engines.items():
        with engine.begin() as connection:
            for write in writes:
                if inboxes.home(write) == shard:
                    inboxes.record(connection, write)
    assert all(waiter.future.result(PATIENCE_SECONDS) for waiter in waiters)
    assert watch.looks - before < 100  # two shards, a look each 25 ms at most, whatever the waiters


def test_what_was_unseen_long_ago_is_unknown():
    now = [0.0]
    waiter = Waiter(None, ("s0",), patient=True, clock=lambda: now[0])
    assert waiter.leave().state is State.UNKNOWN
    waiter = Waiter(None, ("s0",), patient=True, clock=lambda: now[0])
    assert not waiter.meet(Effect(State.NOT_SEEN, shard="s0"), 0.0)
    now[0] = FRESH_SECONDS
    assert waiter.leave().state is State.NOT_SEEN
    now[0] += 0.1
    assert waiter.leave().state is State.UNKNOWN
    with pytest.raises(CancelledError):
        waiter.future.result()
