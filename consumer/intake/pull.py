"""Streaming pull in batches, leases, acks. The only module that acks.

Before it opens a stream, and when messages come that may have killed a process, it pulls in small rounds instead: see
`consumer.intake.slowstart`. A stream's bounds can't change, and messages on their way to the client count as outstanding.

Reads `StreamingPull` through the plain channel: the callback subscriber costs ten times the CPU a message, and acks or re-leases
without its user's knowledge.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from itertools import takewhile
from typing import Any, Protocol

from google.api_core.exceptions import DeadlineExceeded, GoogleAPICallError, NotFound

from consumer.delivery import Delivery, decode
from consumer.errors import PermanentError
from consumer.intake.slowstart import AGAIN, DEATHS, SUSPECT, Window, parts
from consumer.observability.metrics import Metrics
from consumer.pubsub.calls import Subscriber
from consumer.pubsub.protos import StreamingPullRequest
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.supervision.background import Background
from shardctl.supervision.backoff import backoff

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.1, 5.0
HEARTBEAT_SECONDS = 30  # the service closes a silent stream
RENEW_AT = 1 / 3  # of the lease, so that one lost renewal costs nothing: the next still comes in time
SETTLE_SECONDS = 0.2  # a stream that was refused has ended by then
CLOSE_SECONDS = 1.0  # for messages that are on their way when the streams are closed
MAX_IDS = 2_500  # ack ids a request, well inside its 512 KiB
ACK_TRIES = 4
PULL_SECONDS = 100  # longer than the service lets an empty pull wait
QUIET_SECONDS = 2.0  # if nothing of a round's part is settled for so long, it waits for something and kills no process


class Suspects(Protocol):
    """A record of the messages that a process handled alone; it outlives the process."""

    async def deaths(self, message_id: str) -> int: ...
    async def begin(self, message_id: str) -> None: ...
    async def survived(self, message_id: str) -> None: ...


class Intake:
    """One stream a subscription, each with its own bounds, so that a held-up stream never starves another.

    With `slow_start`, each begins with rounds of few messages.
    """

    def __init__(
        self,
        client: Subscriber,
        config: ShardConfig,
        clock: Callable[[], float],
        metrics: Metrics,
        *,
        slow_start: bool = True,
        suspects: Suspects | None = None,
    ) -> None:
        self._client, self._config, self._clock, self._metrics = client, config, clock, metrics
        self._slow_start, self._suspects = slow_start, suspects
        self._round = asyncio.Lock()  # one at a time over all streams
        self._settled = asyncio.Event()  # set, and another in its place, whenever something is settled
        self._lease_seconds = int(config.consumer.lease.total_seconds())
        newest = max(generation.number for generation in config.generations)
        self._streams = [
            _Stream(
                f"projects/{config.project}/subscriptions/{subscription}",
                generation.number,
                config.consumer.max_outstanding_messages,
                config.consumer.max_outstanding_bytes,
                may_end=generation.number < newest,
            )
            for generation in config.generations
            for subscription in generation.subscriptions
        ]
        self._by_path = {stream.path: stream for stream in self._streams}
        self._held: dict[str, Delivery] = {}  # by ack id, the one leased longest ago first
        self.tasks: tuple[asyncio.Task[None], ...] = ()
        self._acks = Background(log)
        self._acking: set[asyncio.Task[None]] = set()
        self._paused = asyncio.Event()
        self._paused.set()  # set means open
        self._closing = asyncio.Event()

    def start(self, deliver: Callable[[list[Delivery]], None]) -> None:
        """Open the streams; each batch of messages goes to `deliver`. Before `close`, `tasks` end only by a bug."""
        self._deliver = deliver
        self._reading = [
            asyncio.create_task(self._read(stream), name=f"read {stream.path}") for stream in self._streams
        ]
        self._leasing = asyncio.create_task(self._renew_leases(), name="leases")
        self.tasks = (*self._reading, self._leasing)

    def pause(self) -> None:
        """Receive nothing more until `resume`. Held messages stay under lease."""
        self._paused.clear()

    def resume(self) -> None:
        self._paused.set()

    @property
    def connected(self) -> bool:
        return bool(self._streams) and all(stream.connected or stream.ended for stream in self._streams)

    async def stop_reading(self) -> None:
        """Close the streams. Held messages stay leased and can still be acked.

        Messages on their way here are read first, so that they can be handed back: unread, they would wait for their lease's end.
        """
        self._closing.set()
        self._paused.set()
        self._leave_streams()
        self._signal_settled()
        await asyncio.wait(self._reading, timeout=CLOSE_SECONDS)
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    async def close(self, timeout_seconds: float) -> None:
        """Wait for the acks in flight, but no longer than this, and stop extending leases."""
        unsent: set[asyncio.Task[None]] = set()
        if self._acking:
            _, unsent = await asyncio.wait(self._acking, timeout=timeout_seconds)
        for task in (self._leasing, *unsent):
            task.cancel()
        await asyncio.gather(self._leasing, *unsent, return_exceptions=True)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge in the background. After a lost ack the message is redelivered, and the inbox knows it."""
        self._settle(deliveries)
        for path, ids in _ids_by_subscription(deliveries):
            task = self._acks.once("acks", self._send_ack(path, ids))
            self._acking.add(task)
            task.add_done_callback(self._acking.discard)

    async def hand_back(self, deliveries: Sequence[Delivery]) -> None:
        """Let other replicas have these at once. Only for messages after which this replica applies no other of their lanes."""
        self._settle(deliveries)
        for path, ids in _ids_by_subscription(deliveries):
            try:
                await self._client.modify_ack_deadline(
                    subscription=path, ack_ids=ids, ack_deadline_seconds=0, timeout_seconds=2
                )
            except GoogleAPICallError as error:
                log.info("messages couldn't be handed back (%s): they will be redelivered when their lease ends", error)

    def _settle(self, deliveries: Sequence[Delivery]) -> None:
        # A batch whose messages are all held settles nothing, and must not count as progress for what waits in `_wait_settled`.
        if not deliveries:
            return
        for delivery in deliveries:
            self._held.pop(delivery.ack_id, None)
            self._by_path[delivery.subscription].release(delivery)
        self._measure()
        self._signal_settled()

    def _signal_settled(self) -> None:
        self._settled.set()
        self._settled = asyncio.Event()

    async def _send_ack(self, path: str, ids: list[str]) -> None:
        for attempt in range(1, ACK_TRIES + 1):
            try:
                await self._client.acknowledge(subscription=path, ack_ids=ids, timeout_seconds=5)
            except GoogleAPICallError as error:
                why = str(error)
                if attempt < ACK_TRIES:
                    await asyncio.sleep(_backoff(attempt))
            else:
                self._metrics.acked.inc(len(ids))
                return
        log.warning(
            "%s acks were lost (%s): these messages will be redelivered, and the inbox will know them",
            len(ids),
            why,
            extra={"action": "acks_lost"},
        )

    async def _read(self, stream: _Stream) -> None:
        if self._slow_start:
            await self._pull_in_rounds(stream)
        failures = 0
        while True:
            try:
                responses = await self._client.streaming_pull(requests=self._requests(stream))
                try:
                    await self._until_left(stream, self._take_responses(stream, responses))
                    failures = 0
                finally:
                    responses.cancel()  # also while nothing is read: the service must stop sending
            except GoogleAPICallError as error:
                failures = 1 if stream.connected else failures + 1
                stream.connected = False
                self._log_end(stream, error)
            stream.connected = False
            stream.opened += 1
            if self._closing.is_set():
                return
            if stream.leave.is_set():
                await self._finish_left_stream(stream)
                await self._pull_in_rounds(stream)
            else:
                await asyncio.sleep(_backoff(failures))

    async def _take_responses(self, stream: _Stream, responses: Any) -> None:
        async for response in responses:
            stream.connected = True
            self._receive(stream, response.received_messages)
            if not stream.leave.is_set():
                await stream.room.wait()
                await self._paused.wait()

    async def _until_left(self, stream: _Stream, taking: Coroutine[Any, Any, None]) -> None:
        """Read a stream's responses until it ends; a stream that is being left has a little time to end by itself."""
        tasks = reading, _ = asyncio.create_task(taking), asyncio.create_task(stream.leave.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                await asyncio.wait([reading], timeout=CLOSE_SECONDS)
            if reading.done():
                reading.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _leave_streams(self) -> None:
        """End every stream, after the messages on their way here."""
        for stream in self._streams:
            stream.leave.set()
            stream.room.set()

    async def _finish_left_stream(self, stream: _Stream) -> None:
        """Wait until the stream's messages are settled, and only then try those that have failed before."""
        apart, stream.apart = stream.apart, []
        async with self._round:
            last = {delivery.ack_id for delivery in apart}
            await self._wait_settled([delivery for ack_id, delivery in self._held.items() if ack_id not in last])
            await self._try_in_parts(apart)
        stream.leave.clear()

    async def _pull_in_rounds(self, stream: _Stream) -> None:
        """Receive messages by unary pulls, which return no more than they are asked for, until the stream may be opened."""
        window, failures = Window(stream.max_messages), 0
        while not (window.wide or self._closing.is_set()):
            await stream.room.wait()
            await self._paused.wait()
            try:
                deliveries = self._held_of(stream, await self._pull(stream, window.messages))
            except GoogleAPICallError as error:
                stream.connected = False
                failures += 1
                self._log_end(stream, error)
                await asyncio.sleep(_backoff(failures))
                continue
            stream.connected, failures = not self._closing.is_set(), 0
            if deliveries:
                await self._extend(deliveries)  # the subscription's own deadline may be minutes
                async with self._round:
                    await self._try_in_parts(deliveries)
                window.survived(deliveries)
        log.info("%s: reading as much as the bounds allow", stream.path, extra={"action": "wide_open"})

    async def _pull(self, stream: _Stream, messages: int) -> Any:
        """Up to so many messages, as soon as there are any; none if the time is over or the streams are being closed."""
        pulling = asyncio.ensure_future(
            self._client.pull(subscription=stream.path, max_messages=messages, timeout_seconds=PULL_SECONDS)
        )
        closing = asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait({pulling, closing}, timeout=SETTLE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not pulling.done():
                stream.connected = True  # a refused call has ended by then
                await asyncio.wait({pulling, closing}, return_when=asyncio.FIRST_COMPLETED)
            if not pulling.done():
                await asyncio.wait(
                    {pulling}, timeout=SETTLE_SECONDS
                )  # the messages it may have got are on their way here
            return pulling.result().received_messages if pulling.done() else ()
        except DeadlineExceeded:
            return ()
        finally:
            pulling.cancel()
            closing.cancel()

    async def _try_in_parts(self, deliveries: Sequence[Delivery]) -> None:
        """Deliver a round's messages, each part once the one before it is settled. At a stop the rest stays leased, and is
        redelivered elsewhere.
        """
        for part in parts(deliveries):
            if self._closing.is_set():
                return
            if self._suspects and part[0].attempt >= SUSPECT:
                await self._try_alone(part[0], self._suspects)
            else:
                self._deliver(part)
                await self._wait_settled(part)

    async def _try_alone(self, delivery: Delivery, suspects: Suspects) -> None:
        """Dead-letter a message that killed several processes, before the service dead-letters those that wait behind it."""
        if await suspects.deaths(delivery.message_id) >= DEATHS:
            delivery.fault = delivery.fault or PermanentError(
                "crashes_consumer", f"{DEATHS} processes died while they handled this message alone"
            )
        else:
            await suspects.begin(delivery.message_id)
        self._deliver([delivery])
        await self._wait_settled([delivery])
        await suspects.survived(delivery.message_id)

    async def _wait_settled(self, deliveries: Sequence[Delivery]) -> None:
        """Until these are settled and their acks have been sent, or nothing happens to them any more."""
        left = {delivery.ack_id for delivery in deliveries}
        while left := left & self._held.keys():
            try:
                await asyncio.wait_for(self._settled.wait(), QUIET_SECONDS)
            except TimeoutError:
                if self._paused.is_set():
                    return
            if self._closing.is_set():
                return
        if self._acking:
            await asyncio.wait(set(self._acking), timeout=QUIET_SECONDS)

    def _log_end(self, stream: _Stream, error: Exception) -> None:
        missing = isinstance(error, NotFound)
        if (
            missing and stream.may_end
        ):  # the rebalance is over, and this process's configuration is about to be replaced
            if not stream.ended:
                log.info("%s is deleted: its generation has handed over everything", stream.path)
            stream.ended = True
            return
        log.log(
            logging.ERROR if missing else logging.INFO,
            "the stream of %s ended (%s): it is opened again",
            stream.path,
            error,
            extra={"action": "stream_ended"},
        )

    async def _requests(self, stream: _Stream) -> AsyncIterator[Any]:
        stream.opened = opened = stream.opened + 1
        yield StreamingPullRequest(
            subscription=stream.path,
            stream_ack_deadline_seconds=self._lease_seconds,
            # New for each stream. With the id of an earlier one, the service would go on with a key where that stream ended, past
            # messages that were sent on it and never arrived, and these would come out of order when their lease ends.
            client_id=str(uuid.uuid4()),
            max_outstanding_messages=stream.max_messages,
            max_outstanding_bytes=stream.max_bytes,
        )
        # The call may have failed meanwhile. This generator isn't informed, so it checks whether another was opened or is about
        # to be.
        await asyncio.sleep(SETTLE_SECONDS)
        stream.connected = stream.connected or stream.opened == opened
        while stream.opened == opened and not stream.leave.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stream.leave.wait(), HEARTBEAT_SECONDS)
                return  # which half-closes the stream: the service ends it after the messages that it has sent
            yield StreamingPullRequest()

    def _receive(self, stream: _Stream, received: Any) -> None:
        deliveries = self._held_of(stream, received)
        if self._slow_start and not stream.leave.is_set() and any(delivery.attempt >= AGAIN for delivery in deliveries):
            log.info(
                "messages were redelivered that no process finished: reading slowly", extra={"action": "slow_start"}
            )
            self._leave_streams()
        if deliveries:
            self._deliver(stream.without_apart(deliveries) if stream.leave.is_set() else deliveries)

    def _held_of(self, stream: _Stream, received: Any) -> list[Delivery]:
        """The received messages, decoded and under lease."""
        if not received:
            return []
        now = self._clock()
        deliveries = [decode(message, stream.path, stream.generation, self._config, now) for message in received]
        for delivery in deliveries:
            self._held[delivery.ack_id] = delivery
        stream.hold(deliveries)
        self._metrics.received.inc(len(deliveries))
        self._measure()
        return deliveries

    async def _renew_leases(self) -> None:
        """Extend the leases of held messages well before they end. Most messages are settled long before."""
        renew_after = self._lease_seconds * RENEW_AT
        while True:
            await asyncio.sleep(min(1.0, renew_after / 4))
            now = self._clock()
            await self._extend(self._leased_again(now - renew_after, now))

    def _leased_again(self, before: float, now: float) -> list[Delivery]:
        """The messages leased at or before a moment, moved behind those leased since."""
        due = list(takewhile(lambda delivery: delivery.leased_at <= before, self._held.values()))
        for delivery in due:
            del self._held[delivery.ack_id]
            delivery.leased_at = now
            self._held[delivery.ack_id] = delivery
        return due

    async def _extend(self, deliveries: Sequence[Delivery]) -> None:
        for path, ids in _ids_by_subscription(deliveries):
            try:
                await self._client.modify_ack_deadline(
                    subscription=path, ack_ids=ids, ack_deadline_seconds=self._lease_seconds, timeout_seconds=2
                )
            except GoogleAPICallError as error:
                log.info("the leases of %s messages weren't extended (%s): they may be redelivered", len(ids), error)

    def _measure(self) -> None:
        self._metrics.outstanding.set(sum(stream.messages for stream in self._streams))
        self._metrics.outstanding_bytes.set(sum(stream.bytes for stream in self._streams))


class _Stream:
    """One subscription's stream and what it holds. `room` is open while both bounds are kept.

    A stream of an older generation `may_end`: a rebalance deletes its subscription once all of it is handed over.
    """

    def __init__(self, path: str, generation: int, max_messages: int, max_bytes: int, *, may_end: bool = False) -> None:
        self.path, self.generation, self.may_end = path, generation, may_end
        self.max_messages, self.max_bytes = max_messages, max_bytes
        self.ended = False
        self.messages = self.bytes = 0
        self.connected = False
        self.opened = 0  # grows with each stream opened and each ended
        self.room = asyncio.Event()
        self.room.set()
        self.leave = asyncio.Event()  # set: the stream is to end after the messages on their way
        # Messages that came since then and were tried before, with those behind them in their lanes.
        self.apart: list[Delivery] = []

    def without_apart(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """The messages that may be tried at once; the others go to `apart`."""
        lanes = {delivery.lane for delivery in self.apart}
        at_once: list[Delivery] = []
        for delivery in deliveries:
            if delivery.attempt >= AGAIN or delivery.lane in lanes:
                lanes.add(delivery.lane)
                self.apart.append(delivery)
            else:
                at_once.append(delivery)
        return at_once

    def hold(self, deliveries: Sequence[Delivery]) -> None:
        self.messages += len(deliveries)
        self.bytes += sum(delivery.size for delivery in deliveries)
        if self.messages >= self.max_messages or self.bytes >= self.max_bytes:
            self.room.clear()

    def release(self, delivery: Delivery) -> None:
        self.messages -= 1
        self.bytes -= delivery.size
        if self.messages < self.max_messages and self.bytes < self.max_bytes:
            self.room.set()


def _ids_by_subscription(deliveries: Iterable[Delivery]) -> Iterable[tuple[str, list[str]]]:
    by_path: dict[str, list[str]] = {}
    for delivery in deliveries:
        by_path.setdefault(delivery.subscription, []).append(delivery.ack_id)
    for path, ids in by_path.items():
        for start in range(0, len(ids), MAX_IDS):
            yield path, ids[start : start + MAX_IDS]


def _backoff(failures: int) -> float:
    return backoff(failures, FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, random.random())
