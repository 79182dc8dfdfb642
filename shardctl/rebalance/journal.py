"""The rebalance as each participating database knows it: open, aborted or done. One is open at most.

Its id is random, and only the databases have it: knowing the file isn't enough to guess it. What it changes shows which one is a
file's, so every command with the same file, and one that is run again, finds the same rebalance.

A change of it takes the fence alone, so that what a lane's change has read of it still holds when that commits.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, select, update

from shardctl.errors import ShardctlError
from shardctl.fleet.spec import Fleet
from shardctl.rebalance.handover import participating
from shardctl.shard import lanes, revisions
from shardctl.shard.database import snapshot
from shardctl.shard.schema import RebalanceState, rebalances

_SHARD, _STOPPING, _FINISHING = "shard", "stopping", "finishing"
ID_BYTES = 16


class JournalError(ShardctlError):
    """Another rebalance is open, or this one isn't, or not any more."""


class PointOfNoReturnError(JournalError):
    """`finish` has begun: some of what the way back needs may be gone."""

    def __init__(self, rebalance: str) -> None:
        super().__init__(
            f"`finish` of rebalance {rebalance} has begun, which is the point of no return: old subscriptions and moved rows may "
            "be gone. `shardctl rebalance finish` again brings it to its end; another rebalance leads back then, and copies."
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """`plan`: what it changes, and in which shard's database. `stopping`: an abort is under way; no more slots become due.

    `finishing`: what it left is being deleted, so nothing leads back.
    """

    id: str
    state: RebalanceState
    plan: dict[str, Any]
    opened_time: datetime
    closed_time: datetime | None

    @property
    def change(self) -> dict[str, Any]:
        """What it changes: as `describe` gave it when it was opened."""
        return {name: value for name, value in self.plan.items() if name not in (_SHARD, _STOPPING, _FINISHING)}

    @property
    def stopping(self) -> bool:
        return bool(self.plan.get(_STOPPING))

    @property
    def finishing(self) -> bool:
        return bool(self.plan.get(_FINISHING))


def describe(fleet: Fleet) -> dict[str, Any]:
    """What a transitional file changes: the generations and slots of each participating shard, before and after."""
    return {
        "fleet": fleet.fleet,
        "shards": [
            {
                "name": shard.name,
                "generation": shard.generation,
                "slots": str(shard.slots),
                "previous": [
                    {"generation": former.generation, "slots": str(former.slots)} for former in shard.previous or ()
                ],
            }
            for shard in sorted(participating(fleet), key=lambda shard: shard.name)
        ],
    }


def ended_with(entry: Entry) -> set[tuple[str, int]]:
    """Shards and generations whose lanes are forgotten once the rebalance is done. A subscription of one, made again, would get
    messages that its consumers hold for ever.
    """
    shards = entry.change["shards"]
    return {(shard["name"], former["generation"]) for shard in shards for former in shard["previous"]}


def entry_of(fleet: Fleet, entries: Mapping[str, Entry]) -> Entry | None:
    """The rebalance of a transitional file, among those that a database took part in."""
    mine = describe(fleet)
    return next((entry for entry in entries.values() if entry.change == mine), None)


def id_of(fleet: Fleet, entries: Iterable[Mapping[str, Entry]]) -> str | None:
    """The id of a file's rebalance by what its databases record; None where none of them has opened it. Raises JournalError."""
    ids = {entry.id for recorded in entries if (entry := entry_of(fleet, recorded))}
    if len(ids) > 1:
        raise _disagreement(ids)
    return next(iter(ids), None)


def find(fleet: Fleet, databases: Mapping[str, Engine]) -> str | None:
    """The same, read from the databases of the shards that take part. Raises JournalError, DatabaseError."""
    entries = []
    for shard in participating(fleet):
        with snapshot(databases[shard.name]) as connection:
            entries.append(read(connection))
    return id_of(fleet, entries)


def _disagreement(ids: Iterable[str]) -> JournalError:
    return JournalError(
        f"the databases have this rebalance under different ids: {', '.join(sorted(ids))}. One of them was restored from a "
        "backup, or a URL names another fleet's database: find out which before you do anything else."
    )


def read(connection: Connection) -> dict[str, Entry]:
    """Every rebalance the database took part in, by id."""
    return {
        row.id: Entry(row.id, RebalanceState(row.state), json.loads(row.plan), row.opened_time, row.closed_time)
        for row in connection.execute(select(rebalances))
    }


def open_ones(connection: Connection) -> Iterator[str]:
    """Each rebalance that is open here, with the way out. Under the fence, shared or alone, it holds until the commit."""
    for entry in read(connection).values():
        if entry.state == RebalanceState.OPEN:
            yield f"{summary_of(entry)}. {WAY_OUT}"


def begin(connection: Connection, fleet: Fleet, shard: str, rebalance: str | None = None) -> str:
    """Open the rebalance in `shard`'s database, or go on with an aborted one; its id. Raises JournalError.

    `rebalance` is the id that it has in another database: the first that is asked makes one.
    """
    lanes.take_fence_alone(connection)
    if changing := revisions.under_way(revisions.read(connection)):
        raise JournalError(
            f"shard {shard}: its schema is being changed to revision {changing[0]}, and rows move between equal tables alone. "
            "`shardctl migrate apply` brings it to its end."
        )
    entries = read(connection)
    entry_here = entry_of(fleet, entries)
    for entry in entries.values():
        if entry.state == RebalanceState.OPEN and entry is not entry_here:
            raise JournalError(f"shard {shard}: {summary_of(entry)}. {WAY_OUT}")
    if entry_here is None:
        new = rebalance or secrets.token_hex(ID_BYTES)
        plan = json.dumps({**describe(fleet), _SHARD: shard})
        connection.execute(insert(rebalances).values(id=new, state=RebalanceState.OPEN, plan=plan))
        return new
    if entry_here.plan[_SHARD] != shard:
        raise JournalError(
            f"shards {entry_here.plan[_SHARD]} and {shard} share one database. Give each its own, then start again."
        )
    if entry_here.state == RebalanceState.DONE:
        raise JournalError(
            f"shard {shard}: rebalance {entry_here.id} is done. Go on from the settled file that `shardctl rebalance finish` "
            "wrote."
        )
    if rebalance not in (None, entry_here.id):
        raise _disagreement({entry_here.id, rebalance or ""})
    if entry_here.finishing:
        raise PointOfNoReturnError(entry_here.id)
    _change(connection, entry_here, RebalanceState.OPEN, stopping=False)
    return entry_here.id


def check_going(connection: Connection, rebalance: str) -> None:
    """Raise JournalError unless slots may become due. In a transaction that has the fence alone, it holds until the commit."""
    entry = read(connection).get(rebalance)
    if entry is None or entry.state != RebalanceState.OPEN:
        raise JournalError(
            f"rebalance {rebalance} isn't open{'' if entry is None else f' any more: it is {entry.state}'}."
        )
    if entry.stopping:
        raise JournalError(f"rebalance {rebalance} is being aborted: let `shardctl rebalance abort` come to its end.")


def check_open(connection: Connection, rebalance: str) -> None:
    """Raise JournalError where the rebalance has been closed. Every transaction that ends something asks, under the fence.

    An executor may sleep for long: what it wakes up to may be the next rebalance's, and must be left alone.
    """
    entry = read(connection).get(rebalance)
    if entry is None or entry.state != RebalanceState.OPEN:
        raise JournalError(
            f"rebalance {rebalance} isn't open any more: another command has closed it. Nothing was changed since."
        )


def hold_open(connection: Connection, rebalance: str) -> None:
    """Until the transaction ends the rebalance stays open, and no lane changes; of executors one at a time gets here.

    Writers don't notice. Raises JournalError.
    """
    lanes.share_fence(connection)
    connection.execute(select(rebalances.c.id).where(rebalances.c.id == rebalance).with_for_update())
    check_open(connection, rebalance)


def stop(connection: Connection, fleet: Fleet) -> None:
    """From the commit on no slot becomes due here. Barriers that are out stay valid. Raises PointOfNoReturnError."""
    lanes.take_fence_alone(connection)
    entry = entry_of(fleet, read(connection))
    if entry is not None and entry.state == RebalanceState.OPEN:
        if entry.finishing:
            raise PointOfNoReturnError(entry.id)
        _change(connection, entry, RebalanceState.OPEN, stopping=True)


def begin_finish(connection: Connection, fleet: Fleet, *, decided: bool) -> None:
    """From the commit on it can't be aborted, so nothing leads back. Safe to run again. Raises JournalError.

    `decided`: the database that an abort asks first has it, so no abort begins any more. What one that was killed has left here,
    with a `start` that was killed behind it, doesn't count: refused, it would leave no command that may go on.

    An old subscription that was deleted and made again gets messages of lanes that are forgotten, and holds them for ever.
    """
    lanes.take_fence_alone(connection)
    entry = entry_of(fleet, read(connection))
    if entry is None or entry.state == RebalanceState.DONE:
        return
    if not decided and (entry.state == RebalanceState.ABORTED or entry.stopping):
        raise JournalError(
            f"rebalance {entry.id} {'is being' if entry.stopping else 'was'} aborted, so it isn't finished. "
            "`shardctl rebalance start` opens it again, once the abort has ended."
        )
    _change(connection, entry, RebalanceState.OPEN, finishing=True, stopping=False)


def close(connection: Connection, fleet: Fleet, state: RebalanceState) -> None:
    """One that is done stays so; one that was opened again since its abort began isn't aborted. Raises JournalError."""
    lanes.take_fence_alone(connection)
    entry = entry_of(fleet, read(connection))
    if entry is None or entry.state == RebalanceState.DONE:
        return
    if state == RebalanceState.ABORTED and entry.state == RebalanceState.OPEN and not entry.stopping:
        raise JournalError(f"rebalance {entry.id} was started again meanwhile, so it isn't aborted.")
    end_logs = lanes.end_logs if state == RebalanceState.DONE else lanes.end_logs_of_copies
    end_logs(connection)
    _change(connection, entry, state, stopping=False)


def summary_of(entry: Entry) -> str:
    shards = ", ".join(shard["name"] for shard in entry.plan["shards"])
    return f"rebalance {entry.id} of shards {shards} is {entry.state}, since {entry.opened_time:%Y-%m-%d %H:%M} UTC"


WAY_OUT = "Finish it with its own file, or abort it: `shardctl rebalance finish -f …`, `shardctl rebalance abort -f …`."


def _change(connection: Connection, entry: Entry, state: RebalanceState, **flags: bool) -> None:
    plan = json.dumps({**entry.plan, **flags})
    closed = None if state == RebalanceState.OPEN else func.now()
    change = update(rebalances).where(rebalances.c.id == entry.id)
    connection.execute(change.values(state=state, plan=plan, closed_time=closed))
