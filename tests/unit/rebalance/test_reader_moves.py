"""Reads while slots move: after every commit of a rebalance a key has the value that was written last, or is refused."""

from datetime import timedelta

import pytest
from busy_kit import TABLE, BusyWorld, killed_at_every_effect
from databases_kit import MIXES, on_databases
from rebalance_kit import BITS, KEYS
from sqlalchemy import create_engine, select

from shardctl.reader.answer import PartialReadError
from shardctl.reader.errors import SlotMovingError
from shardctl.reader.reader import Reader
from shardctl.rebalance import closing

pytestmark = pytest.mark.slow

SLOTS = range(5, 11)  # those that move, and their neighbours
NOW = {"patience": timedelta(0), "sleep": lambda _: None}


class ReadWorld(BusyWorld):
    """Reads, with the file of before the rebalance and one engine for each database, after every commit of the executor's."""

    def __init__(self, *settings, **more):
        super().__init__(*settings, **more)
        self.engines = {name: create_engine(self.own[name].url) for name in self.own}
        self.reads, self.refused, self.reread_while_moving, self.open = 0, 0, 0, {}
        self.reader, self.every = None, 1
        effect = self.crashes.effect

        def then_read(do):
            done = effect(do)
            if self.crashes.effects % self.every == 0:
                self.read()
            return done

        self.crashes.effect = then_read

    def begin_reading(self):
        self.reader = Reader(self.before, self.engines, **NOW)

    def read(self):
        if self.reader is None:
            return
        self.reread()
        slot = self.draw.choice(SLOTS)
        nowhere = self.nowhere()
        self.reads += 1
        key = self.draw.choice(KEYS[slot])
        try:
            assert self.reader.get(TABLE, key) == self.row(slot, key)
        except SlotMovingError:
            assert slot in nowhere
            self.refused += 1
        if self.reads % 3 == 0:
            self.scatter(nowhere)
        self.keep(slot)

    def row(self, slot, key):
        amount = self.wanted_rows[slot].get(key)
        return None if amount is None else (key, None, amount, slot)

    def scatter(self, nowhere):
        statement, order = select(TABLE.c.slot, TABLE.c.id, TABLE.c.amount), {"order_by": [TABLE.c.id]}
        if nowhere:
            with pytest.raises(PartialReadError) as refused:
                self.reader.scatter(statement, **order)
            assert {slot for failure in refused.value.failures for slot in failure.slots} == nowhere
            rows = refused.value.rows
        else:
            rows = self.reader.scatter(statement, **order)
        wanted = [
            (slot, key, n) for slot, its in self.wanted_rows.items() if slot not in nowhere for key, n in its.items()
        ]
        assert list(rows) == sorted(wanted, key=lambda row: row[1])

    def keep(self, slot):
        """A session that stays open while the slot moves on."""
        if len(self.open) >= 3:
            for kept in list(self.open):
                self.open.pop(kept)[0].__exit__(None, None, None)
        if slot not in self.nowhere() and slot not in self.open:
            opened = self.reader.session(KEYS[slot][0])
            self.open[slot] = opened, opened.__enter__(), dict(self.wanted_rows[slot])

    def reread(self):
        for slot, (_, session, rows) in self.open.items():
            query = select(TABLE.c.id, TABLE.c.amount).where(TABLE.c.slot == slot)
            assert dict(session.execute(query).all()) == rows
            self.reread_while_moving += rows != self.wanted_rows[slot]

    def nowhere(self):
        return set(range(1 << BITS)) - set().union(*self.active().values())

    def close(self):
        for opened, *_ in self.open.values():
            opened.__exit__(None, None, None)
        for engine in self.engines.values():
            engine.dispose()
        super().close()


@pytest.fixture
def world(tmp_path):
    made = ReadWorld(tmp_path)
    made.provision()
    made.announce()
    made.between = True
    made.begin_reading()
    yield made
    made.close()


def finish(world):
    from shardctl.rebalance import preflight

    closing.delete_rows(world.after, world.own, preflight.look(world.own)[0], lambda *_: None)


def test_no_read_is_older_than_what_was_committed_when_it_began(world):
    (progress,) = world.to_its_end(world.run())
    assert progress.complete
    assert world.reads > 60
    assert world.refused > 0
    assert world.reread_while_moving > 0
    finish(world)
    world.read()
    assert world.nowhere() == set()


@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.proof)])
def test_reads_survive_every_crash_of_the_executor(world, when):
    killed_at_every_effect(world, when, stride=23)
    world.read()


@pytest.mark.proof
@pytest.mark.parametrize("on_servers", MIXES[:2], indirect=True)
def test_reads_follow_slots_between_servers(on_servers):
    (progress,) = on_servers.to_its_end(on_servers.run())
    assert progress.complete
    assert on_servers.reread_while_moving > 0
    finish(on_servers)
    on_servers.read()


@pytest.fixture
def on_servers(request):
    with on_databases(ReadWorld, request) as made:
        made.every = 6
        made.between = True
        made.begin_reading()
        yield made
