"""The whole of a rebalance on PostgreSQL, MariaDB and SQLite, and between them: run, crash and run again, finish."""

import pytest
from databases_kit import MIXES, on_databases
from rebalance_kit import CrashError, World

from shardctl.rebalance import closing, journal
from shardctl.rebalance.preflight import Known
from shardctl.rebalance.rows.fitness import unfit
from shardctl.shard.database import snapshot
from shardctl.shard.schema import LaneState, RebalanceState
from shardctl.verification.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture
def world(request):
    with on_databases(World, request) as world:
        yield world


def known_of(world):
    known = {}
    for name, lanes_of_shard in world.lanes().items():
        with snapshot(world.own[name]) as connection:
            known[name] = Known(lanes_of_shard, journal.read(connection), ())
    return known


@pytest.mark.parametrize("world", MIXES, indirect=True)
def test_slots_move_between_databases_and_nothing_is_left_behind(world):
    assert not unfit(world.own["s0"], world.own["s2"], world.after.message_types)
    [progress] = world.to_its_end(world.run())
    assert progress.complete
    assert not progress.failed
    assert world.active() == world.wanted()
    assert not [fault for fault in verify(world.after, world.own).faults if not fault.of_keys]
    assert closing.delete_rows(world.after, world.databases, known_of(world), lambda *_: None) == 4 * 3
    closing.close(world.after, world.databases, RebalanceState.DONE)
    assert {lane.state for lanes in world.lanes().values() for lane in lanes.values()} == {LaneState.ACTIVE}
    world.check()


@pytest.mark.parametrize("world", MIXES[:2], indirect=True)
@pytest.mark.parametrize("effect", [4, 12])
def test_a_run_that_dies_is_run_again(world, effect):
    for when in ("before", "after"):
        world.crashes.at = (world.crashes.effects + effect, when)
        try:
            world.to_its_end(world.run())
        except CrashError:
            world.check()
    world.crashes.at = None
    world.to_its_end(world.run())
    assert world.active() == world.wanted()
