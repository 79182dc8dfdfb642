"""Finishing: what must be so first, and what is deleted."""

from datetime import UTC, datetime, timedelta

import pytest
from rebalance_kit import CrashError, World, after
from sqlalchemy import insert

from shardctl.fleet.keyspace import SlotSet
from shardctl.rebalance import closing, journal, preflight
from shardctl.rebalance.backlog import Backlog
from shardctl.rebalance.planning import way_back
from shardctl.rebalance.preflight import Known
from shardctl.rebalance.summary import summarize
from shardctl.shard import lanes, membership
from shardctl.shard.database import snapshot, writing
from shardctl.shard.lanes import Lane
from shardctl.shard.membership import Membership
from shardctl.shard.outboxtables import outbox
from shardctl.shard.schema import LaneState, RebalanceState


@pytest.fixture
def world(done):
    return done


def look(world):
    known, reasons = preflight.look(world.own)
    assert not reasons
    return known


def do(world, name, statement):
    with writing(world.own[name]) as connection:
        connection.exec_driver_sql(statement)


@pytest.mark.slow
def test_it_may_be_finished_once_every_slot_is_handed_over(world):
    assert not list(closing.not_handed_over(world.after, look(world)))


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE shardctl_lanes SET state = 'due' WHERE slot = 6",
            "1 slots aren't handed over: 6. `shardctl rebalance run`",
        ),
        ("DELETE FROM shardctl_rebalances", "shard s2: the rebalance was never opened there"),
        (
            "INSERT INTO shardctl_lanes (slot, generation, state) VALUES (1, 1, 'active')",
            "slot 1 is active in s2 g1, which",
        ),
    ],
)
def test_it_may_not_be_finished(world, statement, message):
    do(world, "s2", statement)
    assert message in next(closing.not_handed_over(world.after, look(world)))


@pytest.mark.slow
def test_a_slot_that_is_active_twice_is_never_deleted(world):
    do(world, "s0", "UPDATE shardctl_lanes SET state = 'active' WHERE slot = 6")
    assert "slot 6 is active in s2 g1 and in s0 g1" in next(closing.not_handed_over(world.after, look(world)))


def test_old_subscriptions_are_empty_or_not_or_nobody_knows():
    at = 1_000
    backlogs = {
        "empty": Backlog(0, None, at + 1),
        "newer": Backlog(9, at + 1, at + 2),
        "older": Backlog(1_234, at - 1, at + 2),
        "stale": Backlog(0, None, at - 1),
    }
    sure, unsure = closing.not_drained(["empty", "newer", "older", "stale", "none"], backlogs, at, "")
    assert [reason.split()[1] for reason in sure] == ["older"]
    assert "1,234 in all" in sure[0]
    assert [reason.split()[1] for reason in unsure] == ["stale:", "none:"]
    assert "--drained" in unsure[0]
    assert closing.not_drained(["none"], {}, at, "no backlog known")[1][0].count("no backlog known") == 1


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (None, "shard s0: its outbox still holds events, which its consumers publish"),
        (
            "it is too large",
            "shard s0: write 1 of its outbox can't be published: it is too large. See `shardctl outbox list`",
        ),
    ],
)
def test_a_shard_without_slots_stays_while_its_events_arent_published(world, refused, message):
    row = {"slot": 1, "attributes": "{}", "body": b"{}", "refused": refused}
    for name in ("s0", "s2"):
        with writing(world.own[name]) as connection:
            connection.execute(insert(outbox), row)
    assert not list(closing.not_published(world.after, world.own))  # the shards stay, and go on publishing
    shards = [
        shard.model_copy(update={"slots": SlotSet()}) if shard.name == "s0" else shard for shard in world.after.shards
    ]
    (reason,) = closing.not_published(world.after.model_copy(update={"shards": tuple(shards)}), world.own)
    assert message in reason
    assert [text.split(":")[0] for text in preflight.kept_events(world.own)] == (
        ["shard s0", "shard s2"] if refused else []
    )


def test_the_last_barrier_counts(world):
    assert closing.last_barrier_us(look(world)) == 1_000_016


def test_rows_that_moved_are_deleted_and_no_others(world):
    heard = []
    rows = closing.delete_rows(
        world.after, world.databases, look(world), lambda name, count: heard.append((name, count))
    )
    assert rows == 12
    assert {name for name, _ in heard} == {"s0", "s1"}
    assert {name: set(world.rows(name)) for name in ("s0", "s1", "s2")} == {
        "s0": set(range(6)),
        "s1": set(range(10, 16)),
        "s2": {6, 7, 8, 9},
    }
    assert {lane.state for lanes in world.lanes().values() for lane in lanes.values()} == {LaneState.ACTIVE}
    assert closing.delete_rows(world.after, world.databases, look(world), lambda *_: None) == 0
    world.check()


@pytest.mark.slow
def test_killed_while_it_deletes_and_run_again(world):
    kills = 0
    for at in range(1, 100, 4):
        world.crashes.effects, world.crashes.at = 0, (at, "after")
        try:
            assert not list(closing.not_handed_over(world.after, look(world)))
            closing.delete_rows(world.after, world.databases, look(world), lambda *_: None)
            break
        except CrashError:
            kills += 1
    assert kills > 2
    assert set(world.rows("s0")) == set(range(6))
    assert {lane.state for lanes in world.lanes().values() for lane in lanes.values()} == {LaneState.ACTIVE}
    world.check()


@pytest.mark.slow
def test_lanes_that_never_came_to_it_are_deleted_too(announced):
    """After an abort and the way back, the lanes that were announced first are still there."""
    world = announced
    closing.stop(world.after, world.own)
    closing.close(world.after, world.own, RebalanceState.ABORTED)
    world.after = way_back.fleet_led(world.after)
    world.announce()
    world.to_its_end(world.run())
    assert closing.delete_rows(world.after, world.databases, look(world), lambda *_: None) == 0
    assert {lane.state for lanes in world.lanes().values() for lane in lanes.values()} == {LaneState.ACTIVE}
    world.check()


def test_a_finish_that_wakes_up_after_the_next_rebalance_has_begun_touches_nothing(announced):
    world = announced
    world.to_its_end(world.run())
    asleep, before = look(world), world.lanes()
    for engine in world.own.values():
        with writing(engine) as connection:
            journal.close(connection, world.after, RebalanceState.DONE)
    with pytest.raises(journal.JournalError, match="isn't open any more"):
        closing.delete_rows(world.after, world.databases, asleep, lambda *_: None)
    assert world.lanes() == before


def test_an_abort_that_wakes_up_after_it_was_started_again_closes_nothing(announced):
    world = announced
    closing.stop(world.after, world.databases)
    for name, engine in world.own.items():
        with writing(engine) as connection:
            journal.begin(connection, world.after, name)
    with pytest.raises(journal.JournalError, match="started again"):
        closing.close(world.after, world.databases, RebalanceState.ABORTED)


@pytest.mark.parametrize("closed", [False, True])
def test_a_finish_isnt_stopped_by_an_abort_and_a_start_that_were_both_killed(world, closed):
    closing.stop(world.after, world.own)
    if closed:
        closing.close(world.after, world.own, RebalanceState.ABORTED)
    with writing(world.own["s0"]) as connection:  # the first that each of them asks
        journal.begin(connection, world.after, "s0")
    closing.begin_finish(world.after, world.own)
    closing.close(world.after, world.own, RebalanceState.DONE)


def test_a_rebalance_is_closed_everywhere(world):
    closing.close(world.after, world.databases, RebalanceState.DONE)
    assert {journal.entry_of(world.after, known.entries).state for known in look(world).values()} == {
        RebalanceState.DONE
    }


def test_stopping_leaves_it_open(world):
    closing.stop(world.after, world.databases)
    entries = [journal.entry_of(world.after, known.entries) for known in look(world).values()]
    assert all(entry.stopping and entry.state == RebalanceState.OPEN for entry in entries)


def test_what_is_left_behind(world):
    known = look(world)
    assert closing.left_behind(world.after.shards[0], known["s0"]) == SlotSet.parse("6-7")
    assert closing.left_behind(world.after.shards[2], known["s2"]) == SlotSet()


def test_the_summary_of_a_rebalance(world):
    summary = summarize(world.after, look(world), now_us=world.time_us + 10)
    assert (summary.total, summary.stages["arrived"], summary.moves, summary.seconds_left) == (
        16,
        16,
        {},
        0.0,
    )
    do(world, "s2", "UPDATE shardctl_lanes SET state = 'due' WHERE slot = 6")
    summary = summarize(world.after, look(world), now_us=world.time_us + 10)
    assert (summary.stages["left"], summary.moves, summary.in_flight) == (
        1,
        {("s0", "s2"): SlotSet.parse("6")},
        SlotSet.parse("6"),
    )
    assert summary.seconds_left == pytest.approx(4.0)
    assert summary.by_shard["s2"] == {"arrived": 3, "left": 1}
    assert summarize(after(), look(world)).seconds_left is None
    with writing(world.own["s2"]) as connection:
        assert lanes.version(connection)


def test_the_sources_keep_their_rows_for_a_time_after_the_last_slot_moved_by_the_clock_of_the_last_database():
    moved = datetime(2026, 11, 29, 8, tzinfo=UTC)
    lane = Lane(6, 1, LaneState.ACTIVE, int(moved.timestamp()) * 1_000_000)
    keep, day = timedelta(hours=24), moved + timedelta(hours=24)

    def known(*clocks):
        return {str(n): Known({1: lane}, {}, {}, now=now) for n, now in enumerate(clocks)}

    assert closing.kept_until(known(day, day - timedelta(seconds=1)), keep) == day
    assert closing.kept_until(known(day, day), keep) is None
    assert closing.kept_until(known(None), keep) == day
    assert closing.kept_until(known(moved), timedelta(0)) is None


# s0 gives all that it has to s1, and is gone at the end.
GOING = (
    ["slots: []", "generation: 2", "previous: [{generation: 1, slots: 0-7}]"],
    ["slots: 0-15", "generation: 2", "previous: [{generation: 1, slots: 8-15}]"],
)


def test_a_shard_that_is_gone_leaves_its_database_to_anybody(tmp_path):
    def members():
        whose = {}
        for name, engine in world.own.items():
            with snapshot(engine) as connection:
                whose[name] = membership.read(connection)
        return whose

    world = World(tmp_path, then=after(GOING))
    world.provision()
    world.announce()
    both = {name: Membership("orders", name) for name in ("s0", "s1")}
    closing.stop(world.after, world.own)
    closing.close(world.after, world.own, RebalanceState.ABORTED)
    assert members() == both
    for _ in range(2):
        closing.close(world.after, world.own, RebalanceState.DONE)
        assert members() == both | {"s0": None}
    world.close()
