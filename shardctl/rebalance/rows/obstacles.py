"""Whether rows of tables can be taken from one database to another without loss or harm, whatever the tables' columns are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection

from shardctl.rebalance.rows.effects import effects
from shardctl.rebalance.rows.hidden import hidden
from shardctl.rebalance.rows.referrers import stray_keys
from shardctl.rebalance.rows.shape import SlotTable


def obstacles(connection: Connection, tables: Sequence[SlotTable]) -> Iterator[str]:
    """What the copy wouldn't see and what the deletion would reach beside, each reason with the way out. Reads no rows."""
    yield from hidden(connection, tables)
    yield from stray_keys(connection, tables)
    yield from effects(connection, tables)
