"""Pushed messages as the replica receives them: each is one request that waits for its answer. The only module that answers.

A push can't be kept under lease: a request ends with its subscription's ack deadline, and Pub/Sub counts each refusal as a failed
attempt. So an accepted message waits here for as long as its request may, and one that can't be accepted is refused at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

from consumer.delivery import Delivery, decode
from consumer.observability.metrics import Metrics
from shardctl.fleet.shardconfig import ShardConfig

log = logging.getLogger(__name__)

PATIENCE = 0.9  # of the ack deadline: we answer before Pub/Sub gives up the request


class RefusedError(Exception):
    """The message isn't accepted now: Pub/Sub sends it again."""


class ClosedError(RefusedError):
    """No message is accepted: the replica stops, or its database or backend doesn't answer."""


class FullError(RefusedError):
    """As many messages or bytes are in flight as the bounds allow."""


class Endpoint(Protocol):
    """Where requests arrive. `serve` runs until `close`."""

    @property
    def is_open(self) -> bool: ...
    async def serve(self, intake: PushIntake) -> None: ...
    def close(self) -> None: ...


class PushIntake:
    """What `Intake` is for streaming pull. Each subscription has its own bounds, so that a held-up one never starves another."""

    def __init__(self, config: ShardConfig, endpoint: Endpoint, clock: Callable[[], float], metrics: Metrics) -> None:
        self._config, self._endpoint, self._clock, self._metrics = config, endpoint, clock, metrics
        self._patience_seconds = config.subscription.ack_deadline.total_seconds() * PATIENCE
        self.inlets = {
            subscription: Inlet(
                subscription,
                f"projects/{config.project}/subscriptions/{subscription}",
                generation.number,
                config.outstanding_messages,
                config.consumer.max_outstanding_bytes,
            )
            for generation in config.generations
            for subscription in generation.subscriptions
        }
        self._by_path = {inlet.path: inlet for inlet in self.inlets.values()}
        self._waiting: dict[str, asyncio.Future[bool]] = {}  # by ack id: the result that its request waits for
        self._numbers = count(1)
        metrics.outstanding.set_function(lambda: sum(inlet.messages for inlet in self.inlets.values()))
        metrics.outstanding_bytes.set_function(lambda: sum(inlet.bytes for inlet in self.inlets.values()))
        self._open = self._closing = False
        self.tasks: tuple[asyncio.Task[None], ...] = ()

    def start(self, deliver: Callable[[list[Delivery]], object], pause_left: Callable[[], float]) -> None:  # noqa: ARG002 - each is read as it comes
        """Begin to serve; each message goes to `deliver`. Before `close`, `tasks` end only by a bug."""
        self._deliver, self._open = deliver, True
        self._serving = asyncio.create_task(self._endpoint.serve(self), name="push")
        self.tasks = (self._serving,)

    def pause(self) -> None:
        """Refuse new messages until `resume`. Requests whose messages are held go on waiting."""
        self._open = False

    def resume(self) -> None:
        self._open = not self._closing

    @property
    def connected(self) -> bool:
        return self._endpoint.is_open and not self._closing

    async def stop_reading(self) -> None:
        """Refuse all further messages."""
        self._closing, self._open = True, False

    async def close(self, timeout_seconds: float) -> None:
        """Let the answers in flight be sent, but wait no longer than this, and close the socket."""
        self._endpoint.close()
        await asyncio.wait([self._serving], timeout=timeout_seconds)
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Answer each with success. If its request has ended, Pub/Sub sends it again, and the inbox knows it."""
        self._settle(deliveries, done=True)
        self._metrics.acked.inc(len(deliveries))

    async def hand_back(self, deliveries: Sequence[Delivery]) -> None:
        """Let other replicas have these. Only for messages after which this replica applies no other of their lanes."""
        self._settle(deliveries, done=False)

    def ack_id(self) -> str:
        """Every request is a delivery of its own."""
        return f"push-{next(self._numbers)}"

    @contextmanager
    def admitted(self, inlet: Inlet, size: int) -> Iterator[None]:
        """Room for a message of about this size while it is read. Raises RefusedError."""
        if not self._open:
            raise ClosedError
        if not inlet.has_room:
            raise FullError
        inlet.change(1, size)
        try:
            yield
        finally:
            inlet.change(-1, -size)

    async def take(self, inlet: Inlet, received: Any) -> bool:
        """Deliver a message and wait for its result. True: it is durably settled. False: Pub/Sub sends it again, perhaps while
        it is still in flight here. Raises RefusedError.
        """
        if not self._open:
            raise ClosedError
        delivery = decode(received, inlet.path, inlet.generation, self._config, self._clock())
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[delivery.ack_id] = done
        inlet.change(1, delivery.size)
        self._metrics.received.inc()
        try:
            self._deliver([delivery])
            async with asyncio.timeout(self._patience_seconds):
                return await done
        except TimeoutError:
            return False
        finally:
            self._waiting.pop(delivery.ack_id, None)

    def _settle(self, deliveries: Iterable[Delivery], *, done: bool) -> None:
        for delivery in deliveries:
            waiting = self._waiting.get(delivery.ack_id)
            if waiting is not None and not waiting.done():
                waiting.set_result(done)
            self._by_path[delivery.subscription].change(-1, -delivery.size)


class Inlet:
    """One subscription and its messages in flight, including requests that are still being read."""

    def __init__(self, subscription: str, path: str, generation: int, max_messages: int, max_bytes: int) -> None:
        self.subscription, self.path, self.generation = subscription, path, generation
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self.messages = self.bytes = 0

    @property
    def has_room(self) -> bool:
        """The message that crosses a bound is still accepted."""
        return self.messages < self._max_messages and self.bytes < self._max_bytes

    def change(self, messages: int, size: int) -> None:
        self.messages += messages
        self.bytes += size
