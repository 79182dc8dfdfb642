"""A fleet on SQLite whose slots are on the move, with a fake Pub/Sub that plays the consumers, and crashes where a test wants."""

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from fleets import fleet
from sqlalchemy import event, insert, select

from shardctl.broker import Broker
from shardctl.fleet.keyspace import digits_of, slot_of
from shardctl.provision import provision_database
from shardctl.rebalance import copying, handover, journal
from shardctl.rebalance.run import Run
from shardctl.shard import lanes, schema
from shardctl.shard.database import connect, writing
from shardctl.shard.lanes import Met
from shardctl.shard.schema import LaneState
from shardctl.wire import barrier

BITS = 4
BEFORE = ("0-7", "8-15")
# s0 gives 6 and 7 to the new s2, s1 gives 8 and 9: the others stay in their databases under a new generation.
AFTER = (
    ["slots: 0-5", "generation: 2", "previous: [{generation: 1, slots: 0-7}]"],
    ["slots: 10-15", "generation: 2", "previous: [{generation: 1, slots: 8-15}]"],
    ["slots: 6-9", "previous: []"],
)
ROWS = 3  # a slot
KEYS = {slot: [key for key in map(str, range(400)) if slot_of(key, BITS) == slot][:ROWS] for slot in range(1 << BITS)}


def before():
    return fleet(BEFORE, slot_bits=BITS)


def after(shards=AFTER):
    return fleet(shards, slot_bits=BITS)


@contextmanager
def running_broker():
    """A broker in a thread of its own; its PUBSUB_EMULATOR_HOST."""
    broker, loop = Broker(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(broker.start(), loop).result()
        yield broker.host
    finally:
        asyncio.run_coroutine_threadsafe(broker.stop(0), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class CrashError(Exception):
    """The process dies here."""


class Crashes:
    """Counts effects. Dies before or after the one that is asked for."""

    def __init__(self):
        self.effects = 0
        self.at = None  # (number, "before" or "after")

    def effect(self, do):
        self.effects += 1
        if self.at == (self.effects, "before"):
            raise CrashError
        done = do()
        if self.at == (self.effects, "after"):
            raise CrashError
        return done


class World:
    """`databases` are the executor's engines, whose commits may crash; the consumers and the test have engines of their own."""

    def __init__(self, folder, start=None, then=None):
        self.folder = folder
        self.before, self.after = start or before(), then or after()
        self.now = 1_000.0
        self.time_us = 1_000_000
        self.crashes = Crashes()
        self.databases = {shard.name: self._engine(shard.name) for shard in self.after.shards}
        self.own = {name: self._engine(name) for name in self.databases}
        for engine in self.databases.values():
            self._watch(engine)
        self.messages = deque()
        self.published = []
        self.lose = 0  # so many barriers get lost
        self.deaf = set()  # slots whose barriers nobody meets
        self.refuse = 0  # so many publishes fail
        self._provisioned = set()

    def url(self, name):
        return f"sqlite:///{self.folder / name}.db"

    def _engine(self, name):
        engine = connect(self.url(name))
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        return engine

    def _watch(self, engine):
        @event.listens_for(engine, "commit")
        def commit(connection):
            self.crashes.effect(connection.connection.dbapi_connection.commit)

    def close(self):
        for engine in (*self.databases.values(), *self.own.values()):
            engine.dispose()

    def provision(self):
        for engine in self.own.values():
            if engine.dialect.name == "sqlite":
                Path(engine.url.database).touch()
        for shard in self.before.shards:
            provision_database(self.before, shard, self.url(shard.name))
            self.fill(shard.name, shard.slots)

    def fill(self, name, slots):
        with writing(self.own[name]) as connection:
            rows = [{"id": key, "amount": n, "slot": slot} for slot in slots for n, key in enumerate(KEYS[slot])]
            table = schema.table_of(self.before.message_types["a"], schema.MetaData())
            connection.execute(insert(table), rows)

    # -- what start does -----------------------------------------------------------------------------------------------

    def announce(self):
        rebalance = None
        for shard in handover.participating(self.after):
            provision_database(self.after, shard, self.url(shard.name))
            with writing(self.own[shard.name]) as connection:
                rebalance = journal.begin(connection, self.after, shard.name, rebalance)
                lanes.announce(connection, shard.slots, shard.generation)

    # -- Pub/Sub and the consumers -----------------------------------------------------------------------------------------

    def publish(self, encoded):
        return self.crashes.effect(lambda: self._publish(encoded))

    def _publish(self, encoded):
        future = Future()
        self.published.append(encoded)
        if self.refuse:
            self.refuse -= 1
            future.set_exception(RuntimeError("no route to Pub/Sub"))
            return future
        self.time_us += 1
        if self.lose:
            self.lose -= 1
        else:
            self.messages.append((encoded, self.time_us))
        future.set_result(str(self.time_us))
        return future

    def consume(self):
        """Every consumer meets the barriers that are out."""
        for _ in range(len(self.messages)):
            encoded, time_us = self.messages.popleft()
            met = barrier.read(encoded.attributes)
            if encoded.slot in self.deaf:
                self.messages.append((encoded, time_us))
                continue
            assert encoded.ordering_key == digits_of(encoded.slot, BITS)
            with writing(self.own[met.shard]) as connection:
                lanes.leave(connection, [Met(encoded.slot, met.token, time_us)], met.generation)

    def leave(self, shard, slot, time_us):
        """As if another executor's barrier had come."""
        with writing(self.own[shard]) as connection:
            rebalance = journal.entry_of(self.after, journal.read(connection)).id
            tokens = lanes.await_barriers(connection, [slot], 1, rebalance)
            assert lanes.leave(connection, [Met(slot, tokens[slot], time_us)], 1) == {slot}

    # -- the executor ------------------------------------------------------------------------------------------------------

    def run(self, **settings):
        return Run(
            self.after,
            {shard.name: self.databases[shard.name] for shard in handover.participating(self.after)},
            rebalance=journal.find(self.after, self.own),
            publish=self.publish,
            copy=copying.row_copy(self.after),
            clock=lambda: self.now,
            **settings,
        )

    def to_its_end(self, *runs, steps=400, seconds=0.3):
        """Step in turns until every run has ended. What they say in the end."""
        progress = [None] * len(runs)
        for _ in range(steps):
            for number, run in enumerate(runs):
                if progress[number] is None or not progress[number].ended:
                    progress[number] = run.step(self.now)
                    self.check()
            self.consume()
            self.now += seconds
            if all(latest is not None and latest.ended for latest in progress):
                return progress
        raise AssertionError(f"no end: {progress}")

    # -- what is so ----------------------------------------------------------------------------------------------------------

    def is_provisioned(self, name, connection):
        """Whether the database has our tables. None loses them again."""
        if name not in self._provisioned and connection.dialect.has_table(connection, "shardctl_lanes"):
            self._provisioned.add(name)
        return name in self._provisioned

    def lanes(self):
        lanes_of = {}
        for name, engine in self.own.items():
            with engine.connect() as connection:
                if self.is_provisioned(name, connection):
                    lanes_of[name] = lanes.read(connection)
        return lanes_of

    def active(self):
        """Slots by (shard, generation)."""
        slots = {}
        for name, lanes_of_shard in self.lanes().items():
            for lane in lanes_of_shard.values():
                if lane.state == LaneState.ACTIVE:
                    slots.setdefault((name, lane.generation), set()).add(lane.slot)
        return slots

    def states(self):
        """Of the new generations, by shard and slot."""
        wanted = {shard.name: shard.generation for shard in self.after.shards}
        return {
            (name, lane.slot): lane.state
            for name, lanes_of_shard in self.lanes().items()
            for lane in lanes_of_shard.values()
            if lane.generation == wanted[name]
        }

    def wanted(self):
        return {(shard.name, shard.generation): set(shard.slots) for shard in self.after.shards if shard.slots.ranges}

    def check(self):
        """No slot is active twice, ever, and the shard that holds one active has all of its rows."""
        seen = set()
        for (name, _), slots in self.active().items():
            assert not seen & slots
            seen |= slots
            rows = self.rows(name)
            assert all(rows.get(slot) == ROWS for slot in slots)

    def rows(self, name):
        table = schema.table_of(self.before.message_types["a"], schema.MetaData())
        counts = {}
        with self.own[name].connect() as connection:
            for slot in connection.scalars(select(table.c.slot)):
                counts[slot] = counts.get(slot, 0) + 1
        return counts
