"""Which lanes this shard's database holds, as a write transaction may believe it.

Invariant: a write commits only where its lane is active. Each write transaction shares the fence row until it commits; a session
that changes a lane first locks the fence exclusively and raises its version. So the lanes that a transaction has seen can't
change before it commits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from consumer.database.dialects import Dialect
from consumer.errors import TransientError
from shardctl.shard import inbox_0_1, lanes
from shardctl.shard.engine import SETTINGS_ARE_LOST
from shardctl.shard.lanes import Lane
from shardctl.shard.schema import LaneState


@dataclass(frozen=True, slots=True)
class Lanes:
    """The lanes of a database at one version of its fence. `others` are those that aren't active.

    Of slots in `logged` every change is to be logged: see `shardctl.shard.changes`. `old_inbox`: rows of 0.1.0 may still lie in a
    table of their own, see `shardctl.shard.upgrade`.
    """

    version: int
    active: frozenset[int]
    active_slots: frozenset[int]
    others: Mapping[int, Lane]
    logged: frozenset[int] = frozenset()
    old_inbox: bool = False


class Fence:
    """The lanes, read again whenever the fence's version has changed."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        # One value, since threads share it: a thread that was held up must not pair its old lanes with a newer version.
        self._known: Lanes | None = None

    def share(self, connection: Connection) -> Lanes:
        """Share the fence until the transaction ends; the lanes as they are until then. Raises TransientError."""
        row = connection.exec_driver_sql(self._dialect.share_fence).first()
        if row is None:
            raise TransientError("the shard's tables are empty: run `shardctl provision`")
        version, *session_holds = row
        if not all(session_holds):
            connection.invalidate()
            raise TransientError(f"database: {SETTINGS_ARE_LOST}")
        known = self._known
        if known is None or version != known.version:
            self._known = known = _lanes(version, lanes.read(connection), old_inbox=inbox_0_1.has_rows(connection))
        return known

    def look(self, connection: Connection) -> Lanes:
        """The lanes as they were a moment ago: what is read from the database after this call is at least as new."""
        version, known = lanes.version(connection), self._known
        if known is None or version != known.version:
            return _lanes(version or 0, lanes.read(connection), old_inbox=inbox_0_1.has_rows(connection))
        return known


def _lanes(version: int, rows: Mapping[int, Lane], *, old_inbox: bool) -> Lanes:
    active = {lane: row for lane, row in rows.items() if row.state == LaneState.ACTIVE}
    return Lanes(
        version,
        frozenset(active),
        frozenset(row.slot for row in active.values()),
        {lane: row for lane, row in rows.items() if lane not in active},
        frozenset(row.slot for row in active.values() if row.log is not None),
        old_inbox,
    )
