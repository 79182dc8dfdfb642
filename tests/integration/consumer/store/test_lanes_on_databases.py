"""What a consumer does with the messages of a lane, by the lane's state, and how it passes a barrier; on real databases."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta

import pytest
from consumer_kit import SLOT_BITS, Shard, write
from products_kit import PRODUCTS, empty_database
from sqlalchemy import insert, text

from consumer.delivery import Delivery
from consumer.errors import PermanentError, TransientError
from consumer.store.transaction import Passed
from shardctl.fleet.keyspace import SlotSet, lane_of
from shardctl.shard import lanes, schema
from shardctl.shard.lanes import Met
from shardctl.shard.schema import InboxOutcome, LaneState, RebalanceState
from shardctl.wire.barrier import Barrier
from shardctl.wire.identity import key_hash

pytestmark = pytest.mark.slow

PUBLISHED_US = 1_700_000_000_123_456  # when every message of consumer_kit was
KEY = "mover"


@pytest.fixture(params=PRODUCTS)
def shard(request):
    limits = {"statement_timeout": timedelta(seconds=5)}
    with empty_database(request, request.param) as url, closing(Shard(url, **limits)) as made:
        yield made


def customer(generation=1, **columns) -> Delivery:
    made = write("customer", {"customer_id": KEY, **columns})
    made.generation, made.lane = generation, lane_of(made.slot, generation)
    return made


SLOT = customer().slot


def barrier(token, generation=1, rebalance="r1", time_us=PUBLISHED_US) -> Delivery:
    made = customer(generation)
    made.barrier, made.ends_lane, made.publish_time_us = Barrier(rebalance, "s0", generation, token), True, time_us
    return made


def change(shard, what, *arguments):
    with shard.engine.begin() as connection:
        what(connection, *arguments)


def open_rebalance(shard, state=RebalanceState.OPEN):
    change(shard, lambda c: c.execute(insert(schema.rebalances).values(id="r1", state=state, plan="{}")))


def awaited(shard, slot=SLOT, generation=1) -> str:
    """The token of a barrier that the database awaits."""
    with shard.engine.begin() as connection:
        return lanes.await_barriers(connection, [slot], generation, "r1")[slot]


def standing(shard) -> dict[int, tuple[str, int | None]]:
    """By generation, of the one slot."""
    with shard.engine.connect() as connection:
        lanes_read = lanes.read(connection).values()
    return {lane.generation: (lane.state, lane.barrier_time_us) for lane in lanes_read if lane.slot == SLOT}


def expect(shard, state):
    """The slot is to come to generation 2 of this database."""
    change(shard, lanes.announce, SlotSet.of([SLOT]), 2)
    if state == LaneState.DUE:
        change(shard, lanes.make_due, [SLOT], 2)


def leave(shard, time_us):
    open_rebalance(shard)
    change(shard, lanes.leave, [Met(SLOT, awaited(shard), time_us)], 1)


# --- barriers ---------------------------------------------------------------------------------------------------------


def test_a_barrier_lets_the_slot_go_with_its_publish_time(shard):
    open_rebalance(shard)
    assert shard.store.pass_barriers([barrier(awaited(shard))]) == Passed(1)
    assert standing(shard) == {1: (LaneState.LEFT, PUBLISHED_US)}
    assert shard.store.apply([customer(name="late")]).applied == 0


def test_a_slot_that_stays_is_the_next_generations_in_the_same_transaction(shard):
    open_rebalance(shard)
    expect(shard, LaneState.DUE)
    shard.store.pass_barriers([barrier(awaited(shard))])
    assert standing(shard) == {1: (LaneState.LEFT, PUBLISHED_US), 2: (LaneState.ACTIVE, PUBLISHED_US)}
    assert shard.store.apply([customer(2, name="new")]).applied == 1


def test_a_second_barrier_changes_nothing(shard):
    open_rebalance(shard)
    token = awaited(shard)
    shard.store.pass_barriers([barrier(token)])
    assert shard.store.pass_barriers([barrier(token, time_us=PUBLISHED_US + 9)]) == Passed()
    assert standing(shard)[1] == (LaneState.LEFT, PUBLISHED_US)


def test_a_barrier_that_nobody_awaits_changes_nothing_and_doesnt_take_the_fence(shard):
    """However right the rest of what it says is: the slot's next lane may be arriving still."""
    open_rebalance(shard)
    expect(shard, LaneState.ARRIVING)
    before = shard.rows("SELECT version FROM shardctl_fence")
    forged = barrier("")
    assert shard.store.pass_barriers([forged]) == Passed(0, (forged,))
    assert standing(shard) == {1: (LaneState.ACTIVE, None), 2: (LaneState.ARRIVING, None)}
    assert shard.rows("SELECT version FROM shardctl_fence") == before
    assert shard.store.apply([customer(name="after")]).applied == 1


def test_the_token_of_another_slot_or_generation_ends_nothing(shard):
    open_rebalance(shard)
    other = next(slot for slot in range(1 << SLOT_BITS) if slot != SLOT)
    copied, mine = awaited(shard, other), awaited(shard)
    assert copied != mine
    for forged in (barrier(copied), barrier(""), barrier(mine.upper()), barrier(mine[:-1])):
        assert shard.store.pass_barriers([forged]) == Passed(0, (forged,))
    assert shard.store.pass_barriers([barrier(mine, generation=2)]) == Passed()
    assert standing(shard) == {1: (LaneState.ACTIVE, None)}


def test_a_forged_barrier_doesnt_hide_the_real_one_beside_it(shard):
    open_rebalance(shard)
    assert shard.store.pass_barriers([barrier("forged"), barrier(awaited(shard))]).lanes == 1


@pytest.mark.parametrize("state", [RebalanceState.ABORTED, RebalanceState.DONE])
def test_a_barrier_of_a_rebalance_that_isnt_open_here_changes_nothing(shard, state):
    open_rebalance(shard, state)
    forged = barrier(awaited(shard))
    assert shard.store.pass_barriers([forged]) == Passed(0, (forged,))
    assert standing(shard) == {1: (LaneState.ACTIVE, None)}


def test_awaiting_it_again_gives_the_same_token_and_another_rebalance_gets_another(shard):
    open_rebalance(shard)
    token = awaited(shard)
    assert awaited(shard) == token
    with shard.engine.begin() as connection:
        tokens = lanes.await_barriers(connection, [SLOT], 1, "r2")
    assert tokens.keys() == {SLOT}
    assert tokens[SLOT] != token


def test_nobody_awaits_the_barrier_of_a_lane_that_isnt_active(shard):
    open_rebalance(shard)
    shard.store.pass_barriers([barrier(awaited(shard))])
    with shard.engine.begin() as connection:
        assert lanes.await_barriers(connection, [SLOT], 1, "r1") == {}
    assert shard.rows("SELECT * FROM shardctl_barriers") == []


def test_a_database_of_an_older_version_is_reported(shard):
    shard.store.check_tables()
    shard.run("DROP TABLE shardctl_barriers")
    with pytest.raises(TransientError, match="lacks shardctl_barriers: run `shardctl provision`"):
        shard.store.check_tables()
    schema.create(shard.engine, shard.config.message_types, SlotSet(), 1)
    shard.store.check_tables()


def test_a_replica_notices_at_once_that_another_has_passed_the_barrier(shard):
    open_rebalance(shard)
    other = shard.new_store()
    assert other.apply([customer(name="before")]).applied == 1
    shard.store.pass_barriers([barrier(awaited(shard))])
    assert other.apply([customer(name="after")]).applied == 0


# --- lanes that aren't active -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [LaneState.DUE, None])
def test_what_is_due_or_unknown_is_held(shard, state):
    if state:
        expect(shard, state)
    message = customer(2, name="x")
    outcome = shard.store.apply([message])
    assert (outcome.held, outcome.passed_on, outcome.applied) == ((message,), 0, 0)
    assert not shard.inbox()


def test_what_comes_before_any_barrier_is_out_is_the_older_lanes(shard):
    expect(shard, LaneState.ARRIVING)
    outcome = shard.store.apply([customer(2, name="x"), customer(name="x")])
    assert (outcome.held, outcome.passed_on, outcome.applied) == ((), 1, 1)


def test_after_the_barrier_a_lane_keeps_nothing_and_loses_nothing(shard):
    applied, after, at, overtaken = (customer(name=name) for name in ("applied", "after", "at", "overtaken"))
    shard.store.apply([applied])
    leave(shard, PUBLISHED_US + 5)
    after.publish_time_us, at.publish_time_us = PUBLISHED_US + 6, PUBLISHED_US + 5
    outcome = shard.store.apply([applied, after, at, overtaken])
    assert outcome.again == (overtaken,)
    assert (outcome.passed_on, outcome.held, outcome.applied) == (3, (), 0)
    assert [key for key, _ in shard.inbox()] == [applied.idempotency_key]


@pytest.mark.parametrize("state", [LaneState.DUE, LaneState.ARRIVING, LaneState.LEFT])
def test_a_fault_is_dead_lettered_by_the_lane_that_owns_it_alone(shard, state):
    faulty = customer(1 if state == LaneState.LEFT else 2)
    faulty.fault = PermanentError("bad_json", "…")
    if state == LaneState.LEFT:
        leave(shard, PUBLISHED_US)
    else:
        expect(shard, state)
    outcome = shard.store.apply([faulty])
    assert (outcome.poison, outcome.dead) == ((), 0)


def test_a_fault_that_was_dead_lettered_before_the_slot_came_isnt_again(shard):
    faulty = customer()
    faulty.fault = PermanentError("bad_json", "…")
    shard.settle(faulty)
    expect(shard, LaneState.DUE)
    leave(shard, PUBLISHED_US + 1)
    again = customer(2)
    again.identity, again.fingerprint, again.fault = faulty.identity, faulty.fingerprint, faulty.fault
    outcome = shard.store.apply([again])
    assert (outcome.poison, outcome.duplicates) == ((), 1)


def test_a_released_key_isnt_applied_where_its_slot_has_left(shard):
    leave(shard, PUBLISHED_US)
    shard.run(
        "INSERT INTO shardctl_parked_keys (slot, message_type, partition_key, reason, detail, released) "
        f"VALUES ({SLOT}, 'customer', '{KEY}', 'constraint', '', {'true' if shard.dialect.has_on_conflict else 1})"
    )
    assert shard.store.released_keys() == []
    assert shard.store.release((SLOT, "customer", KEY), lambda _: None) is None


# --- who reads --------------------------------------------------------------------------------------------------------


def test_a_replica_reports_which_generations_it_reads(shard):
    shard.store.report_presence("pod-a", [1])
    shard.store.report_presence("pod-b", [1, 2])
    shard.store.report_presence("pod-a", [1, 2])
    with shard.engine.connect() as connection:
        rows = connection.execute(text("SELECT replica, generations FROM shardctl_replicas ORDER BY replica")).all()
    assert [tuple(row) for row in rows] == [("pod-a", "1,2"), ("pod-b", "1,2")]


# --- rows that were copied before the slot came -----------------------------------------------------------------------


def test_a_row_that_was_copied_before_the_slot_came_makes_nothing_known(shard):
    """It may be of a dead write that has been let go of since, where the slot is active: the write is to be tried again."""
    tried_again = customer(2, name="again")
    expect(shard, LaneState.ARRIVING)
    copied = {
        "slot": SLOT, "identity": tried_again.identity, "key_hash": key_hash("customer", KEY),
        "fingerprint": tried_again.fingerprint, "published": schema.published(PUBLISHED_US), "outcome": InboxOutcome.DEAD,
    }  # fmt: skip
    change(shard, lambda c: c.execute(insert(schema.inbox).values(copied)))
    assert shard.store.known([tried_again]) == set()
    change(shard, lanes.make_due, [SLOT], 2)
    assert shard.store.known([tried_again]) == set()
    change(shard, lanes.activate, {SLOT: PUBLISHED_US}, 2)
    assert shard.store.known([tried_again]) == {tried_again}
