"""Each reason for which slots may not move, and the way out that it names."""

from datetime import timedelta

import pytest
from rebalance_kit import AFTER, after, before
from sqlalchemy import insert, text

from shardctl.fleet.keyspace import SlotSet
from shardctl.provision import provision_database
from shardctl.rebalance import journal, preflight
from shardctl.rebalance.backlog import Backlog
from shardctl.rebalance.planning.way_back import fleet_led
from shardctl.shard.database import connect, writing
from shardctl.shard.schema import RebalanceState, replicas

OTHER = (AFTER[0], AFTER[1], ["slots: 6-9", "generation: 5", "previous: []"])


def look(world):
    known, reasons = preflight.look(world.own)
    assert not reasons
    return known


def only_reason(reasons):
    (reason,) = reasons
    return reason


def odd(world, *, announced):
    return list(preflight.odd_slots(world.after, look(world), announced=announced))


def do(world, name, statement):
    with writing(world.own[name]) as connection:
        connection.execute(text(statement))


def test_a_settled_file():
    assert "`shardctl rebalance plan" in only_reason(preflight.not_transitional(before()))
    assert not list(preflight.not_transitional(after()))


def test_a_database_that_does_not_answer(fresh):
    engine = connect("postgresql://nobody:secret@127.0.0.1:9/none?connect_timeout=1")
    known, reasons = preflight.look({"s0": fresh.own["s0"], "s9": engine})
    assert set(known) == {"s0"}
    assert only_reason(reasons).startswith("shard s9: database postgresql")
    assert "secret" not in only_reason(reasons)


def test_another_rebalance_is_open(announced):
    reasons = list(preflight.other_rebalances(after(OTHER), look(announced)))
    assert len(reasons) == 3
    assert "shardctl rebalance abort" in reasons[0]
    assert not list(preflight.other_rebalances(after(), look(announced)))


def test_this_one_is_done(announced):
    with writing(announced.own["s1"]) as connection:
        journal.close(connection, after(), RebalanceState.DONE)
    assert "`shardctl rebalance finish`" in only_reason(preflight.other_rebalances(after(), look(announced)))


def test_a_file_that_still_has_what_ended_with_another_rebalance(announced):
    """`finish` died before it wrote the settled file, and the way back was planned from the file that there is."""
    for engine in announced.own.values():
        with writing(engine) as connection:
            journal.close(connection, after(), RebalanceState.DONE)
    assert len(list(preflight.past_return(after(), look(announced)))) == 1
    back = fleet_led(after())
    reasons = list(preflight.other_rebalances(back, look(announced)))
    assert len(reasons) == len(announced.own)
    assert "ended with rebalance" in reasons[0]
    assert "settled file" in reasons[0]


def test_it_is_open(announced):
    assert not list(preflight.not_started(after(), look(announced)))


def test_it_was_not_started(fresh):
    reasons = list(preflight.not_started(after(), look(fresh)))
    assert len(reasons) == 3
    assert all("`shardctl rebalance start`" in reason for reason in reasons)


def test_a_database_that_an_older_version_made_the_tables_of(announced):
    assert not list(preflight.lacking_tables(look(announced)))
    do(announced, "s1", "DROP TABLE shardctl_barriers")
    assert "s1: its database lacks shardctl_barriers" in only_reason(preflight.lacking_tables(look(announced)))
    provision_database(announced.after, announced.after.shard("s1"), announced.url("s1"))
    assert not list(preflight.lacking_tables(look(announced)))


def aborted(connection, fleet):
    journal.stop(connection, fleet)
    journal.close(connection, fleet, RebalanceState.ABORTED)


@pytest.mark.parametrize(
    ("change", "way_out"),
    [
        (journal.stop, "`shardctl rebalance abort` again"),
        (aborted, "plan --back"),
    ],
    ids=["aborting", "aborted"],
)
def test_it_is_not_going_on(announced, change, way_out):
    with writing(announced.own["s1"]) as connection:
        change(connection, after())
    assert way_out in only_reason(preflight.not_started(after(), look(announced)))


def test_every_slot_is_active_once(fresh, announced):
    assert not odd(fresh, announced=False)
    assert not odd(announced, announced=True)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM shardctl_lanes WHERE slot = 6", "slot 6: it is active in no lane that the file lists"),
        ("UPDATE shardctl_lanes SET generation = 7 WHERE slot = 3", "slot 3: it is active in no lane"),
        (
            "INSERT INTO shardctl_lanes (slot, generation, state) VALUES (12, 1, 'active')",
            "slot 12 is active in s0 g1, which",
        ),
        (
            "INSERT INTO shardctl_lanes (slot, generation, state) VALUES (3, 2, 'active')",
            "slot 3 is active in s0 g2 and in s0 g1",
        ),
    ],
)
def test_a_slot_that_is_not_active_once(fresh, statement, message):
    do(fresh, "s0", statement)
    reasons = odd(fresh, announced=False)
    assert message in reasons[0]
    assert "edit by hand" in reasons[0]


def test_many_odd_slots_are_counted(fresh):
    do(fresh, "s0", "DELETE FROM shardctl_lanes")
    reasons = odd(fresh, announced=False)
    assert len(reasons) == preflight.MAX_SHOWN + 1
    assert reasons[-1] == "… and 3 slots more."


def test_slots_that_were_not_announced(fresh):
    assert "`shardctl rebalance start` announces it" in odd(fresh, announced=True)[0]


@pytest.mark.parametrize("stage", ["fresh", "announced"])
def test_tables_that_can_not_be_moved(request, stage):
    """`fresh`: as `start` finds them, once it has made the tables of a new shard."""
    world = request.getfixturevalue(stage)
    assert not list(preflight.unfit_tables(after(), world.own, look(world)))
    provision_database(after(), after().shard("s2"), world.url("s2"))
    assert not list(preflight.unfit_tables(after(), world.own, look(world)))
    do(world, "s2", "ALTER TABLE a_rows DROP COLUMN amount")
    reasons = list(preflight.unfit_tables(after(), world.own, look(world)))
    assert any(reason.startswith("from s0 to s2: ") and "amount" in reason for reason in reasons)


def test_a_lag_over_the_gate():
    backlogs = {
        "orders-s0-g1": Backlog(10_001, 1, 2),
        "orders-s1-g1": Backlog(10_000, 1, 2),
        "orders-s0-g2": Backlog(10**6, 1, 2),
    }
    reason = only_reason(preflight.lagging(after(), backlogs, preflight.MAX_LAG))
    assert "shard s0 lags by 10,001 messages" in reason
    assert "--max-lag 10001" in reason
    assert not list(preflight.lagging(after(), backlogs, 10_001))


def test_a_lag_without_a_figure_is_unknown_and_not_zero():
    """Cloud Monitoring leaves out a subscription that has no points of the last minutes."""
    backlogs = {"orders-s0-g1": Backlog(0, None, 2), "orders-s1-g1": Backlog()}
    assert preflight.unknown_lag(after(), backlogs) == ["orders-s1-g1"]
    assert preflight.unknown_lag(after(), {}) == ["orders-s0-g1", "orders-s1-g1"]


def seen(world, name, generations, ago_seconds=0):
    with writing(world.own[name]) as connection:
        connection.execute(insert(replicas).values(replica=f"{generations}-{ago_seconds}", generations=generations))
        connection.execute(
            text("UPDATE shardctl_replicas SET seen_time = datetime('now', :ago) WHERE replica = :replica"),
            {"ago": f"-{ago_seconds} seconds", "replica": f"{generations}-{ago_seconds}"},
        )


def test_every_generation_needs_a_consumer(announced):
    for name, generations in (("s0", "1,2"), ("s1", "1,2"), ("s2", "1")):
        seen(announced, name, generations)
    assert not list(preflight.absent_consumers(after(), look(announced)))


def test_a_generation_nobody_has_read_for_a_minute(announced):
    seen(announced, "s0", "1,2", ago_seconds=61)
    seen(announced, "s0", "1")
    seen(announced, "s1", "2")
    seen(announced, "s2", "1", ago_seconds=50)
    reasons = list(preflight.absent_consumers(after(), look(announced)))
    assert [reason.partition(" for the")[0] for reason in reasons] == [
        "no consumer of shard s0 has been reading generation 2",
        "no consumer of shard s1 has been reading generation 1",
    ]
    assert look(announced)["s0"].readers[1] < timedelta(seconds=5)


def test_a_database_without_tables(fresh):
    known = look(fresh)
    assert known["s2"].empty
    assert preflight.active_slots(known["s0"]) == SlotSet.parse("0-7")
