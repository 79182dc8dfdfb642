"""Pub/Sub as it may be at its worst: it keeps what it promises about order, and nothing else.

Kept: a message is never given to one reader while an earlier one of its key, unacked, is out at another; a message that comes
again brings every later one of its key; what is unacked comes again. (One licence beyond that: see `nack`.) A reader is a stream.
As the API says, a stream with the client id of one that has ended may take over what that one had: also what was lost on its way.
Not kept: leases end early, copies come unasked, acks are dropped or counted late, acked messages come again behind an earlier
one, streams are cut, responses take their time.
"""

# ruff: noqa: ASYNC109  # the signatures are the real client's

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

from google.api_core.exceptions import DeadlineExceeded, ServiceUnavailable

from tests.sim.loop import Process, SimLoop
from tests.sim.message import Message
from tests.sim.network import Answer, Network

PULL_LEASE_SECONDS = 10.0


class Watcher(Protocol):
    """Receives what the broker sees."""

    def tell(self, who: object, what: str, *about: object) -> None: ...
    def acked(self, process: Process, message: Message) -> None: ...
    def lease_ended(self, lease: Lease, now: float) -> None: ...
    def buried(self, message: Message) -> None: ...


@dataclass(slots=True)
class Habits:
    """How nasty the broker is: probabilities."""

    drop_ack: float = 0.0  # of an id: the answer says done
    count_late_ack: float = 0.5  # of an id whose lease has ended
    forget_ack: float = 0.5  # of an acked message behind one that comes again: it comes again too
    end_lease_early: float = 0.0
    copy: float = 0.0  # of a message just given: it comes once more, later ones behind it
    give_up_key: float = 0.5  # at a nack by a reader that has closed its stream
    hand_over: float = 0.0  # of a key to a new stream of the same client id, while it is out at the old one
    max_attempts: int = 0  # then a message goes to the dead-letter topic; 0: it is delivered for ever
    lose_buffer: float = 0.5  # at the cut of a stream: what the reader's side had not read yet

    def behave(self) -> None:
        self.drop_ack = self.end_lease_early = self.copy = 0.0


@dataclass(eq=False, slots=True)
class Lease:
    ack_id: str
    lane: Lane
    index: int
    stream: Stream
    deadline: float
    seconds: float
    given_at: float
    read_at: float | None = None  # when the process took it off its stream
    answered: bool = False  # an ack of it has come, whatever became of that

    @property
    def message(self) -> Message:
        return self.lane.messages[self.index]


class Lane:
    """The messages of one ordering key: `cursor` is the first that is neither acked for good nor given."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.messages: list[Message] = []
        self.cursor = 0
        self.acked: set[int] = set()
        self.leases: dict[int, Lease] = {}
        self.failures: Counter[int] = Counter()  # by message, its leases that ended without an ack
        self.reader: Stream | None = None  # who has the key while anything of it is out
        self.licensed = False  # something of it may be out at another: handed over, or given up

    def backlog(self) -> list[Message]:
        return [message for index, message in enumerate(self.messages) if index not in self.acked]

    def settle(self) -> None:
        if not self.leases:
            self.reader, self.licensed = None, False


class Stream:
    """One StreamingPull, both ends of it. `buffer` is what has reached the reader's side of the network."""

    def __init__(
        self, process: Process, client: str, lease_seconds: float, max_messages: int, *, once: bool = False
    ) -> None:
        self.once = once  # a unary pull: it ends with its first response
        self.process, self.client, self.lease_seconds, self.max_messages = process, client, lease_seconds, max_messages
        self.open = True
        self.buffer: deque[list[Lease] | Exception | None] = deque()
        self.arrives = 0.0  # when what was sent last arrives: responses don't overtake each other
        self.out = 0
        self.waiting: asyncio.Future[None] | None = None

    def put(self, item: list[Lease] | Exception | None) -> None:
        self.buffer.append(item)
        if self.waiting and not self.waiting.done():
            self.waiting.set_result(None)


class Broker:
    """One subscription."""

    def __init__(self, loop: SimLoop, network: Network, watcher: Watcher, seed: int, name: str) -> None:
        self._loop, self._network, self._watcher, self._name = loop, network, watcher, name
        self._random = random.Random(f"{seed} broker {name}")
        self._draw = self._random.random
        self.habits = Habits()
        self.lanes: dict[str, Lane] = {}
        self.streams: list[Stream] = []
        self._by_ack_id: dict[str, Lease] = {}
        self._kicked = False

    # -- producer's side -------------------------------------------------------------------------------------------

    def publish(self, message: Message) -> None:
        lane = self.lanes.setdefault(message.lane, Lane(message.lane))
        lane.messages.append(message)
        self._watcher.tell("broker", "published", message)
        self._kick()

    def backlog(self) -> list[Message]:
        return [message for lane in self.lanes.values() for message in lane.backlog()]

    def close(self) -> None:
        """Break the cycles, so that the memory of a schedule is free at its end."""
        for lane in self.lanes.values():
            lane.leases.clear()
            lane.reader = None
        self._by_ack_id.clear()

    # -- deliveries ------------------------------------------------------------------------------------------------

    def open_stream(self, stream: Stream) -> None:
        if stream.open and stream.process.alive:
            self.streams.append(stream)
            for lane in self.lanes.values():
                before = lane.reader
                if (
                    before
                    and not before.open
                    and stream.client  # a unary pull has no id, by which the service could take it for an earlier reader
                    and before.client == stream.client
                    and self._draw() < self.habits.hand_over
                ):
                    lane.reader, lane.licensed = stream, True
            self._kick()

    def close_stream(self, stream: Stream) -> None:
        """What is out on it stays leased until its deadline, and its keys stay with their reader until then."""
        stream.open = False
        if stream in self.streams:
            self.streams.remove(stream)

    def cut_streams(self) -> None:
        for stream in list(self.streams):
            self._watcher.tell("broker", "cuts a stream of", stream.process)
            self.close_stream(stream)
            if self._draw() < self.habits.lose_buffer:
                stream.buffer.clear()
            stream.put(ServiceUnavailable("stream cut") if self._draw() < 0.8 else None)

    def _kick(self) -> None:
        if not self._kicked:
            self._kicked = True
            self._loop.after(self._network.delay("pubsub"), self._dispatch)

    def _dispatch(self) -> None:
        self._kicked = False
        if not self.streams:
            return
        responses: dict[Stream, list[Lease]] = {}
        lanes = list(self.lanes.values())
        self._random.shuffle(lanes)
        left = False
        for lane in lanes:
            left |= self._give(lane, responses)
        for stream, leases in responses.items():
            if stream.once:
                self.streams.remove(stream)
            stream.arrives = max(stream.arrives, self._loop.time() + self._network.delay("pubsub"))
            self._loop.at(stream.arrives, self._arrive, stream, leases)
        if left:
            self._kick()

    def _give(self, lane: Lane, responses: dict[Stream, list[Lease]]) -> bool:
        """Lease a run of a lane's messages to a reader that may have them; whether there is more for an able reader."""
        able = [stream for stream in self.streams if stream.out < stream.max_messages]
        if lane.reader is not None:
            able = [stream for stream in able if stream is lane.reader]
        if not able or lane.cursor == len(lane.messages):
            return False
        stream = able[int(self._draw() * len(able))]
        end = min(len(lane.messages), lane.cursor + 1 + int(self._draw() * 6))
        while lane.cursor < end and stream.out < stream.max_messages:
            index = lane.cursor
            lane.cursor += 1
            if index in lane.acked:
                continue
            ack_id = f"{self._name}-{len(self._by_ack_id)}"
            now = self._loop.time()
            lease = Lease(ack_id, lane, index, stream, now + stream.lease_seconds, stream.lease_seconds, now)
            lane.leases[index] = self._by_ack_id[ack_id] = lease
            lane.reader = stream
            assert lane.licensed or all(lease.stream is stream for lease in lane.leases.values()), (
                "the promise is broken"
            )
            stream.out += 1
            responses.setdefault(stream, []).append(lease)
            self._watcher.tell("broker", "gives", stream.process, lease.message, ack_id)
            self._watch_over(lease)
        return lane.cursor < len(lane.messages)

    def _watch_over(self, lease: Lease) -> None:
        self._loop.at(lease.deadline, self._expire, lease)
        if self._draw() < self.habits.end_lease_early:
            self._loop.after(self._draw() * lease.seconds, self._come_again, lease, "lease ends early")
        elif self._draw() < self.habits.copy:
            self._loop.after(self._draw() * 0.5, self._come_again, lease, "copy of")

    def _arrive(self, stream: Stream, leases: list[Lease]) -> None:
        if stream.open and stream.process.alive:
            stream.put(leases)

    def _expire(self, lease: Lease) -> None:
        now = self._loop.time()
        if lease.lane.leases.get(lease.index) is not lease:
            return
        if now < lease.deadline:  # it was extended
            self._loop.at(lease.deadline, self._expire, lease)
            return
        self._watcher.lease_ended(lease, now)
        self._count_failures(lease)
        self._come_again(lease, "lease of")

    def _count_failures(self, lease: Lease) -> None:
        """At its worst: whatever of the key is out fails with it, and after the last attempt is dead-lettered."""
        lane = lease.lane
        for index in [index for index in lane.leases if index >= lease.index]:
            lane.failures[index] += 1
            if 0 < self.habits.max_attempts <= lane.failures[index]:
                lane.acked.add(index)
                self._watcher.buried(lane.messages[index])

    def _come_again(self, lease: Lease, why: str) -> None:
        lane = lease.lane
        if lane.leases.get(lease.index) is lease:
            self._watcher.tell("broker", why, lease.message, "ends: it comes again")
            self._rewind(lane, lease.index)

    def _rewind(self, lane: Lane, index: int) -> None:
        """Message `index` comes again, and brings the later ones of its key; some of them although they were acked."""
        for later in [position for position in lane.leases if position >= index]:
            lane.leases.pop(later).stream.out -= 1
        for later in sorted(position for position in lane.acked if index < position < lane.cursor):
            if self._draw() < self.habits.forget_ack:
                lane.acked.discard(later)
        lane.cursor = min(lane.cursor, index)
        lane.settle()
        self._kick()

    # -- answers ---------------------------------------------------------------------------------------------------

    def serve_ack(self, process: Process, ack_ids: Sequence[str], answer: Answer) -> None:
        for ack_id in ack_ids:
            lease = self._by_ack_id.get(ack_id)
            if lease is None:  # of a subscription that was deleted and made again: Pub/Sub ignores it
                continue
            lane, lease.answered = lease.lane, True
            self._watcher.acked(process, lease.message)
            is_current = lane.leases.get(lease.index) is lease
            if self._draw() < self.habits.drop_ack or not (is_current or self._draw() < self.habits.count_late_ack):
                self._watcher.tell("broker", "drops ack of", lease.message, ack_id)
                continue
            self._watcher.tell("broker", "acked", lease.message, "by", process)
            lane.acked.add(lease.index)
            other = lane.leases.pop(lease.index, None)
            if other:
                other.stream.out -= 1
            lane.settle()
        self._kick()
        answer(None)

    def serve_modify(self, process: Process, ack_ids: Sequence[str], seconds: float, answer: Answer) -> None:
        current = [
            lease for lease in map(self._by_ack_id.__getitem__, ack_ids) if lease.lane.leases.get(lease.index) is lease
        ]
        for lease in current:
            if seconds:
                lease.deadline, lease.seconds = self._loop.time() + seconds, seconds
            else:
                self.nack(process, lease)
        answer(None)

    def nack(self, process: Process, lease: Lease) -> None:
        """A reader that has closed its stream gives a message up: from there on its key may go to another at once.

        The licence: even where an earlier message is still leased to the one who gave up. Pub/Sub's documents don't say that it
        does so; a consumer that hands back nothing while it may still apply something before it need not care.
        """
        lane, index = lease.lane, lease.index
        self._watcher.tell("broker", "handed back", lease.message, "by", process)
        self._rewind(lane, index)
        if lane.reader and not lane.reader.open and self._draw() < self.habits.give_up_key:
            lane.reader, lane.licensed = None, True


@dataclass(slots=True)
class Subscriber:
    """Stands where `consumer.pubsub.calls.Subscriber` does."""

    loop: SimLoop
    network: Network
    brokers: dict[str, Broker]  # by subscription path

    async def streaming_pull(self, *, requests: AsyncIterator[Any]) -> Responses:
        first = await anext(requests)
        broker = self.brokers[first.subscription]
        process = self.loop.current()
        stream = Stream(process, first.client_id, first.stream_ack_deadline_seconds, first.max_outstanding_messages)

        def serve(answer: Answer) -> None:
            broker.open_stream(stream)
            answer(None)

        try:
            await self.network.request("pubsub", serve, 5.0, _failure)
        except BaseException:
            broker.close_stream(stream)  # the call ends with the process that waited for it, and opens nothing later
            raise
        return Responses(self.loop, broker, stream, self.loop.create_task(_pump(requests), name="pump"))

    async def pull(self, *, subscription: str, max_messages: int, timeout_seconds: float) -> Any:
        broker = self.brokers[subscription]
        stream = Stream(self.loop.current(), "", PULL_LEASE_SECONDS, max_messages, once=True)

        def serve(answer: Answer) -> None:
            broker.open_stream(stream)
            answer(None)

        try:
            await self.network.request("pubsub", serve, 5.0, _failure)
            reading = anext(Responses(self.loop, broker, stream, self.loop.create_task(_nothing(), name="pump")))
            return await asyncio.wait_for(reading, timeout_seconds)
        except TimeoutError as error:
            raise DeadlineExceeded("timeout") from error
        except StopAsyncIteration as error:
            raise ServiceUnavailable("cut") from error
        finally:
            broker.close_stream(stream)

    async def acknowledge(self, *, subscription: str, ack_ids: Sequence[str], timeout_seconds: float) -> None:
        await self._call(
            subscription, lambda broker, who, answer: broker.serve_ack(who, tuple(ack_ids), answer), timeout_seconds
        )

    async def modify_ack_deadline(
        self, *, subscription: str, ack_ids: Sequence[str], ack_deadline_seconds: int, timeout_seconds: float
    ) -> None:
        await self._call(
            subscription,
            lambda broker, who, answer: broker.serve_modify(who, tuple(ack_ids), ack_deadline_seconds, answer),
            timeout_seconds,
        )

    async def _call(self, subscription: str, serve: Callable[[Broker, Process, Answer], None], timeout: float) -> None:
        process = self.loop.current()
        broker = self.brokers[subscription]
        await self.network.request("pubsub", lambda answer: serve(broker, process, answer), timeout, _failure)


def _failure(why: str) -> Exception:
    return DeadlineExceeded(why) if why == "timeout" else ServiceUnavailable(why)


async def _pump(requests: AsyncIterator[Any]) -> None:
    """Read what the process says on its stream: heartbeats."""
    async for _ in requests:
        pass


async def _nothing() -> None:
    """What the process says on a unary pull."""


class Responses:
    """The reader's end of a stream, as gRPC gives it: cancelling a read ends the call; letting go of it does not."""

    def __init__(self, loop: SimLoop, broker: Broker, stream: Stream, pump: asyncio.Task[None]) -> None:
        self._loop, self._broker, self._stream, self._pump = loop, broker, stream, pump

    def __aiter__(self) -> Responses:
        return self

    def cancel(self) -> None:
        self._broker.close_stream(self._stream)
        self._pump.cancel()

    async def __anext__(self) -> Any:
        stream = self._stream
        while not stream.buffer:
            stream.waiting = self._loop.create_future()
            try:
                await stream.waiting
            except asyncio.CancelledError:
                self.cancel()
                raise
        item = stream.buffer.popleft()
        if isinstance(item, list):
            for lease in item:
                lease.read_at = self._loop.time()
            counts = self._broker.habits.max_attempts > 0
            received = [
                lease.message.received(lease.ack_id, lease.lane.failures[lease.index] + 1 if counts else 0)
                for lease in item
            ]
            return SimpleNamespace(received_messages=received)
        self.cancel()
        if item is None:
            raise StopAsyncIteration
        raise item
