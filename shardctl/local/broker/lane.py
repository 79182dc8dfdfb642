"""The messages of one ordering key in one subscription."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum

from shardctl.local.broker.message import Message
from shardctl.local.broker.reader import Reader


class State(Enum):
    QUEUED, LEASED, DONE = range(3)


class Entry:
    """One message in one subscription, until it is acked.

    `failures` counts its own nacks and expired leases. `bucket` says where the book of deadlines holds it.
    """

    __slots__ = ("ack_id", "bucket", "failures", "lane", "message", "reader", "state")

    def __init__(self, message: Message, lane: Lane | None) -> None:
        self.message = message
        self.lane = lane
        self.state = State.QUEUED
        self.failures = 0
        self.ack_id = ""
        self.bucket = 0
        self.reader: Reader | None = None


class Lane:
    """What is out comes before what is queued: that, and `out` belonging to one reader, is the whole of ordering.

    `queue`     waits for delivery, oldest first
    `out`       delivered, oldest first; acked entries stay behind an older unacked one, to be replayed if that one is
    `reader`    who holds `out`; while anything is out, nobody else may have a message of the key
    `spot`      the queue of lanes in which this one waits for its turn; a lane found in another queue is stale there
    `due`       no delivery before this time (retry back-off, injected delay)
    `draining`  the reader has more than its share of lanes: it gets no more of this one until `out` is empty
    """

    __slots__ = ("delayed", "draining", "due", "key", "out", "queue", "reader", "spot")

    def __init__(self, key: str) -> None:
        self.key = key
        self.queue: deque[Entry] = deque()
        self.out: deque[Entry] = deque()
        self.reader: Reader | None = None
        self.spot: deque[Lane] | None = None
        self.due = 0.0
        self.delayed = False
        self.draining = False

    def settle(self) -> None:
        """Forgets the acked entries no older unacked one stands before; hands the lane back when nothing is out."""
        out, queue = self.out, self.queue
        while queue and queue[0].state is State.DONE:
            queue.popleft()
        while out and out[0].state is State.DONE:
            out.popleft()
        if not out and self.reader is not None:
            self.reader.held -= 1
            self.reader = None
            self.draining = False
            self.spot = None

    def rewind(self, entry: Entry) -> Iterable[Entry]:
        """Takes `entry` and everything delivered after it out of `out`; newest first."""
        while self.out:
            last = self.out.pop()
            yield last
            if last is entry:
                return
