"""Which messages go into the next transaction. Pure: `now` is an argument, in seconds of any monotonic clock.

Invariant, the root of order: the messages of a slot leave in the order in which they came, and none leaves while an earlier one
of its slot is still in hand. A batch that must be tried again goes back to the front.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from consumer.delivery import Delivery


@dataclass(slots=True)
class _Waiting:
    deliveries: deque[Delivery]
    since: float  # when the first of them came
    bytes: int = 0
    not_before: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Messages of several slots, in order within each slot. The slots are in hand until the batch is `done` or `back`."""

    deliveries: list[Delivery]
    slots: tuple[int, ...]


class Batcher:
    """Queues a slot each; batches bounded by rows, bytes and age."""

    def __init__(self, max_rows: int, max_bytes: int, max_age_seconds: float) -> None:
        self._max_rows, self._max_bytes, self._max_age = max_rows, max_bytes, max_age_seconds
        self._waiting: OrderedDict[int, _Waiting] = OrderedDict()  # free slots, the one that waits longest first
        self._in_hand: dict[int, _Waiting] = {}  # slots of batches out: what came for them meanwhile
        self._free_rows = 0  # of free slots
        self._free_bytes = 0

    def add(self, deliveries: Iterable[Delivery], now: float) -> None:
        waiting, in_hand = self._waiting, self._in_hand
        for delivery in deliveries:
            slot = delivery.slot
            queue = in_hand.get(slot)
            if queue is None:
                queue = waiting.get(slot)
                if queue is None:
                    queue = waiting[slot] = _Waiting(deque(), now)
                self._free_rows += 1
                self._free_bytes += delivery.size
            elif not queue.deliveries:
                queue.since = now
            queue.deliveries.append(delivery)
            queue.bytes += delivery.size

    def take(self, now: float, *, flush: bool = False) -> Batch | None:
        """The next batch, or None when there is nothing, or not yet enough and nothing is old enough."""
        if not self._waiting or not (flush or self._is_due(now)):
            return None
        taken: list[Delivery] = []
        slots: list[int] = []
        size = 0
        for slot, queue in list(self._waiting.items()):
            if queue.not_before > now:
                continue
            del self._waiting[slot]
            self._in_hand[slot] = queue
            self._free_rows -= len(queue.deliveries)
            self._free_bytes -= queue.bytes
            slots.append(slot)
            while queue.deliveries and len(taken) < self._max_rows and size < self._max_bytes:
                delivery = queue.deliveries.popleft()
                queue.bytes -= delivery.size
                size += delivery.size
                taken.append(delivery)
            if len(taken) >= self._max_rows or size >= self._max_bytes:
                break
        return Batch(taken, tuple(slots)) if taken else None

    def due_at(self, now: float) -> float | None:
        """When `take` will give something if nothing else comes; None when only new messages can make it so."""
        moments = [max(queue.since + self._max_age, queue.not_before) for queue in self._waiting.values()]
        return max(now, min(moments)) if moments else None

    def done(self, batch: Batch) -> None:
        """The batch is settled: what came for its slots meanwhile may follow."""
        for slot in batch.slots:
            self._give_up(slot, 0.0)

    def back(self, batch: Batch, unsettled: Iterable[Delivery], not_before: float) -> None:
        """Put `unsettled`, in order, before whatever came for their slots, and try them no sooner than `not_before`."""
        returned: dict[int, list[Delivery]] = {}
        for delivery in unsettled:
            returned.setdefault(delivery.slot, []).append(delivery)
        for slot in batch.slots:
            kept = returned.get(slot)
            if kept:
                queue = self._in_hand[slot]
                queue.deliveries.extendleft(reversed(kept))
                queue.bytes += sum(delivery.size for delivery in kept)
            self._give_up(slot, not_before if kept else 0.0)

    def drain(self) -> list[Delivery]:
        """Take out everything that is not in hand, to hand it back to the broker."""
        queues = [*self._waiting.values(), *self._in_hand.values()]
        left = [delivery for queue in queues for delivery in queue.deliveries]
        for queue in queues:
            queue.deliveries.clear()
            queue.bytes = 0
        self._waiting.clear()
        self._free_rows = self._free_bytes = 0
        return left

    def _give_up(self, slot: int, not_before: float) -> None:
        queue = self._in_hand.pop(slot)
        if queue.deliveries:
            queue.not_before = not_before
            self._waiting[slot] = queue
            self._free_rows += len(queue.deliveries)
            self._free_bytes += queue.bytes

    def _is_due(self, now: float) -> bool:
        if self._free_rows >= self._max_rows or self._free_bytes >= self._max_bytes:
            return True
        return any(queue.since + self._max_age <= now for queue in self._waiting.values())
