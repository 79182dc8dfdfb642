"""The rebalance as each participating database knows it: open, aborted or done. One is open at most.

Whoever changes it takes the fence alone, so that what a lane's change has read of it still holds when that commits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from shardctl import lanes
from shardctl.errors import ShardctlError
from shardctl.rebalance.handover import participating
from shardctl.schema import RebalanceState, rebalances
from shardctl.spec import Fleet

_SHARD, _STOPPING = "shard", "stopping"


class JournalError(ShardctlError):
    """Another rebalance is open, or this one isn't, or not any more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """`plan` is the rebalance as `describe` tells it. `stopping`: an abort is under way, so no more slots become due."""

    id: str
    state: RebalanceState
    plan: dict[str, Any]
    opened_time: datetime
    closed_time: datetime | None

    @property
    def stopping(self) -> bool:
        return bool(self.plan.get(_STOPPING))


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
                    {"generation": each.generation, "slots": str(each.slots)} for each in shard.previous or ()
                ],
            }
            for shard in sorted(participating(fleet), key=lambda shard: shard.name)
        ],
    }


def id_of(fleet: Fleet) -> str:
    """The same for the same change of the same fleet, whoever asks."""
    return sha256(json.dumps(describe(fleet), sort_keys=True).encode()).hexdigest()[:16]


def read(connection: Connection) -> dict[str, Entry]:
    """Every rebalance the database took part in, by id."""
    return {
        row.id: Entry(row.id, RebalanceState(row.state), json.loads(row.plan), row.opened_time, row.closed_time)
        for row in connection.execute(select(rebalances))
    }


def begin(connection: Connection, fleet: Fleet, shard: str) -> None:
    """Open the rebalance in `shard`'s database; one that was aborted goes on. Raises JournalError."""
    lanes.take_fence_alone(connection)
    mine, entries = id_of(fleet), read(connection)
    for entry in entries.values():
        if entry.state == RebalanceState.OPEN and entry.id != mine:
            raise JournalError(f"shard {shard}: {told(entry)}. {WAY_OUT}")
    entry_here = entries.get(mine)
    if entry_here is None:
        plan = json.dumps({**describe(fleet), _SHARD: shard})
        connection.execute(insert(rebalances).values(id=mine, state=RebalanceState.OPEN, plan=plan))
        return
    if entry_here.plan[_SHARD] != shard:
        raise JournalError(
            f"shards {entry_here.plan[_SHARD]} and {shard} share one database. Give each its own, then start again."
        )
    if entry_here.state == RebalanceState.DONE:
        raise JournalError(
            f"shard {shard}: rebalance {mine} is done. Go on from the settled file that `shardctl rebalance finish` wrote."
        )
    _change(connection, entry_here, RebalanceState.OPEN, stopping=False)


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
    """Raise JournalError where somebody has closed the rebalance. Every transaction that ends something asks, under the fence.

    An executor may sleep for long: what it wakes up to may be the next rebalance's, and must be left alone.
    """
    entry = read(connection).get(rebalance)
    if entry is None or entry.state != RebalanceState.OPEN:
        raise JournalError(
            f"rebalance {rebalance} isn't open any more: somebody else has closed it. Nothing was touched since."
        )


def stop(connection: Connection, rebalance: str) -> None:
    """From the commit on no slot becomes due here. Barriers that are out stay valid."""
    lanes.take_fence_alone(connection)
    entry = read(connection).get(rebalance)
    if entry is not None and entry.state == RebalanceState.OPEN:
        _change(connection, entry, RebalanceState.OPEN, stopping=True)


def close(connection: Connection, rebalance: str, state: RebalanceState) -> None:
    """One that is done stays so; one that was opened again since its abort began isn't aborted. Raises JournalError."""
    lanes.take_fence_alone(connection)
    entry = read(connection).get(rebalance)
    if entry is None or entry.state == RebalanceState.DONE:
        return
    if state == RebalanceState.ABORTED and entry.state == RebalanceState.OPEN and not entry.stopping:
        raise JournalError(f"rebalance {rebalance} was started again meanwhile, so it isn't aborted.")
    _change(connection, entry, state, stopping=False)


def told(entry: Entry) -> str:
    shards = ", ".join(shard["name"] for shard in entry.plan["shards"])
    return f"rebalance {entry.id} of shards {shards} is {entry.state}, since {entry.opened_time:%Y-%m-%d %H:%M} UTC"


WAY_OUT = "Finish it with its own file, or abort it: `shardctl rebalance finish -f …`, `shardctl rebalance abort -f …`."


def _change(connection: Connection, entry: Entry, state: RebalanceState, *, stopping: bool) -> None:
    plan = json.dumps({**entry.plan, _STOPPING: stopping})
    closed = None if state == RebalanceState.OPEN else func.now()
    change = update(rebalances).where(rebalances.c.id == entry.id)
    connection.execute(change.values(state=state, plan=plan, closed_time=closed))
