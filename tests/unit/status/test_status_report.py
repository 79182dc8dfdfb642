from datetime import UTC, datetime, timedelta

import pytest
from status_kit import WORKING, backlogs, settled, transitional

from shardctl.fleet.keyspace import lane_of
from shardctl.rebalance import journal
from shardctl.rebalance.backlog import Backlog
from shardctl.rebalance.journal import Entry
from shardctl.rebalance.preflight import Known
from shardctl.shard.lanes import Lane
from shardctl.shard.schema import LaneState, RebalanceState
from shardctl.status.moving import slot_maps
from shardctl.status.report import DatabaseFacts, NotReady, Unknown, assemble

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
WHY = Unknown("nobody is there")
READ = {1: timedelta(seconds=2)}


def known(slots, *, generation=1, state=LaneState.ACTIVE, readers=READ, entries=None, more=()):
    lanes = {lane_of(slot, generation): Lane(slot, generation, state) for slot in slots}
    return Known(lanes | {lane_of(lane.slot, lane.generation): lane for lane in more}, entries or {}, readers)


def healthy(fleet):
    return {shard.name: DatabaseFacts(known(shard.slots), 0, 0, {"r0": 2.0}) for shard in fleet.shards}


def working(fleet):
    return {shard.name: WORKING for shard in fleet.shards}


def test_what_all_replicas_report_is_summed():
    fleet = settled()
    backlog_of = backlogs(
        fleet, orders_s0_g1=Backlog(7, 1_000_000_000 - 3_500_000, 1_000_000_000), orders_dead=Backlog(2, 1, 1_000_000)
    )
    report = assemble(fleet, NOW, healthy(fleet), backlog_of, working(fleet))
    s0, s1 = report.shards
    assert (s0.backlog, s0.oldest_seconds, s1.backlog, s1.oldest_seconds) == (7, 3.5, 0, 0.0)
    assert (s0.slots, s0.lanes) == (8, {"arriving": 0, "due": 0, "active": 8, "left": 0})
    assert (s0.work, s0.parked_keys, s0.troubles) == (WORKING, 0, ())
    assert (report.dead_letters, report.strays, report.moving) == (2, 0, None)
    assert (report.unknown, report.nothing, report.troubles) == ({}, False, ())


def test_what_no_replica_reports_is_not_zero_and_has_a_reason():
    fleet = settled()
    report = assemble(fleet, NOW, {"s0": WHY, "s1": WHY}, WHY, WHY)
    for shard in report.shards:
        figures = (
            shard.backlog,
            shard.oldest_seconds,
            shard.work.applied,
            shard.work.ready,
            shard.parked_keys,
            shard.lanes,
        )
        assert figures == (None,) * 6
    assert (report.dead_letters, report.strays) == (None, None)
    assert set(report.unknown) == {"backlog", "metrics", "databases of s0, s1"}
    assert set(report.unknown.values()) == {"nobody is there"}
    assert report.nothing


@pytest.mark.parametrize("known_one", ["databases", "backlogs", "work"])
def test_one_replica_that_reports_something_is_enough(known_one):
    fleet = settled()
    sources = {"databases": {"s0": WHY, "s1": WHY}, "backlogs": WHY, "work": WHY}
    facts = {"databases": healthy(fleet), "backlogs": backlogs(fleet), "work": working(fleet)}
    assert not assemble(fleet, NOW, **(sources | {known_one: facts[known_one]})).nothing


def test_a_part_of_a_backlog_does_not_pass_for_the_whole():
    fleet = transitional()  # s0 reads two generations
    backlog_of = {name: backlog for name, backlog in backlogs(fleet).items() if name != "orders-s0-g2"}
    report = assemble(fleet, NOW, {}, backlog_of, WHY)
    assert [shard.backlog for shard in report.shards] == [None, 0, 0]
    assert report.unknown["backlog"] == "there is no figure for orders-s0-g2: not there, or too new"


@pytest.mark.parametrize(
    ("facts", "trouble"),
    [
        (
            DatabaseFacts(known((), readers={}).__class__({}, {}, {}, empty=True)),
            "its database doesn't have shardctl's tables yet",
        ),
        (
            DatabaseFacts(known(range(8)), recorded=False),
            "its database doesn't say which fleet and shard it belongs to: `shardctl provision` records it",
        ),
        (DatabaseFacts(known(range(8), readers={})), "no consumer has read generation 1, which holds slots"),
        (
            DatabaseFacts(known(range(8), readers={1: timedelta(seconds=40)})),
            "for 40 s no consumer has read generation 1, which holds slots",
        ),
        (
            DatabaseFacts(known(range(8)), 2, 3, not_ready=(NotReady("order", 2, "no such column: note"),)),
            "the table of type 'order' isn't ready, and the writes of 2 keys wait for it: no such column: note",
        ),
        (
            DatabaseFacts(known(range(8)), 0, 0, {"r0": 1.0, "r1": 40.0}),
            "replica r1 sent its last heartbeat 40 s ago",
        ),
        (
            DatabaseFacts(known(range(8), generation=3, readers={3: timedelta(0)})),
            "its database holds slots in generation 3; the file says 1",
        ),
    ],
    ids=[
        "no tables",
        "no record of whose it is",
        "never read",
        "read no more",
        "a table that is not ready",
        "a silent replica",
        "another file's slots",
    ],
)
def test_what_a_database_reports_of_trouble(facts, trouble):
    fleet = settled()
    report = assemble(fleet, NOW, healthy(fleet) | {"s0": facts}, backlogs(fleet), working(fleet))
    assert report.shards[0].troubles[0].startswith(trouble)
    assert report.shards[1].troubles == ()


@pytest.mark.parametrize(
    ("seconds", "names"), [(400.0, None), (40.0, frozenset({"r0"}))], ids=["long gone", "replaced"]
)
def test_a_replica_that_nobody_expects_is_not_missed(seconds, names):
    fleet = settled()
    facts = DatabaseFacts(known(range(8)), 0, 0, {"r0": 1.0, "r1": seconds})
    from dataclasses import replace

    work = working(fleet) | {"s0": replace(WORKING, names=names)}
    assert assemble(fleet, NOW, healthy(fleet) | {"s0": facts}, backlogs(fleet), work).shards[0].troubles == ()


def moving_databases(fleet):
    mine = "0123456789abcdef"
    entries = {mine: Entry(mine, RebalanceState.OPEN, journal.describe(fleet), NOW, None)}
    arriving = [Lane(slot, 2, LaneState.ARRIVING) for slot in range(5)]
    s0 = known(range(6), entries=entries, readers=READ | {2: timedelta(0)}, more=[
        *arriving, Lane(5, 2, LaneState.DUE), Lane(6, 1, LaneState.LEFT, 1), Lane(7, 1, LaneState.LEFT, 1)
    ])  # fmt: skip
    s2 = known((), entries=entries, more=[Lane(6, 1, LaneState.DUE), Lane(7, 1, LaneState.ACTIVE, 1)])
    return {"s0": s0, "s1": known(range(8, 16)), "s2": s2}


def test_a_rebalance_is_shown_and_its_slots_are_where_they_are():
    fleet = transitional()
    databases = moving_databases(fleet)
    facts = {name: DatabaseFacts(known_lanes) for name, known_lanes in databases.items()}
    moving = assemble(fleet, NOW, facts, backlogs(fleet), working(fleet)).moving
    assert moving.states == {"s0": "open", "s2": "open"}
    assert dict(moving.summary.stages) == {"waiting": 5, "due": 1, "left": 1, "arrived": 1, "broken": 0}
    (slot_map,) = slot_maps(fleet, databases)
    assert {name: str(slots) for name, slots in slot_map.holders.items()} == {"s0": "0-5", "s1": "8-15", "s2": "7"}
    assert {stage: str(slots) for stage, slots in slot_map.stages.items()} == {
        "waiting": "0-4",
        "due": "5",
        "left": "6",
        "arrived": "7",
    }
    assert slot_map.from_file == ()


def test_a_rebalance_with_a_silent_database_is_not_guessed_at():
    fleet = transitional()
    databases = moving_databases(fleet)
    facts = {"s0": DatabaseFacts(databases["s0"]), "s1": DatabaseFacts(databases["s1"]), "s2": WHY}
    report = assemble(fleet, NOW, facts, backlogs(fleet), working(fleet))
    assert report.moving.summary is None
    assert report.unknown["rebalance"] == "the databases of s2 don't answer"
    (slot_map,) = slot_maps(fleet, {"s0": databases["s0"]})
    assert (slot_map.from_file, slot_map.stages) == (("s1", "s2"), {})
    assert str(slot_map.holders["s2"]) == "6-7"


def test_slots_of_a_database_without_tables_are_unknown_and_not_broken():
    """As `shardctl rebalance status` has it: its URL may name another database."""
    fleet = transitional()
    databases = moving_databases(fleet) | {"s0": Known({}, {}, {}, empty=True)}
    facts = {name: DatabaseFacts(reported) for name, reported in databases.items()}
    report = assemble(fleet, NOW, facts, backlogs(fleet), working(fleet))
    assert report.moving.summary is None
    assert report.unknown["rebalance"] == "the databases of s0 have none of shardctl's tables"
    (slot_map,) = slot_maps(fleet, databases)
    assert (slot_map.from_file, slot_map.stages) == (("s0",), {})


def test_a_rebalance_that_the_file_does_not_know_is_reported():
    fleet = settled()
    entries = moving_databases(transitional())["s0"].entries
    facts = healthy(fleet) | {"s0": DatabaseFacts(known(range(8), entries=entries))}
    (trouble,) = assemble(fleet, NOW, facts, backlogs(fleet), working(fleet)).troubles
    assert "rebalance" in trouble
    assert "is open" in trouble


def test_shards_for_different_types_have_maps_of_their_own():
    from fleets import fleet

    fleet = fleet(
        (["slots: 0-15", "types: [a]"], ["slots: 0-7", "except_types: [a]"], ["slots: 8-15", "except_types: [a]"]),
        slot_bits=4,
    )
    maps = slot_maps(fleet, {})
    assert [(slot_map.types, list(slot_map.holders)) for slot_map in maps] == [
        ("a", ["s0"]),
        ("all but a", ["s1", "s2"]),
    ]
