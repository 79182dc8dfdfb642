"""The steps of a run: their order, what each waits for, and that being killed anywhere, or being two, changes nothing."""

import itertools
from collections import deque

import pytest
from rebalance_kit import KEYS, ROWS, CrashError
from sqlalchemy import delete, select, update

from shardctl.rebalance import closing, copying, journal
from shardctl.rebalance.handover import Stage
from shardctl.rebalance.planning import way_back
from shardctl.rebalance.run import AGAIN_SECONDS, SETTLE_SECONDS
from shardctl.rebalance.stats import quantiles
from shardctl.rebalance.window import SLOW_SECONDS, AimdWindow
from shardctl.shard import lanes, schema
from shardctl.shard.database import writing
from shardctl.shard.schema import LaneState, RebalanceState
from shardctl.wire import barrier


@pytest.fixture
def world(announced):
    return announced


def test_every_slot_is_handed_over(world):
    run = world.run()
    (progress,) = world.to_its_end(run)
    assert progress.complete
    assert not progress.failed
    assert world.active() == world.wanted()
    assert (run.tally.flipped, run.tally.moved, run.tally.rows) == (12, 4, 12)
    assert len(run.tally.pauses) == 4
    assert len(run.tally.latencies) == 16


def test_a_barrier_waits_until_due_is_a_second_old(world):
    run = world.run()
    run.step(world.now)
    assert not world.published
    run.step(world.now + SETTLE_SECONDS - 0.01)
    assert not world.published
    run.step(world.now + SETTLE_SECONDS)
    assert world.published


def crash_everywhere(world, when):
    """Run to the end, dying at each effect in turn: a new run each time, which dies one effect later."""
    at = 0
    while True:
        at += 1
        assert at < 200
        world.crashes.effects, world.crashes.at = 0, (at, when)
        run = world.run()
        try:
            return world.to_its_end(run)[0]
        except CrashError:
            world.consume()
            world.now += 0.1
            world.check()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_effect_and_run_again(world, when):
    progress = crash_everywhere(world, when)
    assert progress.complete
    assert world.active() == world.wanted()


@pytest.mark.slow
def test_killed_at_every_effect_of_an_abort_and_run_again(world):
    run = world.run()
    while not world.published:
        run.step(world.now)
        world.now += 0.3
    at = 0
    while True:
        at += 1
        world.crashes.effects, world.crashes.at = 0, (at, "after")
        try:
            (progress,) = world.to_its_end(world.run(onward=False))
            break
        except CrashError:
            world.consume()
            world.check()
    assert progress.ended
    assert not progress.settling + progress.barriers + progress.copying


def test_an_abort_brings_what_has_begun_to_its_end_and_begins_nothing(world):
    world.run(parallel=1).step(world.now)  # those that stay are due now, and one that moves
    (progress,) = world.to_its_end(world.run(onward=False))
    assert (progress.arrived, progress.waiting, progress.complete) == (13, 3, False)
    assert world.active() == {
        ("s0", 2): set(range(6)),
        ("s0", 1): {7},
        ("s1", 2): set(range(10, 16)),
        ("s1", 1): {8, 9},
        ("s2", 1): {6},
    }


def test_after_an_abort_it_goes_on_where_it_was(world):
    world.run(parallel=1).step(world.now)
    world.to_its_end(world.run(onward=False))
    (progress,) = world.to_its_end(world.run())
    assert progress.complete
    assert world.active() == world.wanted()


def test_two_runs_at_once_do_no_harm(world):
    progresses = world.to_its_end(world.run(), world.run(), seconds=0.4)
    assert all(progress.complete for progress in progresses)
    assert world.active() == world.wanted()


def test_two_that_copy_one_slot_copy_it_once(world):
    """The second one finds the lane active and leaves the rows alone, which the new owner has written to by then."""
    run = world.run()
    while not (
        left := [hand_over for hand_over in run._tracker.in_flight.values() if hand_over.standing.stage == Stage.LEFT]
    ):
        run.step(world.now)
        world.consume()
        world.now += 0.3
        run._look(world.now)
    move, source, copy = left[0].hand_over, left[0].standing.source, copying.row_copy(world.after)
    assert copying.hand_over(world.databases, {move: source}, copy)[move].rows == ROWS
    with writing(world.own["s2"]) as connection:
        connection.exec_driver_sql(f"DELETE FROM a_rows WHERE slot = {move.slot}")
    assert copying.hand_over(world.databases, {move: source}, copy)[move].rows is None
    assert move.slot not in world.rows("s2")


def test_what_another_run_has_done_is_seen_when_a_slot_begins(world):
    """The fence changed before this run asked for the slot."""
    run = world.run(parallel=1)
    world.deaf = {6}
    for _ in range(10):
        run.step(world.now)
        world.consume()
        world.now += 0.3
    with writing(world.own["s2"]) as connection:
        lanes.make_due(connection, [7], 1)
    world.leave("s0", 7, 5)
    run.step(world.now)
    world.deaf = set()
    assert world.to_its_end(run, steps=60)[0].complete
    assert run.tally.barriers == 15  # none for that slot


def test_a_lost_barrier_is_published_again(world):
    world.lose = 5
    run = world.run()
    (progress,) = world.to_its_end(run, seconds=5.0)
    assert progress.complete
    assert run.tally.barriers == 21


def test_a_barrier_that_pub_sub_refuses_is_published_again(world):
    world.refuse = 3
    run = world.run()
    troubles = set()
    for _ in range(100):
        progress = run.step(world.now)
        troubles |= set(progress.trouble)
        world.consume()
        world.now += 0.3
    assert progress.complete
    assert not progress.trouble
    assert troubles == {"Pub/Sub didn't take a barrier: no route to Pub/Sub"}
    assert run.tally.barriers == 19


def test_a_barrier_is_not_repeated_before_its_time(world):
    world.deaf = set(range(16))
    run = world.run()
    run.step(world.now)
    run.step(world.now + SETTLE_SECONDS)
    first = len(world.published)
    run.step(world.now + SETTLE_SECONDS + AGAIN_SECONDS - 0.1)
    assert len(world.published) == first
    run.step(world.now + SETTLE_SECONDS + AGAIN_SECONDS)
    assert len(world.published) > first


def test_slots_that_move_wait_until_those_that_stay_have_begun(world):
    run = world.run()
    run.step(world.now)
    due = {slot for (name, slot), state in world.states().items() if state == LaneState.DUE}
    assert due >= set(range(6)) | set(range(10, 16))


def test_so_many_moved_slots_are_in_flight_as_asked_for(world):
    """All are due ahead of their turn, but one barrier is out at a time."""
    world.deaf = {6, 7, 8, 9}
    run = world.run(parallel=1)
    for _ in range(20):
        progress = run.step(world.now)
        world.consume()
        world.now += 0.3
    assert progress.barriers == 1


def test_few_moved_slots_are_due_ahead_of_their_turn_however_fast_the_others_were(world):
    """What is due is held by its new consumer, and would fill its memory."""
    world.deaf = {6, 7, 8, 9}
    run = world.run(parallel=1)
    for _ in range(20):
        run.step(world.now)
        world.consume()
        world.now += 0.3
    assert run.tally.flipped == 12
    assert sum(state == LaneState.DUE for state in world.states().values()) == 2


def test_a_slot_whose_copy_fails_stays_and_the_others_go_on(world):
    with writing(world.own["s2"]) as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER t AFTER INSERT ON a_rows WHEN new.slot = 7 BEGIN DELETE FROM a_rows WHERE id = new.id; END"
        )
    (progress,) = world.to_its_end(world.run())
    assert not progress.complete
    assert progress.arrived == 15
    assert len(progress.failed) == 1
    assert "slot 7, s0 g1 → s2 g1: table a_rows" in progress.failed[0]
    with writing(world.own["s2"]) as connection:
        connection.exec_driver_sql("DROP TRIGGER t")
    assert world.to_its_end(world.run())[0].complete


def test_an_existing_key_stops_only_its_own_slot(world):
    with writing(world.own["s2"]) as connection:
        connection.exec_driver_sql(f"INSERT INTO a_rows (id, amount, slot) VALUES ('{KEYS[8][1]}', 0, 15)")
    (progress,) = world.to_its_end(world.run())
    assert progress.arrived == 15
    assert "slot 8" in progress.failed[0]


def test_a_database_that_is_away_for_a_while(world):
    run = world.run()
    for _ in range(10):
        run.step(world.now)
        world.consume()
        world.now += 0.3
    (world.folder / "s1.db").rename(world.folder / "away")
    (world.folder / "s1.db").mkdir()
    for engine in world.databases.values():
        engine.dispose()
    progress = run.step(world.now)
    assert not progress.ended
    (world.folder / "s1.db").rmdir()
    (world.folder / "away").rename(world.folder / "s1.db")
    world.now += 5
    assert world.to_its_end(run)[0].complete


def test_nobody_begins_more_once_the_rebalance_is_aborted(world):
    run = world.run()
    for engine in world.own.values():
        with writing(engine) as connection:
            journal.stop(connection, world.after)
            journal.close(connection, world.after, RebalanceState.ABORTED)
    with pytest.raises(journal.JournalError, match="aborted"):
        run.step(world.now)
    assert LaneState.DUE not in world.states().values()


def test_nobody_begins_more_while_an_abort_is_under_way(world):
    run = world.run()
    for engine in world.own.values():
        with writing(engine) as connection:
            journal.stop(connection, world.after)
    with pytest.raises(journal.JournalError, match="being aborted"):
        run.step(world.now)
    assert LaneState.DUE not in world.states().values()


@pytest.mark.slow
def test_while_it_is_held_back_nothing_begins(world):
    why = ["s0 lags"]
    run = world.run(hold=lambda: why[0])
    assert run.step(world.now).trouble == ("s0 lags",)
    assert LaneState.DUE not in world.states().values()
    why[0] = ""
    assert world.to_its_end(run)[0].complete


def test_a_slot_that_no_shard_has_is_reported_and_the_others_go_on(world):
    with writing(world.own["s0"]) as connection:
        connection.exec_driver_sql("DELETE FROM shardctl_lanes WHERE slot = 3 AND generation = 1")
    (progress,) = world.to_its_end(world.run())
    assert progress.failed == ("slot 3: it is active in no lane that the file lists",)
    assert progress.arrived == 15


@pytest.mark.slow
def test_the_way_back_of_an_aborted_rebalance(world):
    """Half of the slots have moved; a new plan takes them back, and its sources are wherever they are."""
    run = world.run(parallel=1)
    while run.tally.moved < 2:
        run.step(world.now)
        world.consume()
        world.now += 0.3
    world.to_its_end(world.run(onward=False))
    closing.stop(world.after, world.own)
    closing.close(world.after, world.own, RebalanceState.ABORTED)
    world.after = way_back.fleet_led(world.after)
    world.announce()
    (progress,) = world.to_its_end(world.run())
    assert progress.complete
    assert world.active() == world.wanted() == {("s0", 3): set(range(8)), ("s1", 3): set(range(8, 16))}


def test_the_window_grows_by_one_and_halves():
    window = AimdWindow(4, 8)
    for _ in range(10):
        window.met(0.0, 1.0)
    assert window.size == 8
    window.met(0.0, SLOW_SECONDS + 1)
    assert window.size == 4
    window.late(0.0, SLOW_SECONDS + 2)  # was out at the cut
    assert window.size == 4
    window.late(SLOW_SECONDS + 1.5, 2 * SLOW_SECONDS + 2)
    assert window.size == 2
    for published in range(100, 2_000, 100):
        window.late(published, published + 50)
    assert window.size == 1


def test_quantiles():
    assert quantiles([]) is None
    assert quantiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p99": 3.0, "max": 3.0}


def test_a_run_that_wakes_up_after_it_was_all_closed_comes_to_an_end(announced):
    world = announced
    asleep = world.run()
    world.deaf = set(range(16))
    for _ in range(8):
        asleep.step(world.now)
        world.now += 0.3
    world.deaf = set()
    world.to_its_end(world.run())
    for engine in world.own.values():
        with writing(engine) as connection:
            lanes.forget(connection)
            for lane in list(lanes.read(connection).values()):  # and the next rebalance has taken every slot on
                connection.execute(
                    update(schema.lanes)
                    .where(schema.lanes.c.slot == lane.slot, schema.lanes.c.generation == lane.generation)
                    .values(generation=9)
                )
            lanes.take_fence_alone(connection)
    world.published.clear()
    for _ in range(20):
        progress = asleep.step(world.now)
        world.now += 5
        if progress.ended:
            break
    assert progress.ended
    assert not progress.complete
    assert progress.failed
    assert not world.published


def awaited(world):
    """The barriers that some database awaits, by slot: where, the lane's generation, and the token."""
    barriers = {}
    for name, engine in world.own.items():
        with engine.connect() as connection:
            for slot, generation, token in connection.execute(
                select(schema.barriers.c.slot, schema.barriers.c.generation, schema.barriers.c.token)
            ):
                assert slot not in barriers
                barriers[slot] = (name, generation, token)
    return barriers


def test_a_barrier_is_awaited_by_its_lanes_database_once_the_slot_is_due_and_before_it_is_published(world):
    run = world.run()
    asked = []
    run._publish_message = lambda message: (asked.append((message, awaited(world))), world.publish(message))[1]
    for _ in range(10):
        due = {slot for (_, slot), state in world.states().items() if state == LaneState.DUE}
        assert awaited(world).keys() <= due
        run.step(world.now)
        world.now += 0.3
    assert len(asked) == 16
    for message, rows in asked:
        marker = barrier.read(message.attributes)
        assert rows[message.slot] == (marker.shard, marker.generation, marker.token)
        assert len(marker.token) == 2 * lanes.TOKEN_BYTES
    assert len({barrier.read(message.attributes).token for message, _ in asked}) == 16


def test_no_row_is_left_of_barriers_that_were_met(done):
    assert not awaited(done)


@pytest.mark.slow
def test_whatever_somebody_publishes_nothing_ends_while_it_is_arriving(world):
    """With the right rebalance, shard and generation, and with the token of a slot whose turn has come."""
    run = world.run(parallel=1)
    world.deaf = set(range(16))
    while not run.tally.barriers:
        run.step(world.now)
        world.now += 0.3
    tokens = {slot: token for slot, (_, _, token) in awaited(world).items()}
    arriving = {key: state for key, state in world.states().items() if state == LaneState.ARRIVING}
    assert arriving
    assert tokens
    for (_, slot), token in itertools.product(arriving, ("", *tokens.values())):
        for name, generation in (("s0", 1), ("s1", 1)):
            marker = barrier.Barrier(run.rebalance, name, generation, token)
            forged = barrier.encode(world.after, world.after.shard(name), slot, marker)
            world.messages.append((forged, world.time_us))
    still = {slot for _, slot in arriving}
    world.messages = deque((message, at) for message, at in world.messages if message.slot in still)
    world.deaf = set()
    before = world.lanes()
    world.consume()
    assert world.lanes() == before
    assert world.to_its_end(run)[0].complete
    assert world.active() == world.wanted()


def test_two_executors_await_and_publish_the_same_barriers(world):
    runs = [world.run(), world.run()]
    world.deaf = set(range(16))
    for _ in range(10):
        for run in runs:
            run.step(world.now)
        world.now += 0.3
    by_slot = {}
    for message in world.published:
        by_slot.setdefault(message.slot, set()).add(barrier.read(message.attributes).token)
    assert len(world.published) == 32
    assert {len(tokens) for tokens in by_slot.values()} == {1}


def test_nothing_is_awaited_any_more_where_somebody_has_closed_the_rebalance(world):
    run = world.run()
    run._await_barriers = lambda _: None  # it falls asleep after the slots became due
    run.step(world.now)
    del run._await_barriers
    for engine in world.own.values():
        with writing(engine) as connection:
            connection.execute(update(schema.rebalances).values(state=RebalanceState.ABORTED))
    before = awaited(world)
    with pytest.raises(journal.JournalError, match="isn't open any more"):
        run.step(world.now + 0.3)
    assert awaited(world) == before


def test_a_barrier_that_isnt_met_is_awaited_again(world):
    """The source may have been restored to a time before it awaited it."""
    world.deaf = {6}
    run = world.run()
    for _ in range(20):
        run.step(world.now)
        world.consume()
        world.now += 0.3
    with writing(world.own["s0"]) as connection:
        connection.execute(delete(schema.barriers).where(schema.barriers.c.slot == 6))
    world.deaf = set()
    world.consume()
    assert world.states()["s2", 6] == LaneState.DUE
    world.now += AGAIN_SECONDS
    assert world.to_its_end(run)[0].complete
