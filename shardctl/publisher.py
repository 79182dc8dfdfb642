"""What producers import: writes into the fleet's topics, in order for each slot.

with Publisher(load(Path("shards.yaml"))) as publisher:
    publisher.publish(Write("order", {"order_id": "o-1", "status": "paid"})).result()
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from threading import Condition
from typing import TYPE_CHECKING, Any, Protocol, Self

from google.api_core import exceptions as api
from google.cloud.pubsub_v1.publisher.exceptions import PublishToPausedOrderingKeyException

from shardctl.errors import ShardctlError, UsageError
from shardctl.fleet.keyspace import digits_of
from shardctl.fleet.spec import Fleet
from shardctl.fleet.topology import topic_of
from shardctl.outcomes.publication import Publication
from shardctl.supervision.backoff import backoff
from shardctl.topicclient import (
    FIRST_PAUSE_SECONDS,
    GIVE_UP_AFTER_SECONDS,
    MAX_OUTSTANDING_WRITES,
    MAX_PAUSE_SECONDS,
    TRANSIENT,
    connect,
)
from shardctl.wire.identity import new_key
from shardctl.wire.message import Encoded, InvalidWriteError, Write, encode

if TYPE_CHECKING:  # a producer that doesn't wait loads no database's code
    from sqlalchemy import Engine

    from shardctl.outcomes.effect import Effect
    from shardctl.outcomes.watch import Watch

__all__ = ["Client", "Outcome", "PublishError", "Publisher", "SlotHeldError", "connect"]

RESUME_ATTEMPTS = 50

# The errors of writes that wait behind a failed one. Google's client raises them before it fails that one itself.
_NOT_SENT = (RuntimeError, PublishToPausedOrderingKeyException)
_ABOUT_THE_WRITE = (api.InvalidArgument, api.OutOfRange)


class PublishError(ShardctlError):
    """Pub/Sub didn't accept the write. Its slot is held: nothing more is published on it before `Publisher.resume`."""

    def __init__(self, slot: int, cause: BaseException) -> None:
        self.slot, self.cause = slot, cause
        super().__init__(f"slot {slot}: Pub/Sub didn't accept the write: {type(cause).__name__}: {cause}")


class SlotHeldError(PublishError):
    """The write wasn't sent, since an earlier one of its slot failed and must not be overtaken."""

    def __init__(self, slot: int, cause: BaseException) -> None:
        super().__init__(slot, cause)
        self.args = (
            f"slot {slot}: not sent: an earlier write of the slot failed. Resume the slot, then retry in order.",
        )


class Client(Protocol):
    """The methods used of `TopicClient`, or of `google.cloud.pubsub_v1.PublisherClient` made with message ordering."""

    def publish(self, topic: str, data: bytes, ordering_key: str = "", **attributes: str) -> Any: ...
    def resume_publish(self, topic: str, ordering_key: str) -> None: ...
    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a write: its message id, or why it was refused."""

    write: Write
    message_id: str | None = None
    refused: str | None = None


@dataclass(slots=True)
class _Sent:
    write: Write
    slot: int
    future: Future[str]


class Publisher:
    """Publishes from any thread. A write without an idempotency key gets a UUIDv7, so that a retry isn't a second write.

    Batches: a write is sent at once where nothing of its slot is in flight. What comes on the slot meanwhile forms its next
    request. No timer is involved, and there is nothing to tune.

    Order: writes of a slot reach the topic in the order of the calls. When one fails, every write of its slot that is
    waiting fails too, and so does each later one, until `resume(slot)`: the caller then retries the failed ones in order.
    No write can overtake an earlier one unseen. `publish_all` does all that by itself.

    A future's callbacks run inside the client: they must not publish.

    `databases`, an engine to the primary of each shard, are for `publish(…).applied(timeout)` alone.
    """

    def __init__(
        self,
        fleet: Fleet,
        client: Client | None = None,
        *,
        databases: Mapping[str, Engine] | None = None,
        give_up_after_seconds: float = GIVE_UP_AFTER_SECONDS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._fleet = fleet
        self._watch = _watch(fleet, databases) if databases is not None else None
        self._client: Client = client or connect(give_up_after_seconds, endpoint=fleet.topic.endpoint)
        self._give_up_after_seconds = give_up_after_seconds
        self._now, self._sleep = now, sleep
        self._closed = False
        self._changed = Condition()  # guards the three below
        self._outstanding: Counter[int] = Counter()
        self._held_slots: dict[int, BaseException] = {}
        self._resuming: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def publish(self, write: Write) -> Publication:
        """The future message id, with `applied`, which waits for the write's effect.

        Raises InvalidWriteError; the future raises PublishError. Blocks while 10,000 writes or 64 MiB are on their way.
        """
        if write.idempotency_key is None:
            write = replace(write, idempotency_key=new_key())
        return self._send(encode(self._fleet, write, self._now()))

    def _effect(self, encoded: Encoded, seconds: float) -> Effect:
        if self._watch is None:
            raise UsageError(
                "to wait for a write, give the publisher the shards' engines: Publisher(fleet, databases={…})."
            )
        from shardctl.outcomes.effect import Sought

        return self._watch.effect(Sought.of_message(encoded, self._fleet.routing.attributes), seconds)

    def _send(self, encoded: Encoded) -> Publication:
        if self._closed:
            raise ShardctlError("the publisher is closed: make a new one.")
        future = Publication(partial(self._effect, encoded))
        future.set_running_or_notify_cancel()  # a write on its way can't be cancelled
        with self._changed:
            cause = self._held_slots.get(encoded.slot)
            if cause is None:
                self._outstanding[encoded.slot] += 1
        if cause is not None:
            future.set_exception(SlotHeldError(encoded.slot, cause))
            return future

        def settle(sent: Any) -> None:
            error = sent.exception()
            with self._changed:
                if error is not None:
                    self._held_slots.setdefault(encoded.slot, error)
                self._outstanding[encoded.slot] -= 1
                self._changed.notify_all()
            if error is None:
                future.set_result(sent.result())
            elif isinstance(error, _NOT_SENT):
                future.set_exception(SlotHeldError(encoded.slot, error))
            else:
                future.set_exception(PublishError(encoded.slot, error))

        try:
            sent = self._client.publish(
                self._topic_path(encoded.slot), encoded.data, ordering_key=encoded.ordering_key, **encoded.attributes
            )
        except BaseException:
            with self._changed:
                self._outstanding[encoded.slot] -= 1
            raise
        sent.add_done_callback(settle)
        return future

    def resume(self, slot: int) -> None:
        """Let a held slot publish again, from any thread. Waits until each of its writes has failed.

        No effect on a slot that isn't held. Of several threads that resume a slot at once, one does it and the others wait.
        """
        with self._changed:
            cause = self._held_slots.get(slot)
            if cause is None:
                return
            self._changed.wait_for(lambda: self._held_slots.get(slot) is not cause or self._may_resume(slot))
            if (
                self._held_slots.get(slot) is not cause
            ):  # resumed meanwhile; a later failure is not the caller's to resume
                return
            self._resuming.add(slot)
        resumed = False
        try:
            self._resume_in_client(slot)
            resumed = True
        finally:
            with self._changed:
                self._resuming.discard(slot)
                if resumed:
                    del self._held_slots[slot]
                self._changed.notify_all()

    def _may_resume(self, slot: int) -> bool:
        return not self._outstanding[slot] and slot not in self._resuming

    def _resume_in_client(self, slot: int) -> None:
        for _ in range(RESUME_ATTEMPTS):
            try:
                self._client.resume_publish(self._topic_path(slot), digits_of(slot, self._fleet.routing.slot_bits))
            except RuntimeError:  # a batch's writes may fail a moment before Google's client pauses their key
                self._sleep(0.01)
            else:
                return

    def publish_all(self, writes: Iterable[Write]) -> Iterator[Outcome]:
        """Publish each write, in order, and yield its outcome, in the same order.

        Holds a bounded number at a time, however many there are. An invalid write is refused and the
        rest continues; transient failures are retried in order. Raises PublishError when Pub/Sub accepts nothing.
        """
        waiting: deque[_Sent | Outcome] = deque()
        for write in writes:
            waiting.append(self._begin(write))
            while len(waiting) >= MAX_OUTSTANDING_WRITES or (waiting and _settled(waiting[0])):
                yield self._finish(waiting)
        while waiting:
            yield self._finish(waiting)

    def _begin(self, write: Write) -> _Sent | Outcome:
        if write.idempotency_key is None:
            write = replace(write, idempotency_key=new_key())  # kept through every retry
        try:
            encoded = encode(self._fleet, write, self._now())
        except InvalidWriteError as error:
            return Outcome(write, refused=str(error))
        return _Sent(write, encoded.slot, self._send(encoded))

    def _finish(self, waiting: deque[_Sent | Outcome]) -> Outcome:
        head = waiting.popleft()
        if isinstance(head, Outcome):
            return head
        if head.future.exception() is not None and not isinstance(_cause(head), api.RetryError):
            self._retry([head, *(sent for sent in waiting if isinstance(sent, _Sent) and sent.slot == head.slot)])
        error = head.future.exception()
        if error is None:
            return Outcome(head.write, message_id=head.future.result())
        if isinstance(error, PublishError) and isinstance(error.cause, _ABOUT_THE_WRITE):
            return Outcome(head.write, refused=str(error.cause))
        raise error

    def _retry(self, of_slot: list[_Sent]) -> None:
        """Send the failed writes of one slot again, one by one and in order, so that a refusal hits only its own write."""
        self.resume(of_slot[0].slot)
        for sent in of_slot:
            if sent.future.exception() is not None and not self._send_until_known(sent):
                return  # nothing gets through: the slot stays held, and the head's error is raised

    def _send_until_known(self, sent: _Sent) -> bool:
        """True when Pub/Sub accepted the write, or refused this one as invalid."""
        failures, left = 0, self._give_up_after_seconds
        while True:
            sent.future = self._send(encode(self._fleet, sent.write, self._now()))
            cause = _cause(sent)
            if cause is None:
                return True
            if isinstance(cause, _ABOUT_THE_WRITE):
                self.resume(sent.slot)
                return True
            # A RetryError isn't among these: the client raises it once it has itself retried for as long as it may.
            if not isinstance(cause, TRANSIENT) or left <= 0:
                return False
            failures += 1
            pause = backoff(failures, FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS, random.random())
            self._sleep(pause)
            left -= pause
            self.resume(sent.slot)

    def flush(self, timeout_seconds: float | None = None) -> bool:
        """Wait until every write is accepted or has failed. False when the time ran out first."""
        with self._changed:
            return self._changed.wait_for(lambda: not any(self._outstanding.values()), timeout_seconds)

    def close(self) -> None:
        """Flush and stop. A second call has no effect."""
        self.flush(self._give_up_after_seconds)  # the client's own stop cancels all but a slot's first batch
        if not self._closed:
            self._closed = True
            self._client.stop()

    def _topic_path(self, slot: int) -> str:
        return f"projects/{self._fleet.project}/topics/{topic_of(self._fleet, slot).id}"


def _watch(fleet: Fleet, databases: Mapping[str, Engine]) -> Watch:
    from shardctl.outcomes.watch import Watch

    return Watch(fleet, databases)


def _cause(sent: _Sent) -> BaseException | None:
    """What the client raised for the write, which has been settled."""
    error = sent.future.exception()
    return error.cause if isinstance(error, PublishError) else error


def _settled(waiting: _Sent | Outcome) -> bool:
    return isinstance(waiting, Outcome) or waiting.future.done()
