"""The client that publishes: in the order of each key, and with no timer.

A request carries the messages of one ordering key, and a key has one request in flight at a time. A message is sent at once where
nothing of its key is in flight; what is published meanwhile forms the next request. So a single message doesn't wait, and the
requests of a busy key grow by themselves.

Google's `pubsub_v1.PublisherClient` sends on a timer (`BatchSettings.max_latency`) whether or not anything is in flight. Each
tick visits every key and starts a thread for each request: a short timer makes a lone message fast and a backlog slow, a long one
does the opposite. This client has the methods of it that are used here, over the generated half of the same library.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Condition
from typing import Any, NamedTuple, Protocol

import grpc
from google.api_core import exceptions as api
from google.api_core.retry import Retry, if_exception_type
from google.cloud.pubsub_v1.publisher.exceptions import PublishToPausedOrderingKeyException
from google.pubsub_v1 import PublisherClient, PublishRequest, PubsubMessage
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

from shardctl.supervision.threads import DaemonThreads

GIVE_UP_AFTER_SECONDS = 60.0
MAX_REQUESTS = 64  # in flight at once, each in a thread: more only make smaller requests, and the cost is per request
MAX_REQUEST_WRITES = 500
MAX_REQUEST_BYTES = 1_000_000  # one message alone may be larger
MAX_OUTSTANDING_WRITES = 10_000
MAX_OUTSTANDING_BYTES = 64 * 1024**2
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.1, 5.0
TRANSIENT = (
    api.Aborted,
    api.Cancelled,
    api.DeadlineExceeded,
    api.InternalServerError,
    api.ResourceExhausted,
    api.ServiceUnavailable,
    api.Unknown,
)

_FRAME_BYTES = 8  # what a request adds to a message, at most: its field's tag and its length


log = logging.getLogger(__name__)


class Threads(Protocol):
    """Where requests are sent: `DaemonThreads`. `submit` raises RuntimeError after `shutdown`."""

    def submit(self, call: Callable[..., object], *arguments: Any) -> object: ...
    def shutdown(self) -> None: ...


class Api(Protocol):
    """The methods used of `google.pubsub_v1.PublisherClient`."""

    def publish(self, request: PublishRequest, *, retry: Retry, timeout: float) -> Any: ...


class _Waiting(NamedTuple):
    message: Any
    size: int
    future: Future[str]


class _Key:
    """The waiting messages of one ordering key. It is `busy` from a request's submission until nothing is left behind it."""

    __slots__ = ("busy", "name", "paused", "topic", "waiting")

    def __init__(self, topic: str, name: str) -> None:
        self.topic, self.name = topic, name
        self.waiting: deque[_Waiting] = deque()
        self.busy = self.paused = False


class TopicClient:
    """Publishes from any thread. At most 10,000 messages or 64 MiB are in flight; `publish` blocks while there are more.

    A request that fails permanently pauses its key: waiting messages fail, and so do later ones, until
    `resume_publish`. Transient failures are retried for `give_up_after_seconds`. A future's callbacks run in the threads that
    send: they must not publish. The program's end doesn't wait for what is in flight: wait for the futures.
    """

    def __init__(
        self,
        publisher: Api,
        *,
        give_up_after_seconds: float = GIVE_UP_AFTER_SECONDS,
        threads: Threads | None = None,
        tracing: bool = False,
    ) -> None:
        self._publisher = publisher
        self._give_up_after_seconds = give_up_after_seconds
        self._retry = Retry(
            if_exception_type(*TRANSIENT, api.RetryError),
            initial=FIRST_PAUSE_SECONDS,
            maximum=MAX_PAUSE_SECONDS,
            timeout=give_up_after_seconds,
        )
        self._threads: Threads = threads or DaemonThreads(MAX_REQUESTS, "publish", log)
        self._tracing = tracing
        self._changed = Condition()  # guards all that follows
        self._keys: dict[tuple[str, str], _Key] = {}
        self._writes = self._bytes = 0  # in flight
        self._stopped = False

    def publish(self, topic: str, data: bytes, ordering_key: str = "", **attributes: str) -> Future[str]:
        """The future message id. Its exception is the request's, or PublishToPausedOrderingKeyException.

        Raises RuntimeError after `stop`.
        """
        future: Future[str] = Future()
        future.set_running_or_notify_cancel()  # a message in flight can't be cancelled
        if self._tracing:
            _trace(topic, ordering_key, attributes, future)
        message = PubsubMessage.pb()(data=data, ordering_key=ordering_key, attributes=attributes)
        waiting = _Waiting(message, message.ByteSize() + _FRAME_BYTES, future)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room(waiting.size))
            if self._stopped:
                raise RuntimeError("the client is stopped")
            key = self._keys.get((topic, ordering_key))
            if key is None:
                key = self._keys[topic, ordering_key] = _Key(topic, ordering_key)
            paused, idle = key.paused, not key.busy
            if not paused:
                key.waiting.append(waiting)
                key.busy = True
                self._writes += 1
                self._bytes += waiting.size
        if paused:
            future.set_exception(PublishToPausedOrderingKeyException(ordering_key))
        elif idle:
            self._submit(key)
        return future

    def _has_room(self, size: int) -> bool:
        return not self._writes or (
            self._writes < MAX_OUTSTANDING_WRITES and self._bytes + size <= MAX_OUTSTANDING_BYTES
        )

    def _submit(self, key: _Key) -> None:
        try:
            self._threads.submit(self._deliver, key)
        except RuntimeError as error:  # stopped
            self._fail(key, [], error)

    def _deliver(self, key: _Key) -> None:
        """Send a key's waiting messages in one request and settle them. Messages that came meanwhile queue behind other keys."""
        with self._changed:
            taken = _take(key.waiting)
        try:
            ids = self._sent(key.topic, taken)
        except BaseException as error:  # noqa: BLE001 - the futures raise it
            self._fail(key, taken, error)
            return
        with self._changed:
            self._forget(taken)
            key.busy = bool(key.waiting)
            busy = key.busy
        for waiting, message_id in zip(taken, ids, strict=True):
            waiting.future.set_result(message_id)
        if busy:
            self._submit(key)

    def _sent(self, topic: str, taken: Sequence[_Waiting]) -> list[str]:
        request = PublishRequest.pb()(topic=topic, messages=[waiting.message for waiting in taken])
        answer = self._publisher.publish(
            PublishRequest.wrap(request), retry=self._retry, timeout=self._give_up_after_seconds
        )
        ids = list(answer.message_ids)
        if len(ids) != len(taken):
            raise api.Unknown(f"Pub/Sub gave {len(ids)} ids for {len(taken)} messages")
        return ids

    def _fail(self, key: _Key, taken: Sequence[_Waiting], error: BaseException) -> None:
        """Fail the messages behind a failed one: published, they would have overtaken it unnoticed."""
        with self._changed:
            behind = list(key.waiting)
            key.waiting.clear()
            key.paused, key.busy = True, False
            self._forget([*taken, *behind])
        for waiting in taken:
            waiting.future.set_exception(error)
        for waiting in behind:
            waiting.future.set_exception(PublishToPausedOrderingKeyException(key.name))

    def _forget(self, settled: Sequence[_Waiting]) -> None:
        self._writes -= len(settled)
        self._bytes -= sum(waiting.size for waiting in settled)
        self._changed.notify_all()

    def resume_publish(self, topic: str, ordering_key: str) -> None:
        """Let a paused key publish again. Raises RuntimeError where it isn't paused; no effect on one that was never used."""
        with self._changed:
            key = self._keys.get((topic, ordering_key))
            if key is None:
                return
            if not key.paused:
                raise RuntimeError("the ordering key isn't paused")
            key.paused = False

    def stop(self) -> None:
        """Accept no more. Requests in flight end by themselves, and messages that wait behind them fail."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._threads.shutdown()


def connect(
    give_up_after_seconds: float = GIVE_UP_AFTER_SECONDS, *, endpoint: str | None = None, tracing: bool = False
) -> TopicClient:
    """A client that keeps order, bounds what it holds, and gives up in time. Honours PUBSUB_EMULATOR_HOST.

    `endpoint` is a fleet's `topic.endpoint`; by default Pub/Sub's global one.

    With `tracing` each write carries the trace that is current where it is published, by your own OpenTelemetry provider.
    Raises `google.auth.exceptions.DefaultCredentialsError` where there are no credentials.
    """
    host = os.environ.get("PUBSUB_EMULATOR_HOST")
    transport = PublisherGrpcTransport(channel=grpc.insecure_channel(host)) if host else None
    options = {"api_endpoint": endpoint} if endpoint else {}
    return TopicClient(
        PublisherClient(transport=transport, client_options=options),
        give_up_after_seconds=give_up_after_seconds,
        tracing=tracing,
    )


def _take(waiting: deque[_Waiting]) -> list[_Waiting]:
    taken = [waiting.popleft()]
    size = taken[0].size
    while waiting and len(taken) < MAX_REQUEST_WRITES and size + waiting[0].size <= MAX_REQUEST_BYTES:
        taken.append(waiting.popleft())
        size += taken[-1].size
    return taken


def _trace(topic: str, ordering_key: str, attributes: dict[str, str], future: Future[str]) -> None:
    """Begin a span that ends with the write's outcome, and put it into the attributes, named as Google's libraries do.

    The span is named as OpenTelemetry's conventions for messaging ask.
    """
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    name = topic.rpartition("/")[2]
    span = trace.get_tracer("shardctl").start_span(
        f"create {name}",
        kind=trace.SpanKind.PRODUCER,
        attributes={
            "messaging.system": "gcp_pubsub",
            "messaging.operation.name": "create",
            "messaging.operation.type": "create",
            "messaging.destination.name": name,
            **({"gcp.pubsub.message.ordering_key": ordering_key} if ordering_key else {}),
        },
    )
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span))
    attributes.update({f"googclient_{field}": value for field, value in carrier.items()})

    def end(sent: Future[str]) -> None:
        error = sent.exception()
        if error is None:
            span.set_attribute("messaging.message.id", sent.result())
        else:
            span.record_exception(error)
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(trace.Status(trace.StatusCode.ERROR))
        span.end()

    future.add_done_callback(end)
