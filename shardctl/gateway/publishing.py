"""Writes on their way to Pub/Sub: in order within each slot, many to a request when they come faster than it answers.

A request carries one slot's messages alone, so a slot has one request in flight at a time, and writes that arrive meanwhile
form the next one: a single write doesn't wait, and a busy slot's requests grow by themselves. The number of requests is bounded
too; slots that wait for one collect more writes meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Protocol, Self

from shardctl.gateway.metrics import Metrics
from shardctl.gateway.pubsub import NotTakenError, PublishRefusedError, TransientError
from shardctl.supervision.background import Background
from shardctl.supervision.backoff import backoff

MAX_REQUESTS = 64  # in flight at once: more only make smaller requests, and the cost is per request
MAX_REQUEST_WRITES = 1_000  # Pub/Sub's own bounds are these and 10 MB
MAX_REQUEST_BYTES = 9_500_000
ATTEMPT_SECONDS = 5.0
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.05, 1.0
STREAMS_SHARE = 0.75  # of what may be in flight, so that batches leave room for single writes
READING_SHARE = 0.25  # of the bytes in flight: bodies that aren't complete leave room for those that are

log = logging.getLogger(__name__)


class Topics(Protocol):
    """Where writes go; see `shardctl.gateway.pubsub`."""

    async def publish(self, slot: int, messages: bytes, timeout_seconds: float) -> list[str]: ...


class Receipt(Protocol):
    """Receives a write's outcome: called once, from the event loop."""

    def settle(self, number: int, message_id: str | None, error: NotTakenError | None) -> None: ...


class _Slot:
    """Writes of one slot: `listed` while it waits for a request or has one in flight."""

    __slots__ = ("listed", "number", "waiting")

    def __init__(self, number: int) -> None:
        self.number = number
        self.listed = False
        self.waiting: deque[_Waiting] = deque()


_Waiting = tuple[bytes, Receipt, int, float]  # message, who waits, its number there, when it came


class Outbox:
    """One event loop's. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        topics: Topics,
        metrics: Metrics,
        *,
        max_writes: int,
        max_bytes: int,
        give_up_after_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._topics, self._metrics, self._clock = topics, metrics, clock
        self._max_writes, self._max_bytes = max_writes, max_bytes
        self._give_up_after_seconds = give_up_after_seconds
        self._slots: dict[int, _Slot] = {}
        self._turns: deque[_Slot] = deque()
        self._requests = Background(log)
        self._looking = False
        self._for_room: deque[asyncio.Future[None]] = deque()
        self.writes = self.bytes = 0  # in flight
        self.read_bytes = 0  # of them, those of bodies that aren't whole yet
        self.last_success: float | None = None  # on `clock`

    def has_room(self, size: int, share: float = 1.0) -> bool:
        return self.writes < self._max_writes * share and self.bytes + size <= self._max_bytes * share

    def has_room_to_read(self, more: int, own: int) -> bool:
        """For more of a body of which `own` bytes have come. A lone body always fits."""
        return self.read_bytes == own or self.read_bytes + more <= self._max_bytes * READING_SHARE

    async def room(self, size: int) -> None:
        """Wait until a batch may put a write of that size."""
        while self.writes and not self.has_room(size, STREAMS_SHARE):
            waiting = asyncio.get_running_loop().create_future()
            self._for_room.append(waiting)
            await waiting

    def reading(self) -> Reading:
        """For a body that comes in parts, which count as in flight from the first on."""
        return Reading(self)

    def put(self, slot: int, message: bytes, receipt: Receipt, number: int = 0) -> None:
        """Send a write behind all that came before in its slot. Its receipt is settled sooner or later, whatever happens."""
        queue = self._slots.get(slot)
        if queue is None:
            queue = self._slots[slot] = _Slot(slot)
        queue.waiting.append((message, receipt, number, self._clock()))
        self.writes += 1
        self.bytes += len(message)
        if not queue.listed:
            queue.listed = True
            self._turns.append(queue)
            self._look()

    def _look(self) -> None:
        """Start requests after this iteration of the event loop, when all of its writes have arrived."""
        if not self._looking and len(self._requests) < MAX_REQUESTS:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._looking = False
        while self._turns and len(self._requests) < MAX_REQUESTS:
            self._requests.once("a publish request", self._deliver(self._turns.popleft()), self._look_on)

    def _look_on(self) -> None:
        if self._turns:
            self._look()

    async def _deliver(self, slot: _Slot) -> None:
        """Publish what waits on a slot, in one request, and settle it; then the slot's next turn comes."""
        taken = _take(slot.waiting)
        try:
            ids = await self._published(slot.number, taken)
        except PublishRefusedError as refused:
            if len(taken) > 1:
                await self._one_by_one(slot, taken)
            else:
                self._settle(taken, None, refused)
        except NotTakenError as error:
            self._fail(slot, taken, error)
        except BaseException:
            self._fail(slot, taken, NotTakenError("the gateway stopped"))
            raise
        else:
            self._settle(taken, ids, None)
        finally:
            slot.listed = bool(slot.waiting)
            if slot.listed:
                self._turns.append(slot)

    async def _one_by_one(self, slot: _Slot, taken: list[_Waiting]) -> None:
        """Publish each by itself, so that one that Pub/Sub refuses doesn't fail the others."""
        for position, write in enumerate(taken):
            try:
                self._settle([write], await self._published(slot.number, [write]), None)
            except PublishRefusedError as refused:
                self._settle([write], None, refused)
            except NotTakenError as error:
                slot.waiting.extendleft(reversed(taken[position + 1 :]))
                self._fail(slot, [write], error)
                return

    async def _published(self, slot: int, taken: list[_Waiting]) -> list[str]:
        """The ids of these writes. Retries until the oldest has waited too long.

        Raises NotTakenError, of which PublishRefusedError is for good. A retry may publish twice; the consumers
        recognise it by its idempotency key.
        """
        messages = b"".join([message for message, *_ in taken])
        deadline = taken[0][3] + self._give_up_after_seconds
        failures = 0
        error: NotTakenError = NotTakenError("Pub/Sub took too long for what came before")
        while (left := deadline - self._clock()) > 0:
            begun = self._clock()
            try:
                ids = await self._topics.publish(slot, messages, min(left, ATTEMPT_SECONDS))
            except TransientError as failed:
                self._metrics.publish_failed.inc()
                error = failed
                failures += 1
                pause = backoff(failures, FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS, random.random())
                await asyncio.sleep(min(pause, left))
            except NotTakenError as failed:
                failed.sent = failed.sent or failures > 0  # an earlier try may have arrived
                raise
            else:
                self.last_success = self._clock()
                self._metrics.published(len(taken), self.last_success - begun)
                return ids
        raise error

    def _fail(self, slot: _Slot, taken: list[_Waiting], error: NotTakenError) -> None:
        """Writes behind a failed one fail too: published, they would have overtaken it unnoticed."""
        behind = list(slot.waiting)
        slot.waiting.clear()
        self._settle(taken, None, error)
        self._settle(behind, None, NotTakenError.behind())

    def _settle(self, taken: list[_Waiting], ids: list[str] | None, error: NotTakenError | None) -> None:
        self.writes -= len(taken)
        for position, (message, receipt, number, _) in enumerate(taken):
            self.bytes -= len(message)
            receipt.settle(number, ids[position] if ids else None, error)
        while self._for_room and self.has_room(0, STREAMS_SHARE):
            waiting = self._for_room.popleft()
            if not waiting.done():  # its batch's client may be gone
                waiting.set_result(None)


class Reading:
    """What has come of one body. Given back at the end of the `with`, when the body is a write or nothing."""

    __slots__ = ("_bytes", "_outbox")

    def __init__(self, outbox: Outbox) -> None:
        self._outbox, self._bytes = outbox, 0

    def holds(self, size: int) -> bool:
        """So many bytes are there now. False where there is no room for them."""
        more = size - self._bytes
        if more > 0 and not self._outbox.has_room_to_read(more, self._bytes):
            return False
        self._bytes = size
        self._outbox.bytes += more
        self._outbox.read_bytes += more
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.holds(0)


def _take(waiting: deque[_Waiting]) -> list[_Waiting]:
    taken = [waiting.popleft()]
    size = len(taken[0][0])
    while waiting and len(taken) < MAX_REQUEST_WRITES and size + len(waiting[0][0]) <= MAX_REQUEST_BYTES:
        taken.append(waiting.popleft())
        size += len(taken[-1][0])
    return taken
