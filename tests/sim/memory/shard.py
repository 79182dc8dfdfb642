"""The shard: the real store and purge on SQLite in memory, and a sink that counts how often each write takes effect."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import QueuePool

from consumer.database.dialects import SQLite
from consumer.delivery import Delivery, check_slot, decode, read_anew
from consumer.errors import DataFaultError
from consumer.store.fence import Fence
from consumer.store.sweep import At, Retention
from consumer.store.transaction import Store
from shardctl.fleet import yamlfile
from shardctl.fleet.load import fleet_from
from shardctl.fleet.shardconfig import slice_of
from shardctl.shard import parked, schema
from shardctl.shard.changes import Change
from shardctl.shard.engine import configure_sqlite
from tests.sim.memory.subscription import NAME, Copy, received

FLEET = fleet_from(
    yamlfile.parse("""
fleet: sim
project: simulation
image: consumer:1
routing: {slot_bits: 2}
subscription: {retain_acked: true, max_delivery_attempts: 5}
message_types:
  entry: {table: entries, key: id, operation: insert, columns: {id: text, number: bigint}}
  parks: {table: parked_entries, key: id, operation: insert, columns: {id: text, number: bigint}, on_poison: park}
shards:
  - {name: s0, slots: 0-3}
""")
)
CONFIG = slice_of(FLEET, FLEET.shards[0])
URL = "sqlite:///file:memory-simulation?mode=memory&cache=shared&uri=true"
SUBSCRIPTION = f"projects/simulation/subscriptions/{NAME}"
_FILLED = ("effects", schema.inbox.name, schema.parked.name, schema.parked_keys.name)  # by a schedule


class Clock:
    """The database's. SQLite reads the machine's, so its statements are given this one's time."""

    now = 0.0  # seconds since 1970

    def tell(self, _: object, __: object, statement: str, parameters: object, *___: object) -> tuple[str, object]:
        moment = datetime.fromtimestamp(self.now, UTC).replace(tzinfo=None)
        return statement.replace("CURRENT_TIMESTAMP", f"'{moment.isoformat(' ', 'seconds')}'"), parameters


CLOCK = Clock()


class Effects:
    """A sink: a row for each time that a write takes effect. `broken` says which can't, at the moment."""

    def __init__(self, broken: Callable[[int], bool]) -> None:
        self._broken = broken

    def check(self, delivery: Delivery) -> None:
        delivery.body = json.loads(delivery.message.data)

    def apply(self, connection: Connection, writes: Sequence[Delivery]) -> int:
        for write in writes:
            if self._broken(write.body["number"]):
                raise DataFaultError("constraint", "it violates a constraint")
            connection.exec_driver_sql("INSERT INTO effects (number) VALUES (?)", (write.body["number"],))
        return 0

    def changes(self, writes: Sequence[Delivery]) -> Iterator[Change]:
        yield from ()


@functools.cache
def database() -> Engine:
    """It outlives a schedule, since making it takes longer than one."""
    engine = create_engine(URL, poolclass=QueuePool, connect_args={"check_same_thread": False})
    event.listen(engine, "connect", configure_sqlite)
    event.listen(engine, "before_cursor_execute", CLOCK.tell, retval=True)
    schema.create(engine, {}, CONFIG.generations[0].slots, 1)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE effects (position INTEGER PRIMARY KEY, number INTEGER)")
    return engine


class Shard:
    def __init__(self, store: type[Store], broken: Callable[[int], bool]) -> None:
        engine, dialect, self._sink = database(), SQLite(), Effects(broken)
        with engine.begin() as connection:
            for table in _FILLED:
                connection.exec_driver_sql(f"DELETE FROM {table}")
        self._store = store(engine, dialect, Fence(dialect), self._sink)

    def effects(self) -> Counter[int]:
        with database().connect() as connection:
            return Counter(number for (number,) in connection.exec_driver_sql("SELECT number FROM effects"))

    def parked(self) -> set[str]:
        """The routing keys that wait for a person."""
        with database().connect() as connection:
            return {key.key for key in parked.keys(connection, "s0")}

    def handle(self, copy: Copy, dead_letter: Callable[[Delivery], bool]) -> bool:
        """What a consumer does with a message; whether it is committed. `dead_letter` says whether it outlives its publishing."""
        delivery = decode(received(copy), SUBSCRIPTION, 1, CONFIG, 0.0)
        self._sink.check(delivery)
        check_slot(delivery, CONFIG)
        while self._store.apply([delivery]).poison:
            if not delivery.parks:
                if not dead_letter(delivery):
                    return False
                delivery.dead_lettered = True
        return True

    def release(self, keys: Callable[[], bool]) -> None:
        """A person lets some of the parked keys go on, and the consumer goes on with them."""
        with database().begin() as connection:
            for key in parked.keys(connection, "s0"):
                if keys():
                    parked.replay(connection, key)
        read = functools.partial(read_anew, check=self._sink.check, config=CONFIG)
        for released in self._store.released_keys():
            self._store.release(released, read)

    def purge(self, retention: Retention) -> None:
        """All that may be forgotten, at once: the walk itself only ever comes later."""
        at: At = (0, bytes(16))
        while not (swept := self._store.purge(retention, at, pages=8)).over:
            at = swept.at
