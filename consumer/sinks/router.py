"""One sink over several: each message goes to the sink of its type, and each routing key keeps its order."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from consumer.delivery import Delivery
from consumer.sinks import custom
from consumer.sinks.base import LoggedSink
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.shard.changes import Change


def sink_of(sql: LoggedSink, kinds: dict[str, MessageType], http: LoggedSink | None = None) -> LoggedSink:
    """The sink for these types: the SQL sink itself where no type has one of its own. Raises SinkError.

    Types that name the same factory share one sink, so their writes come to it in one call; those with backends share `http`.
    """
    by_path: dict[str, LoggedSink] = {}
    for name, kind in kinds.items():
        if kind.sink is not None and kind.sink not in by_path:
            by_path[kind.sink] = custom.load(name, kind.sink, kinds)
    own: dict[str, LoggedSink] = {name: by_path[kind.sink] for name, kind in kinds.items() if kind.sink is not None}
    if http is not None:
        own |= {name: http for name, kind in kinds.items() if kind.http is not None}
    return Router({name: own.get(name, sql) for name in kinds}, kinds) if own else sql


@dataclass(frozen=True, slots=True)
class Share:
    """Writes that one call of a sink applies."""

    sink: LoggedSink
    writes: list[Delivery]


def share_out(
    writes: Sequence[Delivery], sinks: Mapping[str, LoggedSink], kinds: Mapping[str, MessageType]
) -> list[Share]:
    """Cut writes into calls that, one after the other, keep the order of each routing key, and of the writes to each row.

    A write joins the first call of its sink that doesn't come before the writes that it must follow: few calls for any mixture.
    """
    shares: list[Share] = []
    places: dict[int, list[int]] = {}  # by sink, the numbers of its shares
    last: dict[Any, int] = {}  # by routing key and by row, the share that holds its last write
    for write in writes:
        sink, table = sinks[write.message_type], kinds[write.message_type].table
        follows: list[Any] = [(write.slot, write.partition_key)]
        if table:
            follows.append((table, write.row))
        earliest = max(last.get(key, 0) for key in follows)
        mine = places.setdefault(id(sink), [])
        at = bisect_left(mine, earliest)
        if at == len(mine):
            mine.append(len(shares))
            shares.append(Share(sink, []))
        shares[mine[at]].writes.append(write)
        last.update(dict.fromkeys(follows, mine[at]))
    return shares


class Router:
    def __init__(self, sinks: Mapping[str, LoggedSink], kinds: Mapping[str, MessageType]) -> None:
        self._sinks, self._kinds = sinks, kinds

    def check(self, delivery: Delivery) -> None:
        self._sinks[delivery.message_type].check(delivery)

    def apply(self, connection: Connection, writes: Sequence[Delivery]) -> int:
        shares = share_out(writes, self._sinks, self._kinds)
        return sum(share.sink.apply(connection, share.writes) for share in shares)

    def changes(self, writes: Sequence[Delivery]) -> Iterator[Change]:
        for write in writes:
            yield from self._sinks[write.message_type].changes((write,))
