"""What lets a lane go and what doesn't, in a database in memory. With consumers and on servers: tests/integration/consumer."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, insert, update

from shardctl.fleet.keyspace import SlotSet
from shardctl.shard import lanes, schema
from shardctl.shard.lanes import Met
from shardctl.shard.schema import LaneState, RebalanceState

SLOT, OTHER = 5, 6


@pytest.fixture
def connection():
    engine = create_engine("sqlite://")
    schema.create(engine, {}, SlotSet.of([SLOT, OTHER]), 1)
    with engine.begin() as opened:
        opened.execute(insert(schema.rebalances).values(id="r1", state=RebalanceState.OPEN, plan="{}"))
        lanes.announce(opened, SlotSet.of([SLOT, OTHER]), 2)
        lanes.make_due(opened, [SLOT, OTHER], 2)
        yield opened
    engine.dispose()


def states(connection):
    return {(lane.slot, lane.generation): lane.state for lane in lanes.read(connection).values()}


def met(connection, slot):
    return Met(slot, lanes.await_barriers(connection, [slot], 1, "r1")[slot], 9)


def test_a_slot_is_let_go_and_its_next_lane_begins_and_no_other(connection):
    assert lanes.leave(connection, [met(connection, SLOT)], 1) == {SLOT}
    assert states(connection) == {
        (SLOT, 1): LaneState.LEFT, (SLOT, 2): LaneState.ACTIVE, (OTHER, 1): LaneState.ACTIVE, (OTHER, 2): LaneState.DUE,
    }  # fmt: skip


def test_a_lane_that_isnt_active_lets_nothing_go_and_its_next_doesnt_begin(connection):
    """Its slot is another database's, which may still write: were the next lane active here, two would be."""
    barrier = met(connection, SLOT)
    mine = (schema.lanes.c.slot == SLOT) & (schema.lanes.c.generation == 1)
    connection.execute(update(schema.lanes).where(mine).values(state=LaneState.LEFT))
    assert lanes.leave(connection, [barrier], 1) == set()
    assert states(connection)[SLOT, 2] == LaneState.DUE
