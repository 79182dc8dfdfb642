"""Forgetting: what the inbox needn't remember any more is found by walking through the whole of it, a chunk at a time.

An index of times would be written to with each row; a walk costs nothing until it comes by, and its pace is its own. It may take
a part of the retention for each round: rows stay so much longer.

PostgreSQL's rows are walked through as they lie, by page. It finds those of a range of pages since version 14; an older one, and
other databases, are walked through by primary key. Rows that somebody has locked are passed over, so nobody waits for long and
nobody ends in a deadlock. A walk begins somewhere, so that replicas that never get to its end still come by everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import ColumnElement, Connection, and_, delete, func, literal_column, or_, select

from shardctl.shard.engine import MYSQL
from shardctl.shard.schema import InboxOutcome, inbox

ROWS_A_PAGE = 128  # where there are no pages to count
_FIRST_PAGES_VERSION = (14,)
_BEFORE_ALL = bytes(16)

# Each row found by its key: left to itself, MySQL may look through the whole inbox, and wait for rows of others there.
_DELETE_EACH_BY_KEY = (
    "DELETE t FROM JSON_TABLE(%s, '$[*]' COLUMNS (digits char(32) CHARACTER SET ascii PATH '$')) AS r "
    f"STRAIGHT_JOIN {inbox.name} AS t FORCE INDEX (PRIMARY) ON t.slot = %s AND t.identity = unhex(r.digits)"
)

At = int | tuple[int, bytes] | None  # a page, or a slot and the identity before; None: somewhere


@dataclass(frozen=True, slots=True)
class Swept:
    """What became of a chunk: `gone` rows were deleted. The next one is `at`; the walk is `over` when that is the beginning."""

    gone: int
    at: At
    over: bool


@dataclass(frozen=True, slots=True)
class Retention:
    """How long rows stay after their writes were published, in seconds: those of applied writes, and those that mean a letter."""

    applied: int
    letters: int


def forgettable(now: int, retention: Retention) -> ColumnElement[bool]:
    """The rows that nothing can ask for any more; `now` in seconds as the inbox has them.

    Pub/Sub brings an applied write again for as long as its subscription retains it. A dead or replayed write comes again as long
    as there may be a letter of it, and a parked one has not taken effect yet.
    """
    applied, of_letters = inbox.c.outcome.is_(None), inbox.c.outcome.in_((InboxOutcome.DEAD, InboxOutcome.REPLAYED))
    return or_(
        and_(applied, inbox.c.published < now - retention.applied),
        and_(of_letters, inbox.c.published < now - retention.letters),
    )


def chunk(connection: Connection, old: ColumnElement[bool], at: At, pages: int) -> Swept:
    """Delete the `old` rows from `at` on, within so many pages, in the caller's transaction."""
    if (
        connection.dialect.name == "postgresql"
        and (connection.dialect.server_version_info or ()) >= _FIRST_PAGES_VERSION
    ):
        return _by_page(connection, old, at if isinstance(at, int) else None, pages)
    return _by_key(connection, old, at if isinstance(at, tuple) else None, pages * ROWS_A_PAGE)


def _by_page(connection: Connection, old: ColumnElement[bool], at: int | None, pages: int) -> Swept:
    total: int = connection.exec_driver_sql(
        f"SELECT pg_relation_size('{inbox.name}') / current_setting('block_size')::int"
    ).scalar_one()
    first = random.randrange(max(1, total)) if at is None else at
    end = first + pages
    place: ColumnElement[str] = literal_column("ctid")
    within: ColumnElement[bool] = literal_column(f"ctid >= '({first},0)' AND ctid < '({end},0)'")
    rows = select(place).select_from(inbox).where(within, old).with_for_update(skip_locked=True)
    forgettable_rows = rows.cte("forgettable_rows")
    gone = connection.execute(
        delete(inbox).where(place == func.any(func.array(select(forgettable_rows.c.ctid).scalar_subquery())))
    )
    return Swept(gone.rowcount, 0 if end >= total else end, over=end >= total)


def _by_key(connection: Connection, old: ColumnElement[bool], at: tuple[int, bytes] | None, rows: int) -> Swept:
    if at is None:
        last_slot = connection.scalar(select(func.max(inbox.c.slot))) or 0
        at = random.randrange(last_slot + 1), _BEFORE_ALL
    slot, after = at
    part = and_(inbox.c.slot == slot, inbox.c.identity > after)
    in_order = select(inbox.c.identity).where(part).order_by(inbox.c.identity)
    last = connection.scalar(in_order.offset(rows - 1).limit(1))
    if last is not None:
        part = and_(part, inbox.c.identity <= last)
    # First read without a lock: a locking read would wait for rows that are being inserted, or pass by with locks on the others.
    identities = connection.scalars(select(inbox.c.identity).where(part, old)).all()
    gone = _delete(connection, slot, identities, old) if identities else 0
    if last is not None:
        return Swept(gone, (slot, last), over=False)
    following = connection.scalar(select(func.min(inbox.c.slot)).where(inbox.c.slot > slot))
    return Swept(gone, (0 if following is None else following, _BEFORE_ALL), over=following is None)


def _delete(connection: Connection, slot: int, identities: Sequence[bytes], old: ColumnElement[bool]) -> int:
    rows = and_(inbox.c.slot == slot, inbox.c.identity.in_(identities), old)
    free = connection.scalars(select(inbox.c.identity).where(rows).with_for_update(skip_locked=True)).all()
    if not free:
        return 0
    if connection.dialect.name in MYSQL:
        digits = orjson.dumps([identity.hex() for identity in free]).decode()
        return connection.exec_driver_sql(_DELETE_EACH_BY_KEY, (digits, slot)).rowcount
    return connection.execute(delete(inbox).where(inbox.c.slot == slot, inbox.c.identity.in_(free))).rowcount
