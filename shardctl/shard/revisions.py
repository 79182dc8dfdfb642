"""Which schema changes a shard's database has: one row a revision, in the table `shardctl_revisions`.

Invariants kept here and in the transactions that call this:
- a revision is announced in every shard's database before the first one is changed, and announced only while no rebalance is
  open there; a rebalance is opened only where no revision is under way. Both share or take the fence, so one of them waits;
- where DDL is part of a transaction, a revision is done in the transaction that changed the tables. Elsewhere it has begun
  before its first statement and is done after its last one: a row that has begun is of an `apply` that was killed in between.

The table isn't among `schema.metadata`: the first schema change makes it, and a database without it has had none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    MetaData,
    String,
    Table,
    delete,
    func,
    insert,
    inspect,
    select,
    update,
)

from shardctl.shard.engine import MYSQL

ID_LENGTH = 64

_OPTIONS: dict[str, Any] = {
    f"{name}_{option}": value for name in MYSQL for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"))
}
table = Table(
    "shardctl_revisions",
    MetaData(),
    Column("revision", String(ID_LENGTH), primary_key=True),
    Column("state", String(16), nullable=False),  # see RevisionState
    Column("announced_time", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("done_time", DateTime(timezone=True)),
    **_OPTIONS,
)


class RevisionState(StrEnum):
    """How far a revision has come in a shard's database. In the order in which it goes through them."""

    ANNOUNCED = "announced"  # nothing is changed here yet; others may be
    BEGUN = "begun"  # some of its statements may have taken effect: only where DDL is no part of a transaction
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Entry:
    state: RevisionState
    announced_time: datetime
    done_time: datetime | None


def read(connection: Connection) -> dict[str, Entry]:
    """Every revision that the database knows, by id; none where the table isn't there."""
    if not is_there(connection):
        return {}
    return {
        row.revision: Entry(RevisionState(row.state), row.announced_time, row.done_time)
        for row in connection.execute(select(table))
    }


def done(entries: Mapping[str, Entry]) -> frozenset[str]:
    return frozenset(revision for revision, entry in entries.items() if entry.state == RevisionState.DONE)


def under_way(entries: Mapping[str, Entry]) -> tuple[str, ...]:
    """Those that are announced or begun, and not done."""
    return tuple(sorted(entries.keys() - done(entries)))


def is_there(connection: Connection) -> bool:
    return inspect(connection).has_table(table.name)


def create(connection: Connection) -> None:
    table.create(connection, checkfirst=True)


def announce(connection: Connection, new: Iterable[str]) -> None:
    """The caller shares the fence, has found no rebalance open, and is alone in changing this table."""
    known = set(connection.scalars(select(table.c.revision)))
    rows = [{"revision": revision, "state": RevisionState.ANNOUNCED} for revision in new if revision not in known]
    if rows:
        connection.execute(insert(table), rows)


def withdraw(connection: Connection, gone: Collection[str]) -> None:
    """Forget what was announced and never begun."""
    if gone:
        is_idle = table.c.state == RevisionState.ANNOUNCED
        connection.execute(delete(table).where(table.c.revision.in_(list(gone)), is_idle))


def begin(connection: Connection, revision: str) -> None:
    _set(connection, revision, state=RevisionState.BEGUN)


def end(connection: Connection, revision: str) -> None:
    _set(connection, revision, state=RevisionState.DONE, done_time=func.now())


def _set(connection: Connection, revision: str, **values: object) -> None:
    connection.execute(update(table).where(table.c.revision == revision).values(**values))


def state_of(connection: Connection, revision: str) -> RevisionState | None:
    state = connection.scalar(select(table.c.state).where(table.c.revision == revision))
    return None if state is None else RevisionState(state)
