"""Executors and consumers with one mistake each about slots that are copied while their writes go on."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, delete

from consumer.store.fence import Fence, Lanes
from consumer.store.transaction import Store
from shardctl.rebalance import bases
from shardctl.rebalance.bases import Bases, Round
from shardctl.rebalance.handover import HandOver, Place
from shardctl.rebalance.rows.delta import Log
from shardctl.rebalance.rows.removal import delete_leftovers
from shardctl.rebalance.rows.tables import slot_tables
from shardctl.shard.database import snapshot, writing
from shardctl.shard.lanes import Lane
from shardctl.shard.schema import changes, inbox
from tests.sim.rebalance.executor import Executor, Manners
from tests.sim.rebalance.message import BALANCE, KEYS, Write
from tests.sim.rebalance.mutants import Mutant, _as_it_was_before, _deleting, _with_fence, _with_store
from tests.sim.rebalance.scenario import Publication, Scenario, _numbered, copied_ahead, small
from tests.sim.rebalance.world import Parts

# -- what the executor may do wrong --------------------------------------------------------------------------------------


def _with_bases(kind: type[Bases]) -> Parts:
    class Mutant(Executor):
        bases = kind

    return Parts(executor=Mutant)


def _with_base(after: Callable[[Connection, HandOver], None]) -> Parts:
    """Something is done to the rows of a base, and nobody checks it."""

    class Mistaken(Bases):
        def _copy(self, out: Connection, into: Connection, of: HandOver) -> int:
            rows = super()._copy(out, into, of)
            after(into, of)
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


class DeletesFromTheLogFirst(Bases):
    """A round's changes are deleted from the log before the round has committed, as if it were killed in between."""

    def catch_up(self, of: HandOver, source: Place) -> Round | None:
        with snapshot(self._databases[source.shard]) as out:
            positions = bases.read_log(out, of.slot, 0, bases.CHANGES_AT_ONCE).positions
        self._forget(source, positions)
        return super().catch_up(of, source)


class DeletesTheWholeLog(Bases):
    """What was logged since the round's snapshot is deleted too."""

    def _forget(self, source: Place, positions: tuple[int, ...]) -> None:
        with writing(self._databases[source.shard]) as connection:
            connection.execute(delete(changes))


class SkipsTheLastRound(Bases):
    def finish(self, out: Connection, into: Connection, of: HandOver, source: Place, left: Lane) -> int | None:
        return 0 if bases._is_valid(into, of, source, left) else None


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
        delete_leftovers(into, slot_tables(into, kinds), slot)


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


def aborted_twice(seed: int) -> Scenario:
    """Two people abort. Where one of them is slow, the other has started again meanwhile."""
    script = ("start", "part", "abort", "start", "run", "finish")
    return dataclasses.replace(copied_ahead(small)(seed), script=script, second_executor=True, run_at=0.5)


AHEAD = copied_ahead()
MUTANTS = {
    "logs nothing": Mutant(_with_store(LogsNothing), 10, AHEAD),
    "begins to log late": Mutant(_with_fence(LogsWhatItKnewBefore), 25, AHEAD),
    "leaves rows out of the base": Mutant(_with_base(_deleting("entries")), 10, AHEAD),
    "leaves the inbox out of the base": Mutant(_with_base(_deleting("shardctl_inbox")), 25, AHEAD),
    "brings a deleted row into the base": Mutant(_with_base(_as_it_was_before), 10, AHEAD),
    "keeps deleted rows": Mutant(_with("apply_delta", _keeps_deleted_balances), 10, _changing),
    "brings no inbox rows over": Mutant(_with("read_log", _without(inbox.name)), 10, AHEAD),
    "brings no balances over": Mutant(_with("read_log", _without("balances")), 10, copied_ahead(small)),
    "deletes from the log first": Mutant(_with_bases(DeletesFromTheLogFirst), 10, copied_ahead(small)),
    "deletes the whole log": Mutant(_with_bases(DeletesTheWholeLog), 25, _slowly),
    "skips the last round": Mutant(_with_bases(SkipsTheLastRound), 10, AHEAD),
    "discards blindly": Mutant(_with("discard", _discards_blindly, SlowToDiscard), 25, aborted_twice),
}
