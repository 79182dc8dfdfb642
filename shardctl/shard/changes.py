"""The log of changes: the keys of what has changed in a slot while its rows are copied to another database, or since they were.

Invariant: while a lane is logged, a transaction that changes rows of its slot adds their keys here. So a committed change that a
snapshot doesn't show, taken after the log began, has its key here, unless it was copied since and deleted here.

It holds because a log begins under the fence alone (`lanes.begin_logs`, `lanes.activate`), and each transaction that writes
shares the fence before it asks whether its lanes are logged: those that began before have committed, and later ones see it.
Who writes: consumers (`consumer.store.transaction`), the dead-letter desk (`shardctl.deadletter.inboxes`), and the command that
drops parked messages (`shardctl.shard.parked`). What is purged for its age isn't logged: remembered for longer, it does no harm.

More keys than have changed do no harm either: a key says where to look, never what is there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, delete, func, select

from shardctl.fleet.settings.columns import ColumnType
from shardctl.shard import database
from shardctl.shard.jsonrows import rows_of
from shardctl.shard.lanes import share_fence
from shardctl.shard.schema import LaneState, changes, inbox, lanes, parked_keys

# In place of a table's name: the key is the routing key of a write that a sink of the user's own brought about, wherever.
ROUTING_KEY = ""
BYTES_AT_ONCE = 1 << 19  # far below what any server takes in one request
ROWS_AT_ONCE = 5_000
MOST_CHANGES = 20_000_000  # of the logs for the way back, in one database: about 4 GB

_INSERT = "INSERT INTO {0} (slot, table_name, {1}) SELECT r.slot, r.table_name, r.{1} FROM {2} WHERE true"


class Change(NamedTuple):
    """What `table` holds of `slot` under `key` may have changed."""

    slot: int
    table: str
    key: tuple[Any, ...]  # as JSON has it; times as UTC text, decimals as their digits, bytes as hexadecimal digits


def of_inbox(slot: int, identity: bytes) -> Change:
    return Change(slot, inbox.name, (identity.hex(),))


def of_parked(slot: int, message_type: str, routing_key: str) -> Change:
    """Both the parked key and its messages."""
    return Change(slot, parked_keys.name, (message_type, routing_key))


def of_routing_key(slot: int, routing_key: str) -> Change:
    return Change(slot, ROUTING_KEY, (routing_key,))


def logged(connection: Connection, slots: Collection[int]) -> frozenset[int]:
    """Those of the slots whose changes must be logged. In a transaction that shares the fence."""
    query = select(lanes.c.slot).where(
        lanes.c.slot.in_(slots), lanes.c.state == LaneState.ACTIVE, lanes.c.log.is_not(None)
    )
    return frozenset(connection.scalars(query))


def record(connection: Connection, logged_changes: Iterable[Change]) -> None:
    """Add changes of logged slots to the log, in the caller's transaction."""
    product = connection.dialect.name
    key = connection.dialect.identifier_preparer.quote(changes.c.key.name)
    statement = _INSERT.format(changes.name, key, rows_of(product, _COLUMNS))
    for text in _texts(logged_changes):
        connection.exec_driver_sql(statement, (text,))


def empty(engine: Engine) -> None:
    """Delete what is left of logs that have ended, a part a transaction. Safe to run again."""
    more = True
    while more:
        with database.writing(engine) as connection:
            more = delete_some(connection) == ROWS_AT_ONCE


def delete_some(connection: Connection) -> int:
    """Delete some of what is left of logs that have ended; how many rows there were, less than ROWS_AT_ONCE at the end.

    Shares the fence, under which no log begins: else one might lose its first rows.
    """
    share_fence(connection)
    alive = select(lanes.c.slot).where(lanes.c.log.is_not(None))
    ended = select(changes.c.position).limit(ROWS_AT_ONCE)
    if connection.scalar(alive.limit(1)) is not None:
        # By their numbers, since by those the index finds them.
        others = select(lanes.c.slot).where(lanes.c.slot.not_in(alive))
        ended = ended.where(changes.c.slot.in_(others))
    some = connection.scalars(ended).all()
    connection.execute(delete(changes).where(changes.c.position.in_(some)))
    return len(some)


def outgrown(connection: Connection, logged_slots: Collection[int], most: int = MOST_CHANGES) -> list[int]:
    """Those of the slots that have more than their share of the log, where all together have about so many rows, or more.

    A slot that is being brought up to date elsewhere has few.
    """
    if not logged_slots or most_rows(connection) < most:
        return []
    share = most // len(logged_slots)
    return [slot for slot in sorted(logged_slots) if _has_rows(connection, slot, share)]


def most_rows(connection: Connection) -> int:
    """The log has no more rows than this, without counting them. It may have far fewer, where some were deleted in its middle."""
    first, last = connection.execute(select(func.min(changes.c.position), func.max(changes.c.position))).one()
    return 0 if first is None else last - first + 1


def _has_rows(connection: Connection, slot: int, least: int) -> bool:
    its = select(changes.c.position).where(changes.c.slot == slot).limit(least).subquery()
    return (connection.scalar(select(func.count()).select_from(its)) or 0) >= least


_COLUMNS: tuple[tuple[str, ColumnType], ...] = (("slot", "integer"), ("table_name", "text"), ("key", "text"))


def _texts(logged_changes: Iterable[Change]) -> Iterator[str]:
    rows, size = [], 0
    for change in dict.fromkeys(logged_changes):
        key = json.dumps(change.key, ensure_ascii=False, separators=(",", ":"))
        row = json.dumps({"slot": change.slot, "table_name": change.table, "key": key}, ensure_ascii=False)
        rows.append(row)
        size += len(row)
        if size > BYTES_AT_ONCE // 4:  # a character may take four bytes
            yield f"[{','.join(rows)}]"
            rows, size = [], 0
    if rows:
        yield f"[{','.join(rows)}]"
