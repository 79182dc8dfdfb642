"""Writes of an outbox that Pub/Sub refused: kept, with the later writes of their keys behind them, until a person decides.

Invariant: a row is put behind another one in a transaction that holds the lock of that one's row and sees it refused. Who retries
or drops a refused write changes its row first and frees those behind it afterwards. So no row stays behind a write that is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, func, select, update

from shardctl.outbox.row import attributes_of, enqueued_in, utc
from shardctl.shard.database import snapshot, writing
from shardctl.shard.outboxtables import outbox

MAX_REASON_CHARACTERS = 2_000
ROWS_OF_STATEMENT = 1_000

# The refused writes of each slot and key, by position: the oldest of each. Those whose key is unknown stand for their whole slot.
Refusals = Mapping[tuple[int, str | None], int]


@dataclass(frozen=True, slots=True)
class Refused:
    """A refused write, and how many wait behind it. `enqueued_time` is None where the row has none."""

    position: int
    slot: int
    attributes: Mapping[str, str]
    enqueued_time: datetime | None
    reason: str
    behind: int


def keep(connection: Connection, refused: Mapping[int, str], behind: Mapping[int, int]) -> None:
    """Mark rows as refused, with the reasons, and put others behind them; all by position."""
    for position, reason in refused.items():
        row = update(outbox).where(outbox.c.position == position)
        connection.execute(row.values(refused=reason.replace("\x00", "")[:MAX_REASON_CHARACTERS]))
    followers: dict[int, list[int]] = {}
    for position, first in behind.items():
        followers.setdefault(first, []).append(position)
    for first, positions in followers.items():
        still = select(outbox.c.position).where(_refused((first,))).with_for_update()
        if connection.scalar(still) is None:
            continue  # retried or dropped since this relay has read it: they are read again
        for start in range(0, len(positions), ROWS_OF_STATEMENT):
            part = outbox.c.position.in_(positions[start : start + ROWS_OF_STATEMENT])
            connection.execute(update(outbox).where(part).values(behind=first))


def oldest(connection: Connection) -> tuple[int, str] | None:
    """The position of the oldest refused write, and why it was refused."""
    query = select(outbox.c.position, outbox.c.refused).where(_refused(None)).order_by(outbox.c.position).limit(1)
    row = connection.execute(query).one_or_none()
    return (row.position, row.refused) if row else None


def listed(engine: Engine, limit: int | None = None) -> tuple[Refused, ...]:
    """The refused writes, oldest first. Raises DatabaseError."""
    counted = select(outbox.c.behind, func.count()).where(outbox.c.behind.is_not(None)).group_by(outbox.c.behind)
    with snapshot(engine) as connection:
        columns = (outbox.c.position, outbox.c.slot, outbox.c.attributes, outbox.c.refused)
        query = select(*columns, enqueued_in(connection).label("enqueued")).where(_refused(None))
        query = query.order_by(outbox.c.position).limit(limit)
        behind: dict[int, int] = dict(connection.execute(counted).all())
        return tuple(
            Refused(
                row.position,
                row.slot,
                attributes_of(row.attributes),
                utc(row.enqueued),
                row.refused,
                behind.get(row.position, 0),
            )
            for row in connection.execute(query)
        )


def retry(engine: Engine, positions: Collection[int] | None) -> int:
    """Let refused writes be published, some or all, and then those behind them; how many were refused. Raises DatabaseError."""
    with writing(engine) as connection:
        count = connection.execute(update(outbox).where(_refused(positions)).values(refused=None)).rowcount
        _free(connection, positions)
        return count


def drop(engine: Engine, positions: Collection[int] | None) -> int:
    """Delete refused writes, some or all, and let those behind them be published; how many are deleted. Raises DatabaseError."""
    with writing(engine) as connection:
        count = connection.execute(delete(outbox).where(_refused(positions))).rowcount
        _free(connection, positions)
        return count


def _free(connection: Connection, positions: Collection[int] | None) -> None:
    """Those behind another refused write of their key are found by the next turn of a relay."""
    kept = outbox.c.behind.is_not(None) if positions is None else outbox.c.behind.in_(positions)
    connection.execute(update(outbox).where(kept).values(behind=None))


def _refused(positions: Collection[int] | None) -> ColumnElement[bool]:
    refused = outbox.c.refused.is_not(None)
    return refused if positions is None else and_(refused, outbox.c.position.in_(positions))
