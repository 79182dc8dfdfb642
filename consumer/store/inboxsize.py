"""How large the inbox is, and whether it is forgotten in time: estimates that cost the same whatever its size.

Databases count neither rows nor times on request without reading them all. What they know from their own statistics has to do,
and a sample in place of the oldest row. What they don't know is None, never 0.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, text

from shardctl.shard.engine import MYSQL
from shardctl.shard.schema import inbox, published_now

SAMPLE_PAGES = 64  # of PostgreSQL, up to 8,000 rows: where one row in a thousand is overdue, one of them is seen
SAMPLE_ROWS = 2_000  # of a random slot, first those with the lowest identities: of UUIDv7 keys, the oldest

# Rows in a page, as the last VACUUM or ANALYZE counted them, times the pages that there are now: as the planner reckons.
_POSTGRESQL = text(f"""
SELECT CASE WHEN pages = 0 THEN 0 WHEN relpages > 0 AND reltuples >= 0 THEN round(reltuples::numeric / relpages * pages) END,
  pg_total_relation_size(oid), pages
FROM (
  SELECT oid, reltuples, relpages, pg_relation_size(oid) / current_setting('block_size')::int AS pages
  FROM pg_class WHERE oid = '{inbox.name}'::regclass
) AS inbox
""")  # noqa: S608 - a constant
_MYSQL = text(f"""
SELECT CASE WHEN table_rows > 0 OR NOT EXISTS (SELECT 1 FROM {inbox.name}) THEN table_rows END, data_length + index_length
FROM information_schema.tables WHERE table_schema = database() AND table_name = '{inbox.name}'
""")  # noqa: S608 - a constant
_PAGES_SAMPLED = text(
    f"SELECT min(published) FROM {inbox.name} TABLESAMPLE SYSTEM (:percent) WHERE outcome IS NULL"  # noqa: S608 - a constant
)


@dataclass(frozen=True, slots=True)
class InboxSize:
    """`bytes` are with indexes. `overdue_seconds` says how long ago the oldest applied row that a sample met should have been
    forgotten; 0 where it need not be yet.
    """

    rows: int | None = None
    bytes: int | None = None
    overdue_seconds: int | None = None


UNKNOWN = InboxSize()


def measure(connection: Connection, retention_seconds: int) -> InboxSize:
    """`retention_seconds` is that of applied writes."""
    rows, size, oldest = _postgresql(connection) if connection.dialect.name == "postgresql" else _by_key(connection)
    overdue = None if oldest is None else max(0, published_now(connection) - retention_seconds - oldest)
    return InboxSize(rows, size, overdue)


def _postgresql(connection: Connection) -> tuple[int | None, int | None, int | None]:
    rows, size, pages = connection.execute(_POSTGRESQL).one()
    percent = min(100.0, 100.0 * SAMPLE_PAGES / pages) if pages else 100.0
    return None if rows is None else int(rows), size, connection.scalar(_PAGES_SAMPLED, {"percent": percent})


def _by_key(connection: Connection) -> tuple[int | None, int | None, int | None]:
    """SQLite knows the size of its whole file alone."""
    rows, size = connection.execute(_MYSQL).one() if connection.dialect.name in MYSQL else (None, None)
    slot = random.randrange((connection.scalar(select(func.max(inbox.c.slot))) or 0) + 1)
    in_order = select(inbox.c.published, inbox.c.outcome).where(inbox.c.slot >= slot)
    sample = in_order.order_by(inbox.c.slot, inbox.c.identity).limit(SAMPLE_ROWS).subquery()
    oldest = connection.scalar(select(func.min(sample.c.published)).where(sample.c.outcome.is_(None)))
    return rows, size, oldest
