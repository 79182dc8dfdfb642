"""Messages that kill the process that applies them: they alone become dead letters, and all else is applied in order."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import grpc
import pytest
from sqlalchemy import create_engine, text

from shardctl.broker import protos
from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.local.fleet import LocalFleet
from shardctl.wire.message import Write

pytestmark = pytest.mark.proof

FLEET = """
fleet: crash
project: my-project
image: example.com/consumer:1
message_types:
  entry: {sink: "crash_sink:Crashing", routing_key: id}
subscription: {retry_minimum: 1s, retry_maximum: 10s, max_delivery_attempts: 5}
consumer: {lease: 10s, lock_ttl: 2s}
shards:
  - {name: s0, slots: 0-1023}
"""
PATIENCE_SECONDS = 600.0


class Crash:
    def __init__(self, folder, writes, keys, killers):
        self.local = LocalFleet(fleet_from(yamlfile.parse(FLEET, "shards.yaml")), folder, replicas=2)
        step = writes // (killers + 1)
        self.killing = {step * (number + 1) for number in range(killers)}
        self.writes = [
            Write("entry", {"id": f"k{number % keys}", "number": number, "kills": number in self.killing})
            for number in range(writes)
        ]
        self.letters, self.restarts, self.last_restart = [], 0, 0.0

    def run(self):
        local = self.local
        local.start_servers()
        local.provision()
        self.engine = create_engine(local.database_url("s0"))
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE applied (at bigserial PRIMARY KEY, key text, number bigint)"))
        local.publish(self.writes)
        local.start_consumers()
        self.began = time.monotonic()
        local.wait_drained(PATIENCE_SECONDS, meanwhile=self.revive)
        self.seconds = time.monotonic() - self.began

    def revive(self):
        revived = self.local.revive()
        self.restarts += len(revived)
        if revived:
            self.last_restart = time.monotonic() - self.began

    def dead(self):
        """The numbers on the dead-letter topic, in order of arrival."""
        name = "projects/my-project/subscriptions/crash-dead"
        request = protos.of("PullRequest")(subscription=name, max_messages=1000)
        with grpc.insecure_channel(self.local.broker.host) as channel:
            read = protos.of("PullResponse").FromString
            call = channel.unary_unary("/google.pubsub.v1.Subscriber/Pull", type(request).SerializeToString, read)
            return [
                json.loads(received.message.data)["number"] for received in call(request, timeout=20).received_messages
            ]

    def applied(self):
        numbers = defaultdict(list)
        with self.engine.connect() as connection:
            for key, number in connection.execute(text("SELECT key, number FROM applied ORDER BY at")):
                numbers[key].append(number)
        return dict(numbers)

    def expected(self):
        numbers = defaultdict(list)
        for write in self.writes:
            if not write.body["kills"]:
                numbers[write.body["id"]].append(write.body["number"])
        return dict(numbers)

    def stop(self):
        self.local.stop()


@pytest.fixture
def path_of_sinks(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]))


@pytest.mark.timeout(700)
@pytest.mark.usefixtures("path_of_sinks")
def test_messages_that_kill_the_process_alone_become_dead_letters(tmp_path):
    crash = Crash(tmp_path, writes=2_000, keys=60, killers=2)
    try:
        crash.run()
        assert sorted(crash.dead()) == sorted(crash.killing)
        assert crash.applied() == crash.expected()
        assert crash.restarts >= 2
    finally:
        crash.stop()
