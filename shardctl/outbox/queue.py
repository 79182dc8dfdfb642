"""An outbox as a relay sees it: read in order, deleted once Pub/Sub has taken it. Blocking: runs in a thread.

Order. A position is given out when its row is inserted, and transactions commit in another order than they insert. So no
position is ever taken to mean that all before it are there, and a relay keeps no place in the table: it reads what is committed,
oldest position first, and deletes exactly the rows that it published. A transaction that enqueues after another one has
committed gets higher positions, and a view with its rows also has the other's. So writes of ordered transactions are read in
their order. Writes of transactions that ran at once have the order of their inserts, or, where a relay looked in between, of
their commits.

Invariant: a row is sent only when every older row of its slot that the same read showed has been taken by Pub/Sub or is kept,
and it is deleted only when Pub/Sub has taken it. A row is kept where it was refused, or where it has the key of an older row that
was: see `shardctl.outbox.refusals`. So whichever relays read the same rows, or die between any two steps, the first copies of a
key's rows reach its topic in order. Further copies have the same idempotency keys, by which the inbox knows them.

The lock of the turn only keeps two relays from doing the same work. SQLite has no such lock: held while Pub/Sub is called, it
would stop the application's writes. There each relay does the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, Connection, Engine, and_, case, func, or_, select
from sqlalchemy.exc import IntegrityError

from shardctl.errors import ShardctlError
from shardctl.fleet.settings.routing import Attributes
from shardctl.outbox import refusals
from shardctl.outbox.refusals import Refusals
from shardctl.outbox.row import Row, attributes_of, body_in, enqueued_in, utc
from shardctl.shard import outboxtables
from shardctl.shard.database import DatabaseError, check_file, snapshot, where, writing
from shardctl.shard.engine import Limits
from shardctl.shard.outboxtables import outbox, turn

MAX_ROWS = 20_000  # of one read: with many slots, fewer rows would make smaller requests, and the cost is per request
MAX_BYTES = 16 * 1024**2  # of one read; one row alone may be larger
DRAIN_POLL_SECONDS = 0.01
DELETE_ROWS = 1_000  # of one statement
# Of a relay's sessions. One that is paused in its turn for longer than `idle` loses its session, and another takes over: longer
# than a turn (`shardctl.outbox.sending`).
LIMITS = Limits(
    "shardctl-relay",
    statement=timedelta(seconds=30),
    lock=timedelta(seconds=10),
    idle=timedelta(seconds=30),
    answer=timedelta(seconds=40),
)


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many rows wait, for how long the oldest has, how many of them are behind refused ones, and how many were refused."""

    rows: int
    oldest_seconds: float
    behind: int
    refused: int


class Queue:
    """The outbox of one database. `key_attribute` is the fleet's name of the attribute with a write's routing key.

    Every call raises DatabaseError.
    """

    def __init__(self, engine: Engine, key_attribute: str = Attributes().partition_key) -> None:
        self._engine, self._key_attribute = engine, key_attribute

    def check(self) -> None:
        """Raises DatabaseError where there is no outbox of this version. Gives the turn its row, where that is missing."""
        check_file(self._engine, "`shardctl outbox create` makes it")
        try:
            with writing(self._engine) as connection:
                fault = outboxtables.fault_of(connection)
                if not fault:
                    outboxtables.fill(connection)
        except DatabaseError as error:
            if isinstance(error.__cause__, IntegrityError):
                return  # another relay gave it its row
            raise
        if fault:
            raise DatabaseError(f"database {where(self._engine)}: {fault}")

    def take(self, skip: Collection[int] = ()) -> Turn | None:
        """The oldest rows that wait, without those of some slots. None where there are none, or another relay is at work.

        The turn ends with `end` or `give_up`, in any thread.
        """
        with ExitStack() as stack:
            connection = stack.enter_context(writing(self._engine)) if self._locks else None
            if connection is None:
                with snapshot(self._engine) as reading:
                    rows, refused = _read(reading, skip, self._key_attribute)
            else:
                waits = select(outbox.c.position).where(_waiting(skip)).limit(1)
                if connection.scalar(waits) is None:
                    return None
                if connection.scalar(select(turn.c.id).with_for_update(skip_locked=True)) is None:
                    return Turn(self._engine, None, (), {}, ExitStack())
                # After the lock: a statement's snapshot begins with it, so the rows of the turn before are gone from this one.
                rows, refused = _read(connection, skip, self._key_attribute)
            return Turn(self._engine, connection, rows, refused, stack.pop_all()) if rows else None

    @property
    def _locks(self) -> bool:
        return self._engine.dialect.name != "sqlite"

    def newest(self) -> int:
        """The position of the newest row; 0 where there is none."""
        with snapshot(self._engine) as connection:
            return last(connection)

    def waits_up_to(self, position: int) -> bool:
        """Whether a row waits that is no newer than `position`, behind no refused one."""
        with snapshot(self._engine) as connection:
            return waits_up_to(connection, position)

    def backlog(self) -> Backlog:
        """By the database's own clock."""
        with snapshot(self._engine) as connection:
            columns = (func.count(), func.count(outbox.c.behind), func.min(enqueued_in(connection)), func.now())
            rows, behind, oldest, now = connection.execute(select(*columns).where(outbox.c.refused.is_(None))).one()
            refused = select(func.count()).select_from(outbox).where(outbox.c.refused.is_not(None))
            until, since = utc(now), utc(oldest)
            age = max(0.0, (until - since).total_seconds()) if until and since else 0.0
            return Backlog(rows, age, behind, connection.scalar(refused) or 0)


class _GivenUpError(Exception):
    """Rolls back a turn."""


class NotDrainedError(ShardctlError):
    """Rows that a slot may have written are not published. Trying again may help."""


def wait_drained(
    engine: Engine, until: int, patience_seconds: float, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Returns once every row that is no newer than `until` is published. Raises NotDrainedError, DatabaseError."""
    if not until:
        return
    attempts = max(1, round(patience_seconds / DRAIN_POLL_SECONDS))
    for _ in range(attempts):
        with snapshot(engine) as connection:
            if reason := why_kept(connection):
                raise NotDrainedError(reason)
            if not waits_up_to(connection, until):
                return
        sleep(DRAIN_POLL_SECONDS)
    raise NotDrainedError(
        f"events that its writes have emitted still wait after {patience_seconds:g} s. The shard's consumers publish them: see "
        "their logs for `outbox`."
    )


def why_kept(connection: Connection) -> str | None:
    """Why a person has to decide before all rows can be published; None where nobody has to."""
    first = refusals.oldest(connection)
    if first is None:
        return None
    position, reason = first
    return (
        f"write {position} of its outbox can't be published: {reason.rstrip('.')}. See `shardctl outbox list` on its database; "
        "retry it or drop it"
    )


class Turn:
    """What one relay may publish now. `rows` is empty where another relay has the turn.

    `refused` are the older rows that were refused: what has the key of one of them isn't published.
    """

    def __init__(
        self, engine: Engine, connection: Connection | None, rows: Sequence[Row], refused: Refusals, stack: ExitStack
    ) -> None:
        self._engine, self._connection, self._stack = engine, connection, stack
        self.rows, self.refused = rows, refused

    def end(self, published: Sequence[int], refused: Mapping[int, str], behind: Mapping[int, int]) -> None:
        """Delete the published rows, mark the refused ones, put others behind these, all by their positions, and commit."""
        with self._stack:
            if self._connection is not None:
                _settle(self._connection, published, refused, behind)
            else:
                with writing(self._engine) as connection:
                    _settle(connection, published, refused, behind)

    def give_up(self) -> None:
        """Leave all rows as they are."""
        with suppress(_GivenUpError, DatabaseError), self._stack:
            raise _GivenUpError


def last(connection: Connection) -> int:
    """The position of the newest row; 0 where there is none."""
    return connection.scalar(select(func.max(outbox.c.position))) or 0


def waits_up_to(connection: Connection, position: int) -> bool:
    """Whether a row waits that is no newer than `position`, behind no refused one."""
    query = select(outbox.c.position).where(_waiting(()), outbox.c.position <= position).limit(1)
    return connection.scalar(query) is not None


def _waiting(skip: Collection[int]) -> ColumnElement[bool]:
    waits = and_(outbox.c.refused.is_(None), outbox.c.behind.is_(None))
    return and_(waits, outbox.c.slot.not_in(skip)) if skip else waits


def _read(connection: Connection, skip: Collection[int], key_attribute: str) -> tuple[tuple[Row, ...], Refusals]:
    """As many of the oldest rows as fit, and the refused ones among them. The second statement may see more rows than the first,
    all the same in their order. It reads both kinds at once: between two statements, a refused row could be retried, be in
    neither, and later rows of its key overtake it.
    """
    sizes = select(outbox.c.position, func.length(outbox.c.body)).where(_waiting(skip)).order_by(outbox.c.position)
    until, size = None, 0
    for position, row_size in connection.execute(sizes.limit(MAX_ROWS)):
        size += row_size
        if until is not None and size > MAX_BYTES:
            break
        until = position
    if until is None:
        return (), {}
    is_refused = outbox.c.refused.is_not(None)
    body = case((outbox.c.refused.is_(None), body_in(connection)))
    query = select(outbox.c.position, outbox.c.slot, outbox.c.attributes, body, is_refused)
    fitting = query.where(or_(_waiting(skip), is_refused), outbox.c.position <= until).order_by(outbox.c.position)
    rows: list[Row] = []
    refused: dict[tuple[int, str | None], int] = {}
    for position, slot, text, data, refused_before in connection.execute(fitting):
        attributes = attributes_of(text)
        key = attributes.get(key_attribute)
        if refused_before:
            refused.setdefault((slot, key), position)
        else:
            rows.append(Row(position, slot, attributes, bytes(data), key))
    return tuple(rows), refused


def _settle(
    connection: Connection, published: Sequence[int], refused: Mapping[int, str], behind: Mapping[int, int]
) -> None:
    for at in range(0, len(published), DELETE_ROWS):
        listed = ",".join(map(str, published[at : at + DELETE_ROWS]))
        connection.exec_driver_sql(f"DELETE FROM {outbox.name} WHERE position IN ({listed})")  # noqa: S608 - numbers of ours
    refusals.keep(connection, refused, behind)
