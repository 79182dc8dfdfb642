"""Slots that are copied while their writes go on, on PostgreSQL, MariaDB and between unlike databases, killed anywhere."""

import pytest
from busy_kit import BusyWorld, killed_at_every_effect
from databases_kit import MIXES, on_databases
from rebalance_kit import BITS

from shardctl.rebalance import closing
from shardctl.rebalance.rows.fitness import unfit
from shardctl.shard import lanes
from shardctl.shard.schema import LaneState, RebalanceState

pytestmark = pytest.mark.slow


@pytest.fixture
def world(request):
    with on_databases(BusyWorld, request) as world:
        world.between = True
        yield world


@pytest.mark.parametrize("world", MIXES, indirect=True)
def test_slots_move_between_databases_while_writes_go_on(world):
    assert not unfit(world.own["s0"], world.own["s2"], world.after.message_types)
    run = world.run()
    [progress] = world.to_its_end(run)
    assert progress.complete
    assert not progress.failed
    assert (run.tally.moved, run.tally.bases, run.tally.fell_back) == (4, 4, [])
    assert world.active() == world.wanted()
    assert world.check() == set(range(1 << BITS))
    closing.close(world.after, world.own, RebalanceState.DONE)
    assert world.logs() == (0, 0, 0)


@pytest.mark.proof
@pytest.mark.parametrize("world", MIXES[:2], indirect=True)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_effect_and_run_again(world, when):
    assert killed_at_every_effect(world, when) > 20


@pytest.mark.proof
@pytest.mark.parametrize("world", MIXES[:1], indirect=True)
def test_slots_go_back_without_a_second_copy_wherever_the_run_is_killed(world):
    run = world.run()
    world.to_its_end(run)
    copied = run.tally.rows
    world.turn_back()
    assert killed_at_every_effect(world, "after", stride=7) > 10
    assert copied
    with world.own["s0"].connect() as connection:
        [log] = {lane.log for lane in lanes.read(connection, (6,)).values() if lane.state == LaneState.ACTIVE}
    assert log
