"""The dead-letter desk on the embedded broker and real databases: a replayed letter comes back once and in order."""

from __future__ import annotations

import itertools
import json
from contextlib import ExitStack, contextmanager
from datetime import datetime

import pytest
from deadletter_kit import BrokerThread, Town
from products_kit import empty_database

from shardctl.cli import main
from shardctl.cli.deadletter import session
from shardctl.fleet.keyspace import slot_of
from shardctl.shard import schema
from shardctl.wire import identity

pytestmark = pytest.mark.slow
_projects = itertools.count()
RULE = "CHECK (note NOT LIKE 'bad%')"


@pytest.fixture(scope="module")
def broker():
    made = BrokerThread()
    yield made
    made.stop()


def in_shard(shard, number=0):
    """A routing key of that shard."""
    keys = (key for key in map("k{}".format, itertools.count()) if (slot_of(key, 6) < 32) == (shard == "s0"))
    return next(itertools.islice(keys, number, None))


A, B, OTHER = in_shard("s0"), in_shard("s0", 1), in_shard("s1")


@pytest.fixture(params=["sqlite", "postgresql"])
def urls(request):
    with ExitStack() as databases:
        yield {name: databases.enter_context(empty_database(request, request.param)) for name in ("s0", "s1")}


@contextmanager
def town_on(broker, folder, monkeypatch, urls=None):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.host)
    made = Town(broker, folder, f"desk-test-{next(_projects)}", urls)
    for name, url in made.urls.items():
        monkeypatch.setenv(f"SHARDCTL_DATABASE_URL_{name.upper()}", url)
    monkeypatch.chdir(folder)
    yield made
    made.faults()
    made.close()


@pytest.fixture
def town(broker, tmp_path, urls, monkeypatch):
    with town_on(broker, tmp_path, monkeypatch, urls) as made:
        yield made


@pytest.fixture
def sqlite_town(broker, tmp_path, monkeypatch):
    """Where the kind of database doesn't matter."""
    with town_on(broker, tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def desk(capsys):
    """Runs a verb; code, parsed JSON or None, and the talk."""

    def ran(*arguments, wait="10"):  # the broker knows when all was seen
        code = main(["deadletter", *arguments, "--json", *(("--wait", wait) if "--parked" not in arguments else ())])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, json.loads(out) if out else None, err

    return ran


def refuse_bad(town):
    """A constraint as a wrong migration leaves it: these writes can't succeed until it is gone."""
    for shard in town.shards.values():
        if shard.engine.dialect.name == "postgresql":
            shard.run(f"ALTER TABLE things ADD CONSTRAINT no_bad {RULE}")
        else:
            for event in ("INSERT", "UPDATE"):
                shard.run(
                    f"CREATE TRIGGER no_bad_{event} BEFORE {event} ON things WHEN NEW.note LIKE 'bad%' "
                    "BEGIN SELECT RAISE(ABORT, 'no bad'); END"
                )


def allow_bad(town):
    for shard in town.shards.values():
        if shard.engine.dialect.name == "postgresql":
            shard.run("ALTER TABLE things DROP CONSTRAINT no_bad")
        else:
            shard.run("DROP TRIGGER no_bad_INSERT")
            shard.run("DROP TRIGGER no_bad_UPDATE")


def things(town):
    return dict(town.rows("SELECT id, note FROM things"))


def test_what_failed_is_applied_once_and_in_order_when_its_cause_is_fixed(town, desk):
    refuse_bad(town)
    town.publish("thing", {"id": A, "note": "bad"}, A, idempotency_key="a1")
    town.publish("entry", {"id": "e1", "owner": A}, A)
    town.publish("thing", {"id": B, "note": "bad"}, B)
    town.publish("thing", {"id": OTHER, "note": "bad"}, OTHER, color="red")
    town.consume()
    assert (things(town), town.backlog()) == ({}, 3)
    assert sorted(town.inbox().values()) == ["applied", "dead", "dead", "dead"]

    code, document, _ = desk("list")
    assert (code, document["seen"], document["backlog"]) == (0, 3, 3)
    assert document["summary"]["by_reason"] == {"constraint": 3}
    assert document["summary"]["by_shard"] == {"s0": 2, "s1": 1}
    assert (town.backlog(), town.leased()) == (3, 0)

    code, document, _ = desk("replay", "--all")
    assert (code, document["planned"], town.leased()) == (1, {"replay": 3}, 0)
    assert desk("replay", "--all", "--dry-run", "--yes")[0] == 0
    assert sorted(town.inbox().values()) == ["applied", "dead", "dead", "dead"]

    code, document, _ = desk("replay", "--all", "--yes")  # the cause isn't fixed: they come back
    assert (code, document["replayed"]) == (0, 3)
    town.consume()
    assert (things(town), town.backlog()) == ({}, 3)

    allow_bad(town)
    assert desk("replay", "--all", "--yes")[:1] == (0,)
    assert town.backlog() == 0
    town.consume()
    assert things(town) == {A: "bad", B: "bad", OTHER: "bad"}
    assert set(town.inbox().values()) == {"applied"}
    assert len(town.inbox()) == 4
    code, document, _ = desk("replay", "--all", "--yes")
    assert (code, document["replayed"], document["applied_before"]) == (0, 0, 0)


def test_the_writes_of_a_key_come_in_the_order_in_which_they_were_written(sqlite_town, desk):
    town = sqlite_town
    refuse_bad(town)
    for number in range(5):
        town.publish("thing", {"id": A, "note": f"bad {number}"}, A, idempotency_key=f"{9 - number}")
        town.consume()
    allow_bad(town)
    letters = town.letters()  # they lie in order: take them out of it
    shuffled = [letters[at] for at in (3, 0, 4, 2, 1)]
    town.pull("shop-dead")
    for letter in shuffled:
        town.publisher.publish(
            topic=f"projects/{town.project}/topics/data-writes-dead",
            messages=[{"data": letter.data, "attributes": dict(letter.attributes)}],
        )
    assert desk("replay", "--type", "thing", "--yes")[0] == 0
    received = [pulled.message for pulled in town.pull("shop-s0-g1", ack=False)]
    assert [json.loads(message.data)["note"] for message in received] == [f"bad {number}" for number in range(5)]
    assert [message.attributes["idempotency_key"] for message in received] == ["9", "8", "7", "6", "5"]
    assert {name for message in received for name in message.attributes} == {
        "slot",
        "partition_key",
        "message_type",
        "idempotency_key",
    }
    assert {message.ordering_key for message in received} == {f"{slot_of(A, 6):06b}"}


def test_a_replay_never_doubles_what_took_effect(town, desk):
    """Letters of writes that were applied after all, replayed from an archive again and again."""
    refuse_bad(town)
    town.publish("entry", {"id": "e1", "owner": A}, A, idempotency_key="e1")
    town.publish("thing", {"id": A, "note": "bad"}, A, idempotency_key="a1")
    town.consume()
    assert desk("list", "--archive", "copies.ndjson")[0] == 0
    allow_bad(town)
    assert desk("replay", "--reason", "constraint", "--yes")[0] == 0
    town.consume()
    town.run("UPDATE things SET note = 'touched'")
    for _ in range(2):
        code, document, _ = desk("replay", "--all", "--yes", "--from", "copies.ndjson")
        assert (code, document["replayed"], document["applied_before"]) == (0, 0, 1)
    town.consume()
    assert things(town) == {A: "touched"}
    # The same copy, let loose without asking any database: the inbox knows it.
    line = json.loads((town.folder / "copies.ndjson").read_text())
    for _ in range(2):
        town.publish("thing", line["body"].encode(), A, idempotency_key="a1")
    town.consume()
    assert things(town) == {A: "touched"}


def test_a_letter_whose_row_is_not_recorded_yet_waits(town, desk):
    """Published, but not committed: a copy now would be swallowed by the row that comes after it."""
    refuse_bad(town)
    seen = []

    def look():
        if not seen:
            seen.append(desk("replay", "--all", "--yes"))

    town.publish("thing", {"id": A, "note": "bad"}, A)
    town.consume(before_commit=look)
    [(code, document, _)] = seen
    assert (code, document["replayed"], [dead_letter["code"] for dead_letter in document["left"]]) == (
        1,
        0,
        ["unrecorded"],
    )
    allow_bad(town)
    assert desk("replay", "--all", "--yes")[0] == 0
    town.consume()
    assert things(town) == {A: "bad"}


def test_a_later_write_is_overwritten_only_on_request(town, desk):
    refuse_bad(town)
    town.publish("thing", {"id": A, "note": "bad"}, A)
    town.consume()
    town.publish("thing", {"id": A, "note": "newer"}, A)
    town.consume()
    allow_bad(town)
    code, document, _ = desk("replay", "--all", "--yes")
    assert (code, [dead_letter["code"] for dead_letter in document["left"]]) == (1, ["overtaken"])
    assert (things(town), town.backlog()) == ({A: "newer"}, 1)
    assert desk("replay", "--all", "--yes", "--overwrite")[0] == 0
    town.consume()
    assert things(town) == {A: "bad"}


def test_a_version_guards_newer_writes_and_an_insert_meets_them(sqlite_town, desk):
    town = sqlite_town
    town.publish("edition", {"id": A, "revision": "x"}, A, idempotency_key="bad")
    town.publish("edition", {"id": A, "revision": 7}, A)
    town.publish("entry", {"id": A, "owner": A, "more": 1}, A)
    town.publish("entry", {"id": "e2", "owner": A}, A)
    town.consume()
    code, document, _ = desk("replay", "--all", "--yes")
    assert (code, document["replayed"]) == (0, 2)
    town.consume()
    assert town.rows("SELECT revision FROM editions") == [(7,)]
    assert town.backlog() == 2


def test_a_replay_that_was_killed_does_not_stand_in_its_own_way(sqlite_town, desk):
    """Two writes of a key; the first was replayed and applied, then the desk died. The second isn't overtaken by the first."""
    town = sqlite_town
    refuse_bad(town)
    for note in ("bad 1", "bad 2"):
        town.publish("thing", {"id": A, "note": note}, A, idempotency_key=note)
    town.consume()
    allow_bad(town)
    first = town.letters()[0]
    assert desk("replay", first.message_id, "--yes")[0] == 0
    town.consume()
    assert things(town) == {A: "bad 1"}
    assert desk("replay", "--all", "--yes")[:1] == (0,)
    town.consume()
    assert things(town) == {A: "bad 2"}


def test_the_newer_write_replayed_first_holds_the_older_one_back(sqlite_town, desk):
    town = sqlite_town
    refuse_bad(town)
    for note in ("bad 1", "bad 2"):
        town.publish("thing", {"id": A, "note": note}, A, idempotency_key=note)
    town.consume()
    allow_bad(town)
    assert desk("replay", town.letters()[1].message_id, "--yes")[0] == 0
    town.consume()
    code, document, _ = desk("replay", "--all", "--yes")
    assert (code, [dead_letter["code"] for dead_letter in document["left"]]) == (1, ["overtaken"])
    assert things(town) == {A: "bad 2"}


def test_letters_that_pubsub_gave_up_on(sqlite_town, desk):
    """With their own key they are known by it. Without, the inbox is asked for a write of their key and time."""
    town = sqlite_town
    with_key = town.publish("entry", {"id": "e1", "owner": A}, A, idempotency_key="e1")
    town.publish("entry", {"id": "e2", "owner": B}, B)
    town.publish("entry", {"id": "e3", "owner": OTHER}, OTHER)
    assert with_key
    for _ in range(5):
        for name in ("shop-s0-g1", "shop-s1-g1"):
            town.pull(name, ack=False)
            town.end_leases(name)
            town.broker.call(lambda n=name: [setattr(lane, "due", 0) for lane in town.core(n)._lanes.values()])
    assert town.backlog() == 3
    code, document, _ = desk("list", "--reason", "max_delivery_attempts")
    assert (code, document["summary"]["by_shard"]) == (0, {"s0": 2, "s1": 1})
    code, document, err = desk("replay", "--all", "--dry-run")
    assert document["planned"] == {"replay": 3}
    assert "2 of them carry no idempotency key" in err

    # One of them took effect while its acks were lost: the inbox has it, under its message's id.
    e2 = next(message for message in town.letters() if message.attributes["partition_key"] == B)
    moment = datetime.fromisoformat(e2.attributes["CloudPubSubDeadLetterSourceTopicPublishTime"])
    second = schema.published(int(moment.timestamp()) * 1_000_000)
    says = identity.fingerprint(e2.attributes.get("operation", ""), B, e2.data)
    town.shards["s0"].run(
        "INSERT INTO shardctl_inbox (slot, identity, key_hash, fingerprint, published) VALUES "
        f"({slot_of(B, 6)}, X'{identity.of_message('77').hex()}', {identity.key_hash('entry', B)}, {says}, {second})"
    )
    code, document, _ = desk("replay", "--all", "--yes")
    assert (code, document["replayed"], [dead_letter["code"] for dead_letter in document["left"]]) == (
        1,
        2,
        ["maybe_applied"],
    )
    town.consume()
    assert town.rows("SELECT id FROM entries") == [("e1",), ("e3",)]
    assert "e1" in town.inbox()


def test_a_slot_that_its_producer_got_wrong_is_repaired(sqlite_town, desk):
    town = sqlite_town
    wrong = f"{slot_of(OTHER, 6):06b}"
    town.publish("thing", {"id": A, "note": "x"}, A, slot=wrong)  # wrong_slot, dead on s1
    town.publish("thing", {"id": B, "note": "y"}, B, slot="0101")  # bad_slot: too short, dead on s0, in no inbox
    town.consume()
    assert desk("list")[1]["summary"]["by_reason"] == {"wrong_slot": 1, "bad_slot": 1}
    assert desk("replay", "--all", "--yes")[0] == 0
    town.consume()
    assert things(town) == {A: "x", B: "y"}
    assert town.backlog() == 0


def test_strays_are_repaired_and_need_no_database(sqlite_town, desk, monkeypatch):
    town = sqlite_town
    day = "2024-03-01T12:00:00+00:00"
    town.publish("thing", {"id": A, "note": "x"}, A, slot=None)
    town.publish("thing", {"id": B, "note": "y"}, B, slot="x1")
    town.publish("timed", {"id": "t", "at": day}, "t", slot="", ordered=False)
    town.publish("timed", {"id": "u"}, "u", slot=None)
    town.consume()
    strays = "shop-strays"
    assert (town.backlog(), town.backlog(strays)) == (0, 4)
    code, document, _ = desk("list", "--strays")
    assert (code, document["summary"]["by_reason"]) == (0, {"no_slot": 3, "bad_slot": 1})
    for name in town.urls:
        monkeypatch.delenv(f"SHARDCTL_DATABASE_URL_{name.upper()}")
    code, document, err = desk("replay", "--strays", "--all", "--yes")
    assert (code, document["replayed"], [dead_letter["code"] for dead_letter in document["left"]]) == (
        1,
        3,
        ["bad_time"],
    )
    assert "No database URL" in err
    town.consume()
    assert things(town) == {A: "x", B: "y"}
    assert town.rows("SELECT id FROM timed") == [("t",)]
    assert (town.backlog(), town.backlog(strays)) == (0, 1)


def test_strays_of_a_type_that_a_shard_takes_now(broker, tmp_path, monkeypatch, desk):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.host)
    monkeypatch.chdir(tmp_path)
    town = Town(broker, tmp_path, f"desk-test-{next(_projects)}", topic_bits=1)
    town.publish("thing", {"id": A, "note": "x"}, A, topic="data-writes-1")  # the other topic's
    assert [town.backlog(f"shop-strays-t{n}") for n in range(2)] == [0, 1]
    assert desk("list", "--strays")[1]["letters"][0]["reason"] == "wrong_topic"
    assert desk("replay", "--strays", "--key", A, "--yes")[0] == 0
    town.consume()
    assert things(town) == {A: "x"}
    town.close()


def test_dead_letters_want_their_databases(sqlite_town, desk, monkeypatch):
    town = sqlite_town
    refuse_bad(town)
    town.publish("thing", {"id": A, "note": "bad"}, A)
    town.consume()
    monkeypatch.delenv("SHARDCTL_DATABASE_URL_S0")
    code, document, err = desk("replay", "--all", "--yes")
    assert (code, document) == (1, None)
    assert "SHARDCTL_DATABASE_URL_S0" in err
    assert (town.backlog(), town.leased()) == (1, 0)
    assert desk("replay", "--all", "--dry-run", "--database", f"s0={town.urls['s0']}")[0] == 0


def test_drop_archives_and_a_replay_from_the_archive_brings_it_back(sqlite_town, desk):
    town = sqlite_town
    refuse_bad(town)
    town.publish("thing", {"id": A, "note": "bad"}, A)
    town.publish("thing", b"\xff\x00{", B)
    town.consume()
    assert desk("drop", "--all")[0] == 1
    assert desk("drop", "--all", "--yes", "--dry-run")[0] == 0
    assert town.backlog() == 2
    code, document, _ = desk("drop", "--all", "--yes", "--archive", "gone.ndjson")
    assert (code, document["dropped"], town.backlog()) == (0, 2, 0)
    town.consume()
    assert things(town) == {}
    allow_bad(town)
    with (town.folder / "gone.ndjson").open("ab") as file:
        file.write(b'{"kind": "dead_letter", "subscr')  # as a run that was killed leaves it
    code, document, err = desk("replay", "--from", "gone.ndjson", "--reason", "constraint", "--yes")
    assert (code, document["replayed"]) == (1, 1)
    assert "line 3: not JSON" in err
    town.consume()
    assert things(town) == {A: "bad"}
    # More can be added behind the torn line.
    town.publish("thing", b"{", B)
    town.consume()
    assert desk("drop", "--all", "--yes", "--archive", "gone.ndjson")[0] == 0
    code, document, err = desk("replay", "--from", "gone.ndjson", "--all", "--dry-run")
    assert document["planned"] == {"applied": 1, "replay": 2}


def test_an_archive_older_than_the_inbox_remembers_is_refused(sqlite_town, desk):
    town = sqlite_town
    town.publish("thing", {"id": A, "note": "x"}, A, slot=None)
    assert desk("drop", "--strays", "--all", "--yes", "--archive", "old.ndjson")[0] == 0
    file = town.folder / "old.ndjson"
    line = json.loads(file.read_text())
    file.write_text(json.dumps(line | {"publish_time": "2020-01-01T00:00:00Z"}))
    code, document, _ = desk("replay", "--all", "--yes", "--from", "old.ndjson")
    assert (code, [dead_letter["code"] for dead_letter in document["left"]]) == (1, ["forgotten"])
    assert desk("replay", "--all", "--yes", "--from", "old.ndjson", "--unremembered")[0] == 0
    town.consume()
    assert things(town) == {A: "x"}


def test_two_desks_share_the_letters_and_harm_nothing(sqlite_town, desk):
    """One holds what it has seen; the other says that it hasn't seen everything."""
    from shardctl.deadletter import pubsub
    from shardctl.deadletter.leasedreader import LeasedReader

    town = sqlite_town
    refuse_bad(town)
    town.publish("thing", {"id": A, "note": "bad"}, A)
    town.consume()
    with pubsub.clients() as (_, subscriber):
        first = LeasedReader(subscriber, town.project, ["shop-dead"], silence_seconds=0.3)
        with first:
            assert sum(len(messages) for _, messages in first.read()) == 1
            code, document, err = desk("list", wait="0.4")
            assert (code, document["seen"], document["backlog"]) == (0, 0, 1)
            assert "0 of 1 messages were seen" in err
        assert town.leased() == 0
    assert desk("list")[1]["seen"] == 1


def test_more_letters_than_one_may_hold_at_once(sqlite_town):
    """What is beyond the bound is left for another time, and all of it is handed back."""
    from shardctl.deadletter import pubsub
    from shardctl.deadletter.leasedreader import LeasedReader

    town = sqlite_town
    topic = f"projects/{town.project}/topics/data-writes-dead"
    for _ in range(3):
        town.publisher.publish(topic=topic, messages=[{"data": b"x" * 400_000}] * 4)
    with pubsub.clients() as (_, subscriber):
        desk = LeasedReader(subscriber, town.project, ["shop-dead"], left=town.backlog, max_letters=5)
        with desk:
            seen = sum(len(messages) for _, messages in desk.read())
            assert 5 <= seen < 12
            assert not desk.whole
            assert town.leased() >= seen
    assert (town.backlog(), town.leased()) == (12, 0)


def test_letters_that_find_no_room_on_disk_are_reported(sqlite_town, desk, monkeypatch):
    town = sqlite_town
    refuse_bad(town)
    for number in range(3):
        town.publish("thing", {"id": f"{A}/{number}", "owner": A, "note": "bad"}, A)
    town.consume()
    monkeypatch.setattr(session, "MAX_SPOOL_BYTES", 1)
    _, document, err = desk("drop", "--all")
    assert document["planned"]["letters"] == 1
    assert "Stopped after 1 letters of 3: process these, and run it again for the rest." in err


def test_a_letter_that_comes_again_after_its_ack_is_found_done(sqlite_town, desk):
    """With an earlier letter of its slot left behind, Pub/Sub redelivers also what was acked."""
    town = sqlite_town
    refuse_bad(town)
    town.publish("thing", {"id": A, "note": "bad"}, A)
    town.publish("thing", {"id": A, "note": "bad later"}, A)
    town.consume()
    allow_bad(town)
    town.faults(replay_acked=True)
    later = town.letters()[1].message_id
    assert desk("replay", later, "--yes")[0] == 0
    town.consume()
    assert town.backlog() == 2
    code, document, _ = desk("replay", later, "--yes")
    assert (code, document["replayed"], document["applied_before"]) == (0, 0, 1)


def test_hostile_letters_are_shown_and_dropped_and_stop_nothing(sqlite_town, desk, capsys):
    town = sqlite_town
    dead = f"projects/{town.project}/topics/data-writes-dead"
    hostile = [
        {"data": b"x"},
        {"attributes": {"shardctl-reason": "\x1b[31mred", "partition_key": A, "message_type": "thing"}, "data": b"\x1b]0;x\x07"},
        {"attributes": {f"a{number}": "v" * 1024 for number in range(99)}, "data": b"{}"},
        {"attributes": {"message_type": "thing", "partition_key": A, **{f"a{n}": "v" for n in range(98)}}, "data": b"{}"},
        {"data": bytes(range(256)) * 30_000},
        {
            "attributes": {
                "shardctl-reason": "bad_json", "shardctl-shard": "s9", "shardctl-slot": "-1", "shardctl-message-id": "x" * 900,
                "shardctl-publish-time-us": "9" * 30, "shardctl-subscription": "", "partition_key": A, "message_type": "thing",
            }, "data": b"{",
        },
        {"attributes": {"CloudPubSubDeadLetterSourceSubscription": "else", "message_type": "\u202e"}, "data": b"{}"},
        {"attributes": {"shardctl-barrier": "r1", "slot": "000000", "message_type": "thing"}},
    ]  # fmt: skip
    for message in hostile:
        town.publisher.publish(topic=dead, messages=[message])
    code, document, _ = desk("list")
    assert (code, document["seen"]) == (0, len(hostile))
    assert main(["deadletter", "list"]) == 0
    for dead_letter in document["letters"]:
        assert main(["deadletter", "show", dead_letter["message_id"]]) == 0
    assert main(["deadletter", "replay", "--all", "--dry-run"]) == 0
    shown = "".join(capsys.readouterr())
    assert not any(forbidden in shown for forbidden in ("\x1b", "\x07", "\u202e"))
    code, document, _ = desk("replay", "--all", "--yes")
    assert code == 1
    assert {dead_letter["code"] for dead_letter in document["left"]} >= {"unknown_type", "too_large", "barrier"}
    assert desk("drop", "--all", "--yes", "--archive", "a.ndjson")[1]["dropped"] == len(document["left"])
    assert town.backlog() == 0
    assert desk("replay", "--all", "--from", "a.ndjson", "--dry-run")[0] == 0


@pytest.mark.proof
def test_thousands_of_letters(sqlite_town, desk):
    """More than one response, one part and one request; the bound on what is held at once is reported."""
    town = sqlite_town
    count = 3_000
    dead, slot = f"projects/{town.project}/topics/data-writes", slot_of(A, 6)
    for start in range(0, count, 1000):
        town.publisher.publish(
            topic=dead,
            messages=[
                {
                    "data": json.dumps({"id": f"e{n}", "owner": A}).encode() if n % 3 else b"{",
                    "attributes": {"slot": f"{slot:06b}", "partition_key": A, "message_type": "entry" if n % 3 else "no"},
                    "ordering_key": f"{slot:06b}",
                }
                for n in range(start, start + 1000)
            ],
        )  # fmt: skip
    town.run("ALTER TABLE entries RENAME COLUMN owner TO owner_")
    town.run("CREATE TRIGGER no BEFORE INSERT ON entries BEGIN SELECT RAISE(ABORT, 'no'); END")
    town.run("ALTER TABLE entries RENAME COLUMN owner_ TO owner")
    town.consume()
    assert town.backlog() == count
    code, document, _ = desk("list", "--limit", "7")
    assert (code, len(document["letters"]), document["summary"]["letters"]) == (0, 7, count)
    assert document["summary"]["by_reason"] == {"constraint": 2000, "unknown_type": 1000}
    town.run("DROP TRIGGER no")
    code, document, _ = desk("replay", "--type", "entry", "--yes")
    assert (code, document["replayed"], document["lost_acks"]) == (0, 2000, 0)
    town.consume()
    assert len(town.rows("SELECT id FROM entries")) == 2000
    assert desk("drop", "--type", "no", "--yes")[1]["dropped"] == 1000
    assert town.backlog() == 0


def test_what_lies_nowhere_and_what_is_asked_wrongly(sqlite_town, desk):
    code, _, err = desk("show", "12345")
    assert code == 1
    assert "isn't among the 0 dead letters" in err
    assert desk("replay", "12345", "--yes")[0] == 1
    assert desk("drop", "--reason", "x", "--yes")[0] == 0
    for arguments in (
        ("replay",),
        ("drop", "--yes"),
        ("replay", "--all", "--reason", "x"),
        ("list", "--parked", "--strays"),
        ("list", "--since", "yesterday"),
        ("list", "--parked", "--archive", "x"),
        ("replay", "--from", "nothing.ndjson", "--all"),
        ("replay", "--from", "x", "--strays", "--all"),
    ):
        code, document, err = desk(*arguments)
        assert (code, document) == (2, None), arguments
        assert err.startswith("error: ")


def test_a_subscription_that_is_not_there(broker, tmp_path, monkeypatch, desk):
    from deadletter_kit import FLEET, TYPES

    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.host)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards.yaml").write_text(FLEET.format(project="desk-test-none", types=TYPES, topic_bits=""))
    code, _, err = desk("list")
    assert code == 1
    assert "shardctl provision" in err
