"""A routing key, a shard and the last hour, as the page asks for them."""

import pytest
from fleets import text
from status_kit import AFTER, BITS, Databases, backlogs, transitional
from ui_kit import client

from shardctl.errors import ShardctlError
from shardctl.fleet.keyspace import slot_of
from shardctl.rebalance.backlog import Backlog
from shardctl.shard.schema import LaneState
from shardctl.status.history import WRITES, Figure, History
from shardctl.status.report import Unknown

HOSTILE = "<img src=x onerror=alert(1)>"


def key_of(slot):
    return next(key for key in map(str, range(1_000)) if slot_of(key, BITS) == slot)


@pytest.fixture
def databases(tmp_path):
    (tmp_path / "shards.yaml").write_text(text(("0-7", "8-15"), slot_bits=BITS))
    return Databases(tmp_path)


@pytest.fixture
def page(databases, tmp_path):
    return client(tmp_path / "shards.yaml", databases.urls)


def look_up(page, key, **more):
    return page.get("/api/key", params={"key": key, **more})


def test_a_key_is_found_with_what_the_databases_hold(databases, page):
    key = key_of(3)
    databases.park("s0", 3, key, messages=2)
    place = look_up(page, key).json()
    assert (place["slot"], place["digits"]) == (3, "0011")
    assert [(shard["name"], shard["subscription"]) for shard in place["shards"]] == [("s0", "orders-s0-g1")]
    assert place["shards"][0]["database"] == "secret orders-s0-db, key url"
    assert place["lanes"] == [{"shard": "s0", "lanes": [{"generation": 1, "state": "active"}], "unknown": None}]
    assert [(parked["shard"], parked["messages"]) for parked in place["parked"]] == [("s0", 2)]
    assert place["parked_unknown"] == {}


def test_a_slot_that_moves_is_shown_on_both_sides(databases, tmp_path):
    (tmp_path / "shards.yaml").write_text(text(AFTER, slot_bits=BITS))
    databases.add("s2", transitional())
    databases.lane("s2", 6, LaneState.ARRIVING)
    place = look_up(client(tmp_path / "shards.yaml", databases.urls), key_of(6)).json()
    assert [shard["name"] for shard in place["shards"]] == ["s2"]
    assert {lane["shard"]: lane["lanes"][-1]["state"] for lane in place["lanes"]} == {"s0": "active", "s2": "arriving"}


def test_a_database_that_does_not_answer_leaves_its_part_unknown(databases, tmp_path):
    page = client(tmp_path / "shards.yaml", databases.urls | {"s0": Unknown("no URL")})
    place = look_up(page, key_of(3)).json()
    assert place["lanes"] == [{"shard": "s0", "lanes": None, "unknown": "no URL"}]
    assert (place["parked"], place["parked_unknown"]) == ([], {"s0": "no URL"})
    shard = page.get("/api/shard", params={"name": "s0"}).json()
    assert (shard["replicas"], shard["lanes"], shard["errors"]) == (None, None, None)
    assert shard["unknown"] == {"database": "no URL"}


@pytest.mark.parametrize(
    ("key", "more", "message"),
    [
        ("", {}, "the key must have 1 to"),
        ("a\x00b", {}, "control character"),
        ("k", {"type": HOSTILE}, "isn't among the file's message types"),
        ("x" * 600, {}, "the key must have 1 to"),
    ],
)
def test_what_is_no_key_is_refused(page, key, more, message):
    response = look_up(page, key, **more)
    assert (response.status_code, response.headers["content-type"]) == (400, "application/problem+json")
    assert message in response.json()["detail"]


def test_a_shard_is_shown(databases, tmp_path):
    databases.present("s0", "r0", "1,2")
    databases.leave("s0", 7)
    databases.park("s0", 3, HOSTILE, messages=2)
    waiting = {"orders_s0_g1": Backlog(4, 998_500_000, 1_000_000_000)}
    page = client(tmp_path / "shards.yaml", databases.urls, backlogs=lambda fleet: lambda _: backlogs(fleet, **waiting))
    shard = page.get("/api/shard", params={"name": "s0"}).json()
    (replica,) = shard["replicas"]
    assert (replica["name"], replica["silent"], replica["generations"]) == ("r0", False, [1, 2])
    assert shard["subscriptions"] == [{"id": "orders-s0-g1", "generation": 1, "messages": 4, "oldest_seconds": 1.5}]
    assert [(lane["state"], lane["slots"]) for lane in shard["lanes"]] == [("active", "0-6"), ("left", "7")]
    assert [(key["key"], key["detail"]) for key in shard["errors"]] == [(HOSTILE, "no number")]
    assert shard["unknown"] == {}


def test_another_shard_is_not_there(page):
    response = page.get("/api/shard", params={"name": HOSTILE})
    assert (response.status_code, response.json()["detail"]) == (404, f"there is no shard {HOSTILE!r}")


def test_without_prometheus_the_hour_is_what_was_seen(page):
    page.get("/api/status")
    past = page.get("/api/history").json()
    assert (past["source"], past["why"]) == ("page", "")
    writes = next(figure for figure in past["figures"] if figure["name"] == WRITES)
    assert (writes["unit"], writes["shards"]) == ("per second", {"s0": [2.0], "s1": [2.0]})


def test_prometheus_has_the_hour_and_its_fault_is_reported(databases, tmp_path):
    def asked(_):
        return History(100.0, 30, (Figure(WRITES, "Writes", {"s0": (None, 1.234567)}),))

    def refused(_):
        raise ShardctlError("it is down")

    past = client(tmp_path / "shards.yaml", databases.urls, history=asked).get("/api/history").json()
    assert (past["source"], past["began"], past["step_seconds"]) == ("prometheus", 100.0, 30)
    assert past["figures"][0]["shards"] == {"s0": [None, 1.23]}
    past = client(tmp_path / "shards.yaml", databases.urls, history=refused).get("/api/history").json()
    assert (past["source"], past["why"]) == ("page", "it is down")
