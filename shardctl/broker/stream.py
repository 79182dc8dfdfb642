"""Streams and waiting pulls: which readers wake when a subscription has messages, and the loop of one StreamingPull."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import grpc

from shardctl.broker import config
from shardctl.broker.errors import InvalidArgumentError, UnavailableError
from shardctl.broker.message import encode
from shardctl.broker.orderingqueue import Reader
from shardctl.broker.protos import Proto, of
from shardctl.broker.registry import RegisteredSubscription
from shardctl.broker.subscription import Delivery, Subscription

MAX_ACK_REQUEST_BYTES = 512 * 1024
MAX_UNSENT_BYTES = MAX_ACK_REQUEST_BYTES  # of a stream's confirmations
_FIRST_REQUEST_ONLY = ("subscription", "max_outstanding_messages", "max_outstanding_bytes", "protocol_version")

StreamingPullResponse = of("StreamingPullResponse")
MAX_MODIFY_SECONDS = config.ACK_DEADLINE_SECONDS[1]
RESPONSE_SECONDS = 0.005
"""Between a stream's responses: what is published meanwhile shares one. Each costs both sides as much as many messages."""

END: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs lack it

Clock = Callable[[], float]
"""Seconds since the epoch."""


class Waiter:
    """One reader and the event that wakes its task."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.event = asyncio.Event()


class Waiters:
    """Readers that wait for messages, by subscription."""

    def __init__(self) -> None:
        self._waiting: dict[Subscription, deque[Waiter]] = defaultdict(deque)

    @contextlib.contextmanager
    def waiting(self, core: Subscription, waiter: Waiter) -> Iterator[None]:
        self._waiting[core].append(waiter)
        try:
            yield
        finally:
            self._waiting[core].remove(waiter)
            if not self._waiting[core]:
                del self._waiting[core]

    def wake(self, core: Subscription) -> None:
        """Wakes all readers that could take something, starting with another each time, so that trickles are shared too."""
        waiting = self._waiting.get(core, ())
        for waiter in waiting:
            if core.gone or core.pushes or core.has_work(waiter.reader):
                waiter.event.set()
        if isinstance(waiting, deque):
            waiting.rotate(-1)

    def wake_all(self) -> None:
        for core in list(self._waiting):
            self.wake(core)


def check_modify_seconds(seconds: float) -> None:
    if not 0 <= seconds <= MAX_MODIFY_SECONDS:
        raise InvalidArgumentError(f"An ack deadline of {seconds} s: it must lie between 0 and {MAX_MODIFY_SECONDS}.")


def check_ack_request(core: Subscription, request: Proto, ack_ids: Sequence[str]) -> None:
    """Raises InvalidArgumentError, before any of the ids has an effect."""
    if request.ByteSize() > MAX_ACK_REQUEST_BYTES:
        raise InvalidArgumentError(f"Request payload size exceeds the limit: {MAX_ACK_REQUEST_BYTES} bytes.")
    core.check(ack_ids)


def check_stream_seconds(seconds: int) -> None:
    low, high = config.ACK_DEADLINE_SECONDS
    if not low <= seconds <= high:
        raise InvalidArgumentError(f"stream_ack_deadline_seconds is {seconds}; it must lie from {low} to {high}.")


class StreamingPull:
    """One open stream: a task reads acks and deadlines, `run` writes messages, both on the subscription's core."""

    def __init__(
        self, subscription: RegisteredSubscription, first: Proto, context: Any, waiters: Waiters, clock: Clock
    ) -> None:
        check_stream_seconds(first.stream_ack_deadline_seconds)
        self._subscription = subscription
        self._core = subscription.core
        self._context = context
        self._waiters = waiters
        self._clock = clock
        self._waiter = Waiter(
            Reader(
                ack_deadline_seconds=first.stream_ack_deadline_seconds,
                max_messages=first.max_outstanding_messages,
                max_bytes=first.max_outstanding_bytes,
                client_id=first.client_id,
            )
        )
        self._confirmations = bytearray()  # serialised, and not yet sent
        self._drained = asyncio.Event()
        self._answers_pings = first.protocol_version >= 1
        self._pinged = False
        self._injector = subscription.core.injector
        self._apply(first)

    async def run(self) -> None:
        """Until the client closes its side, the subscription goes or a fault cuts the stream.

        A client that has closed its side gets no further message, but the confirmations of what it had sent.
        """
        core, reader, event = self._core, self._waiter.reader, self._waiter.event
        core.attach(reader)
        listening = asyncio.create_task(self._listen())
        listening.add_done_callback(lambda _task: event.set())
        try:
            with self._waiters.waiting(core, self._waiter):
                while not listening.done():
                    if refusal := core.gone or core.pushes:
                        raise refusal
                    response = self._next()
                    if not response:
                        event.clear()
                        await event.wait()
                        continue
                    reader.busy = True
                    await self._context.write(response)
                    reader.busy = False
                    if self._injector.happens("cut_stream", self._injector.faults.cut_stream_rate):
                        raise UnavailableError("The stream was cut (injected fault).")
                    await asyncio.sleep(RESPONSE_SECONDS)
                await listening
                if self._confirmations:
                    await self._context.write(self._response(()))
        finally:
            listening.cancel()
            core.detach(reader)
            self._waiters.wake(core)

    def _next(self) -> bytes:
        """The next response, as serialised; empty when there is nothing to say."""
        batch = self._core.take(self._waiter.reader, self._clock())
        if not (batch or self._confirmations or self._pinged):
            return b""
        self._pinged = False
        return self._response(batch)

    def _response(self, batch: Sequence[Delivery]) -> bytes:
        """These messages, and the confirmations that wait.

        Each response has the subscription's properties. That is all that the answer to a ping holds: clients that say that they
        speak version 1 of the protocol take a stream without such answers for dead.
        """
        confirmations = bytes(self._confirmations)
        self._confirmations.clear()
        self._drained.set()
        subscription = self._subscription.config
        properties = StreamingPullResponse.SubscriptionProperties(
            exactly_once_delivery_enabled=subscription.enable_exactly_once_delivery,
            message_ordering_enabled=subscription.enable_message_ordering,
        )
        return confirmations + encode(batch) + _serialised(subscription_properties=properties)

    async def _listen(self) -> None:
        """Reads requests, unless confirmations pile up because the client reads none: then it may send no more either."""
        while (request := await self._context.read()) is not END:
            for field in _FIRST_REQUEST_ONLY:
                if getattr(request, field):
                    raise InvalidArgumentError(f"A stream's first request alone may have {field}.")
            self._apply(request)
            if self._answers_pings and not (request.ack_ids or request.modify_deadline_ack_ids):
                self._pinged = True
                self._waiter.event.set()
            while len(self._confirmations) > MAX_UNSENT_BYTES:
                self._drained.clear()
                await self._drained.wait()

    def _apply(self, request: Proto) -> None:
        if request.stream_ack_deadline_seconds:
            check_stream_seconds(request.stream_ack_deadline_seconds)
            self._waiter.reader.ack_deadline_seconds = request.stream_ack_deadline_seconds
        if request.ack_ids or request.modify_deadline_ack_ids:
            check_ack_request(self._core, request, [*request.ack_ids, *request.modify_deadline_ack_ids])
        if request.ack_ids:
            stale = self._core.ack(request.ack_ids, self._clock())
            self._confirm("acknowledge_confirmation", request.ack_ids, stale)
        if request.modify_deadline_ack_ids:
            self._modify(request.modify_deadline_ack_ids, request.modify_deadline_seconds)
        if request.ack_ids or request.modify_deadline_ack_ids:
            self._waiters.wake(self._core)

    def _modify(self, ack_ids: Sequence[str], seconds: Sequence[int]) -> None:
        if len(ack_ids) != len(seconds):
            raise InvalidArgumentError("modify_deadline_seconds and modify_deadline_ack_ids differ in length.")
        stale: list[str] = []
        for deadline_seconds, group in groupby(zip(seconds, ack_ids, strict=True), key=itemgetter(0)):
            check_modify_seconds(deadline_seconds)
            stale += self._core.modify([ack_id for _, ack_id in group], deadline_seconds, self._clock())
        self._confirm("modify_ack_deadline_confirmation", ack_ids, stale)

    def _confirm(self, field: str, ack_ids: Sequence[str], stale: Sequence[str]) -> None:
        """Exactly-once subscriptions report which acks and deadlines took effect; others never do."""
        if not self._core.settings.exactly_once:
            return
        refused = set(stale)
        taken = [ack_id for ack_id in ack_ids if ack_id not in refused]
        self._confirmations += _serialised(**{field: {"ack_ids": taken, "invalid_ack_ids": list(stale)}})
        self._waiter.event.set()


def _serialised(**fields: Any) -> bytes:
    return bytes(StreamingPullResponse(**fields).SerializeToString())


async def pull(core: Subscription, max_messages: int, wait_seconds: float, *, waiters: Waiters, clock: Clock) -> bytes:
    """One unary Pull, as serialised: waits for a first message, but not for a full batch; may be empty.

    Its reader is closed at once, so a lane that it took from delivers nothing more until those messages are acked or expire.
    """
    reader = Reader(ack_deadline_seconds=core.settings.ack_deadline_seconds)
    waiter = Waiter(reader)
    end = clock() + wait_seconds
    try:
        with waiters.waiting(core, waiter):
            while True:
                if refusal := core.gone or core.pushes:
                    raise refusal
                batch = core.take(reader, clock(), max_messages)
                left = end - clock()
                if batch or left <= 0:
                    return encode(batch)
                waiter.event.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(waiter.event.wait(), left)
    finally:
        core.detach(reader)
