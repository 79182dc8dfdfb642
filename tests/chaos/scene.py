"""The fleet that is hurt: three shards of few slots, so that every slot is hot; short leases, locks and timeouts."""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path

from google.cloud import pubsub_v1
from sqlalchemy import create_engine, text

from shardctl import topology, yamlfile
from shardctl.local import broker
from shardctl.local.broker.faults import Faults
from shardctl.local.fleet import LocalFleet
from shardctl.local.processes import ConsumerProcess
from shardctl.spec import Fleet, of_file
from tests.chaos.oracle import Layout

# A message may come many times here, and none of the good ones may end as a dead letter for that: hence the many attempts.
FLEET = """
fleet: chaos
project: my-project
image: example.com/consumer:1
routing: {slot_bits: 6}
message_types:
  journal:
    table: journal
    key: [entity, number]
    operation: insert
    columns: {entity: text, number: bigint, value: integer}
  counter:
    table: counter
    key: entity
    operation: upsert
    columns: {entity: text, number: bigint, value: integer}
subscription: {ack_deadline: 10s, retry_minimum: 0s, retry_maximum: 0s, max_delivery_attempts: 100}
consumer:
  lease: 10s
  lock_ttl: 3s
  statement_timeout: 5s
  drain_timeout: 5s
  batch_max_age_ms: 5
shards:
  - {name: s0, slots: 0-23}
  - {name: s1, slots: 24-39}
  - {name: s2, slots: 40-63}
"""
REPLICAS = 2
PULL_MESSAGES, PULL_SECONDS = 1_000, 5.0

# Both tables draw from one sequence, so the order in which an entity's writes took effect shows across them. An upsert hides what
# it replaces, so each one leaves a line in a log.
WITNESSES = (
    "CREATE SEQUENCE chaos_order",
    "ALTER TABLE journal ADD COLUMN position bigint NOT NULL DEFAULT nextval('chaos_order')",
    "ALTER TABLE journal ADD CONSTRAINT value_is_not_negative CHECK (value >= 0)",
    "CREATE TABLE counter_log (position bigint PRIMARY KEY DEFAULT nextval('chaos_order'), entity text, number bigint)",
    """CREATE FUNCTION log_counter() RETURNS trigger LANGUAGE plpgsql AS
       'BEGIN INSERT INTO counter_log (entity, number) VALUES (NEW.entity, NEW.number); RETURN NULL; END'""",
    "CREATE TRIGGER log_counter AFTER INSERT OR UPDATE ON counter FOR EACH ROW EXECUTE FUNCTION log_counter()",
)


def fleet() -> Fleet:
    return of_file(yamlfile.parse(FLEET, "chaos.yaml"))


class Scene:
    """A running fleet, and what faults need to touch it from several threads.

    Take `turn(resource)` before touching a process: its handle is not made for two threads. A fault has it from its beginning to
    its end.
    """

    def __init__(self, directory: Path, spec: Fleet | None = None) -> None:
        self.local = LocalFleet(spec or fleet(), directory, replicas=REPLICAS)
        self.broker_faults: dict[str, dict[str, float]] = {}  # those in force, by the name of the fault
        self.overstayed: list[str] = []  # consumers that had to be killed after the grace period
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def start(self) -> None:
        self.local.start_servers()
        self.local.provision()
        for url in self.local.databases.values():
            _execute(url, WITNESSES)
        self.local.start_consumers()

    def turn(self, resource: str) -> threading.Lock:
        return self._turns[resource]

    def revive_crashed(self) -> list[ConsumerProcess]:
        """Start again what ended without being told to, as Kubernetes would. One that a fault has in hand is the fault's."""
        revived = []
        for shard, replicas in self.local.replicas.items():
            for number, consumer in enumerate(replicas):
                turn = self.turn(f"{shard}-{number}")
                if turn.acquire(blocking=False):
                    try:
                        if consumer.died:
                            consumer.revive()
                            revived.append(consumer)
                    finally:
                        turn.release()
        return revived

    def set_broker_faults(self) -> None:
        """Lay the broker's faults that are in force on top of each other."""
        merged: dict[str, float] = {}
        for settings in self.broker_faults.values():
            merged |= settings
        broker.set_faults(self.local.broker.host, Faults.from_mapping(merged))

    def heal(self) -> None:
        """Whatever faults may have left undone, once all have ended: everything runs, nothing is paused, the broker behaves."""
        local = self.local
        for server in (local.broker, local.redis, local.postgres):
            if server is not None:
                server.resume()
                server.start()
        self.broker_faults.clear()
        self.set_broker_faults()
        for consumer in local.consumers:
            consumer.resume()
            if not consumer.running:
                consumer.revive()

    def stop_consumers(self) -> None:
        """In order, so that nothing writes any more while the tables are read."""
        for consumer in self.local.consumers:
            consumer.terminate()
        for consumer in self.local.consumers:
            consumer.stop()

    def layout(self) -> Layout:
        """For the judge."""
        spec = self.local.spec
        return Layout(spec.routing.slot_bits, {shard.name: shard.slots.ranges for shard in spec.shards})

    def dead_letters(self) -> dict[str, str]:
        """What is on the dead-letter topic: idempotency key and reason. Takes the messages off."""
        with self.local.as_emulator():
            client = pubsub_v1.SubscriberClient()
        name = topology.dead_letter_subscription(self.local.spec)
        path = f"projects/{self.local.spec.project}/subscriptions/{name}"
        found: dict[str, str] = {}
        while self.local.subscriptions()[name]["undelivered"]:
            pulled = client.pull(subscription=path, max_messages=PULL_MESSAGES, timeout=PULL_SECONDS).received_messages
            for received in pulled:
                attributes = received.message.attributes
                told = attributes.get("shardctl-reason"), attributes.get("shardctl-error")
                found[attributes["idempotency_key"]] = ": ".join(filter(None, told)) or "by the broker"
            if pulled:
                client.acknowledge(subscription=path, ack_ids=[received.ack_id for received in pulled])
        client.close()
        return found


def _execute(url: str, statements: tuple[str, ...]) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()
