"""What a sink emits: stored with its write, once for each write that takes effect, and relayed by the consumers themselves."""

from __future__ import annotations

import threading
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import orjson
import pytest
from arrival_kit import Database, config_of
from consumerprocess_kit import until
from patience import PATIENCE_SECONDS
from products_kit import SERVERS, empty_database
from sqlalchemy import create_engine, text

from consumer.process.events import routes_of
from shardctl import Outbox, Write
from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec_errors import SpecError
from shardctl.local.fleet import LocalFleet
from shardctl.local.moving import Moving
from shardctl.rebalance.planning.request import Request

TYPES = """
  entry: {sink: "emitting_sink:Emitting", routing_key: id, emits: event}
  event: {sink: "emitting_sink:Recording", routing_key: id}
"""


@pytest.fixture(params=SERVERS)
def shard(request):
    with empty_database(request, request.param) as url, closing(Database(url, TYPES)) as made:
        made.run("CREATE TABLE applied (id VARCHAR(20), number INT, PRIMARY KEY (id, number))")
        Outbox(routes_of(made.config)).serve_sinks(made.engine)
        yield made


def emitted(shard):
    bodies = shard.rows("SELECT body FROM shardctl_outbox ORDER BY position")
    return [orjson.loads(bytes(body))["number"] for (body,) in bodies]


@pytest.mark.slow
def test_a_write_emits_once_and_one_that_fails_emits_nothing(shard):
    def arrive(number, ident=""):
        return shard.arrive("entry", {"id": "k", "number": number}, "k", ident=ident or f"m{number}")

    shard.settle(arrive(1), arrive(2))
    shard.settle(arrive(1), arrive(2))  # a redelivery
    assert emitted(shard) == [1, 2]
    shard.settle(arrive(3), arrive(2, "other"), arrive(4))  # its row is there: refused, found by halving
    assert emitted(shard) == [1, 2, 3, 4]
    assert shard.inbox()["other"] == "dead"


@pytest.mark.slow
def test_a_type_that_isnt_declared_is_the_sinks_fault(request):
    types = TYPES.replace("emits: event", "emits: entry")
    with empty_database(request, "postgresql") as url, closing(Database(url, types)) as shard:
        Outbox(routes_of(shard.config)).serve_sinks(shard.engine)
        shard.settle(shard.arrive("entry", {"id": "k", "number": 1}, "k", ident="m1"))
        assert emitted(shard) == []
        assert shard.inbox() == {"m1": "dead"}


def test_a_consumer_knows_what_its_sinks_emit_and_no_other_has_to():
    assert list(config_of(TYPES).emitted_types) == ["event"]
    plain = config_of('  event: {sink: "emitting_sink:Recording", routing_key: id}')
    assert "emitted_types" not in plain.model_dump(exclude_defaults=True)
    with pytest.raises(SpecError, match=r"emits.*'evnt' isn't among message_types"):
        config_of(TYPES.replace("emits: event", "emits: evnt"))
    with pytest.raises(SpecError, match="emits is for a type with a sink"):
        config_of("  row: {table: rows, key: id, columns: {id: text}, emits: row}")


FLEET = f"""
fleet: emitting
project: my-project
image: example.com/consumer:1
routing: {{slot_bits: 5}}
message_types: {TYPES}
subscription: {{retry_minimum: 1s, retry_maximum: 10s}}
consumer: {{lease: 10s, lock_ttl: 2s}}
shards:
  - {{name: s0, slots: 0-15}}
  - {{name: s1, slots: 16-31}}
"""
KEYS, WRITES, KILLS = 12, 1_200, 4
# Times are those of one machine, so that the order of two databases' rows is known.
TABLES = (
    "CREATE TABLE applied (id text, number int)",
    "CREATE TABLE recorded (at bigserial PRIMARY KEY, time timestamptz DEFAULT clock_timestamp(), id text, number int)",
)


class Events:
    """What the fleet's sinks have recorded, over all databases."""

    def __init__(self, local, *shards):
        self._local, self.engines = local, {}
        self.prepare(*shards)

    def prepare(self, *shards):
        for name in shards:
            self.engines[name] = create_engine(self._local.database_url(name))
            with self.engines[name].begin() as connection:
                for statement in TABLES:
                    connection.execute(text(statement))

    def recorded(self):
        rows = []
        for engine in self.engines.values():
            with engine.connect() as connection:
                rows += connection.execute(text("SELECT time, at, id, number FROM recorded")).all()
        numbers = defaultdict(list)
        for _, _, key, number in sorted(rows):
            numbers[key].append(number)
        return numbers

    def count(self):
        self._local.revive()
        return sum(map(len, self.recorded().values()))

    def close(self):
        for engine in self.engines.values():
            engine.dispose()


def entry(number):
    return Write("entry", {"id": f"k{number % KEYS}", "number": number})


class Load(threading.Thread):
    """Publishes entries until it is stopped."""

    def __init__(self, local):
        super().__init__()
        self._local, self._stopped, self.published = local, threading.Event(), 0

    def run(self):
        while not self._stopped.wait(0.05):
            self._local.publish(entry(number) for number in range(self.published, self.published + KEYS))
            self.published += KEYS

    def stop(self):
        self._stopped.set()
        self.join()


@pytest.mark.proof
def test_events_come_once_and_in_order_while_their_slots_move_under_load(tmp_path, monkeypatch):
    """A shard is added, and another one removed, while entries go on: real PostgreSQL servers, consumers as processes."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    with LocalFleet(fleet_from(yamlfile.parse(FLEET, "shards.yaml")), tmp_path, replicas=2) as local:
        events, load = Events(local, "s0", "s1"), Load(local)
        load.start()
        try:
            for request in (Request(add=("s2",), like="s0"), Request(remove=("s0",))):
                moving = Moving(local, request)
                before = load.published
                until(lambda before=before: events.count() > before, 10 * PATIENCE_SECONDS, "events before")
                moving.open()
                events.prepare(*moving.new)
                moving.roll()
                moving.run()
                moving.finish()
        finally:
            load.stop()
        until(lambda: events.count() >= load.published, 10 * PATIENCE_SECONDS, "every event")
        assert events.recorded() == {f"k{key}": list(range(key, load.published, KEYS)) for key in range(KEYS)}
        events.close()


@pytest.mark.proof
def test_consumers_relay_in_order_while_they_are_killed(tmp_path, monkeypatch):
    """Each event comes once in effect and in its key's order, whichever replicas die with the outbox half empty."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    with LocalFleet(fleet_from(yamlfile.parse(FLEET, "shards.yaml")), tmp_path, replicas=2) as local:
        events = Events(local, "s0", "s1")
        for kill in range(KILLS):
            part = range(kill * WRITES // KILLS, (kill + 1) * WRITES // KILLS)
            local.publish(map(entry, part))
            enough = (2 * kill + 1) * WRITES // KILLS // 2
            until(lambda enough=enough: events.count() >= enough, 10 * PATIENCE_SECONDS, "half of the events")
            replica = local.replicas[f"s{kill % 2}"][kill // 2]
            replica.kill()
            replica.start()
        until(lambda: events.count() >= WRITES, 10 * PATIENCE_SECONDS, "every event")
        assert events.recorded() == {f"k{key}": list(range(key, WRITES, KEYS)) for key in range(KEYS)}
        events.close()
