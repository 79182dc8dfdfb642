"""Messages as they arrive at a replica, and a shard's database with custom types: for parked keys and custom sinks."""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from typing import Any

import orjson
from consumer_kit import Statements
from google.pubsub_v1 import PubsubMessage, ReceivedMessage
from names_kit import known, name_of
from sqlalchemy.engine import make_url

from consumer.database import sessions
from consumer.delivery import check_slot, decode, read_anew
from consumer.errors import PermanentError
from consumer.sinks.router import sink_of
from consumer.sinks.sql import SqlSink
from consumer.store import Store
from consumer.store.fence import Fence
from shardctl.fleet import shardconfig
from shardctl.fleet.keyspace import digits_of, slot_of
from shardctl.fleet.load import fleet_from
from shardctl.fleet.yamlfile import parse
from shardctl.shard import schema

HEAD = """
fleet: shop
project: test-project
image: consumer:1
routing: {slot_bits: 6}
shards:
  - {name: s0, slots: 0-63}
message_types:
"""
_numbers = itertools.count(1)


def config_of(types: str):
    """One shard with these `message_types`, in YAML."""
    fleet = fleet_from(parse(HEAD + types, "test"))
    return shardconfig.slice_of(fleet, fleet.shards[0])


class Database(Statements):
    """A shard's database and stores on it."""

    def __init__(self, url: str, types: str, sink: Any = None) -> None:
        super().__init__(url)
        self.url, self.config = make_url(url), config_of(types)
        self.dialect = sessions.dialect_of(self.url)
        self.engine = sessions.engine_of(self.url, self.config.consumer)
        kinds = self.config.message_types
        self.sink = sink or sink_of(SqlSink(self.dialect, kinds), kinds)
        schema.create(self.operator, kinds, self.config.generations[0].slots, 1)
        self.read = functools.partial(read_anew, check=self.sink.check, config=self.config)
        self.store = self.new_store()

    def new_store(self) -> Store:
        """As another replica has it."""
        return Store(self.engine, self.dialect, Fence(self.dialect), self.sink)

    def arrive(
        self,
        kind: str,
        body: Any,
        key: str,
        operation: str = "",
        *,
        ident: str = "",
        slot: int = -1,
        attempt: int = 0,
        caller: str = "",
        **more: str,
    ):
        """A delivery as a replica queues it: read, with its fault where it has one."""
        number = next(_numbers)
        attributes = {
            "slot": digits_of(slot if slot >= 0 else slot_of(key, 6), 6), "partition_key": key, "message_type": kind,
            "operation": operation, "idempotency_key": ident, "caller": caller, **more,
        }  # fmt: skip
        message = PubsubMessage(
            data=body if isinstance(body, bytes) else orjson.dumps(body),
            attributes=attributes,
            message_id=f"m{number}",
            publish_time={"seconds": 1_700_000_000 + number},
        )
        received = ReceivedMessage(ack_id=f"a{number}", message=message, delivery_attempt=attempt)
        delivery = decode(ReceivedMessage.pb(received), "projects/p/subscriptions/s", 1, self.config, 0.0)
        known(delivery)
        if delivery.fault is None:
            try:
                self.sink.check(delivery)
                check_slot(delivery, self.config)
            except PermanentError as fault:
                delivery.fault = fault
        return delivery

    def settle(self, *deliveries, store: Store | None = None):
        """Apply, and again while poison is found, as the handler does."""
        while (outcome := (store or self.store).apply(deliveries)).poison:
            for delivery in outcome.poison:
                assert delivery.fault
                delivery.dead_lettered = not delivery.parks
        return outcome

    def release(self, *keys: str, store: Store | None = None):
        """Allow the keys, or all, and apply them as maintenance does; what became of each, in order."""
        store, results = store or self.store, []
        condition = f" WHERE partition_key IN ({', '.join(map(repr, keys))})" if keys else ""
        self.run(f"UPDATE shardctl_parked_keys SET released = true{condition}")
        for key in store.released_keys():
            while (released := store.release(key, self.read)) is not None:
                results.append(released)
                if not released.more:
                    break
        return results

    def parked_keys(self) -> dict[str, str]:
        """Reasons by key."""
        with self.engine.connect() as connection:
            return {row.partition_key: row.reason for row in connection.execute(schema.parked_keys.select())}

    def parked(self) -> dict[str, list[str]]:
        """Idempotency keys by routing key, in order."""
        keys: dict[str, list[str]] = defaultdict(list)
        with self.engine.connect() as connection:
            for row in connection.execute(schema.parked.select().order_by(schema.parked.c.position)):
                keys[row.partition_key].append(row.idempotency_key)
        return dict(keys)

    def inbox(self) -> dict[str, str]:
        """Outcomes by idempotency key."""
        with self.engine.connect() as connection:
            return {name_of(row.identity): row.outcome for row in connection.execute(schema.inbox.select())}

    def clear(self) -> None:
        own = ("shardctl_inbox", "shardctl_parked", "shardctl_parked_keys")
        mapped = {kind.table for kind in self.config.message_types.values() if kind.table}
        self.run(*(f"DELETE FROM {name}" for name in (*own, *mapped)))
