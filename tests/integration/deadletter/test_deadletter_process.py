"""`python -m consumer` dead-letters a write, `shardctl deadletter` brings it back: each as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from deadletter_kit import BrokerThread, Town
from patience import PATIENCE_SECONDS

from shardctl.deadletter import pubsub
from shardctl.deadletter.leasedreader import LeasedReader
from shardctl.fleet.keyspace import slot_of
from shardctl.local.servers.process import free_port

pytestmark = pytest.mark.slow
KEY = next(key for key in map("k{}".format, range(99)) if slot_of(key, 6) < 32)


@pytest.fixture
def town(tmp_path, monkeypatch):
    broker = BrokerThread()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.host)
    made = Town(broker, tmp_path, "desk-process")
    for name, url in made.urls.items():
        monkeypatch.setenv(f"SHARDCTL_DATABASE_URL_{name.upper()}", url)
    yield made
    made.close()
    broker.stop()


def until(condition, what):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, f"{what} never came true"
        time.sleep(0.02)


def desk(town, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "shardctl", "deadletter", *arguments],
        cwd=town.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def consumer(town, redis_url):
    shard = town.shards["s0"]
    file = town.folder / "s0.json"
    file.write_text(shard.config.model_dump_json())
    settings = {"PORT": str(free_port()), "HOST": "127.0.0.1", "DATABASE_URL": town.urls["s0"], "REDIS_URL": redis_url}
    process = subprocess.Popen(
        [sys.executable, "-m", "consumer", "--config", str(file)], env=os.environ | settings, stderr=subprocess.DEVNULL
    )
    yield process
    process.kill()
    process.wait()


def test_a_consumer_sets_aside_and_applies_what_the_desk_replays(town, consumer):
    shard = town.shards["s0"]
    shard.run("CREATE TRIGGER no BEFORE INSERT ON things WHEN NEW.note = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END")
    town.publish("thing", {"id": KEY, "note": "bad"}, KEY)
    town.publish("entry", {"id": "e", "owner": KEY}, KEY)
    until(lambda: town.backlog() == 1 and town.backlog("shop-s0-g1") == 0, "a dead letter")
    shard.run("DROP TRIGGER no")
    replaying = desk(town, "replay", "--reason", "constraint", "--yes", "--json")
    out, err = replaying.communicate(timeout=PATIENCE_SECONDS)
    assert replaying.returncode == 0, err
    assert json.loads(out)["replayed"] == 1
    until(lambda: shard.rows("SELECT note FROM things") == [("bad",)], "the write")
    assert shard.rows("SELECT id FROM entries") == [("e",)]
    assert town.backlog() == 0


def test_ctrl_c_hands_everything_back_and_a_kill_leaves_it_to_the_leases(town):
    dead = f"projects/{town.project}/topics/data-writes-dead"
    for number in range(5):
        town.publisher.publish(topic=dead, messages=[{"data": b"%d" % number}])
    with (
        pubsub.clients() as (_, subscriber),
        LeasedReader(subscriber, town.project, ["shop-dead"], silence_seconds=1.0) as other,
    ):
        next(other.read())
        town.publisher.publish(topic=dead, messages=[{"data": b"late"}])
        waiting = desk(town, "list", "--wait", "60")  # the other desk has some, so it waits for them
        until(lambda: town.leased() == 6, "all leased")
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=PATIENCE_SECONDS)
        assert (waiting.returncode, out) == (130, "")
        assert "interrupted" in err
        assert town.leased() == 5
        waiting = desk(town, "list", "--wait", "60")
        until(lambda: town.leased() == 6, "all leased")
        waiting.kill()
        waiting.communicate(timeout=PATIENCE_SECONDS)
        assert (town.backlog(), town.leased()) == (6, 6)
    assert (town.backlog(), town.leased()) == (6, 1)
