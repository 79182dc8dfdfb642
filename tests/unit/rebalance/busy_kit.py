"""A fleet whose slots move while writes go on: what each slot must hold is known at every moment."""

import copy
import random

from rebalance_kit import BITS, KEYS, CrashError, World, before
from sqlalchemy import bindparam, select

from shardctl.rebalance import closing
from shardctl.rebalance.bases import Bases
from shardctl.rebalance.handover import participating
from shardctl.rebalance.planning.way_back import fleet_led
from shardctl.shard import changes, lanes, schema
from shardctl.shard.changes import Change
from shardctl.shard.database import writing
from shardctl.shard.schema import LaneState, RebalanceState

TABLE = schema.table_of(before().message_types["a"], schema.MetaData())
DELETE = TABLE.delete().where(TABLE.c.id == bindparam("key"))


class BusyWorld(World):
    """Consumers write at each step, and, where `between` is set, after each commit of the executor's at a source."""

    def __init__(self, *settings, seed=1, **more):
        super().__init__(*settings, **more)
        self.draw = random.Random(seed)
        self.wanted_rows = {slot: {key: n for n, key in enumerate(KEYS[slot])} for slot in range(1 << BITS)}
        self.wanted_inbox = {slot: set() for slot in range(1 << BITS)}
        self.writes, self.between = 0, False
        self.sources = ("s0", "s1")
        effect = self.crashes.effect

        def then_write(do):
            done = effect(do)
            if self.between:
                self.write_where_it_is(self.sources)
            return done

        self.crashes.effect = then_write

    def run(self, *, bases=Bases, **settings):
        databases = {shard.name: self.databases[shard.name] for shard in participating(self.after)}
        made = bases(self.after, databases, self.rebalance(), few_rows=0)
        return super().run(bases=made, **settings)

    def rebalance(self):
        from shardctl.rebalance import journal

        return journal.find(self.after, self.own)

    def consume(self):
        super().consume()
        for _ in range(4):
            self.write_where_it_is(self.own)

    def write_where_it_is(self, names):
        slot = self.draw.randrange(5, 11)  # those that move, and their neighbours
        for name in names:
            with writing(self.own[name]) as connection:
                if not self.is_provisioned(name, connection):
                    continue
                lanes.share_fence(connection)
                active = [lane for lane in lanes.read(connection, (slot,)).values() if lane.state == LaneState.ACTIVE]
                if active:
                    self._write(connection, slot)
                    return

    def _write(self, connection, slot):
        """As a consumer's transaction does: the row, the inbox row, and where the lane is logged both their keys."""
        self.writes += 1
        key = self.draw.choice(KEYS[slot])
        connection.execute(DELETE, {"key": key})
        rows = self.wanted_rows[slot]
        rows.pop(key, None)
        if self.draw.random() < 0.6:
            connection.execute(TABLE.insert(), {"id": key, "amount": self.writes, "slot": slot})
            rows[key] = self.writes
        identity = self.writes.to_bytes(16)
        row = {"slot": slot, "identity": identity, "key_hash": 1, "fingerprint": 0, "published": 1}
        connection.execute(schema.inbox.insert(), row)
        self.wanted_inbox[slot].add(identity)
        if changes.logged(connection, (slot,)):
            changes.record(connection, [changes.of_inbox(slot, identity), Change(slot, TABLE.name, (key,))])

    def check(self):
        """No slot is active twice, ever, and the shard that holds one active has all of its rows as they were written last."""
        seen = set()
        for (name, _), slots in self.active().items():
            assert not seen & slots
            seen |= slots
            with self.own[name].connect() as connection:
                rows, inbox = {}, {}
                for key, amount, slot in connection.execute(select(TABLE.c.id, TABLE.c.amount, TABLE.c.slot)):
                    rows.setdefault(slot, {})[key] = amount
                for slot, identity in connection.execute(select(schema.inbox.c.slot, schema.inbox.c.identity)):
                    inbox.setdefault(slot, set()).add(bytes(identity))
            for slot in slots:
                assert rows.get(slot, {}) == self.wanted_rows[slot], slot
                assert inbox.get(slot, set()) == self.wanted_inbox[slot], slot
        return seen

    def take_over(self, other):
        """The databases are copies of another world's: go on from where it is."""
        self.draw.setstate(other.draw.getstate())
        for name in ("wanted_rows", "wanted_inbox", "writes", "between", "now", "time_us"):
            setattr(self, name, copy.deepcopy(getattr(other, name)))

    def turn_back(self, slots=None):
        """Every slot has come. From now on s0 and s1 are to have those back, or some, that they gave to s2."""
        closing.stop(self.after, self.own)
        closing.close(self.after, self.own, RebalanceState.ABORTED)
        self.after, self.sources = fleet_led(self.after, slots=slots), ("s2",)
        self.announce()

    def logs(self):
        """What is left of logs and bases: changes, lanes that are logged, bases."""
        counts = [0, 0, 0]
        for engine in self.own.values():
            with engine.connect() as connection:
                counts[0] += len(connection.execute(select(schema.changes.c.position)).all())
                counts[1] += sum(lane.log is not None for lane in lanes.read(connection).values())
                counts[2] += len(connection.execute(select(schema.bases.c.slot)).all())
        return tuple(counts)


def killed_at_every_effect(world, when, stride=1):
    """A run that is killed one effect later each time, and begun again, until it ends; how many effects it had."""
    progress, at = None, 0
    while progress is None:
        at += stride
        assert at < 400
        world.crashes.effects, world.crashes.at = 0, (at, when)
        try:
            (progress,) = world.to_its_end(world.run())
        except CrashError:
            world.crashes.at = None
            world.consume()
            world.now += 0.1
            world.check()
    assert progress.complete
    assert world.active() == world.wanted()
    world.check()
    return at
