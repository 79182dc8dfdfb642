"""The fleet that is hurt: three shards of few slots, so that every slot is hot; short leases, locks and timeouts."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from google.cloud import pubsub_v1

from shardctl import broker
from shardctl.broker.faults import Faults
from shardctl.fleet import topology, yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec import Fleet
from shardctl.local.fleet import LocalFleet
from shardctl.local.processes import ConsumerProcess
from tests.chaos import witnesses
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
    slot_tables: {witness: slot, counter_log: slot}
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


def fleet() -> Fleet:
    return fleet_from(yamlfile.parse(FLEET, "chaos.yaml"))


class Scene:
    """A running fleet, and what faults need to touch it from several threads.

    Take `turn(resource)` before touching a process: its handle is not made for two threads. A fault has it from its beginning to
    its end.
    """

    def __init__(self, directory: Path, spec: Fleet | None = None) -> None:
        self.local = LocalFleet(spec or fleet(), directory, replicas=REPLICAS)
        self.broker_faults: dict[str, dict[str, float]] = {}  # those in force, by the name of the fault
        self.overstayed: list[str] = []  # consumers that had to be killed after the grace period
        self.databases: dict[str, str] = {}  # URLs of every shard that there ever was
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def start(self) -> None:
        self.local.start_servers()
        self.local.provision()
        for shard in self.local.spec.shards:
            self.swear_in(shard.name)
        self.local.start_consumers()

    def swear_in(self, shard: str) -> None:
        """Let the shard's database bear witness, before anything is written to it."""
        url = self.local.database_url(shard)
        witnesses.swear_in(url)
        self.databases[shard] = url

    def database_url(self, shard: str) -> str:
        """Of a shard that isn't there yet, another's."""
        return self.databases.get(shard) or next(iter(self.databases.values()))

    def turn(self, resource: str) -> threading.Lock:
        return self._turns[resource]

    @contextmanager
    def turn_of_all(self, shards: Iterable[str] = ()) -> Iterator[None]:
        """Nobody else touches a consumer, of these shards or of those there are."""
        names = sorted({*shards, *self.local.replicas})
        with ExitStack() as turns:
            for name in names:
                for number in range(REPLICAS):
                    turns.enter_context(self.turn(f"{name}-{number}"))
            yield

    def revive_crashed(self) -> list[ConsumerProcess]:
        """Restart what ended unasked, as Kubernetes would. A process that a fault works on is left to the fault."""
        revived = []
        for shard, replicas in list(self.local.replicas.items()):
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

    def set_broker_habit(self, name: str, settings: dict[str, float] | None) -> None:
        """Let the broker have a habit, or with None lose it. Several may be in force at once."""
        with self.turn("habits"):
            self.broker_faults.pop(name, None)
            if settings is not None:
                self.broker_faults[name] = settings
            self.set_broker_faults()

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
        with self.turn_of_all():
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
        reasons: dict[str, str] = {}
        while self.local.subscriptions()[name]["undelivered"]:
            pulled = client.pull(subscription=path, max_messages=PULL_MESSAGES, timeout=PULL_SECONDS).received_messages
            for received in pulled:
                attributes = received.message.attributes
                reason = attributes.get("shardctl-reason"), attributes.get("shardctl-error")
                reasons[attributes["idempotency_key"]] = ": ".join(filter(None, reason)) or "by the broker"
            if pulled:
                client.acknowledge(subscription=path, ack_ids=[received.ack_id for received in pulled])
        client.close()
        return reasons
