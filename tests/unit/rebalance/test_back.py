"""The way back of a rebalance that isn't finished: slots go back to the rows that they left behind, without a second copy."""

import shutil
from dataclasses import replace

import pytest
from busy_kit import TABLE, BusyWorld, killed_at_every_effect
from rebalance_kit import BITS, CrashError
from sqlalchemy import func, select

from shardctl.cli.rebalance.status import _way_back
from shardctl.cli.rebalance.work import Work
from shardctl.fleet.keyspace import SlotSet
from shardctl.rebalance import closing, journal, preflight
from shardctl.rebalance.bases import Base, Bases
from shardctl.rebalance.handover import Place, hand_overs
from shardctl.rebalance.planning.plan import plan
from shardctl.rebalance.planning.rates import rows_to_copy
from shardctl.rebalance.planning.request import Request
from shardctl.shard import changes, lanes, schema
from shardctl.shard.database import snapshot, writing
from shardctl.shard.schema import LaneState, RebalanceState


@pytest.fixture(scope="session")
def there(tmp_path_factory):
    """A world whose slots 6 to 9 have gone to s2, and were written to since."""
    world = BusyWorld(tmp_path_factory.mktemp("there"))
    world.provision()
    world.announce()
    world.between = True
    world.to_its_end(world.run())
    world.consume()
    world.close()
    return world


@pytest.fixture
def gone(there, tmp_path):
    """The same world, of one test."""
    shutil.copytree(there.folder, tmp_path, dirs_exist_ok=True)
    world = BusyWorld(tmp_path)
    world.take_over(there)
    yield world
    world.close()


@pytest.fixture
def turning(gone):
    """The way back is open."""
    gone.turn_back()
    return gone


def of_slot(world, slot=6):
    [hand_over] = [hand_over for hand_over in hand_overs(world.after) if hand_over.slot == slot]
    return hand_over, Place("s2", 1)


def bases_of(world):
    return Bases(world.after, world.databases, world.rebalance(), few_rows=0)


def known(world):
    return preflight.look(world.own)[0]


def logged(world, name):
    with snapshot(world.own[name]) as connection:
        return {lane.slot: lane.log for lane in lanes.read(connection).values() if lane.log is not None}


@pytest.mark.slow
def test_slots_go_back_without_a_second_copy(turning):
    run = turning.run()
    [progress] = turning.to_its_end(run)
    assert progress.complete
    assert (run.tally.moved, run.tally.left_behind, run.tally.fell_back) == (4, 4, [])
    assert turning.active() == turning.wanted()
    assert turning.check() == set(range(1 << BITS))


@pytest.mark.proof
@pytest.mark.slow
def test_killed_at_every_effect_of_the_way_back_and_run_again(turning):
    assert killed_at_every_effect(turning, "before") > 20


def test_a_lane_that_comes_with_a_base_is_logged_from_the_commit_that_makes_it_active(gone):
    with snapshot(gone.own["s2"]) as connection:
        active = lanes.read(connection).values()
    assert {lane.slot: lane.log for lane in active} == {lane.slot: f"since-{lane.barrier_time_us}" for lane in active}


@pytest.mark.slow
def test_what_the_destination_cant_log_isnt_logged_there(tmp_path):
    """A trigger at s2 writes to another table that moves: the way back copies."""
    world = BusyWorld(tmp_path)
    world.provision()
    world.announce()
    with writing(world.own["s2"]) as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER t AFTER INSERT ON a_rows WHEN false BEGIN DELETE FROM shardctl_inbox WHERE slot < 0; END"
        )
    world.to_its_end(world.run())
    assert logged(world, "s2") == {}
    world.turn_back()
    run = world.run()
    [progress] = world.to_its_end(run)
    assert progress.complete
    assert run.tally.left_behind == 0
    world.close()


@pytest.mark.slow
def test_an_abort_ends_the_logs_of_copies_alone(gone):
    with writing(gone.own["s0"]) as connection:
        lanes.begin_logs(connection, (1,), 2)
    closing.stop(gone.after, gone.own)
    closing.close(gone.after, gone.own, RebalanceState.ABORTED)
    assert logged(gone, "s0") == {}
    assert logged(gone, "s2").keys() == {6, 7, 8, 9}


@pytest.mark.slow
def test_a_log_that_began_later_makes_nothing_of_what_was_left_behind(turning):
    """What came before it is in no log."""
    with writing(turning.own["s2"]) as connection:
        lanes.end_logs(connection)
    for _ in range(20):
        turning.consume()
    run = turning.run()
    [progress] = turning.to_its_end(run)
    assert progress.complete
    assert (run.tally.bases, run.tally.left_behind) == (4, 0)
    turning.check()


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["s0", "s2"], ids=["added", "missing"])
def test_a_slot_whose_rows_were_changed_by_hand_at_the_source_is_copied_again(turning, shard):
    """No log has that change."""
    with writing(turning.own[shard]) as connection:
        connection.execute(TABLE.insert(), {"id": "by hand", "amount": 1, "slot": 6})
    if shard == "s2":  # as if it had been there before the slot left the source
        turning.wanted_rows[6]["by hand"] = 1
    run = turning.run()
    [progress] = turning.to_its_end(run)
    assert progress.complete
    assert (run.tally.bases, run.tally.left_behind) == (4, 3)
    assert turning.check() == set(range(1 << BITS))


@pytest.mark.slow
def test_what_was_given_up_isnt_taken_again(turning):
    made, (hand_over, source) = bases_of(turning), of_slot(turning)
    assert made.make(hand_over, source) == Base(0, left_behind=True)
    made.drop(hand_over)
    assert made.catch_up(hand_over, source) is None
    assert made.make(hand_over, source) is None
    [progress] = turning.to_its_end(turning.run())
    assert progress.complete
    turning.check()


@pytest.mark.slow
def test_an_abort_of_the_way_back_leaves_what_was_left_behind(turning):
    hand_over, source = of_slot(turning)
    bases_of(turning).make(hand_over, source)
    before = turning.rows("s0")
    closing.stop(turning.after, turning.own)
    closing.close(turning.after, turning.own, RebalanceState.ABORTED)
    assert turning.rows("s0") == before
    turning.announce()
    run = turning.run()
    turning.to_its_end(run)
    assert run.tally.left_behind == 4
    turning.check()


@pytest.mark.slow
@pytest.mark.parametrize("effects", [1, 2, 3, 4])
def test_finish_that_is_killed_leaves_either_every_row_or_no_log(gone, effects):
    """The logs end in every database before the first row goes."""
    gone.between = False
    before = {name: gone.rows(name) for name in gone.own}
    gone.crashes.effects, gone.crashes.at = 0, (effects, "after")
    with pytest.raises(CrashError):
        closing.delete_rows(gone.after, gone.databases, known(gone), lambda *_: None)
    assert {name: gone.rows(name) for name in gone.own} == before or not any(logged(gone, name) for name in gone.own)
    if effects == 3:
        assert not any(logged(gone, name) for name in gone.own)


@pytest.mark.slow
def test_finish_that_wakes_up_on_the_way_back_ends_no_log(gone):
    """Its rebalance was closed when the way back began."""
    finished, asleep = gone.after, known(gone)
    gone.turn_back()
    with pytest.raises(journal.JournalError):
        closing.delete_rows(finished, gone.databases, asleep, lambda *_: None)
    assert logged(gone, "s2").keys() == {6, 7, 8, 9}


def test_what_ended_logs_left_is_deleted_though_another_slot_is_logged(gone):
    with writing(gone.own["s2"]) as connection:
        connection.execute(schema.lanes.update().where(schema.lanes.c.slot == 6).values(log=None))
        changes.record(connection, [changes.of_routing_key(slot, "k") for slot in (6, 7)])
    changes.empty(gone.own["s2"])
    with snapshot(gone.own["s2"]) as connection:
        slots = set(connection.scalars(schema.changes.select().with_only_columns(schema.changes.c.slot)))
    assert 6 not in slots
    assert 7 in slots


@pytest.mark.slow
def test_every_slot_is_logged_again_once_it_is_back(turning):
    """So the way there is as short, once more."""
    turning.to_its_end(turning.run())
    assert logged(turning, "s0").keys() | logged(turning, "s1").keys() == {6, 7, 8, 9}
    with snapshot(turning.own["s2"]) as connection:
        assert {lane.state for lane in lanes.read(connection).values()} == {LaneState.LEFT}


@pytest.mark.slow
def test_logs_that_have_outgrown_their_room_end_but_of_slots_that_are_under_way(gone):
    gone.turn_back()
    with writing(gone.own["s2"]) as connection:
        lanes.await_barriers(connection, [6], 1, gone.rebalance())
        changes.record(connection, [changes.of_routing_key(slot, str(n)) for slot in (6, 7, 8) for n in range(50)])
        slots = lanes.logged_for_the_way_back(connection)
        assert changes.outgrown(connection, slots, most=1_000_000) == []
        assert changes.outgrown(connection, slots, most=160) == [6, 7, 8]
        assert lanes.end_logs_for_the_way_back(connection, [6, 7, 8]) == 2
    assert logged(gone, "s2").keys() == {6, 9}


@pytest.mark.slow
def test_a_slot_whose_log_ends_on_the_way_back_is_copied_ahead_again(turning):
    run = turning.run()
    while not run.step(turning.now).preparing:
        turning.consume()
        turning.now += 0.3
    with writing(turning.own["s2"]) as connection:
        assert lanes.end_logs_for_the_way_back(connection, [6, 7, 8, 9]) == 4
    [progress] = turning.to_its_end(run)
    assert progress.complete
    assert run.tally.fell_back == []
    assert run.tally.bases - run.tally.left_behind == 4
    turning.check()


def test_status_names_the_slots_that_can_go_back_without_a_copy(gone):
    shown = _way_back(Work(gone.after, {}, gone.own), known(gone))
    assert (shown["slots"], shown["forward"]) == ("6-9", "")
    with snapshot(gone.own["s2"]) as connection:
        assert shown["changes_at_most"] == changes.most_rows(connection) > 0


@pytest.mark.slow
def test_some_slots_go_back_and_the_others_later_all_without_a_copy(gone):
    """Those that stay go on with their logs under the next generation."""
    for slots, moved in ((SlotSet.of((6, 8)), 2), (None, 2)):
        gone.turn_back(slots)
        run = gone.run()
        [progress] = gone.to_its_end(run)
        assert progress.complete
        assert (run.tally.moved, run.tally.left_behind, run.tally.fell_back) == (moved, moved, [])
        assert gone.active() == gone.wanted()
        assert gone.check() == set(range(1 << BITS))
        shown = _way_back(Work(gone.after, {}, gone.own), known(gone))
        assert (shown["slots"], shown["forward"]) == (("7,9", "6,8") if slots else ("", "6-9"))


def test_plan_predicts_the_way_back_without_a_copy(gone):
    """Of slots whose logs have ended, it predicts a copy."""
    planned = plan(gone.after, Request(back=True))
    urls = {name: gone.url(name) for name in gone.own}
    back = rows_to_copy(gone.after, planned.moves, urls, few_rows=0)
    with snapshot(gone.own["s2"]) as connection:
        logged = connection.scalar(select(func.count()).select_from(schema.changes))
    rows = sum(len(gone.wanted_rows[slot]) + len(gone.wanted_inbox[slot]) for slot in range(6, 10))
    assert (back.total, back.compared) == (logged, rows)
    with writing(gone.own["s2"]) as connection:
        lanes.end_logs_for_the_way_back(connection, [6, 7, 8, 9])
    copied = rows_to_copy(gone.after, planned.moves, urls, few_rows=0)
    assert (copied.total, copied.compared) == (rows, 0)
    empty = replace(planned.moves[0], source="s0")
    assert rows_to_copy(gone.after, [empty], urls).total == 0  # it hasn't left, so there is nothing to copy
