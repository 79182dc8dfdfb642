"""When leases end: tenths of a second share a bucket, so no message needs a timer and an acked lease leaves nothing."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from shardctl.broker.orderingqueue import Entry

BUCKETS_A_SECOND = 10


class Deadlines:
    def __init__(self) -> None:
        self._buckets: dict[int, set[Entry]] = {}
        self._order: list[int] = []

    def add(self, entries: Sequence[Entry], deadline: float) -> None:
        """Ends these leases at the first tenth of a second that isn't before `deadline`."""
        if not entries:
            return
        bucket = math.ceil(round(deadline * BUCKETS_A_SECOND, 3))
        members = self._buckets.get(bucket)
        if members is None:
            members = self._buckets[bucket] = set()
            heapq.heappush(self._order, bucket)
        for entry in entries:
            entry.bucket = bucket
            members.add(entry)

    def remove(self, entry: Entry) -> None:
        members = self._buckets.get(entry.bucket)
        if members is not None:
            members.discard(entry)

    def due(self, now: float) -> Sequence[Entry]:
        """Removes and returns what has ended by `now`, oldest message first."""
        ended: list[Entry] = []
        while self._order and self._order[0] <= now * BUCKETS_A_SECOND:
            ended.extend(self._buckets.pop(heapq.heappop(self._order)))
        ended.sort(key=lambda entry: entry.message.number)
        return ended

    def clear(self) -> None:
        self._buckets.clear()
        self._order.clear()
