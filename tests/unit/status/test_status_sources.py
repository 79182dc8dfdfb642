"""A source may be down, slow, or somebody else."""

import os
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fleets import text
from patience import PATIENCE_SECONDS
from sqlalchemy import insert
from status_kit import BITS, Databases, backlogs, http_server, settled, transitional

from shardctl.errors import ShardctlError, UsageError
from shardctl.rebalance.backlog import UnknownError
from shardctl.shard import schema
from shardctl.shard.membership import Membership
from shardctl.shard.schema import LaneState
from shardctl.status import localfile
from shardctl.status.collector import Collector, FleetFile, LocalMetrics, Sources, database_urls, sources
from shardctl.status.consumers import APPLIED, BATCHES, INBOX_OVERDUE, INBOX_ROWS, ROWS, Rates, Sample, samples
from shardctl.status.databases import heat
from shardctl.status.localfile import LocalConsumer, LocalFile
from shardctl.status.poller import Asker
from shardctl.status.report import Unknown
from shardctl.wire import identity

OWN = Membership("orders", "s0")
S0 = LocalConsumer("orders-s0-0", "s0", "http://127.0.0.1:1")


# -- asking --------------------------------------------------------------------------------------------------------------


def test_who_hangs_is_not_waited_for_nor_asked_again():
    released, asked = threading.Event(), []

    def hang():
        asked.append(1)
        released.wait()
        return "late"

    asker = Asker(0.05)
    answers = asker.ask({"slow": hang, "quick": lambda: 1})
    assert answers == {"slow": Unknown("no answer within 0.05 s"), "quick": 1}
    assert asker.ask({"slow": hang})["slow"] == Unknown("no answer within 0.05 s")
    released.set()
    assert asker._under_way["slow"].result(PATIENCE_SECONDS) == "late"
    assert asker.ask({"slow": hang}) == {"slow": "late"}
    assert asked == [1]


def test_two_who_ask_the_same_at_once_share_the_answer():
    begun, go, asker = threading.Event(), threading.Event(), Asker(PATIENCE_SECONDS)

    def question():
        begun.set()
        return go.wait(PATIENCE_SECONDS)

    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(asker.ask, {"it": question})
        assert begun.wait(PATIENCE_SECONDS)
        second = callers.submit(asker.ask, {"it": question, "then": go.set})
        assert (first.result(), second.result()) == ({"it": True}, {"it": True, "then": None})
    assert not asker._under_way


@pytest.mark.parametrize("error", [ShardctlError("gone"), UnknownError("gone"), OSError("gone")])
def test_an_error_that_a_person_can_fix_is_an_answer(error):
    def refuse():
        raise error

    assert Asker(5).ask({"it": refuse}) == {"it": Unknown("gone")}


def test_a_bug_is_no_answer():
    asker = Asker(5)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            asker.ask({"it": lambda: 1 / 0})


# -- consumers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("looks", "total", "rate"),
    [
        ([10, 25], 25, 15.0),
        ([10, 3], 13, 3.0),
        ([10, None, 12], 12, 2.0),
        ([None, 30], 30, 0.0),
        ([None, None], None, None),
        ([10], 10, None),
    ],
    ids=[
        "it works",
        "started again, it counts from nothing",
        "it didn't answer once",
        "new among us",
        "it never answers",
        "one look",
    ],
)
def test_counters_add_up_over_restarts_and_rates_are_of_the_last_look(looks, total, rate):
    rates = Rates()
    for second, look in enumerate(looks):
        metrics = {} if look is None else {APPLIED: look, "shardctl_ready": 1}
        work_of = rates.work([Sample(S0, metrics)], float(second))
    assert (work_of["s0"].applied, work_of["s0"].writes_per_second) == (total, rate)


def test_a_batch_s_mean_is_recent_where_there_were_batches():
    rates = Rates()
    for second, (rows, batches) in enumerate([(100, 10), (130, 11)]):
        work_of = rates.work([Sample(S0, {ROWS: rows, BATCHES: batches})], float(second))
    assert work_of["s0"].rows_a_batch == 30
    assert rates.work([Sample(S0, {ROWS: 130, BATCHES: 11})], 9.0)["s0"].rows_a_batch == pytest.approx(130 / 11)


def test_of_what_replicas_report_of_one_inbox_the_largest_counts():
    pages = ({INBOX_ROWS: 5.0, INBOX_OVERDUE: 0.0}, {}, {INBOX_ROWS: 7.0, INBOX_OVERDUE: 0.0})
    work = Rates().work([Sample(S0, metrics) for metrics in pages])["s0"]
    assert (work.inbox_rows, work.inbox_bytes, work.inbox_overdue_seconds) == (7, None, 0.0)


PAGE = """\
shardctl_messages_applied_total 12.0
shardctl_messages_dead_lettered_total{reason="bad_json"} 2.0
shardctl_messages_dead_lettered_total{reason="no_row"} 3.0
shardctl_ready 0.0
shardctl_redis_degraded 1.0
shardctl_database_up 0.0
"""


def test_a_consumers_own_page_shows_its_faults():
    pages = {"/metrics": (200, PAGE), "/ready": (503, "not ready: the database doesn't answer\n")}
    with (
        http_server(lambda method, path, headers, form: pages[path]) as url,
        http_server(lambda *_: (200, "<html>")) as other,
    ):
        asked = [
            replace(S0, url=url),
            LocalConsumer("gone", "s0", "http://127.0.0.1:1"),
            LocalConsumer("odd", "s0", other),
        ]
        work = Rates().work(samples(asked))["s0"]
    assert (work.applied, work.dead_lettered, work.replicas, work.ready) == (12, 5, 3, 0)
    assert [trouble.partition(":")[0] for trouble in work.troubles] == [
        "replica orders-s0-0 isn't ready (not ready",
        "replica orders-s0-0 works without Redis",
        "replica orders-s0-0 can't reach the database",
        "replica gone doesn't answer",
        "replica odd doesn't answer",
    ]


# -- the local fleet's file -----------------------------------------------------------------------------------------------


def test_the_local_fleet_s_file_is_read_as_it_was_written(tmp_path):
    local_file = LocalFile((S0,), {"s0": "sqlite:///a.db"})
    local_file.write(tmp_path / "fleet.json")
    assert localfile.read(tmp_path / "fleet.json") == local_file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has the fleet ended"),
        ("", "isn't the file"),
        ("[]", "isn't the file"),
        ('{"consumers": [{}]}', "isn't the file"),
    ],
)
def test_another_file_is_reported(tmp_path, content, message):
    if content is not None:
        (tmp_path / "f").write_text(content)
    with pytest.raises(localfile.LocalFileError, match=message):
        localfile.read(tmp_path / "f")


# -- databases ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def databases(tmp_path):
    return Databases(tmp_path)


def looker(databases, patience=PATIENCE_SECONDS, metrics=lambda _: {}, backlog_of=None):
    return Collector(
        Sources(lambda _: databases.urls, lambda fleet: lambda _: backlog_of or backlogs(fleet), metrics, local=True),
        patience,
    )


def test_databases_report_parked_keys_lanes_and_readers(databases):
    for shard in ("s0", "s1"):
        databases.present(shard)
    databases.park("s0", 3, "k", messages=2)
    databases.lane("s0", 9, LaneState.LEFT, 7)
    databases.park("s0", 9, "left behind")
    report = looker(databases).look(databases.fleet).report
    s0, s1 = report.shards
    assert (s0.parked_keys, s0.parked_messages, s1.parked_keys) == (1, 2, 0)
    assert s0.lanes == {"arriving": 0, "due": 0, "active": 8, "left": 1}
    assert (s0.troubles, report.unknown) == ((), {})


def test_lanes_are_read_again_only_when_the_fence_has_changed(databases):
    looks = looker(databases)
    assert looks.look(databases.fleet).report.shards[0].lanes["left"] == 0
    databases.lane("s0", 9, LaneState.LEFT, 7)  # by hand, without the fence
    assert looks.look(databases.fleet).report.shards[0].lanes["left"] == 0
    databases.leave("s0", 1)
    assert looks.look(databases.fleet).report.shards[0].lanes["left"] == 2


def test_a_silent_replica_is_reported(databases):
    databases.present("s0")
    databases.present("s0", "r1", seen_time=datetime.now(UTC) - timedelta(seconds=60))
    (trouble,) = looker(databases).look(databases.fleet).report.shards[0].troubles
    assert re.fullmatch("replica r1 sent its last heartbeat (59|6[0-9]) s ago", trouble)


def test_a_database_that_is_not_there_hides_no_other(databases, tmp_path):
    databases.urls["s1"] = f"sqlite:///{tmp_path / 'none.db'}"
    report = looker(databases).look(databases.fleet).report
    assert report.unknown.keys() == {"database of s1"}
    assert "there is no such file" in report.unknown["database of s1"]
    assert not (tmp_path / "none.db").exists()
    assert (report.shards[0].parked_keys, report.shards[1].parked_keys) == (0, None)


@pytest.mark.slow
def test_a_database_that_hangs_is_given_up_and_no_password_is_shown(databases):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        databases.urls["s1"] = f"postgresql://me:secret@127.0.0.1:{silent.getsockname()[1]}/x"
        report = looker(databases, patience=0.3).look(databases.fleet).report
    assert report.unknown["database of s1"] == "no answer within 0.3 s"
    databases.urls["s1"] = "postgresql://me:secret@127.0.0.1:1/x"
    report = looker(databases).look(databases.fleet).report
    assert "127.0.0.1" in report.unknown["database of s1"]
    assert "secret" not in str(report)


def test_heat_is_counted_in_the_inbox(databases):
    row = {"key_hash": 1, "published": schema.published(int(datetime.now(UTC).timestamp()) * 1_000_000)}
    rows = [row | {"slot": slot, "identity": identity.of_message(key)} for slot, key in ((3, "a"), (3, "b"), (5, "c"))]
    databases.execute("s0", insert(schema.inbox).values(rows))
    assert heat(OWN, databases.urls["s0"]) == {3: 2 / 120, 5: 1 / 120}


def test_a_rebalance_is_followed_through_the_file(databases, tmp_path):
    path = tmp_path / "shards.yaml"
    path.write_text(text(("0-7", "8-15"), slot_bits=BITS))
    of_file = FleetFile(path)
    assert not of_file.fleet().rebalancing
    from status_kit import AFTER

    path.write_text("shards: [")
    assert not of_file.fleet().rebalancing
    assert "shards.yaml" in of_file.fault
    path.write_text(text(AFTER, slot_bits=BITS))
    after = of_file.fleet()
    assert (after.rebalancing, of_file.fault) == (True, "")
    databases.add("s2", after)
    databases.open_rebalance(after)
    moving = looker(databases).look(after).report.moving
    assert (moving.states, moving.summary.total) == ({"s0": "open", "s2": "open"}, 8)
    assert moving.id


def test_of_two_that_read_a_changed_file_at_once_the_newer_content_stays(tmp_path):
    path, newer = tmp_path / "shards.yaml", tmp_path / "newer"
    path.write_text(text(("0-7", "8-15"), slot_bits=BITS))
    of_file = FleetFile(path)
    path.unlink()
    os.mkfifo(path)  # a reader of it waits for what is written
    newer.write_text(text(("0-7", "8-11", "12-15"), slot_bits=BITS))
    readers = [threading.Thread(target=of_file.fleet) for _ in range(2)]
    readers[0].start()
    with path.open("w") as older:  # the first reader has opened it
        newer.replace(path)
        readers[1].start()
        readers[1].join(0.2)  # or it waits for the first
        older.write(text(("0-7", "8-15"), slot_bits=BITS))
    for reader in readers:
        reader.join(PATIENCE_SECONDS)
    assert len(of_file.fleet().shards) == 3


# -- where to ask ---------------------------------------------------------------------------------------------------------


def test_urls_come_from_options_then_the_environment_then_the_local_fleet(tmp_path):
    LocalFile((), {"s0": "local0", "s1": "local1", "s2": "local2"}).write(tmp_path / "f")
    environment = {"SHARDCTL_DATABASE_URL_S0": "env0", "SHARDCTL_DATABASE_URL_S1": "env1"}
    urls = database_urls(transitional(), {"s0": "given0"}, environment, tmp_path / "f")
    assert urls == {"s0": "given0", "s1": "env1", "s2": "local2"}
    lacking = database_urls(transitional(), {}, {}, None)
    assert lacking["s0"] == Unknown("no URL: set SHARDCTL_DATABASE_URL_<SHARD>, or give --database SHARD=URL")


def test_a_shard_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="no shard 's9'"):
        database_urls(settled(), {"s9": "x"}, {}, None)


def test_without_a_source_the_error_names_the_option_to_give(monkeypatch):
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    unnamed = sources({}, None, {})
    assert not unnamed.local
    with pytest.raises(ShardctlError, match="--prometheus"):
        unnamed.metrics(settled())


def test_consumers_are_those_that_the_file_lists_now(tmp_path):
    path: Path = tmp_path / "f"
    metrics = LocalMetrics(lambda: localfile.read(path).consumers)
    LocalFile((S0,), {}).write(path)
    assert metrics(settled())["s0"].names == {"orders-s0-0"}
    LocalFile((replace(S0, name="orders-s0-1"),), {}).write(path)
    assert metrics(settled())["s0"].names == {"orders-s0-1"}
