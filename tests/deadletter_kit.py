"""A small fleet on the embedded broker, whose consumers are the real store and the real dead-letter topic, step by step."""

from __future__ import annotations

import asyncio
import threading

import orjson
from arrival_kit import Database
from google.pubsub_v1 import PubsubMessage
from names_kit import known
from patience import PATIENCE_SECONDS

from consumer.delivery import NO_SLOT, check_slot, decode
from consumer.errors import PermanentError
from consumer.pubsub import calls
from consumer.pubsub.deadletters import DeadLetterTopic
from shardctl.broker import Broker, Faults, set_faults
from shardctl.deadletter.pubsub import clients
from shardctl.fleet import shardconfig, topology
from shardctl.fleet.keyspace import digits_of
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.provision import provision_pubsub

TYPES = """
  thing:  {table: things, key: id, columns: {id: text, note: text}}
  entry:  {table: entries, key: id, routing_key: owner, operation: insert, columns: {id: text, owner: text}}
  edition: {table: editions, key: id, version_column: revision, columns: {id: text, revision: bigint}}
  timed:  {table: timed, key: id, columns: {id: text, at: timestamp}, time_bucket: {field: at, unit: day}}
"""
FLEET = """
fleet: shop
project: {project}
image: consumer:1
routing: {{slot_bits: 6{topic_bits}}}
shards:
  - {{name: s0, slots: 0-31}}
  - {{name: s1, slots: 32-63}}
message_types:
{types}
"""


class BrokerThread:
    """A broker in this process, so that a test can look inside."""

    def __init__(self):
        self.loop, self.broker = asyncio.new_event_loop(), Broker()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.run(self.broker.start())
        self.host = self.broker.host

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE_SECONDS)

    def call(self, work):
        """On the broker's own thread."""

        async def called():
            return work()

        return self.run(called())

    def stop(self):
        self.run(self.broker.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)


class Town:
    """A fleet in a project of its own, with a database a shard. What is set up through it is as production has it."""

    def __init__(self, broker, folder, project, urls=None, *, types=TYPES, topic_bits=0):
        self.broker, self.folder, self.project = broker, folder, project
        self._types, self._topic_bits = types, topic_bits
        self.urls = urls or {name: f"sqlite:///{folder}/{name}.db" for name in ("s0", "s1")}
        self.write_file()
        self._clients = clients()
        self.publisher, self.subscriber = self._clients.__enter__()
        provision_pubsub(self.fleet, self.publisher, self.subscriber)
        self.shards = {name: _Shard(url, types, name, self.fleet) for name, url in self.urls.items()}
        self._client = broker.run(self._connect())

    async def _connect(self):
        return calls.publisher(self.broker.host)

    def write_file(self, types=None):
        """Also as a person edits it later."""
        self._types = types or self._types
        bits = f", topic_bits: {self._topic_bits}" if self._topic_bits else ""
        self.text = FLEET.format(project=self.project, types=self._types, topic_bits=bits)
        (self.folder / "shards.yaml").write_text(self.text)

    @property
    def fleet(self):
        return fleet_from(parse(self.text, "test"))

    def publish(self, kind, body, key, *, topic=None, ordered=True, **attributes):
        """As a producer does; an attribute given as None is left out. The message id."""
        slot = self.fleet.routing.rule.slot_of(key) if key else 0
        digits = digits_of(slot, 6)
        all_attributes = {"slot": digits, "partition_key": key, "message_type": kind} | attributes
        all_attributes = {name: value for name, value in all_attributes.items() if value is not None}
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        message = PubsubMessage(data=data, attributes=all_attributes, ordering_key=digits if ordered else "")
        name = topic or topology.topic_of(self.fleet, slot).id
        return self.publisher.publish(topic=f"projects/{self.project}/topics/{name}", messages=[message]).message_ids[0]

    def pull(self, name, *, ack=True):
        """All that is free in a subscription."""
        path, received = f"projects/{self.project}/subscriptions/{name}", []
        while True:
            answer = self.subscriber.pull(subscription=path, max_messages=1000, return_immediately=True)
            if not answer.received_messages:
                return received
            received += answer.received_messages
            ids = [message.ack_id for message in answer.received_messages]
            if ack:
                self.subscriber.acknowledge(subscription=path, ack_ids=ids)

    def consume(self, *, before_commit=lambda: None):
        """Bring all shards up to date, as their replicas do. `before_commit`: once the letters are out, their rows not."""
        for name, shard in self.shards.items():
            shard_spec = next(shard_of_fleet for shard_of_fleet in self.fleet.shards if shard_of_fleet.name == name)
            for sub in topology.every_subscription(self.fleet, shard_spec):
                path = f"projects/{self.project}/subscriptions/{sub.id}"
                received = self.pull(sub.id)
                shard.settle(
                    [
                        decode(type(message).pb(message), path, sub.generation, shard.config, 0.0)
                        for message in received
                    ],
                    self._dead_letter(shard, before_commit),
                )

    def _dead_letter(self, shard, before_commit):
        topic = DeadLetterTopic(self._client, shard.config)

        def publish(deliveries):
            self.broker.run(topic.publish(deliveries))
            before_commit()

        return publish

    def core(self, name):
        return self.broker.broker.registry.subscription(f"projects/{self.project}/subscriptions/{name}").core

    def backlog(self, name="shop-dead"):
        return self.broker.call(lambda: len(self.core(name).entries))

    def leased(self, name="shop-dead"):
        return self.broker.call(lambda: self.core(name).outstanding)

    def end_leases(self, name="shop-dead"):
        """As time does for a desk that was killed."""

        def end():
            core = self.core(name)
            core.modify(list(core._leases), 0, 0.0)

        self.broker.call(end)

    def letters(self, name="shop-dead"):
        """What lies there, without taking it."""
        return self.broker.call(
            lambda: [PubsubMessage.deserialize(e.message.body()) for e in self.core(name).entries.values()]
        )

    def faults(self, **rates):
        set_faults(self.broker.host, Faults(**rates))

    def rows(self, query):
        return sorted(row for shard in self.shards.values() for row in shard.rows(query))

    def run(self, statement):
        for shard in self.shards.values():
            shard.run(statement)

    def inbox(self):
        """Outcomes by idempotency key, without the desk's notes."""
        outcomes = {}
        for shard in self.shards.values():
            outcomes |= {key: outcome for key, outcome in shard.inbox().items() if outcome != "replayed"}
        return outcomes

    def close(self):
        for shard in self.shards.values():
            shard.close()
        self._clients.__exit__(None, None, None)


class _Shard(Database):
    def __init__(self, url, types, name, fleet):
        super().__init__(url, types)
        shard_spec = next(shard_of_fleet for shard_of_fleet in fleet.shards if shard_of_fleet.name == name)
        self.config = shardconfig.slice_of(fleet, shard_spec)
        keep = ", ".join(str(slot) for slot in shard_spec.slots)
        self.run(f"DELETE FROM shardctl_lanes WHERE slot NOT IN ({keep})")
        self.run("UPDATE shardctl_fence SET version = version + 1")

    def settle(self, deliveries, dead_letter):
        for delivery in deliveries:
            known(delivery)
            if delivery.fault is None and delivery.barrier is None:
                try:
                    self.sink.check(delivery)
                    check_slot(delivery, self.config)
                except PermanentError as fault:
                    delivery.fault = fault
        lost = [delivery for delivery in deliveries if delivery.slot == NO_SLOT]
        if lost:
            dead_letter(lost)
        ordered = [delivery for delivery in deliveries if delivery.slot != NO_SLOT]
        while (outcome := self.store.apply(ordered)).poison:
            poison = [delivery for delivery in outcome.poison if not delivery.parks]
            if poison:
                dead_letter(poison)
            for delivery in poison:
                delivery.dead_lettered = True
        return outcome
