"""Which messages go into the next transaction. Pure: `now` is an argument, in seconds of any monotonic clock.

Invariant, the root of order: the messages of a lane leave in the order in which they came, and none leaves while an earlier one
of its lane is still in flight. A batch that must be tried again goes back to the front. A barrier ends its lane's part of a
batch.

A batch leaves at once if none has left for `pause_seconds`, or for `LONE_SHARE` of that after a batch of a single message.
Otherwise it leaves when it is full, or that long after the one before. So a lone write doesn't wait, writes that come now and
then wait little, and steady traffic makes few batches: one costs as much CPU as a hundred messages, however few it holds.
A barrier doesn't wait: until it is met, nobody may write to its slot.

A batch that is blocked is split: its lanes are suspects and are tried again in smaller parts, one part at a time, so that lanes
that really wait end up alone and take one worker at most. Meanwhile no batch waits long for a lock.

Each lane waits by itself: while slots move, messages that one generation must hold back don't block those that another may write.

No call looks at every lane: with 65,536 of them, and a call for each response of the broker, that alone would fill a CPU.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from consumer.delivery import Delivery
from shardctl.fleet.settings.consuming import LONE_SHARE
from shardctl.supervision.backoff import WITHOUT_CHANCE, backoff

SPLIT = 8  # into so many parts: a batch of a thousand lanes is down to single ones after four tries
FREE_LOCK_SECONDS = 0.5  # how long a batch waits for a lock while others are blocked
FIRST_LOCK_SECONDS, LAST_LOCK_SECONDS = 0.1, 5.0  # and one of suspects: longer each time, the less the more there are


@dataclass(slots=True, eq=False)
class _Queue:
    """The messages of one lane that wait. `entry` distinguishes its live heap entry from dead ones.

    A suspect may go into batches of `most_lanes`, after `blocked` tries without success; 0 and 0 for any other.
    """

    lane: int
    deliveries: deque[Delivery]
    bytes: int = 0
    entry: int = 0
    most_lanes: int = 0
    blocked: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Messages of several lanes, in order within each lane. The lanes are in flight until the batch is `done`, `back` or `split`.

    `lock_seconds`: for how long it should wait for a lock at most; None: as long as any statement may take.
    """

    deliveries: list[Delivery]
    lanes: tuple[int, ...]
    of_suspects: bool = False
    lock_seconds: float | None = None


class Batcher:
    """A queue for each lane; batches bounded by rows and bytes. The message that crosses `max_bytes` is still included."""

    def __init__(self, max_rows: int, max_bytes: int, pause_seconds: float) -> None:
        self._max_rows, self._max_bytes, self._pause = max_rows, max_bytes, pause_seconds
        self._next_at = float("-inf")  # when a batch may leave that isn't full
        self._free: OrderedDict[int, _Queue] = OrderedDict()  # the lane that waits longest for its turn first
        self._in_flight: dict[int, _Queue] = {}  # lanes of batches that are out: messages that came meanwhile
        self._later: dict[int, _Queue] = {}  # lanes to be tried again, but not yet
        self._suspects: OrderedDict[int, _Queue] = OrderedDict()  # those of them that may be tried
        self._suspected: set[int] = set()  # all that were in a batch that was blocked, wherever they are
        self._trying = False  # a batch of suspects is out
        self._free_next = False  # the last batch was one of suspects
        self._retries = _Moments()  # when each later lane may be tried
        self._free_rows = 0
        self._free_bytes = 0

    def add(self, deliveries: Iterable[Delivery]) -> None:
        free, in_flight, later, suspects = self._free, self._in_flight, self._later, self._suspects
        for delivery in deliveries:
            lane = delivery.lane
            queue = free.get(lane)
            if queue is None and (queue := in_flight.get(lane) or later.get(lane) or suspects.get(lane)) is None:
                queue = _Queue(lane, deque())
                self._set_free(queue)
            queue.deliveries.append(delivery)
            queue.bytes += delivery.size
            if lane in free:
                self._free_rows += 1
                self._free_bytes += delivery.size
                if delivery.barrier is not None:
                    self._next_at = float("-inf")

    def take(self, now: float) -> Batch | None:
        """The next batch, or None when there is nothing, or not yet enough and the last one left a moment ago."""
        self._free_what_may_be_tried(now)
        ready = bool(self._free) and (self._is_full or now >= self._next_at)
        # They alternate, so that suspects don't hold up free lanes even where there is one worker.
        if self._suspects and not self._trying and not (ready and self._free_next):
            return self._take_suspects()
        return self._take_free(now) if ready else None

    @property
    def _is_full(self) -> bool:
        return self._free_rows >= self._max_rows or self._free_bytes >= self._max_bytes

    def pause_left(self, now: float) -> float:
        """Seconds for which no batch of free lanes will leave, unless it gets full."""
        return 0.0 if self._is_full else max(0.0, self._next_at - now)

    def _take_free(self, now: float) -> Batch:
        self._free_next = False
        cut = _Cut(self._max_rows, self._max_bytes)
        while self._free and cut.has_room:
            lane, queue = self._free.popitem(last=False)
            self._in_flight[lane] = queue
            self._free_rows -= len(queue.deliveries)
            self._free_bytes -= queue.bytes
            cut.take(queue)
        self._next_at = now + self._pause * (LONE_SHARE if len(cut.deliveries) == 1 else 1)
        return Batch(cut.deliveries, tuple(cut.lanes), lock_seconds=FREE_LOCK_SECONDS if self._suspected else None)

    def _take_suspects(self) -> Batch:
        self._trying = self._free_next = True
        cut = _Cut(self._max_rows, self._max_bytes)
        most, blocked = self._max_rows, 0
        while self._suspects and cut.has_room:
            lane, queue = next(iter(self._suspects.items()))
            most, blocked = min(most, queue.most_lanes), max(blocked, queue.blocked)
            if len(cut.lanes) >= most:
                break
            del self._suspects[lane]
            self._in_flight[lane] = queue
            cut.take(queue)
        longer = backoff(blocked, FIRST_LOCK_SECONDS, LAST_LOCK_SECONDS, WITHOUT_CHANCE) / len(self._suspected)
        return Batch(cut.deliveries, tuple(cut.lanes), True, max(FIRST_LOCK_SECONDS, longer))

    def due_at(self, now: float) -> float | None:
        """When `take` will return a batch if no message comes; None if only new messages can make one."""
        if (self._suspects and not self._trying) or self._is_full:
            return now
        retry_at = self._retries.first()
        moments = [*([self._next_at] if self._free else []), *([] if retry_at is None else [retry_at])]
        return max(now, min(moments)) if moments else None

    def done(self, batch: Batch) -> None:
        """The batch is settled: messages that came for its lanes meanwhile may follow."""
        self._trying = self._trying and not batch.of_suspects
        for lane in batch.lanes:
            self._free_lane(lane, None)

    def back(self, batch: Batch, unsettled: Iterable[Delivery], not_before: float) -> None:
        """Put `unsettled`, in order, before later messages of their lanes, and try them no sooner than `not_before`.

        The batch went through, so none of its lanes is blocked: what comes back waits for something else than a lock.
        """
        for lane in batch.lanes:
            self._trust(self._in_flight[lane])
        self._put_back(batch, unsettled, not_before)

    def back_whole(self, batch: Batch, not_before: float) -> None:
        """Put back all of a batch that failed: its suspects stay suspects."""
        self._put_back(batch, batch.deliveries, not_before)

    def _put_back(self, batch: Batch, unsettled: Iterable[Delivery], not_before: float) -> None:
        returned: dict[int, list[Delivery]] = {}
        for delivery in unsettled:
            returned.setdefault(delivery.lane, []).append(delivery)
        self._trying = self._trying and not batch.of_suspects
        for lane in batch.lanes:
            kept = returned.get(lane)
            if kept:
                queue = self._in_flight[lane]
                queue.deliveries.extendleft(reversed(kept))
                queue.bytes += sum(delivery.size for delivery in kept)
            self._free_lane(lane, not_before if kept else None)

    def split(self, batch: Batch, not_before: float) -> None:
        """Put all of a batch that was blocked `back`, to be tried again in smaller parts."""
        for lane in batch.lanes:
            queue = self._in_flight[lane]
            queue.most_lanes, queue.blocked = max(1, len(batch.lanes) // SPLIT), queue.blocked + 1
        self._suspected.update(batch.lanes)
        self.back_whole(batch, not_before)

    @property
    def busy(self) -> bool:
        """Whether a batch is in flight, or there is a message that doesn't wait for a retry."""
        return bool(self._in_flight or self._free)

    def drain(self) -> list[Delivery]:
        """Remove everything that isn't in flight, to hand it back to the broker."""
        queues = [*self._free.values(), *self._later.values(), *self._suspects.values(), *self._in_flight.values()]
        left = [delivery for queue in queues for delivery in queue.deliveries]
        for queue in queues:
            queue.deliveries.clear()
            queue.bytes = queue.entry = 0
        self._free.clear()
        self._later.clear()
        self._suspects.clear()
        self._free_rows = self._free_bytes = 0
        return left

    def _free_lane(self, lane: int, not_before: float | None) -> None:
        queue = self._in_flight.pop(lane)
        if not_before is None:
            self._trust(queue)
        if not queue.deliveries:
            return
        if not_before is None:
            self._set_free(queue)
        else:
            self._later[lane] = queue
            self._retries.add(not_before, queue)

    def _trust(self, queue: _Queue) -> None:
        queue.most_lanes = queue.blocked = 0
        self._suspected.discard(queue.lane)

    def _set_free(self, queue: _Queue) -> None:
        self._free[queue.lane] = queue
        self._free_rows += len(queue.deliveries)
        self._free_bytes += queue.bytes

    def _free_what_may_be_tried(self, now: float) -> None:
        while (moment := self._retries.first()) is not None and moment <= now:
            queue = self._retries.pop()
            del self._later[queue.lane]
            if queue.most_lanes:
                self._suspects[queue.lane] = queue
            else:
                self._set_free(queue)
                self._next_at = min(self._next_at, moment)


class _Cut:
    """A batch while messages are gathered for it."""

    def __init__(self, max_rows: int, max_bytes: int) -> None:
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self.deliveries: list[Delivery] = []
        self.lanes: list[int] = []
        self._bytes = 0

    @property
    def has_room(self) -> bool:
        return len(self.deliveries) < self._max_rows and self._bytes < self._max_bytes

    def take(self, queue: _Queue) -> None:
        """Add as many of a lane's messages as there is room for, but none from behind a barrier."""
        self.lanes.append(queue.lane)
        waiting, taken, room = queue.deliveries, self.deliveries, self._max_rows - len(self.deliveries)
        while waiting and room > 0 and self._bytes < self._max_bytes:
            delivery = waiting.popleft()
            room -= 1
            queue.bytes -= delivery.size
            self._bytes += delivery.size
            taken.append(delivery)
            if delivery.barrier is not None:
                break


class _Moments:
    """Queues by a moment each, the earliest first. A queue that was taken, or added again, leaves a dead entry behind."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Queue]] = []
        self._entries = count(1)

    def add(self, moment: float, queue: _Queue) -> None:
        queue.entry = next(self._entries)
        heappush(self._heap, (moment, queue.entry, queue))

    def first(self) -> float | None:
        """The earliest moment, once the dead entries before it are dropped."""
        while self._heap and self._heap[0][2].entry != self._heap[0][1]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self) -> _Queue:
        return heappop(self._heap)[2]
