"""One subscription: its queued and leased messages, and what happens when a lease ends. No I/O, no clock."""

from __future__ import annotations

import heapq
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile

from shardctl.broker.deadlines import Deadlines
from shardctl.broker.errors import InvalidArgumentError, RefusedError
from shardctl.broker.faults import Injector
from shardctl.broker.message import Message
from shardctl.broker.orderingqueue import Entry, OrderingQueue, Reader, State
from shardctl.broker.settings import Settings

MAX_BATCH_MESSAGES = 1000
MAX_BATCH_BYTES = 1 << 20
LANE_TURN_MESSAGES = 250
RETENTION_CHECK_SECONDS = 10.0
EARLY_EXPIRY_SECONDS = 0.5
ACK_ID_CHARACTERS = 176  # as long as the service's, so that requests of many ids have the service's size
_ACK_ID = re.compile(r"(\d+)-\d+-_+")

Delivery = tuple[str, Message, int]
DeadLetter = Callable[[Message, int, float], bool]
"""(message, attempts, now) → whether the dead-letter topic took it."""


class Subscription:
    """Times are seconds on the caller's clock.

    Order: an entry of a lane is delivered only when every older entry of the lane is acked, or outstanding at the same
    reader. Every change of a lane preserves that: a failed entry takes the later outstanding ones back with it, and a
    lane with outstanding entries is offered only to its reader.
    """

    def __init__(
        self,
        number: int,
        settings: Settings,
        injector: Injector | None = None,
        bury: DeadLetter = lambda _message, _attempts, _now: False,
    ) -> None:
        self.settings = settings
        self.entries: dict[int, Entry] = {}
        self.retained: dict[int, Message] = {}
        self.readers: list[Reader] = []
        self.counts: Counter[str] = Counter()
        self.gone: RefusedError | None = None
        self.pushes: RefusedError | None = None  # why clients can't pull it
        self.bury = bury
        self._number = number
        self.injector = injector or Injector()
        self._ready: deque[Entry] = deque()
        self._lanes: dict[str, OrderingQueue] = {}
        self._free: deque[OrderingQueue] = deque()
        self._delayed: list[tuple[float, int, Entry | OrderingQueue]] = []
        self._delayed_count = 0
        self._leases: dict[str, Entry] = {}
        self._deadlines = Deadlines()
        self._delivery = 0
        self._retention_check = 0.0

    # -- readers ---------------------------------------------------------------------------------------------------

    def attach(self, reader: Reader) -> None:
        """Adds a stream. Streams that hold more than their new share of lanes release lanes as those drain."""
        self.readers.append(reader)
        lane_count = sum(stream.held_lanes for stream in self.readers)
        share = -(-(lane_count + len(self._free)) // len(self.readers))
        kept: Counter[int] = Counter()
        for lane in self._lanes.values():
            if lane.reader is not None and lane.reader.open:
                kept[id(lane.reader)] += 1
                if kept[id(lane.reader)] > share:
                    lane.draining = True
                    lane.spot = None

    def detach(self, reader: Reader) -> None:
        """Closes a reader, a finished Pull too. What it has out stays leased until its deadline, and its lanes stay
        its own until then.
        """
        reader.open = False
        if reader in self.readers:
            self.readers.remove(reader)
        reader.lanes.clear()

    def has_work(self, reader: Reader) -> bool:
        """Whether `take` may find something for this reader; never wrong when it says no."""
        return bool(self._ready or self._free or reader.lanes) and reader.has_room()

    def _share(self) -> int:
        """Lanes each stream that can take more may hold. The one below it always exists while a lane is free."""
        able = [reader for reader in self.readers if not reader.busy and reader.has_room()]
        total = sum(reader.held_lanes for reader in able) + len(self._free)
        return -(-total // max(1, len(able)))

    # -- messages in -----------------------------------------------------------------------------------------------

    def add(self, message: Message, now: float) -> None:
        """Takes a message the filter has let through."""
        injector = self.injector
        delay = 0.0
        if injector.faults.delay_rate and injector.happens("delay", injector.faults.delay_rate):
            delay = injector.draw("delay").random() * injector.faults.delay_seconds
        if not self.settings.ordering or not message.key:
            entry = self.entries[message.number] = Entry(message, None)
            self._offer(entry, now, now + delay)
            return
        lane = self._lanes.get(message.key)
        if lane is None:
            lane = self._lanes[message.key] = OrderingQueue(message.key)
        entry = self.entries[message.number] = Entry(message, lane)
        lane.queue.append(entry)
        if delay:
            lane.due = max(lane.due, now + delay)
        if lane.spot is None:
            self._schedule(lane, now)

    def _offer(self, entry: Entry, now: float, due: float) -> None:
        entry.state = State.QUEUED
        if due > now:
            self._delay(entry, due)
        else:
            self._ready.append(entry)

    def _schedule(self, lane: OrderingQueue, now: float) -> None:
        """Queues a lane with waiting messages for the readers that may have them."""
        if lane.spot is not None or not lane.queue:
            return
        if lane.due > now:
            if not lane.delayed:
                lane.delayed = True
                self._delay(lane, lane.due)
        elif lane.reader is None:
            self._free.append(lane)
            lane.spot = self._free
        elif lane.reader.open and not lane.draining:
            lane.reader.lanes.append(lane)
            lane.spot = lane.reader.lanes

    def _delay(self, what: Entry | OrderingQueue, due: float) -> None:
        self._delayed_count += 1
        heapq.heappush(self._delayed, (due, self._delayed_count, what))

    # -- deliveries out --------------------------------------------------------------------------------------------

    def take(
        self, reader: Reader, now: float, max_messages: int = MAX_BATCH_MESSAGES, max_bytes: int = MAX_BATCH_BYTES
    ) -> Sequence[Delivery]:
        """Leases what this reader may have, as (ack id, message, attempt or 0): lanes it holds, its share of the free
        lanes, its share of what has no order. Held lanes get half a batch first, so that neither starves the other.
        """
        self.tick(now)
        batch = _Batch(reader, max_messages, max_bytes)
        self._take_lanes(reader.lanes, batch, now, max_messages // 2 or 1, len(reader.lanes))
        shared = reader in self.readers
        if self._free and batch.open():
            lanes = max(0, self._share() - reader.held_lanes) if shared else len(self._free)
            self._take_lanes(self._free, batch, now, max_messages, lanes)
        self._take_unordered(batch, shared)
        self._take_lanes(reader.lanes, batch, now, max_messages, len(reader.lanes))
        self._deadlines.add(batch.entries, now + reader.ack_deadline_seconds)
        self._shorten_some(batch.entries, now)
        self.counts["delivered"] += len(batch.entries)
        policy = self.settings.max_attempts
        return [(entry.ack_id, entry.message, entry.failures + 1 if policy else 0) for entry in batch.entries]

    def _take_lanes(self, lanes: deque[OrderingQueue], batch: _Batch, now: float, limit: int, turns: int) -> None:
        reader = batch.reader
        while lanes and turns > 0 and len(batch.entries) < limit and batch.open():
            lane = lanes.popleft()
            if lane.spot is not lanes:
                continue
            turns -= 1
            lane.spot = None
            if reader.one_a_lane and lane.out:
                continue  # it is scheduled again when that is settled
            end = len(batch.entries) + (1 if reader.one_a_lane else LANE_TURN_MESSAGES)
            while lane.queue and len(batch.entries) < end and batch.open():
                entry = lane.queue.popleft()
                if entry.state is State.QUEUED:
                    if lane.reader is None:
                        lane.reader = reader
                        reader.held_lanes += 1
                    lane.out.append(entry)
                    self._lease(entry, batch)
            if lane.queue:
                self._schedule(lane, now)
            elif not lane.out:
                self._drop(lane)

    def _take_unordered(self, batch: _Batch, shared: bool) -> None:
        if not self._ready:
            return
        able = sum(1 for reader in self.readers if not reader.busy and reader.has_room()) if shared else 1
        quota = -(-len(self._ready) // max(1, able))
        start = len(batch.entries)
        ready = self._ready
        while ready and quota > 0 and batch.open():
            entry = ready.popleft()
            if entry.state is State.QUEUED:
                quota -= 1
                self._lease(entry, batch)
        injector = self.injector
        if injector.faults.reorder_rate and injector.happens("reorder", injector.faults.reorder_rate):
            unordered = batch.entries[start:]
            injector.draw("reorder").shuffle(unordered)
            batch.entries[start:] = unordered

    def _lease(self, entry: Entry, batch: _Batch) -> None:
        self._delivery += 1
        entry.ack_id = f"{self._number}-{self._delivery}-".ljust(ACK_ID_CHARACTERS, "_")
        entry.state = State.LEASED
        reader = entry.reader = batch.reader
        self._leases[entry.ack_id] = entry
        reader.outstanding += 1
        reader.outstanding_bytes += entry.message.size
        batch.bytes += entry.message.size
        batch.entries.append(entry)

    def _shorten_some(self, entries: Sequence[Entry], now: float) -> None:
        rate = self.injector.faults.early_expiry_rate
        if not rate or self.settings.exactly_once:
            return
        for entry in entries:
            if self.injector.happens("early_expiry", rate):
                self._deadlines.remove(entry)
                early = self.injector.draw("early_expiry").random() * EARLY_EXPIRY_SECONDS
                self._deadlines.add((entry,), now + early)

    # -- answers ---------------------------------------------------------------------------------------------------

    def check(self, ack_ids: Iterable[str]) -> None:
        """Raises InvalidArgumentError for an id that the broker can't have given out, or gave out for another subscription."""
        for ack_id in ack_ids:
            if ack_id not in self._leases:
                parts = _ACK_ID.fullmatch(ack_id)
                if parts is None:
                    raise InvalidArgumentError(f"Invalid ack id (ack_id={ack_id[:ACK_ID_CHARACTERS]})")
                if int(parts[1]) != self._number:
                    raise InvalidArgumentError(
                        "You have passed a subscription that does not belong to the given ack ID."
                    )

    def ack(self, ack_ids: Iterable[str], now: float) -> Sequence[str]:
        """Releases the messages; returns the ids that weren't the latest of a lease, which had no effect."""
        self.tick(now)
        faults, injector = self.injector.faults, self.injector
        meddling = faults.drop_ack_rate or (faults.duplicate_rate and not self.settings.exactly_once)
        stale: list[str] = []
        for ack_id in ack_ids:
            entry = self._leases.get(ack_id)
            if entry is None:
                stale.append(ack_id)
                continue
            if meddling:
                if injector.happens("drop_ack", faults.drop_ack_rate):
                    continue
                if not self.settings.exactly_once and injector.happens("duplicate", faults.duplicate_rate):
                    self.counts["duplicated"] += 1
                    self._again(entry, now, now, acked_too=True)
                    continue
            self._release(entry)
            self._finish(entry, now)
            self.counts["acked"] += 1
        return stale

    def modify(self, ack_ids: Iterable[str], seconds: float, now: float) -> Sequence[str]:
        """Leases end `seconds` from now; 0 gives the messages back at once. Returns the stale ids, as `ack` does."""
        self.tick(now)
        stale: list[str] = []
        kept: list[Entry] = []
        for ack_id in ack_ids:
            entry = self._leases.get(ack_id)
            if entry is None:
                stale.append(ack_id)
            elif seconds <= 0:
                self.counts["nacked"] += 1
                self._fail(entry, now)
            else:
                self._deadlines.remove(entry)
                kept.append(entry)
        self._deadlines.add(kept, now + seconds)
        return stale

    def tick(self, now: float) -> None:
        """Ends leases, back-offs and retention that are due. Calling it late changes nothing but the delay."""
        for entry in self._deadlines.due(now):
            if entry.state is State.LEASED:
                self.counts["expired"] += 1
                self._fail(entry, now)
        while self._delayed and self._delayed[0][0] <= now:
            what = heapq.heappop(self._delayed)[2]
            if isinstance(what, OrderingQueue):
                what.delayed = False
                self._schedule(what, now)
            elif what.state is State.QUEUED:
                self._ready.append(what)
        if now >= self._retention_check:
            self._retention_check = now + min(RETENTION_CHECK_SECONDS, self.settings.retention_seconds / 10)
            self._forget(now)

    def _release(self, entry: Entry) -> None:
        """Ends a lease: its ack id is stale from here on."""
        del self._leases[entry.ack_id]
        self._deadlines.remove(entry)
        reader = entry.reader
        if reader is not None:
            reader.outstanding -= 1
            reader.outstanding_bytes -= entry.message.size
            entry.reader = None

    def _finish(self, entry: Entry, now: float) -> None:
        """The subscription is done with a message: acked, dead-lettered or too old."""
        entry.state = State.DONE
        message = entry.message
        self.entries.pop(message.number, None)
        if self.settings.retain_acked:
            self.retained[message.number] = message
        lane = entry.lane
        if lane is not None:
            lane.settle()
            self._resettle(lane, now)

    def _resettle(self, lane: OrderingQueue, now: float) -> None:
        if lane.queue:
            if lane.spot is None:
                self._schedule(lane, now)
        elif not lane.out:
            self._drop(lane)

    def _drop(self, lane: OrderingQueue) -> None:
        """Forgets an empty lane, also where it still waits for a turn: its key may have a new one by then."""
        lane.spot = None
        self._lanes.pop(lane.key, None)

    def _fail(self, entry: Entry, now: float) -> None:
        """A nack or an ended lease: dead-lettered after the last attempt, otherwise again, after the back-off."""
        entry.failures += 1
        settings = self.settings
        last = bool(settings.max_attempts) and entry.failures >= settings.max_attempts
        # Without such a topic the message stays and comes again, as with the service.
        buried = last and self.bury(entry.message, entry.failures, now)
        due = now if buried or not settings.backoff else now + settings.backoff.after(entry.failures)
        self._again(entry, now, due, acked_too=self.injector.faults.replay_acked and not settings.exactly_once)
        if buried:
            self.counts["dead_lettered"] += 1
            self._finish(entry, now)

    def _again(self, entry: Entry, now: float, due: float, *, acked_too: bool) -> None:
        """Queues a leased entry for redelivery; with a lane, everything of the lane that was delivered after it too."""
        lane = entry.lane
        if lane is None:
            self._release(entry)
            self._offer(entry, now, due)
            return
        for later in lane.rewind(entry):
            if later.state is State.LEASED:
                self._release(later)
            elif acked_too:
                self.entries[later.message.number] = later
                self.retained.pop(later.message.number, None)
            else:
                continue
            later.state = State.QUEUED
            lane.queue.appendleft(later)
        lane.due = max(lane.due, due)
        lane.settle()
        if due > now:
            lane.spot = None
        self._schedule(lane, now)

    # -- time travel -----------------------------------------------------------------------------------------------

    def reset(self, messages: Iterable[Message], now: float) -> None:
        """Seek: exactly these messages are unacked from now on; every ack id given out before is stale."""
        before = {number: entry.message for number, entry in self.entries.items()}
        for entry in list(self._leases.values()):
            self._release(entry)
        for entry in self.entries.values():
            entry.state = State.DONE
        for lane in self._lanes.values():
            lane.out.clear()
            lane.settle()
            lane.spot = None
        self.entries.clear()
        self._lanes.clear()
        self._ready.clear()
        self._free.clear()
        self._delayed.clear()
        self._deadlines.clear()
        for message in sorted(messages, key=lambda message: message.number):
            before.pop(message.number, None)
            self.retained.pop(message.number, None)
            self.add(message, now)
        if self.settings.retain_acked:
            self.retained = dict(sorted((self.retained | before).items()))

    def _forget(self, now: float) -> None:
        """Drops what has outlived the retention: unacked messages too, as the service does."""
        oldest = now - self.settings.retention_seconds
        for message in list(takewhile(lambda message: message.published < oldest, self.retained.values())):
            del self.retained[message.number]
        for entry in list(takewhile(lambda entry: entry.message.published < oldest, self.entries.values())):
            if entry.state is State.LEASED:
                self._release(entry)
            self.counts["outlived"] += 1
            self._finish(entry, now)
            self.retained.pop(entry.message.number, None)
        while self._ready and self._ready[0].state is State.DONE:
            self._ready.popleft()

    # -- introspection ---------------------------------------------------------------------------------------------

    def unacked(self) -> Sequence[Message]:
        return [entry.message for entry in self.entries.values()]

    def oldest_unacked(self) -> float | None:
        """When the oldest unacked message was published (one replayed on purpose may be older)."""
        first = next(iter(self.entries.values()), None)
        return first.message.published if first else None

    @property
    def outstanding(self) -> int:
        return len(self._leases)


class _Batch:
    """Deliveries being gathered for one reader."""

    __slots__ = ("bytes", "entries", "max_bytes", "max_messages", "reader")

    def __init__(self, reader: Reader, max_messages: int, max_bytes: int) -> None:
        self.reader = reader
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.entries: list[Entry] = []
        self.bytes = 0

    def open(self) -> bool:
        return len(self.entries) < self.max_messages and self.bytes < self.max_bytes and self.reader.has_room()
