"""Executors and consumers with one mistake each about slots that are copied while their writes go on."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, delete

from consumer.store.fence import Fence, Lanes
from consumer.store.transaction import Store
from shardctl.rebalance import bases, closing, copying
from shardctl.rebalance.bases import Bases, Round
from shardctl.rebalance.handover import HandOver, Place
from shardctl.rebalance.rows.delta import Log
from shardctl.rebalance.rows.removal import delete_leftovers
from shardctl.rebalance.rows.tables import slot_tables
from shardctl.shard import lanes, schema
from shardctl.shard.database import snapshot, writing
from shardctl.shard.lanes import Lane
from shardctl.shard.schema import LaneState, changes, inbox
from tests.sim.rebalance.executor import Executor, Manners, Trusting
from tests.sim.rebalance.message import BALANCE, ENTRY, KEYS, Write
from tests.sim.rebalance.mutants import Mutant, _as_it_was_before, _deleting, _with_fence, _with_store
from tests.sim.rebalance.scenario import (
    Publication,
    Scenario,
    _numbered,
    copied_ahead,
    finish_cut_short,
    slot_by_slot,
    small,
    there_and_back,
)
from tests.sim.rebalance.world import Parts

# -- what the executor may do wrong --------------------------------------------------------------------------------------


def _with_bases(kind: type[Bases]) -> Parts:
    class Mutant(Executor):
        bases = kind

    return Parts(executor=Mutant)


def _with_base(after: Callable[[Connection, HandOver], None]) -> Parts:
    """Something is done to the rows of a base, and nobody checks it."""

    class Mistaken(Trusting):
        def _copy(self, out: Connection, into: Connection, hand_over: HandOver) -> int:
            rows = super()._copy(out, into, hand_over)
            after(into, hand_over)
            return rows

    return _with_bases(Mistaken)


def _with(name: str, mistaken: Callable[..., Any], kind: type[Executor] = Executor) -> Parts:
    """In place of what `shardctl.rebalance.bases` calls by this name, whenever the executor does something."""
    real = getattr(bases, name)

    class Mutant(kind):  # type: ignore[valid-type,misc]
        def _hooked(self, call: Callable[[], Any]) -> Any:
            def mistaken_call() -> Any:
                setattr(bases, name, lambda *given: mistaken(real, *given))
                try:
                    return call()
                finally:
                    setattr(bases, name, real)

            return super()._hooked(mistaken_call)

    return Parts(executor=Mutant)


def _keeps_deleted_balances(
    real: Callable[..., int], source: Connection, destination: Connection, kinds: Any, slot: int, *rest: Any
) -> int:
    columns = "id, owner, number, slot"
    before = destination.exec_driver_sql(f"SELECT {columns} FROM balances WHERE slot = {slot}").all()
    rows = real(source, destination, kinds, slot, *rest)
    for row in before:
        statement = f"INSERT OR IGNORE INTO balances ({columns}) VALUES (?, ?, ?, ?)"
        destination.exec_driver_sql(statement, tuple(row))
    return rows


def _without(table: str) -> Callable[..., Log]:
    """Changes of one table aren't brought over, but their positions count as read."""

    def read_log(real: Callable[..., Log], *given: Any) -> Log:
        log = real(*given)
        return Log(log.positions, {name: keys for name, keys in log.keys.items() if name != table})

    return read_log


class DeletesFromTheLogFirst(Trusting):
    """A round's changes are deleted from the log before the round has committed, as if it were killed in between."""

    def catch_up(self, hand_over: HandOver, source: Place) -> Round | None:
        with snapshot(self._databases[source.shard]) as out:
            positions = bases.read_log(out, hand_over.slot, 0, bases.CHANGES_AT_ONCE).positions
        self._forget(source, positions)
        return super().catch_up(hand_over, source)


class DeletesTheWholeLog(Trusting):
    """What was logged since the round's snapshot is deleted too."""

    def _forget(self, source: Place, positions: tuple[int, ...]) -> None:
        with writing(self._databases[source.shard]) as connection:
            connection.execute(delete(changes))


class SkipsTheLastRound(Trusting):
    def finish(self, out: Connection, into: Connection, hand_over: HandOver, source: Place, left: Lane) -> int | None:
        return 0 if bases._is_valid(into, hand_over, source, left) else None


class SlowToDiscard(Executor):
    """Not a mistake: who aborts beside another is stopped for some seconds between listing the bases and deleting them."""

    _listed = False

    def before_statement(self, shard: str, connection: sqlite3.Connection, statement: str) -> None:
        super().before_statement(shard, connection, statement)
        if self.beside and statement.startswith("SELECT") and statement.endswith("FROM shardctl_bases"):
            self._listed = True
        elif self._listed and statement == "BEGIN IMMEDIATE" and self._steps is not None and not self._steps.dead:
            self._listed = False
            self._rest(self._steps, 1.0 + self._draw() * 4.0)


SLOW = Parts(executor=SlowToDiscard)


def _discards_blindly(_: Callable[..., None], engine: Engine, kinds: Any, slot: int, generation: int) -> None:
    """An abort asks neither for the mark of the base nor for the lane: it deletes what it has seen before."""
    with writing(engine) as into:
        delete_leftovers(into, slot_tables(into, kinds), (slot,))


class BeginsNoLogs(Trusting):
    def logs_from_now_on(self, into: Connection, hand_over: HandOver) -> bool:
        return False


class LogsLate(Executor):
    """The logs of new lanes begin some time after the transactions in which they become active."""

    bases = BeginsNoLogs

    async def abort(self) -> None:
        await asyncio.sleep(0.5)
        await self._call(lambda: [self._begin_logs(engine) for engine in self._engines.values()])
        await super().abort()

    def _begin_logs(self, engine: Engine) -> None:
        with writing(engine) as connection:
            lanes.take_fence_alone(connection)
            for lane in lanes.read(connection).values():
                if lane.state == LaneState.ACTIVE and lane.barrier_time_us and not lane.log:
                    its = (schema.lanes.c.slot == lane.slot) & (schema.lanes.c.generation == lane.generation)
                    name = lanes.log_since(lane.barrier_time_us)
                    connection.execute(schema.lanes.update().where(its).values(log=name))


def _any_log_will_do(_: Callable[..., bool], into: Connection, hand_over: HandOver, source_lane: Lane) -> bool:
    return bool(lanes.left_here(into, hand_over.slot))


class FinishesUnmarked(Executor):
    """`finish` doesn't record that it has begun, so that an abort and a way back follow it."""

    begin_finish = staticmethod(lambda *_: None)


class DeletesWhileLogged(FinishesUnmarked):
    """It also deletes rows before the logs have ended, which keeps them from counting as a base even then."""

    async def finish(self) -> None:
        real = closing.lanes.end_logs
        closing.lanes.end_logs = lambda _: None
        try:
            await super().finish()
        finally:
            closing.lanes.end_logs = real


def _discards_what_was_left(_: Callable[..., None], engine: Engine, kinds: Any, slot: int, generation: int) -> None:
    """An abort takes what an earlier lane left behind for a copy of its own."""
    its = (schema.bases.c.slot == slot) & (schema.bases.c.generation == generation)
    with writing(engine) as into:
        lane = lanes.hold(into, slot, generation)
        marked = into.execute(delete(schema.bases).where(its)).rowcount
        if marked and lane is not None and lane.state == LaneState.ARRIVING:
            delete_leftovers(into, slot_tables(into, kinds), (slot,))


class CopiesNothingTwice(Executor):
    """Not a mistake: who copies a slot to where an earlier lane of it left its rows ends the schedule."""

    @staticmethod
    def row_copy(fleet: Any) -> copying.Copy:
        real = copying.row_copy(fleet)

        def copy(source: Connection, destination: Connection, hand_overs: Sequence[HandOver]) -> int:
            assert not any(lanes.left_here(destination, hand_over.slot) for hand_over in hand_overs), "a second copy"
            return real(source, destination, hand_overs)

        return copy

    class bases(Trusting):  # noqa: N801 - as the executor calls it
        def _copy(self, out: Connection, into: Connection, hand_over: HandOver) -> int:
            assert not lanes.left_here(into, hand_over.slot), "a second copy"
            return super()._copy(out, into, hand_over)


NO_SECOND_COPY = Parts(executor=CopiesNothingTwice)

# -- what the consumer may do wrong --------------------------------------------------------------------------------------


class LogsNothing(Store):
    def _log(self, *_: Any, **__: Any) -> None:
        pass


class LogsWhatItKnewBefore(Fence):
    """Which slots are logged is taken from some transactions ago."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._old: list[frozenset[int]] = []

    def share(self, connection: Connection) -> Lanes:
        here = super().share(connection)
        self._old = [*self._old[-5:], here.logged]
        return dataclasses.replace(here, logged=here.logged & self._old[0])


class LogsFirstLanesAlone(Fence):
    """A lane that goes on with the log of the one before it in its database isn't logged."""

    def share(self, connection: Connection) -> Lanes:
        here = super().share(connection)
        own = {
            lane.slot
            for lane in lanes.read(connection).values()
            if lane.state == LaneState.ACTIVE and lane.log == lanes.log_since(lane.barrier_time_us or 0)
        }
        return dataclasses.replace(here, logged=here.logged & own)


# -- where they show -----------------------------------------------------------------------------------------------------


def _changing(seed: int) -> Scenario:
    """A row of the slot that moves comes and goes all the while."""
    made = copied_ahead(small)(seed)
    changing = [
        Publication(0.15 * number, Write(100 + number, KEYS[1][-2], 1, BALANCE, operation=operation))
        for number, operation in enumerate(("upsert", "delete") * 20)
    ]
    return dataclasses.replace(made, publications=_numbered([*made.publications, *changing]))


def _slowly(seed: int) -> Scenario:
    """Consumers write between any two of the executor's transactions."""
    return dataclasses.replace(copied_ahead(small)(seed), manners=Manners(pause=1.0, long_pause=0.05))


def _written_to_all_the_while(seed: int) -> Scenario:
    made = _slowly(seed)
    writes = [Publication(0.1 * number, Write(100 + number, KEYS[1][0], 1, ENTRY)) for number in range(150)]
    return dataclasses.replace(made, publications=_numbered([*made.publications, *writes]))


def _falling_back(seed: int) -> Scenario:
    """Some slots are copied in their pauses on the way there, so nothing is logged from then on."""
    return dataclasses.replace(there_and_back(_slowly)(seed), manners=Manners(pause=0.5, refuse_round=0.4))


def _back_and_aborted(seed: int) -> Scenario:
    script = ("start", "run", "abort", "back", "start", "part", "abort", "start", "run", "finish")
    return dataclasses.replace(copied_ahead(small)(seed), script=script)


def aborted_twice(seed: int) -> Scenario:
    """Two people abort. Where one of them is slow, the other has started again meanwhile."""
    script = ("start", "part", "abort", "start", "run", "finish")
    return dataclasses.replace(copied_ahead(small)(seed), script=script, second_executor=True, run_at=0.5)


AHEAD = copied_ahead()
MUTANTS = {
    "logs nothing": Mutant(_with_store(LogsNothing), AHEAD),
    "begins to log late": Mutant(_with_fence(LogsWhatItKnewBefore), AHEAD),
    "leaves rows out of the base": Mutant(_with_base(_deleting("entries")), AHEAD),
    "leaves the inbox out of the base": Mutant(_with_base(_deleting("shardctl_inbox")), AHEAD),
    "brings a deleted row into the base": Mutant(_with_base(_as_it_was_before), AHEAD),
    "keeps deleted rows": Mutant(_with("apply_delta", _keeps_deleted_balances), _changing),
    "brings no inbox rows over": Mutant(_with("read_log", _without(inbox.name)), AHEAD),
    "brings no balances over": Mutant(_with("read_log", _without("balances")), copied_ahead(small)),
    "deletes from the log first": Mutant(_with_bases(DeletesFromTheLogFirst), copied_ahead(small)),
    "deletes the whole log": Mutant(_with_bases(DeletesTheWholeLog), _slowly),
    "skips the last round": Mutant(_with_bases(SkipsTheLastRound), AHEAD),
    "logs late": Mutant(Parts(executor=LogsLate), there_and_back(_written_to_all_the_while)),
    "logs first lanes alone": Mutant(_with_fence(LogsFirstLanesAlone), slot_by_slot(_written_to_all_the_while)),
    "any log will do": Mutant(_with("_left_behind", _any_log_will_do), _falling_back),
    "finishes unmarked": Mutant(Parts(executor=FinishesUnmarked), finish_cut_short, seeds=600),
    "deletes rows while they are logged": Mutant(Parts(executor=DeletesWhileLogged), finish_cut_short),
    "discards what was left behind": Mutant(_with("discard", _discards_what_was_left), _back_and_aborted),
    "discards blindly": Mutant(_with("discard", _discards_blindly, SlowToDiscard), aborted_twice),
}
