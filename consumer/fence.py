"""Which slots this shard's database holds active, as a write transaction may believe it.

Invariant: a write commits only where its slot is active at the writer's generation. Each write transaction shares the fence row
until it commits; whoever changes a slot takes the row alone first and raises its version. So the slot map a transaction has
checked can't change under it.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from consumer.errors import AgainError
from consumer.rows import Dialect
from shardctl import schema
from shardctl.schema import LaneState


class Fence:
    """The slot map, read again whenever the fence's version has changed."""

    def __init__(self, dialect: Dialect, generations: frozenset[int]) -> None:
        self._dialect, self._generations = dialect, generations
        # One value, since threads share it: a thread that was held up must not pair its old map with a newer version.
        self._known: tuple[int | None, frozenset[int]] = (None, frozenset())

    def share(self, connection: Connection) -> frozenset[int]:
        """Share the fence until the transaction ends; the slots that are active here in a generation this consumer reads."""
        version = connection.exec_driver_sql(self._dialect.share_fence).scalar()
        if version is None:
            raise AgainError("the shard's tables are empty: run `shardctl provision`")
        known_version, active = self._known
        if version != known_version:
            rows = connection.execute(
                select(schema.slots.c.slot, schema.slots.c.generation).where(schema.slots.c.state == LaneState.ACTIVE)
            )
            active = frozenset(slot for slot, generation in rows if generation in self._generations)
            self._known = version, active
        return active
