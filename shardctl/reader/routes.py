"""Which slot a read is of, and which shards may hold it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime

from shardctl.errors import UsageError
from shardctl.fleet import tables, topology
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec import Fleet
from shardctl.wire.bodies import BodyError, check_spelling
from shardctl.wire.message import InvalidWriteError, slot_for

Key = str | int


class Routes:
    """What the file says of keys, tables and shards. Where slots are now, only the databases say.

    `newer`: shards that the file doesn't have yet. They count as shards that take every type.
    """

    def __init__(self, fleet: Fleet, newer: Collection[str] = ()) -> None:
        self.fleet = fleet
        self._newer = tuple(name for name in newer if name not in {shard.name for shard in fleet.shards})
        if self._newer and any(shard.types or shard.except_types for shard in fleet.shards):
            raise UsageError(
                f"the file has no shard {', '.join(self._newer)}, and its shards differ in their types: load the newer file."
            )
        self.shards = (*(shard.name for shard in fleet.shards), *self._newer)
        self.slot_columns: Mapping[str, str] = tables.slot_columns(fleet.message_types)
        self.slots = 1 << fleet.routing.slot_bits
        self._rule = fleet.routing.rule
        self._timed = [name for name, kind in fleet.message_types.items() if kind.time_bucket]
        self._holders = {name: self._holders_of(name) for name in fleet.message_types}

    def slot(self, key: Key, message_type: str | None, at: datetime | None) -> int:
        """Raises UsageError. `at` is for a type that is routed by time."""
        kind = None if message_type is None else self.kind(message_type)
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise UsageError(f"a routing key is text or a whole number, not {type(key).__name__}.")
        if message_type is None and (self._timed or at is not None):
            listed = ", ".join(self._timed) or "none"
            raise UsageError(f"types that are routed by time: {listed}. Name the type that is read, with type=.")
        body = {}
        if kind is not None and kind.time_bucket is not None:
            if at is None:
                raise UsageError(f"type {message_type!r} is routed by time: pass the row's time with at=.")
            body = {kind.time_bucket.field: at.isoformat()}
        try:
            if kind is not None:
                check_spelling(kind, str(key))
            return slot_for(kind, str(key), body, self._rule)
        except (BodyError, InvalidWriteError, UnicodeEncodeError) as error:
            raise UsageError(str(error)) from error

    def kind(self, message_type: str) -> MessageType:
        if message_type not in self.fleet.message_types:
            raise UsageError(
                f"no message type {message_type!r}; types: {', '.join(self.fleet.message_types)}. Pass one with type=."
            )
        return self.fleet.message_types[message_type]

    def types_of_table(self, table: str) -> list[str]:
        return [
            name for name, kind in self.fleet.message_types.items() if table == kind.table or table in kind.slot_tables
        ]

    def holders(self, types: Collection[str]) -> tuple[str, ...]:
        """The shards that take these types: each slot is active in one of them. Raises UsageError where types differ."""
        holders = {self._holders[name] for name in types or self.fleet.message_types}
        if len(holders) > 1:
            raise UsageError("the message types lie in different shards: name the type that is read, with type=.")
        return holders.pop()

    def listed(self, holders: Collection[str], slot: int) -> Iterator[str]:
        """Where the file has a slot, the newest place first; then the other shards, where a newer file may have it."""
        shards = [shard for shard in self.fleet.shards if shard.name in holders]
        here = [shard.name for shard in shards if slot in shard.slots]
        before = [shard.name for shard in shards if any(slot in place.slots for place in topology.generations(shard))]
        yield from dict.fromkeys((*here, *before, *holders))

    def _holders_of(self, message_type: str) -> tuple[str, ...]:
        return (*(shard.name for shard in self.fleet.shards if shard.takes(message_type)), *self._newer)
