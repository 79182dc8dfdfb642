"""`shardctl rebalance start|run|abort|finish` as a process that may die between any two of its effects.

What the commands do is done here in their order with their parts; only files and terminal are left out.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from shardctl.fleet.spec import Fleet
from shardctl.rebalance import closing, copying, handover, journal, opening, preflight
from shardctl.rebalance.bases import BaseError, Bases, Round
from shardctl.rebalance.handover import HandOver, Place
from shardctl.rebalance.run import Progress, Run
from shardctl.shard.lanes import Lane
from shardctl.shard.schema import RebalanceState
from shardctl.verification.verify import verify
from shardctl.wire.message import Encoded
from tests.sim.loop import Process, SimLoop
from tests.sim.network import Network
from tests.sim.rebalance.shard import Hooks, ShardDatabase, hooked
from tests.sim.rebalance.steps import Steps
from tests.sim.rebalance.topic import Admin, Topic


class DiedError(BaseException):
    """The executor's process ends here."""


class RefusedError(Exception):
    """The command says: not now."""


@dataclass(frozen=True, slots=True)
class Crash:
    """At the effect of that number, counted from 1 over all of the executor's lives."""

    effect: int
    when: str  # "before" or "after"

    def __str__(self) -> str:
        return f"{self.effect}:{self.when}"

    @classmethod
    def read(cls, text: str) -> Crash:
        number, when = text.split(":")
        return cls(int(number), when)


@dataclass(slots=True)
class Effects:
    """Of all of a schedule's executors: what they have done, and where one of them dies."""

    crashes: dict[int, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def do(self, what: str, effect: Callable[[], Any]) -> None:
        self.done.append(what)
        when = self.crashes.pop(len(self.done), "")
        if when == "before":
            raise DiedError
        effect()
        if when == "after":
            raise DiedError


class Surroundings(Protocol):
    """What an executor finds around it."""

    loop: SimLoop
    network: Network
    topic: Topic
    databases: dict[str, ShardDatabase]
    effects: Effects
    oracle: Any

    def observe(self, shard: ShardDatabase, who: object) -> None: ...


@dataclass(slots=True)
class Manners:
    """How the executor's statements fare: probabilities."""

    pause: float = 0.3  # before a statement: consumers go on meanwhile
    long_pause: float = 0.0  # of those: for seconds
    lose_session: float = 0.0  # before a statement
    lose_commit: float = 0.0
    lose_answer: float = 0.0  # of a commit
    refuse_publish: float = 0.0
    lose_publish_answer: float = 0.0
    refuse_round: float = 0.0  # by the destination: then the slot is copied as a whole in its pause

    def behave(self) -> None:
        self.long_pause = self.lose_session = self.lose_commit = self.lose_answer = 0.0
        self.refuse_publish = self.lose_publish_answer = self.refuse_round = 0.0


class Trusting(Bases):
    """Doesn't compare what was left behind: the rules have to hold without that, and mistakes to do their harm."""

    def _is_intact(self, out: Connection, into: Connection, hand_over: HandOver) -> bool:
        return True


class Executor(Hooks):
    """One process. `fleet` is the transitional file."""

    run_class: type[Run] = Run
    row_copy = staticmethod(copying.row_copy)
    begin_finish = staticmethod(closing.begin_finish)
    bases: type[Bases] = Trusting

    def __init__(
        self, world: Surroundings, process: Process, fleet: Fleet, manners: Manners, few_rows: int, seed: str
    ) -> None:
        self._world, self.process, self._fleet, self._manners = world, process, fleet, manners
        self._few_rows = few_rows
        self._draw = random.Random(seed).random
        self._steps: Steps | None = None
        self._sessions: set[sqlite3.Connection] = set()
        self._writers: set[sqlite3.Connection] = set()
        self._engines: dict[str, Engine] = {
            shard.name: world.databases[shard.name].executor for shard in handover.participating(fleet)
        }
        self.beside = False  # it does one command, while another works off the script
        self._step_seconds = 0.05 + self._draw() * 0.3

    # -- the commands ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        admin = Admin(self._world.topic, self._fleet, self._effect)
        known = await self._call(lambda: _known(self._engines))
        _refuse([*preflight.other_rebalances(self._fleet, known)])
        _refuse([*preflight.odd_slots(self._fleet, known, announced=False)])
        await self._call(lambda: opening.open_rebalance(self._fleet, self._engines, admin, admin))

    async def run(self, *, onward: bool = True, seconds: float = float("inf")) -> Progress:
        """Until it has ended, or somebody stops it after so long."""
        world = self._world
        if onward:
            known = await self._call(lambda: _known(self._engines))
            _refuse([*preflight.not_started(self._fleet, known), *preflight.other_rebalances(self._fleet, known)])
            _refuse([*preflight.odd_slots(self._fleet, known, announced=True)])
        rebalance = await self._call(lambda: journal.find(self._fleet, self._engines))
        if rebalance is None:
            raise RefusedError("isn't open")
        run = self.run_class(
            self._fleet,
            self._engines,
            rebalance=rebalance,
            publish=self._publish,
            copy=self.row_copy(self._fleet),
            clock=world.loop.time,
            parallel=2,
            onward=onward,
            bases=refusing(self.bases, self._refuses_round)(
                self._fleet, self._engines, rebalance, few_rows=self._few_rows
            ),
        )
        began = world.loop.time()
        while True:
            progress = await self._call(lambda: run.step(world.loop.time()))
            if progress.failed:
                world.oracle.violate(f"{self.process} gives up: {'; '.join(progress.failed)}")
            if progress.ended:
                world.oracle.tell(self.process, f"ends: {progress.arrived} of {progress.total} arrived")
                world.oracle.tell(self.process, "fell back:", *run.tally.fell_back)
                return progress
            if world.loop.time() > began + seconds:
                return progress
            waited = world.loop.time() - began
            await asyncio.sleep(self._step_seconds * (1 + waited // 10))  # a process that waits for long needs no haste

    async def abort(self) -> None:
        known = await self._call(lambda: _known(self._engines))
        mine = [journal.entry_of(self._fleet, known_of_shard.entries) for known_of_shard in known.values()]
        if not any(mine):
            raise RefusedError("isn't open")
        if done := next((entry for entry in mine if entry and entry.state == RebalanceState.DONE), None):
            raise journal.PointOfNoReturnError(done.id)
        if all(entry and entry.state != RebalanceState.OPEN for entry in mine):
            return
        if self.beside:  # it may be another's rebalance, which is just being started
            await self._call(lambda: opening.announce(self._fleet, self._engines))
        await self._call(lambda: closing.stop(self._fleet, self._engines))
        await self.run(onward=False)
        await self._call(lambda: closing.close(self._fleet, self._engines, RebalanceState.ABORTED))

    async def finish(self) -> None:
        fleet, engines, topic = self._fleet, self._engines, self._world.topic
        known = await self._call(lambda: _known(engines))
        _refuse(list(closing.not_handed_over(fleet, known)))
        taking_part = fleet.model_copy(update={"shards": handover.participating(fleet)})
        _refuse([str(fault) for fault in (await self._call(lambda: verify(taking_part, engines))).faults])
        admin = Admin(topic, fleet, self._effect)
        names = [sub.id for shard in handover.participating(fleet) for sub in preflight.old_subscriptions(fleet, shard)]
        old = await self._call(lambda: closing.there(admin, fleet, names))
        sure, unsure = closing.not_drained(old, topic.backlogs(old), closing.last_barrier_us(known), "")
        _refuse([*sure, *unsure])
        await self._call(lambda: self.begin_finish(fleet, engines))
        await self._call(lambda: closing.delete_subscriptions(admin, fleet, old, lambda _: None))
        await self._call(lambda: closing.delete_rows(fleet, engines, known, lambda *_: None))
        await self._call(lambda: closing.close(fleet, engines, RebalanceState.DONE))

    def kill(self) -> None:
        """Where it is. Nothing of it is left but what it has committed and sent."""
        if self._steps is not None:
            self._steps.kill()

    # -- its effects -----------------------------------------------------------------------------------------------

    async def _call(self, call: Callable[[], Any]) -> Any:
        self._steps = Steps(lambda: self._hooked(call))
        try:
            return await self._steps.run()
        finally:
            self._steps = None

    def _hooked(self, call: Callable[[], Any]) -> Any:
        before = hooked(self)
        try:
            return call()
        finally:
            hooked(before)

    def _effect(self, what: str, do: Callable[[], Any]) -> None:
        self._pause()
        self._world.oracle.tell(self.process, f"effect {len(self._world.effects.done) + 1}: {what}")
        self._world.effects.do(what, do)

    def _pause(self) -> None:
        """Let the others go on. Never inside a transaction: these are done at one instant."""
        steps, manners = self._steps, self._manners
        if steps is None or steps.dead or any(session.in_transaction for session in self._sessions):
            return
        if self._draw() < manners.pause:
            long = self._draw() < manners.long_pause
            self._rest(steps, self._draw() * (5.0 if long else 0.05))

    @staticmethod
    def _rest(steps: Steps, seconds: float) -> None:
        before = hooked(Hooks())
        try:
            steps.pause(seconds)
        finally:
            hooked(before)

    def before_statement(self, shard: str, connection: sqlite3.Connection, statement: str) -> None:
        if self._steps is None or self._steps.dead:
            return
        self._sessions.add(connection)
        self._pause()
        if statement == "BEGIN IMMEDIATE":
            self._writers.add(connection)
        down = self._world.network.weather[f"database {shard}"].down
        if down or self._draw() < self._manners.lose_session:
            connection.execute("PRAGMA query_only = OFF")  # the session is gone, and the pool keeps the connection
            raise _lost("connection refused" if down else "connection lost")

    def commit(self, shard: str, connection: sqlite3.Connection) -> None:
        if connection not in self._writers or not connection.in_transaction or self._steps is None or self._steps.dead:
            return
        self._writers.discard(connection)
        if self._draw() < self._manners.lose_commit:
            raise _lost("commit failed")
        effects = self._world.effects
        self._world.oracle.tell(self.process, f"effect {len(effects.done) + 1}: commit in {shard}")

        def commit() -> None:
            connection.commit()
            self._world.observe(self._world.databases[shard], self.process)

        effects.do(f"commit in {shard}", commit)
        if self._draw() < self._manners.lose_answer:
            raise _lost("connection lost after the commit")

    def _refuses_round(self) -> bool:
        return self._draw() < self._manners.refuse_round

    def _publish(self, message: Encoded) -> Future[Any]:
        world, future = self._world, Future()

        def arrive() -> None:
            world.topic.publish(None, message.data, message.attributes, self.process)
            lost = self._draw() < self._manners.lose_publish_answer
            world.loop.after(0.01, _settle, future, ServiceUnavailableError("no answer") if lost else None)

        def send() -> None:
            if world.network.weather["pubsub"].down or self._draw() < self._manners.refuse_publish:
                world.loop.after(0.5, _settle, future, ServiceUnavailableError("no route"))
            else:
                world.loop.after(self._draw() * 0.05, arrive)

        self._effect(f"publish a barrier of slot {message.slot}", send)
        return future


def refusing(kind: type[Bases], refuses: Callable[[], bool]) -> type[Bases]:
    """Bases whose rounds fail now and then, as where unique values pass from row to row: their slots are copied in the pause."""

    class Refusing(kind):  # type: ignore[valid-type,misc]
        def catch_up(self, hand_over: HandOver, source: Place) -> Round | None:
            if refuses():
                raise BaseError("refused")
            return super().catch_up(hand_over, source)

        def finish(
            self, out: Connection, into: Connection, hand_over: HandOver, source: Place, left: Lane
        ) -> int | None:
            rows = super().finish(out, into, hand_over, source, left)
            if rows is not None and refuses():
                raise BaseError("refused")
            return rows

    return Refusing


class ServiceUnavailableError(Exception):
    """Pub/Sub didn't take a barrier, or nobody knows."""


def _settle(future: Future[Any], error: Exception | None) -> None:
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _lost(why: str) -> OperationalError:
    return OperationalError("", None, sqlite3.OperationalError(why))


def _known(engines: dict[str, Engine]) -> dict[str, preflight.Known]:
    known, reasons = preflight.look(engines)
    _refuse(reasons)
    return known


def _refuse(reasons: list[str]) -> None:
    if reasons:
        raise RefusedError("; ".join(reasons))
