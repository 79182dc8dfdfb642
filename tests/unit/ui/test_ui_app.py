"""What the page reads, and what it may do."""

import json

import pytest
from fleets import text
from sqlalchemy import func, select
from status_kit import AFTER, Databases, transitional
from test_ui_guard import problem
from ui_kit import ORIGIN, client

from shardctl.shard import parked, schema
from shardctl.shard.membership import Membership
from shardctl.status.report import Unknown

OWN = Membership("orders", "s0")


@pytest.fixture
def databases(tmp_path):
    (tmp_path / "shards.yaml").write_text(text(("0-7", "8-15"), slot_bits=4))
    made = Databases(tmp_path)
    for shard in ("s0", "s1"):
        made.present(shard)
    return made


@pytest.fixture
def page(databases, tmp_path):
    return client(tmp_path / "shards.yaml", databases.urls)


def test_status_is_what_the_command_reports(page):
    document = page.get("/api/status").json()
    assert [(shard["name"], shard["ready"], shard["parked_keys"]) for shard in document["shards"]] == [
        ("s0", 2, 0),
        ("s1", 2, 0),
    ]
    assert (document["fleet"], document["dead_letters"], document["unknown"], document["file_fault"]) == (
        "orders",
        0,
        {},
        None,
    )
    assert document["pace_seconds"] == 1.0


def test_readers_at_once_share_a_look(databases, tmp_path):
    looks = []

    def metrics(_):
        looks.append(1)
        return {}

    page = client(tmp_path / "shards.yaml", databases.urls, metrics=metrics)
    assert {response.status_code for response in page.all("/api/status", "/api/status", "/api/slots")} == {200}
    assert len(looks) == 1


def test_slots_are_shown_as_the_databases_have_them(databases, page):
    databases.leave("s0", 7)
    document = page.get("/api/slots").json()
    assert document == {
        "slots": 16,
        "maps": [{"types": "", "holders": {"s0": [[0, 6]], "s1": [[8, 15]]}, "from_file": [], "stages": {}}],
    }


def test_a_rebalance_is_followed(databases, tmp_path):
    page = client(tmp_path / "shards.yaml", databases.urls)
    assert page.get("/api/status").json()["rebalance"] is None
    databases.add("s2", transitional())
    databases.open_rebalance(transitional())
    (tmp_path / "shards.yaml").write_text(text(AFTER, slot_bits=4))
    page = client(tmp_path / "shards.yaml", databases.urls)
    assert page.get("/api/status").json()["rebalance"]["slots"] == 8
    assert page.get("/api/slots").json()["maps"][0]["stages"] == {"broken": [[0, 7]]}


def test_a_file_that_is_no_fleet_is_reported_and_the_last_one_stays(databases, page, tmp_path):
    (tmp_path / "shards.yaml").write_text("shards: [")
    document = page.get("/api/status").json()
    assert "shards.yaml" in document["file_fault"]
    assert len(document["shards"]) == 2


def test_heat_has_the_shards_that_answer(databases, tmp_path):
    urls = databases.urls | {"s1": Unknown("no URL")}
    document = client(tmp_path / "shards.yaml", urls).get("/api/heat").json()
    assert document == {
        "window_seconds": 120.0,
        "shards": {"s0": {"slots": [], "rates": []}},
        "unknown": {"s1": "no URL"},
    }


# -- parked keys ----------------------------------------------------------------------------------------------------------


def released(databases, key="k"):
    with parked.opened(OWN, databases.urls["s0"]) as connection:
        return [parked_key.released for parked_key in parked.keys(connection, "s0", key)]


def confirmation(page, **changes):
    (key,) = page.get("/api/parked").json()["keys"]
    return {name: key[name] for name in ("shard", "slot", "type", "key", "messages", "parked_time")} | changes


def replay(page, body):
    headers = {"Origin": ORIGIN, "Content-Type": "application/json"}
    return page.post("/api/parked/replay", content=json.dumps(body), headers=headers)


def test_parked_keys_are_listed_and_shown(databases, page):
    databases.park("s0", 3, "k", messages=2)
    keys = page.get("/api/parked").json()
    assert [(key["key"], key["shard"], key["slot"], key["messages"]) for key in keys["keys"]] == [("k", "s0", 3, 2)]
    messages = page.get("/api/parked/messages", params={"shard": "s0", "slot": 3, "type": "a", "key": "k"}).json()
    assert [message["body"] for message in messages["messages"]] == ['{"id": "<b>"}'] * 2


def test_a_shard_that_does_not_answer_hides_no_other(databases, tmp_path):
    databases.park("s0", 3, "k")
    urls = databases.urls | {"s1": "postgresql://me:secret@127.0.0.1:1/x"}
    response = client(tmp_path / "shards.yaml", urls).get("/api/parked")
    assert len(response.json()["keys"]) == 1
    assert list(response.json()["unknown"]) == ["s1"]
    assert "secret" not in response.text


def test_a_confirmed_key_goes_on(databases, page):
    databases.park("s0", 3, "k", messages=2)
    assert replay(page, confirmation(page)).json() == {"released": 1, "messages": 2}
    assert released(databases) == [True]


def test_each_replay_leaves_its_lines(databases, page, capsys):
    databases.park("s0", 3, "k")
    shown = confirmation(page)
    replay(page, shown | {"messages": 7})
    replay(page, shown)
    lines = [json.loads(line.removeprefix("audit: ")) for line in capsys.readouterr().err.splitlines()]
    assert [(line["action"], line["result"]) for line in lines] == [
        ("parked release", "begun"), ("parked release", "refused"),
        ("parked release", "begun"), ("parked release", "done"),
    ]  # fmt: skip
    assert lines[0]["plan"] == {"by": "ui", "shard": "s0", "type": "a", "keys": ["k"]}


def test_what_has_changed_since_it_was_shown_is_left_alone(databases, page):
    databases.park("s0", 3, "k", messages=2)
    shown = confirmation(page)
    databases.park_message("s0", 3, "k", "later")
    document = problem(replay(page, shown), 409)
    assert document["now"]["messages"] == 3
    assert released(databases) == [False]
    problem(replay(page, confirmation(page, parked_time="2020-01-01T00:00:00+00:00")), 409)
    problem(replay(page, confirmation(page, slot=4)), 404)
    assert released(databases) == [False]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"shard": "s9"}, 404),
        ({"key": "other"}, 404),
        ({"key": "' OR 1=1 --"}, 404),
        ({"key": "\x00"}, 400),
        ({"key": "\ud800"}, 400),
        ({"messages": "1"}, 400),
        ({"messages": True}, 400),
        ({"slot": 3.0}, 400),
        ({"slot": 10**30}, 404),
        ({"type": "b"}, 404),
        ({"type": None}, 400),
        ({"slot": None}, 400),
        ({"more": 1}, 400),
    ],
)
def test_hostile_confirmations_are_refused(databases, page, changes, status):
    databases.park("s0", 3, "k")
    problem(replay(page, confirmation(page, **changes)), status)
    assert released(databases) == [False]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
        (b" " * 70_000, "application/json", 413),
    ],
)
def test_hostile_bodies_are_refused(page, content, kind, status):
    headers = {"Origin": ORIGIN, "Content-Type": kind}
    problem(page.post("/api/parked/replay", content=content, headers=headers), status)


@pytest.mark.parametrize("slot", ["", "x", "-1", "1.5", "٣", "9" * 400, None])
def test_a_slot_is_a_number(page, slot):
    problem(
        page.get("/api/parked/messages", params={"shard": "s0", "key": "k"} | ({} if slot is None else {"slot": slot})),
        400,
    )


def test_a_replay_takes_nothing_away(databases, page):
    databases.park("s0", 3, "k", messages=2)
    replay(page, confirmation(page))
    with parked.opened(OWN, databases.urls["s0"]) as connection:
        assert connection.scalar(select(func.count()).select_from(schema.parked)) == 2
