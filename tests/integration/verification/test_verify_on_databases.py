"""`shardctl verify` on PostgreSQL and MariaDB: a clean fleet passes, planted faults are found."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from names_kit import keyed
from products_kit import SERVERS, empty_database
from verify_kit import Fleet, key_in

from shardctl.shard.schema import LaneState

pytestmark = pytest.mark.slow


@pytest.fixture(params=SERVERS)
def fleet(request, tmp_path):
    with ExitStack() as databases:
        made = Fleet(tmp_path, lambda _: databases.enter_context(empty_database(request, request.param)))
        made.fill()
        yield made
        made.close()


def test_a_clean_fleet_passes_and_its_checksums_stay(fleet):
    report = fleet.report()
    assert report.faults == ()
    assert report.totals()["things"][0] == 16
    assert fleet.report().totals() == report.totals()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE things SET note = 'u' WHERE slot = 5",
        "UPDATE things SET note = NULL WHERE slot = 5",
        "DELETE FROM things",
    ],
)
def test_a_checksum_shows_any_change(fleet, change):
    before = fleet.report().totals()
    fleet.run("s0", change)
    after = fleet.report().totals()
    assert after["things"][1] != before["things"][1]
    assert after["numbered"] == before["numbered"]


def test_planted_faults_are_found(fleet):
    fleet.put("s1", id=key_in(5), slot=5)
    fleet.record("s1", 6, "k1")
    fleet.put("s0", id=key_in(8), slot=9)
    fleet.put("s0", "number", id=10**12, line=1, slot=9)
    fleet.park("s0", 7, "lost", with_key=False)
    fleet.park("s0", 7, "idle", messages=0)
    fleet.lane("s1", 3, LaneState.ACTIVE)
    fleet.delete_lane("s0", 30)
    fleet.run("s2", "UPDATE timed SET at = '2024-01-01 00:00:00' WHERE slot = 7")
    faults_read = {
        (fault.shard, fault.table, str(fault.slots), fault.rows, fault.example.replace("-", ""))
        for fault in fleet.faults()
    }
    assert faults_read == {
        ("s0, s1", "", "3", 0, ""),
        ("s1", "", "3", 0, ""),
        ("s0", "", "30", 0, ""),
        ("s1", "things", "5", 1, key_in(5)),
        ("s1", "shardctl_inbox", "6", 1, keyed("thing", "k1", 6).hex()),
        ("s0", "things", "9", 1, key_in(8)),
        ("s0", "numbered", "9", 1, "1000000000000, 1"),
        ("s2", "timed", "7", 1, "t7"),
        ("s0", "shardctl_parked", "7", 1, "lost"),
        ("s0", "shardctl_parked_keys", "7", 1, "idle"),
    }
