"""What tests of the consumer share: one shard's configuration with tables of every kind, and deliveries for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import orjson
import pytest
from google.pubsub_v1 import PubsubMessage
from names_kit import keyed, keyless, known, name_of
from sqlalchemy import select, text
from sqlalchemy.engine import URL, Engine, make_url

from consumer.database import sessions
from consumer.delivery import Delivery, check_slot
from consumer.errors import PermanentError, TransientError
from consumer.sinks.sql import SqlSink
from consumer.store.fence import Fence
from consumer.store.transaction import Outcome, Store
from shardctl.fleet import shardconfig
from shardctl.fleet.keyspace import lane_of, slot_of
from shardctl.fleet.load import fleet_from
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.fleet.yamlfile import parse
from shardctl.shard import database, schema
from shardctl.wire import identity

SLOT_BITS = 6
FLEET = """
fleet: shop
project: test-project
image: consumer:1
routing: {slot_bits: 6}
message_types:
  customer:
    table: customers
    key: customer_id
    columns: {customer_id: text, name: text, email: text, credit: bigint}
  profile:  # another table of the same routing key
    table: profiles
    key: customer_id
    columns: {customer_id: text, bio: text}
  document:
    table: documents
    key: id
    version_column: revision
    columns: {id: text, title: text, note: text, revision: bigint}
  stamped:
    table: stamped
    key: id
    version_column: changed_at
    columns: {id: text, title: text, changed_at: timestamp}
  ranked:
    table: ranked
    key: id
    version_column: rank
    columns: {id: text, title: text, rank: decimal}
  labelled:
    table: labelled
    key: id
    version_column: label
    columns: {id: text, title: text, label: text}
  line:
    table: order_lines
    key: [order_id, line]
    columns: {order_id: text, line: integer, sku: text}
  reserved:
    table: order
    key: select
    columns: {select: text, user: text, group: bigint, from: json, t: text, r: text, excluded: text, value: text}
  mixed:
    table: Everything
    key: Id
    routing_key: aText
    columns:
      {Id: bigint, aText: text, anInteger: integer, aNumber: number, aDecimal: decimal, aBoolean: boolean,
       aTime: timestamp, aJson: json}
  reading:
    table: readings
    key: [sensor, at]
    columns: {sensor: text, at: timestamp, value: number}
  priced:
    table: priced
    key: price
    routing_key: name
    columns: {price: decimal, name: text}
shards:
  - {name: s0, slots: 0-63}
"""
_numbers = itertools.count(1)


def config(**consumer: Any) -> ShardConfig:
    fleet = fleet_from(parse(FLEET, "test"))
    made = shardconfig.slice_of(fleet, fleet.shards[0])
    return made.model_copy(update={"consumer": made.consumer.model_copy(update=consumer)})


CONFIG = config()


def raw(
    kind: str, data: bytes, key: str, operation: str = "upsert", slot: int | None = None, ident: str | None = None
) -> Delivery:
    """A delivery as intake decodes it, before the sink has read it."""
    number = next(_numbers)
    slot = slot_of(key, SLOT_BITS) if slot is None else slot
    message = PubsubMessage.pb(PubsubMessage(data=data, attributes={"message_type": kind}, message_id=f"m{number}"))
    name = ident or f"m{number}"
    its_identity = keyed(kind, name, slot) if ident else keyless(name, slot)
    made = Delivery(
        f"ack{number}", "projects/test-project/subscriptions/shop-s0-g1", message, f"m{number}", 1_700_000_000_123_456,
        len(data), 0.0, slot, key, kind, operation, name, its_identity, identity.fingerprint(operation, key, data),
        ident is None, generation=1, lane=lane_of(slot, 1),
    )  # fmt: skip
    known(made)
    return made


def write(
    kind: str,
    body: dict[str, Any] | bytes,
    operation: str = "upsert",
    *,
    key: str | None = None,
    on: str = "postgresql",
    **more: Any,
) -> Delivery:
    """A delivery that the sink of a database has read, as the replica hands it on; what it can't read carries its fault."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    if key is None:
        key = str(orjson.loads(data)[CONFIG.message_types[kind].routing_field])
    made = raw(kind, data, key, operation, **more)
    try:
        SqlSink(sessions.DIALECTS[on], CONFIG.message_types).check(made)
        check_slot(made, CONFIG)
    except PermanentError as fault:
        made.fault = fault
    return made


class Statements:
    """What tests run on a database, and read as a consumer."""

    engine: Engine  # a consumer's

    def __init__(self, url: str | URL) -> None:
        self.operator = database.connect(make_url(url).render_as_string(hide_password=False))

    def run(self, *statements: str) -> None:
        """As an operator: under the limits of `shardctl`, not those of a consumer's writes."""
        with self.operator.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def close(self) -> None:
        self.operator.dispose()
        self.engine.dispose()


class Shard(Statements):
    """A shard's database with all its tables, and stores on it."""

    def __init__(self, url: str, *, create: bool = True, **consumer: Any) -> None:
        super().__init__(url)
        self.url = make_url(url)
        self.config = config(**consumer)
        self.dialect = sessions.dialect_of(self.url)
        self.engine = sessions.engine_of(self.url, self.config.consumer)
        if create:
            schema.create(self.operator, self.config.message_types, self.config.generations[0].slots, 1)
        self.store = self.new_store()

    def new_store(self) -> Store:
        """As another replica has it."""
        sink = SqlSink(self.dialect, self.config.message_types)
        return Store(self.engine, self.dialect, Fence(self.dialect), sink)

    def settle(self, *writes: Delivery, store: Store | None = None) -> Outcome:
        """Apply, and again while poison is found, as the handler does."""
        while (outcome := (store or self.store).apply(writes)).poison:
            for delivery in outcome.poison:
                assert delivery.fault
                delivery.dead_lettered = not delivery.parks
        return outcome

    def table(self, kind: str) -> list[tuple[Any, ...]]:
        name = self.dialect.quote(CONFIG.message_types[kind].table)
        return sorted(self.rows(f"SELECT * FROM {name}"), key=repr)

    def inbox(self) -> list[tuple[Any, ...]]:
        """Outcomes by idempotency key, or message id."""
        with self.engine.connect() as connection:
            rows = connection.execute(select(schema.inbox.c.identity, schema.inbox.c.outcome))
            return sorted((name_of(its_identity), outcome) for its_identity, outcome in rows)

    def clear(self) -> None:
        tables = (self.dialect.quote(kind.table) for kind in CONFIG.message_types.values())
        self.run(*(f"DELETE FROM {table}" for table in (*tables, schema.inbox.name)))


def again_and_then_fine(shard: Shard, trouble_ends: Callable[[], object]) -> None:
    """Writes fail for now, which is no fault of theirs, and succeed once the trouble is over."""
    batch = [write("customer", {"customer_id": str(number)}, "insert") for number in range(5)]
    with pytest.raises(TransientError):
        shard.store.apply(batch)
    assert not any(delivery.fault for delivery in batch)
    trouble_ends()
    assert shard.store.apply(batch).applied == 5
    assert len(shard.table("customer")) == 5


class FakeIntake:
    """What a replica reads from, fed by hand through `deliver`."""

    def __init__(self):
        self.tasks, self.open, self.handed_back, self.closed, self.connected = (), True, [], False, True

    def start(self, deliver, pause_left):
        self.deliver = deliver

    def pause(self):
        self.open = False

    def resume(self):
        self.open = True

    async def stop_reading(self):
        self.open = False

    async def hand_back(self, deliveries):
        self.handed_back += deliveries

    async def close(self, timeout_seconds):
        assert timeout_seconds > 0
        self.closed = True


class InThisThread(Executor):
    """An executor without threads: tests of order need no luck."""

    def submit(self, call, /, *args, **named):
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **named))
        except BaseException as error:  # noqa: BLE001 - that is what an executor does
            future.set_exception(error)
        return future
