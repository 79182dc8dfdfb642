"""`shardctl parked` on SQLite: exit codes, what stdout carries, and what is done to whom."""

from __future__ import annotations

import json

import pytest
from arrival_kit import HEAD, Database

from shardctl.cli import main

pytestmark = pytest.mark.slow
TYPES = """
  step: {table: steps, key: id, routing_key: entity, operation: insert, on_poison: park, columns: {id: text, entity: text}}
  mark: {table: marks, key: id, routing_key: entity, operation: insert, on_poison: park, columns: {id: text, entity: text}}
"""


@pytest.fixture
def shard(tmp_path):
    made = Database(f"sqlite:///{tmp_path}/shard.db", TYPES)
    yield made
    made.close()


@pytest.fixture
def run(tmp_path, shard, monkeypatch, capsys):
    (tmp_path / "shards.yaml").write_text(HEAD + TYPES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHARDCTL_DATABASE_URL_S0", str(shard.url))

    def ran(*arguments):
        code = main([*([] if arguments[0] == "deadletter" else ["parked"]), *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return ran


def park(shard, key, *, messages=3):
    """All but the first are fine."""
    first = shard.arrive("step", b"{", key, ident=f"{key}/0")
    rest = [
        shard.arrive("step", {"id": f"{key}/{n}", "entity": key}, key, ident=f"{key}/{n}") for n in range(1, messages)
    ]
    shard.settle(first, *rest)


def released(shard):
    return {key for _, _, key in shard.store.released_keys()}


def test_list(run, shard):
    park(shard, "k")
    park(shard, "j", messages=1)
    code, out, err = run("list")
    assert code == 0
    header, *lines = out.splitlines()
    assert header.split()[:4] == ["shard", "slot", "type", "key"]
    assert {tuple(line.split()[i] for i in (0, 2, 3, 4, 5)) for line in lines} == {
        ("s0", "step", "k", "bad_json", "3"),
        ("s0", "step", "j", "bad_json", "1"),
    }
    assert "2 parked keys, 4 messages" in err
    listed = json.loads(run("list", "--json")[1])
    assert {(parked_key["key"], parked_key["messages"], parked_key["released"]) for parked_key in listed} == {
        ("k", 3, False),
        ("j", 1, False),
    }


def test_list_takes_the_filters_that_letters_have(run, shard):
    park(shard, "k")
    park(shard, "j", messages=1)

    def listed(*arguments):
        return [parked_key["key"] for parked_key in json.loads(run("list", "--json", *arguments)[1])]

    assert listed("--key", "j") == ["j"]
    assert listed("--reason", "no_such") == []
    assert sorted(listed("--since", "1h")) == ["j", "k"]
    assert listed("--until", "1h ago") == []
    assert len(listed("--limit", "1")) == 1
    assert "2 parked keys, 4 messages; 1 are listed" in run("list", "--limit", "1")[2]


def test_show(run, shard):
    park(shard, "k", messages=2)
    shard.settle(shard.arrive("step", b"\xff", "k"))
    code, out, _ = run("show", "k")
    assert code == 0
    assert "bad_json" in out
    assert "k/0" in out
    assert '"id":"k/1"' in out
    [parked_key] = json.loads(run("show", "k", "--json")[1])
    assert [parked_message.get("body") or parked_message["body_hex"] for parked_message in parked_key["messages"]] == [
        "{",
        '{"id":"k/1","entity":"k"}',
        "ff",
    ]


def test_replay_releases_and_the_consumer_applies(run, shard):
    park(shard, "k")
    park(shard, "j")
    code, out, err = run("release", "k")
    assert (code, out) == (0, "")
    assert "1 keys released" in err
    assert released(shard) == {"k"}
    assert "released" in run("list")[1]
    assert len(json.loads(run("release", "--all", "--reason", "no_such", "--json")[1])) == 0
    assert len(json.loads(run("release", "--all", "--reason", "bad_json", "--json")[1])) == 2
    assert released(shard) == {"k", "j"}


def test_drop_deletes_nothing_without_yes(run, shard):
    park(shard, "k")
    code, out, err = run("drop", "k")
    assert (code, out) == (1, "")
    assert "delete 1 of 3 messages" in err
    assert "--yes" in err
    assert shard.parked() == {"k": ["k/0", "k/1", "k/2"]}
    assert released(shard) == set()


def test_drop_deletes_the_first_and_lets_the_rest_go_on(run, shard):
    park(shard, "k")
    code, out, _ = run("drop", "k", "--yes", "--json")
    assert (code, json.loads(out)[0]["dropped"]) == (0, 1)
    assert shard.parked() == {"k": ["k/1", "k/2"]}
    assert released(shard) == {"k"}
    assert [release.applied for release in shard.release()] == [2]


def test_a_key_that_is_parked_for_two_types(run, shard):
    park(shard, "k")
    shard.settle(shard.arrive("mark", b"{", "k", ident="mark"))
    assert {line.split()[2] for line in run("list")[1].splitlines()[1:]} == {"step", "mark"}
    assert [parked_key["type"] for parked_key in json.loads(run("list", "--type", "mark", "--json")[1])] == ["mark"]
    assert {parked_key["type"] for parked_key in json.loads(run("show", "k", "--json")[1])} == {"step", "mark"}
    for refused in (("release", "k"), ("drop", "k", "--yes")):
        code, out, err = run(*refused)
        assert (code, out) == (1, "")
        assert "mark, step. Choose one with --type" in err
    assert (released(shard), shard.parked()) == (set(), {"k": ["k/0", "k/1", "k/2", "mark"]})
    assert run("release", "k", "--type", "step")[0] == 0
    assert [kind for _, kind, _ in shard.store.released_keys()] == ["step"]
    assert run("drop", "k", "--type", "mark", "--yes")[0] == 0
    assert shard.parked() == {"k": ["k/0", "k/1", "k/2"]}


def test_drop_of_all(run, shard):
    park(shard, "k")
    assert run("drop", "k", "--all", "--yes")[0] == 0
    assert (shard.parked(), shard.parked_keys()) == ({}, {})


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("release", "nobody", "--type", "step"), 1, "isn't parked in: s0"),
        (("drop", "k", "j", "--yes"), 2, "unexpected extra argument"),
        (("show", "nobody"), 1, "isn't parked in: s0"),
        (("release", "nobody"), 1, "isn't parked in: s0"),
        (("drop", "nobody", "--yes"), 1, "isn't parked in: s0"),
        (("release",), 2, "give a KEY, or --all"),
        (("release", "k", "--all"), 2, "give a KEY, or --all"),
        (("release", "k", "--reason", "x"), 2, "give a KEY, or --all"),
        (("list", "--shard", "s9"), 2, "no shard 's9'"),
        (("list", "--database", "s0"), 2, "SHARD=URL"),
        (("list", "--database", "s0=postgresql://u:hunter2@127.0.0.1:1/x"), 1, "shard s0: database "),
        (("list", "--database", "s0=nonsense"), 2, "database URL can't be used"),
        (("list", "--database", "s0=sqlite://"), 1, "no such table"),
    ],
)
def test_refusals(run, arguments, code, says):
    exit_code, out, err = run(*arguments)
    assert (exit_code, out) == (code, "")
    assert says in err
    assert "hunter2" not in err
    assert "Traceback" not in err


def test_a_database_must_be_named(run, monkeypatch):
    monkeypatch.delenv("SHARDCTL_DATABASE_URL_S0")
    code, _, err = run("list")
    assert code == 1
    assert "SHARDCTL_DATABASE_URL_S0" in err
    assert "--no-databases" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("list", "--parked"), 0, "use `shardctl parked list`"),
        (("show", "k", "--parked"), 0, "use `shardctl parked show`"),
        (("replay", "k", "--parked"), 0, "use `shardctl parked release`"),
        (("drop", "k", "--parked"), 1, "use `shardctl parked drop`"),
        (("drop", "k", "j", "--parked", "--yes"), 2, "one KEY"),
        (("list", "--parked", "--strays"), 2, "exclude each other"),
        (("replay", "k", "--parked", "--from", "x"), 2, "--from isn't for parked keys"),
    ],
)
def test_the_old_form_still_works_and_names_the_new_one(run, shard, arguments, code, message):
    park(shard, "k")
    ended, _, err = run("deadletter", *arguments)
    assert ended == code
    assert message in err
