"""The messages of one ordering key in one subscription."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum

from shardctl.broker.message import Message


class Reader:
    """Flow control and the lanes that the reader holds. A limit of 0 or less is none.

    `one_a_lane`: it gets nothing more of a lane with an outstanding message, like a push endpoint.
    `busy` means that it can't take a delivery now (a response is still being written), so its share goes to others.
    """

    __slots__ = (
        "ack_deadline_seconds",
        "busy",
        "client_id",
        "held_lanes",
        "lanes",
        "max_bytes",
        "max_messages",
        "one_a_lane",
        "open",
        "outstanding",
        "outstanding_bytes",
    )

    def __init__(
        self,
        *,
        ack_deadline_seconds: float,
        max_messages: int = 0,
        max_bytes: int = 0,
        client_id: str = "",
        one_a_lane: bool = False,
    ) -> None:
        self.ack_deadline_seconds = ack_deadline_seconds
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.client_id = client_id
        self.one_a_lane = one_a_lane
        self.outstanding = 0
        self.outstanding_bytes = 0
        self.held_lanes = 0
        self.lanes: deque[OrderingQueue] = deque()
        self.open = True
        self.busy = False

    def has_room(self) -> bool:
        """Whether it may have one more message; the one that crosses the byte limit is still sent."""
        return (self.max_messages <= 0 or self.outstanding < self.max_messages) and (
            self.max_bytes <= 0 or self.outstanding_bytes < self.max_bytes
        )


class State(Enum):
    QUEUED, LEASED, DONE = range(3)


class Entry:
    """One message in one subscription, until it is acked.

    `failures` counts its own nacks and expired leases. `bucket` says where the book of deadlines holds it.
    """

    __slots__ = ("ack_id", "bucket", "failures", "lane", "message", "reader", "state")

    def __init__(self, message: Message, lane: OrderingQueue | None) -> None:
        self.message = message
        self.lane = lane
        self.state = State.QUEUED
        self.failures = 0
        self.ack_id = ""
        self.bucket = 0
        self.reader: Reader | None = None


class OrderingQueue:
    """Ordering rests on two rules: outstanding messages precede queued ones, and all of `out` belongs to one reader.

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
        self.spot: deque[OrderingQueue] | None = None
        self.due = 0.0
        self.delayed = False
        self.draining = False

    def settle(self) -> None:
        """Forgets the acked entries no older unacked one stands before; releases the lane when nothing is outstanding."""
        out, queue = self.out, self.queue
        while queue and queue[0].state is State.DONE:
            queue.popleft()
        while out and out[0].state is State.DONE:
            out.popleft()
        if not out and self.reader is not None:
            self.reader.held_lanes -= 1
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
