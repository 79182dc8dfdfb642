"""`shardctl verify` on SQLite: a clean fleet passes, and each kind of fault is found and reported."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import MetaData, insert
from verify_kit import FLEET, Fleet, key_in

from shardctl.cli import main
from shardctl.fleet.keyspace import SlotSet
from shardctl.shard import database, schema
from shardctl.shard.lanes import Lane
from shardctl.shard.schema import LaneState, RebalanceState
from shardctl.verification import verify

pytestmark = pytest.mark.slow


@pytest.fixture
def fleet(tmp_path):
    made = Fleet(tmp_path, lambda name: f"sqlite:///{tmp_path}/{name}.db")
    yield made
    made.close()


@pytest.fixture
def run(tmp_path, fleet, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, url in fleet.urls.items():
        monkeypatch.setenv(f"SHARDCTL_DATABASE_URL_{name.upper()}", url)

    def ran(*arguments):
        (tmp_path / "shards.yaml").write_text(fleet.text)
        code = main(["verify", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return ran


def test_a_clean_fleet_passes(fleet, run):
    fleet.fill()
    assert fleet.faults() == []
    code, out, err = run()
    assert code == 0
    assert "Verified: every row is where its slot is active" in err
    assert [line.split()[:4] for line in out.splitlines()[1:]][:1] == [["s0", "32", "things", "8"]]


def test_the_report_for_machines(fleet, run):
    fleet.fill()
    code, out, _ = run("--json")
    report = json.loads(out)
    assert (code, report["verified"], report["faults"], report["rebalancing"]) == (0, True, [], False)
    assert [shard["active_slots"] for shard in report["shards"]] == ["0-31", "32-63", "0-63"]
    assert report["totals"]["things"]["rows"] == 16
    fleet.delete_lane("s0", 5)
    code, out, _ = run("--json")
    report = json.loads(out)
    assert (code, report["verified"]) == (1, False)
    assert report["faults"][0]["slots"] == "5"


def test_an_empty_fleet_passes(fleet):
    assert fleet.faults() == []


def test_rows_of_a_slot_that_is_not_active_here(fleet, run):
    fleet.fill()
    fleet.put("s1", id=key_in(5), slot=5)
    fleet.record("s1", 6, "k1")
    fleet.record("s1", 6, "k2")
    code, out, err = run()
    assert code == 1
    assert f"shard s1, table things, slot 5: rows of slots that aren't active here: 1 row, such as {key_in(5)}" in out
    assert "shard s1, table shardctl_inbox, slot 6: rows of slots that aren't active here: 2 rows, such as " in out
    assert "2 faults." in err


def test_rows_without_a_slot(fleet):
    fleet.run("s0", "CREATE TABLE lines (id TEXT PRIMARY KEY, slot INTEGER)", "INSERT INTO lines (id) VALUES ('l')")
    fleet.text = fleet.text.replace(
        "  thing:", "  line: {sink: a.b:c, routing_key: id, slot_tables: {lines: slot}}\n  thing:"
    )
    for name in ("s1", "s2"):
        fleet.run(name, "CREATE TABLE lines (id TEXT PRIMARY KEY, slot INTEGER)")
    [fault] = fleet.faults()
    assert (fault.shard, fault.table, fault.rows, fault.example) == ("s0", "lines", 1, "l")
    assert "without a slot" in fault.what


@pytest.mark.parametrize("kind", ["things", "numbered", "timed"])
def test_rows_whose_key_or_time_gives_another_slot(fleet, kind):
    fleet.fill()
    change = {"things": "id = 'x' || id", "numbered": "id = id + 1000", "timed": "at = '2024-01-01 00:00:00.000000'"}[
        kind
    ]
    shard = "s2" if kind == "timed" else "s0"
    fleet.run(shard, f"UPDATE {kind} SET {change} WHERE slot = 7")
    [fault] = fleet.faults()
    assert (fault.shard, fault.table, fault.slots, fault.rows) == (shard, kind, SlotSet.of([7]), 1)
    assert "gives another slot" in fault.what
    assert fault.example


def test_a_slot_that_is_active_twice(fleet):
    fleet.fill()
    fleet.lane("s1", 5, LaneState.ACTIVE)
    twice, unlisted = sorted(fleet.faults(), key=lambda fault: len(fault.shard), reverse=True)
    assert (twice.shard, twice.slots) == ("s0, s1", SlotSet.of([5]))
    assert "active more than once" in twice.what
    assert (unlisted.shard, unlisted.slots) == ("s1", SlotSet.of([5]))
    assert "where the file doesn't have them" in unlisted.what


def test_a_slot_that_is_active_nowhere(fleet):
    fleet.delete_lane("s0", 5)
    fleet.delete_lane("s0", 6)
    [fault] = fleet.faults()
    assert (fault.shard, fault.slots) == ("s0", SlotSet.of([5, 6]))
    assert "active in no database" in fault.what


def test_a_slot_that_is_active_in_another_generation(fleet):
    fleet.set("s0", 5, generation=2)
    [fault] = fleet.faults()
    assert (fault.shard, fault.slots) == ("s0", SlotSet.of([5]))
    assert "generation 2" in fault.what


def test_a_slot_that_the_file_gives_to_another_shard(fleet):
    fleet.set("s0", 5, state=LaneState.LEFT)
    fleet.lane("s1", 5, LaneState.ACTIVE)
    [fault] = fleet.faults()
    assert (fault.shard, fault.slots) == ("s1", SlotSet.of([5]))


def test_shards_with_other_types_hold_the_same_slots(fleet):
    """s2 holds every slot for `timed`, s0 and s1 for the others."""
    fleet.fill()
    assert fleet.faults() == []
    fleet.delete_lane("s2", 41)
    [fault] = fleet.faults()
    assert (fault.shard, fault.slots) == ("s2", SlotSet.of([41]))


def test_parked_messages_and_keys_belong_together(fleet, run):
    fleet.park("s0", 5, "fine")
    fleet.park("s0", 6, "lost", with_key=False)
    fleet.park("s0", 7, "idle", messages=0)
    fleet.park("s0", 7, "idle too", messages=0)
    messages, keys = fleet.faults()
    assert (messages.table, messages.slots, messages.rows, messages.example) == (
        "shardctl_parked",
        SlotSet.of([6]),
        1,
        "lost",
    )
    assert (keys.table, keys.slots, keys.rows) == ("shardctl_parked_keys", SlotSet.of([7]), 2)
    assert run()[0] == 1


def test_parked_rows_of_a_slot_that_is_not_active_here(fleet):
    fleet.park("s1", 5, "k")
    assert {fault.table for fault in fleet.faults()} == {"shardctl_parked", "shardctl_parked_keys"}


def test_tables_that_are_missing(fleet, run):
    fleet.run("s0", "DROP TABLE things")
    fleet.run("s1", "DROP TABLE shardctl_lanes")
    assert {(fault.shard, fault.table) for fault in fleet.faults()} == {("s0", "things"), ("s1", "")}
    code, out, _ = run()
    assert code == 1
    assert "shard s0, table things: the table is missing" in out
    assert "shard s1: the database has no table shardctl_lanes" in out


def test_a_database_that_is_not_there(fleet, run, monkeypatch, tmp_path):
    monkeypatch.setenv("SHARDCTL_DATABASE_URL_S0", f"sqlite:///{tmp_path}/nowhere/x.db")
    code, out, err = run()
    assert (code, out) == (1, "")
    assert "nowhere/x.db: there is no such file" in err


def test_a_missing_url_is_reported(run, monkeypatch):
    monkeypatch.delenv("SHARDCTL_DATABASE_URL_S1")
    code, _, err = run()
    assert code == 1
    assert "no database URL for s1. Set SHARDCTL_DATABASE_URL_S1" in err


# --- while slots move -------------------------------------------------------------------------------------------------


@pytest.fixture
def moving(fleet):
    """Slot 5 has moved from s0 to s1, its rows are left behind; slot 6 is on its way; 7 and 8 still wait."""
    fleet.fill()
    fleet.text = FLEET.replace(
        "{name: s0, slots: 0-31, except_types: [timed]}",
        "{name: s0, slots: '0-4,9-31', generation: 2, except_types: [timed], previous: [{generation: 1, slots: 0-31}]}",
    ).replace(
        "{name: s1, slots: 32-63, except_types: [timed]}",
        "{name: s1, slots: '5-8,32-63', generation: 2, except_types: [timed], previous: [{generation: 1, slots: 32-63}]}",
    )
    for slot, before, now in (
        (5, LaneState.LEFT, LaneState.ACTIVE),
        (6, LaneState.LEFT, LaneState.DUE),
        (7, LaneState.ACTIVE, LaneState.DUE),
        (8, LaneState.ACTIVE, LaneState.ARRIVING),
    ):
        fleet.set("s0", slot, state=before)
        fleet.lane("s1", slot, now, generation=2)
    fleet.put("s1", id=key_in(5), slot=5)
    fleet.lane("s0", 9, LaneState.ACTIVE, generation=2)  # stays, and has changed its generation
    fleet.set("s0", 9, 1, state=LaneState.LEFT)
    return fleet


def test_a_rebalance_under_way_is_no_fault(moving, run):
    assert moving.faults() == []
    code, out, err = run()
    assert code == 0
    assert "rows of slots that have moved await deletion by `shardctl rebalance finish`" in err
    assert out.splitlines()[1].split()[:5] == ["s0", "30", "things", "7", "1"]


def test_what_is_parked_in_a_slot_that_left_is_nobodys(moving):
    moving.park("s0", 5, "half deleted", messages=0)
    moving.park("s0", 5, "deleted", with_key=False)
    assert moving.faults() == []


def test_rows_left_by_an_open_rebalance_of_a_settled_file_wait_too(fleet):
    fleet.fill()
    fleet.set("s0", 5, generation=1, state=LaneState.LEFT)
    fleet.lane("s0", 5, LaneState.ACTIVE, generation=2)
    rows = {"id": "r", "state": RebalanceState.OPEN, "plan": "{}"}
    with database.writing(fleet.engines["s0"]) as connection:
        connection.execute(insert(schema.rebalances).values(rows))
    assert {fault.table for fault in fleet.faults()} == {""}  # the generation alone


def test_totals_are_the_same_before_and_after_a_move(fleet):
    fleet.fill()
    before = fleet.report().totals()
    [row] = fleet.query("s0", "SELECT * FROM things WHERE slot = 5")
    with database.writing(fleet.engines["s1"]) as connection:
        connection.execute(insert(schema.table_of(fleet.spec.message_types["thing"], MetaData())).values(tuple(row)))
    fleet.set("s0", 5, state=LaneState.LEFT)
    fleet.lane("s1", 5, LaneState.ACTIVE)
    assert fleet.report().totals()["things"] == before["things"]
    fleet.run("s1", "UPDATE things SET note = 'changed' WHERE slot = 5")
    after = fleet.report().totals()["things"]
    assert (after[0], after[1] == before["things"][1]) == (before["things"][0], False)


def test_a_slot_in_the_air_that_nobody_expects_is_a_fault(moving):
    moving.delete_lane("s1", 6)
    [fault] = moving.faults()
    assert (fault.shard, fault.slots) == ("s1", SlotSet.of([6]))


def test_a_slot_that_is_active_twice_while_others_move(moving):
    moving.set("s0", 5, state=LaneState.ACTIVE)
    assert [fault.slots for fault in moving.faults()] == [SlotSet.of([5])]


def test_a_slot_that_moves_between_two_looks_is_no_fault(moving):
    """It was seen active where it came from, and then where it went."""
    moved = []

    def progress(shard, table):
        if shard == "s0" and not moved:
            moved.append(table)
            moving.set("s0", 7, state=LaneState.LEFT)
            moving.set("s1", 7, state=LaneState.ACTIVE)

    report = verify.verify(moving.spec, moving.engines, progress)
    assert moved
    assert report.faults == ()


def test_rows_nobody_left_behind_are_a_fault_though_others_move(moving):
    moving.put("s1", id=key_in(20), slot=20)
    [fault] = moving.faults()
    assert (fault.shard, fault.slots) == ("s1", SlotSet.of([20]))


def test_what_left_and_was_not_deleted_is_a_fault_once_the_file_is_settled(moving):
    moving.text = FLEET.replace("slots: 0-31", "generation: 2, slots: '0-4,9-31'").replace(
        "slots: 32-63", "generation: 2, slots: '5-8,32-63'"
    )
    for shard in ("s0", "s1"):
        with database.writing(moving.engines[shard]) as connection:
            connection.execute(schema.lanes.delete())
            rows = [
                {"slot": slot, "generation": 2, "state": LaneState.ACTIVE} for slot in moving.spec.shard(shard).slots
            ]
            connection.execute(insert(schema.lanes), rows)
    moving.lane("s0", 5, LaneState.LEFT)
    lost = [fault for fault in moving.faults() if fault.table == "things"]
    assert [(fault.shard, fault.slots) for fault in lost] == [("s0", SlotSet.of([5, 7]))]
    assert "`shardctl rebalance finish` deletes them" in lost[0].do


def test_owners_are_judged_without_databases(fleet):
    """Pure: what every lane says, and nothing else."""
    lanes = {
        name: [Lane(slot, 1, LaneState.ACTIVE) for slot in fleet.spec.shard(name).slots] for name in ("s0", "s1", "s2")
    }
    assert list(verify.lane_faults(fleet.spec, lanes)) == []
    lanes["s0"] = lanes["s0"][1:]
    [fault] = verify.lane_faults(fleet.spec, lanes)
    assert fault.slots == SlotSet.of([0])
    assert list(verify.lane_faults(fleet.spec, {"s1": lanes["s1"]})) == []
