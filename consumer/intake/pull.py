"""Messages pulled: by streams, one a subscription, and by rounds of unary pulls.

Before it opens a stream, and when messages come that may have killed a process, it pulls in small rounds instead: see
`consumer.intake.slowstart`. A stream's bounds can't change, and messages on their way to the client count as outstanding.

Reads `StreamingPull` through the plain channel: the callback subscriber costs ten times the CPU a message, and acks or re-leases
without its user's knowledge.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from google.api_core.exceptions import DeadlineExceeded, GoogleAPICallError, NotFound

from consumer.delivery import Delivery, decode
from consumer.errors import PermanentError
from consumer.intake.gathering import Gathering
from consumer.intake.leases import Leases, retry_seconds
from consumer.intake.slowstart import AGAIN, DEATHS, SUSPECT, Window, parts
from consumer.intake.stream import Stream
from consumer.observability.metrics import Metrics
from consumer.pubsub.calls import Subscriber
from consumer.pubsub.protos import StreamingPullRequest
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.wire import barrier

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 30  # the service closes a silent stream
SETTLE_SECONDS = 0.2  # a stream that was refused has ended by then
CLOSE_SECONDS = 1.0  # for messages that are on their way when the streams are closed
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
            Stream(
                f"projects/{config.project}/subscriptions/{subscription}",
                generation.number,
                config.outstanding_messages,
                config.consumer.max_outstanding_bytes,
                may_end=generation.number < newest,
            )
            for generation in config.generations
            for subscription in generation.subscriptions
        ]
        self._by_path = {stream.path: stream for stream in self._streams}
        self._leases = Leases(client, self._lease_seconds, clock, metrics)
        metrics.outstanding.set_function(lambda: sum(stream.messages for stream in self._streams))
        metrics.outstanding_bytes.set_function(lambda: sum(stream.bytes for stream in self._streams))
        self.tasks: tuple[asyncio.Task[None], ...] = ()
        self._paused = asyncio.Event()
        self._paused.set()  # set means open
        self._closing = asyncio.Event()

    def start(self, deliver: Callable[[list[Delivery]], None], pause_left: Callable[[], float]) -> None:
        """Open the streams; each batch of messages goes to `deliver`. `pause_left` says for how many seconds no batch of the
        replica's will leave that isn't full. Before `close`, `tasks` end only by a bug.
        """
        self._deliver, self._pause_left = deliver, pause_left
        self._reading = [
            asyncio.create_task(self._read(stream), name=f"read {stream.path}") for stream in self._streams
        ]
        self._leasing = asyncio.create_task(self._leases.keep(), name="leases")
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
        await self._leases.close(timeout_seconds)
        self._leasing.cancel()
        await asyncio.gather(self._leasing, return_exceptions=True)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge in the background. After a lost ack the message is redelivered, and the inbox knows it."""
        self._settle(deliveries)
        self._leases.ack(deliveries)

    async def hand_back(self, deliveries: Sequence[Delivery]) -> None:
        """Let other replicas have these at once. Only for messages after which this replica applies no other of their lanes."""
        self._settle(deliveries)
        await self._leases.hand_back(deliveries)

    def _settle(self, deliveries: Sequence[Delivery]) -> None:
        # A batch whose messages are all held settles nothing, and must not count as progress for what waits in `_wait_settled`.
        if not deliveries:
            return
        by_path: dict[str, list[Delivery]] = {}
        for delivery in deliveries:
            by_path.setdefault(delivery.subscription, []).append(delivery)
        for path, its_own in by_path.items():
            self._by_path[path].release(its_own)
        self._signal_settled()

    def _signal_settled(self) -> None:
        self._settled.set()
        self._settled = asyncio.Event()

    async def _read(self, stream: Stream) -> None:
        if self._slow_start:
            await self._pull_in_rounds(stream)
        failures = 0
        while True:
            try:
                responses = await self._client.streaming_pull(requests=self._requests(stream))
                try:
                    await self._take_until_left(stream, responses)
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
                await asyncio.sleep(retry_seconds(failures))

    async def _take_responses(self, stream: Stream, responses: Any, gathering: Gathering) -> None:
        async for response in responses:
            stream.connected = True
            gathering.add(response.received_messages)
            if not stream.leave.is_set():
                await stream.room.wait()
                await self._paused.wait()

    async def _take_until_left(self, stream: Stream, responses: Any) -> None:
        """Take a stream's responses until it ends; a stream that is being left has a little time to end by itself."""
        gathering = Gathering(functools.partial(self._receive, stream), self._pause_left, _ends_lane)
        taking = asyncio.create_task(self._take_responses(stream, responses, gathering))
        tasks: tuple[asyncio.Future[Any], ...] = (taking, asyncio.create_task(stream.leave.wait()), gathering.failed)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not (taking.done() or gathering.failed.done()):
                await asyncio.wait([taking], timeout=CLOSE_SECONDS)
            for task in (taking, gathering.failed):
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            gathering.read()

    def _leave_streams(self) -> None:
        """End every stream, after the messages on their way here."""
        for stream in self._streams:
            stream.leave.set()
            stream.room.set()

    async def _finish_left_stream(self, stream: Stream) -> None:
        """Wait until the stream's messages are settled, and only then try those that have failed before."""
        apart, stream.apart = stream.apart, []
        async with self._round:
            last = {delivery.ack_id for delivery in apart}
            await self._wait_settled([delivery for ack_id, delivery in self._leases.held.items() if ack_id not in last])
            await self._try_in_parts(apart)
        stream.leave.clear()

    async def _pull_in_rounds(self, stream: Stream) -> None:
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
                await asyncio.sleep(retry_seconds(failures))
                continue
            stream.connected, failures = not self._closing.is_set(), 0
            if deliveries:
                await self._leases.extend(deliveries)  # the subscription's own deadline may be minutes
                async with self._round:
                    await self._try_in_parts(deliveries)
                window.survived(deliveries)
        log.info("%s: reading as much as the bounds allow", stream.path, extra={"action": "wide_open"})

    async def _pull(self, stream: Stream, messages: int) -> Any:
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
        while left := left & self._leases.held.keys():
            try:
                await asyncio.wait_for(self._settled.wait(), QUIET_SECONDS)
            except TimeoutError:
                if self._paused.is_set():
                    return
            if self._closing.is_set():
                return
        await self._leases.acks_sent(QUIET_SECONDS)

    def _log_end(self, stream: Stream, error: Exception) -> None:
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

    async def _requests(self, stream: Stream) -> AsyncIterator[Any]:
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

    def _receive(self, stream: Stream, received: Sequence[Any]) -> None:
        deliveries = self._held_of(stream, received)
        if self._slow_start and not stream.leave.is_set() and any(delivery.attempt >= AGAIN for delivery in deliveries):
            log.info(
                "messages were redelivered that no process finished: reading slowly", extra={"action": "slow_start"}
            )
            self._leave_streams()
        if deliveries:
            self._deliver(stream.without_apart(deliveries) if stream.leave.is_set() else deliveries)

    def _held_of(self, stream: Stream, received: Sequence[Any]) -> list[Delivery]:
        """The received messages, decoded and under lease."""
        if not received:
            return []
        now = self._clock()
        deliveries = [decode(message, stream.path, stream.generation, self._config, now) for message in received]
        self._leases.add(deliveries)
        stream.hold(deliveries)
        self._metrics.received.inc(len(deliveries))
        return deliveries


def _ends_lane(received: Any) -> bool:
    """Whether it looks like a barrier, behind which a slot's writes wait for its next owner."""
    return barrier.REBALANCE in received.message.attributes
