"""An application that reads while slots move, with the reader's own code and the file of before all moves.

Each of its reads pauses before each look into a database. Invariants:
- what it reads of a slot is what the slot held at some moment between the read's begin and its end. So it is never older than
  what an earlier read, or an earlier commit, has promised;
- a write that it asks for is called applied only after its commit, and unseen only if it wasn't applied when the question began.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, event, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import QueuePool

from shardctl.errors import ShardctlError
from shardctl.fleet.spec import Fleet
from shardctl.outcomes import inboxes
from shardctl.outcomes.effect import Effect, Sought, State
from shardctl.reader.callers import Calls
from shardctl.reader.errors import ReadError
from shardctl.reader.gathering import Gathering
from shardctl.reader.owners import Owners
from shardctl.reader.reader import Reader
from shardctl.reader.view import View
from shardctl.shard.database import DatabaseError
from shardctl.shard.engine import configure_sqlite
from shardctl.shard.schema import LaneState
from tests.sim.loop import Process, SimLoop
from tests.sim.network import Network
from tests.sim.rebalance.message import BALANCE, ENTRY, KEYS, NOTE, SLOTS
from tests.sim.rebalance.oracle import MovingOracle
from tests.sim.rebalance.steps import Steps

PATIENCE = timedelta(hours=1)  # of real time: a read that waits for a slot ends with the schedule at the latest
KINDS = {ENTRY: "entries", NOTE: "notes", BALANCE: "balances"}
TABLES = {
    kind: Table(name, MetaData(), Column("id", String, primary_key=True), Column("slot", Integer))
    for kind, name in KINDS.items()
}
Place = tuple[int, str]  # slot and kind


class Application:
    owners: type[Owners] = Owners
    gathering: type[Gathering] = Gathering
    scattered = 0.3  # of the reads: over all shards
    asked = 0.3  # of all: what became of a write

    def __init__(self, loop: SimLoop, network: Network, oracle: MovingOracle, fleet: Fleet, seed: int) -> None:
        self.process = Process("reader")
        self.reads = self.refused = 0
        self._loop, self._network, self._oracle = loop, network, oracle
        self._draw = random.Random(f"{seed} reader").random
        self._engines = {name: _engine(name, self._before_look) for name in oracle.active}
        callers = InTurn(self.gathering)
        self._reader = Reader(fleet, self._engines, patience=PATIENCE, sleep=self._pause, callers=callers)
        self._owners = self._reader.places._owners
        self._owners.__class__ = self.owners
        self._steps: Steps | None = None
        self._states: dict[Place, list[list[str]]] = {}  # what a slot held since the read began, state by state
        oracle.watchers.append(self._look)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._draw() * 0.1)
            if self._draw() < self.asked:
                await self._ask()
                continue
            slot = int(self._draw() * len(SLOTS))
            kind = list(KINDS)[int(self._draw() * len(KINDS))]
            call = self._scattered if self._draw() < self.scattered else functools.partial(self._by_key, slot)
            await self._read(kind, call)

    def kill(self) -> None:
        if self._steps is not None:
            self._steps.kill()
        for engine in self._engines.values():
            engine.dispose()

    async def _ask(self) -> None:
        writes = [write for write in self._oracle.writes if write.keyed and write.key_of is None and not write.poison]
        write = writes[int(self._draw() * len(writes))]
        sought = Sought.of_key(write.caller, write.kind, write.key, f"w{write.number}", write.slot)
        applied = self._oracle.is_applied(write)
        self._steps = Steps(lambda: self._effect(sought))
        try:
            effect = await self._steps.run()
        except (ReadError, DatabaseError):
            return
        finally:
            self._steps = None
        self._oracle.tell(self.process, f"learns that {write} is", effect.state)
        if effect.state is State.NOT_SEEN and applied:
            self._oracle.violate(
                f"{self.process} saw nothing of {write} in {effect.shard}, which was applied before it asked"
            )
        if effect.state is State.APPLIED and not self._oracle.is_applied(write):
            self._oracle.violate(f"{self.process} saw {write} applied in {effect.shard}, which it isn't")

    def _effect(self, sought: Sought) -> Effect:
        for shard in self._engines:
            effects = inboxes.look(self._owners, shard, [sought])
            if sought in effects:
                return effects[sought]
        return Effect(State.UNKNOWN)

    async def _read(self, kind: str, call: Callable[[str], dict[int, list[str]]]) -> None:
        self._states = {(slot, kind): [self._held(slot, kind)] for slot in SLOTS}
        self._steps = Steps(functools.partial(call, kind))
        try:
            rows = await self._steps.run()
        except (ReadError, DatabaseError) as error:
            self._oracle.tell(self.process, "is refused:", error)
            self.refused += 1
            return
        finally:
            self._steps = None
        self.reads += 1
        for slot, ids in rows.items():
            if sorted(ids) not in (states := self._states[slot, kind]):
                self._oracle.violate(f"{self.process} saw {sorted(ids)} in slot {slot}, which held {states}")

    def _by_key(self, slot: int, kind: str) -> dict[int, list[str]]:
        table = TABLES[kind]
        with self._reader.session(KEYS[slot][0]) as session:
            return {slot: list(session.scalars(select(table.c.id).where(table.c.slot == slot)))}

    def _scattered(self, kind: str) -> dict[int, list[str]]:
        table = TABLES[kind]
        rows = self._reader.scatter(select(table.c.id, table.c.slot), timeout=PATIENCE)
        return {slot: [row.id for row in rows if row.slot == slot] for slot in SLOTS}

    def _held(self, slot: int, kind: str) -> list[str]:
        return sorted(self._oracle.rows_of(slot, kind))

    def _look(self) -> None:
        for (slot, kind), states in self._states.items():
            if (ids := self._held(slot, kind)) != states[-1]:
                states.append(ids)

    def _before_look(self, shard: str) -> None:
        """In the thread of the read. Raises OperationalError where the database is down."""
        self._pause(self._draw() * 0.1)
        if self._network.weather[f"database {shard}"].down:
            raise OperationalError("", None, Exception("connection refused"))

    def _pause(self, seconds: float) -> None:
        if self._steps is not None and not self._steps.dead:
            self._steps.pause(seconds)


class InTurn:
    """Makes the calls of a read over all shards one after the other."""

    def __init__(self, kind: type[Gathering]) -> None:
        self._kind = kind

    def run(self, gathering: Gathering, calls: Calls, _: float) -> None:
        gathering.__class__ = self._kind
        for shard, call in calls.items():
            try:
                gathering.done(shard, call())
            except ShardctlError as error:
                gathering.failed(shard, str(error))


def _engine(name: str, before_look: Callable[[str], None]) -> Engine:
    """On the database of `tests.sim.rebalance.shard.engines`."""
    url = f"sqlite:///file:{name}?mode=memory&cache=shared&uri=true"
    engine = create_engine(url, poolclass=QueuePool, connect_args={"check_same_thread": False})
    event.listen(engine, "connect", configure_sqlite)
    event.listen(engine, "checkout", lambda *_: before_look(name))
    return engine


# -- what a reader may do wrong --------------------------------------------------------------------------------------------


class Trusting(Owners):
    """Takes the database that had the slot last for its owner."""

    def primary(self, shard: str, slots: tuple[int, ...] = (), statement_seconds: float | None = None) -> View:
        view = super().primary(shard, slots, statement_seconds)
        if slots:
            view.lanes = {slot: states and frozenset({LaneState.ACTIVE}) for slot, states in view.lanes.items()}
        return view


class Early(Owners):
    """Looks at the lanes in a transaction before that of the rows."""

    def primary(self, shard: str, slots: tuple[int, ...] = (), statement_seconds: float | None = None) -> View:
        before = super().primary(shard, slots, statement_seconds)
        before.close()
        view = super().primary(shard, slots, statement_seconds)
        view.lanes = before.lanes
        return view


class Greedy(Gathering):
    """Takes whatever rows a database has of the slots that are active there, read before or not."""

    def _claim(self, shard: str, active: set[int]) -> set[int]:
        super()._claim(shard, active)
        return active


class OfTrusting(Application):
    owners = Trusting


class OfEarly(Application):
    owners = Early


class OfGreedy(Application):
    gathering, scattered = Greedy, 1.0


MISTAKEN = (OfTrusting, OfEarly, OfGreedy)
