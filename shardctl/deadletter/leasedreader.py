"""Letters under lease: read, looked at, and handed back whole unless they were taken off for good.

Nothing is acked but by `take_off`. What is held is leased again and again by a thread; when the block ends, however it ends,
everything still held is handed back at once. A desk that is killed leaves its letters to the lease's end.

Streams are read rather than single pulls: of an ordering key, a pull gives nothing more while some of it is out.

A stream says nothing both where nothing is left and where nobody answers. So silence counts only when no stream has failed
meanwhile, and each subscription has answered a call after it: what can't be asked is an error, never an empty desk.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, Full, Queue
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any, Self

import grpc
from google.api_core.exceptions import GoogleAPICallError, InvalidArgument, NotFound, RetryError, from_grpc_error
from google.pubsub_v1 import StreamingPullRequest

from shardctl.deadletter.letter import Message
from shardctl.deadletter.pubsub import AGAIN, PubsubError
from shardctl.errors import ShardctlError
from shardctl.topicclient import TRANSIENT

LEASE_SECONDS = 60  # of a desk that was killed, nobody sees the letters for so long
RENEW_AT = 1 / 3  # of the lease, so that one lost renewal costs nothing
SILENCE_SECONDS = 5.0  # without a message: then nothing is left, or others have it
TROUBLE_SECONDS = 10.0  # of streams that fail again and again, before that is an error
STEADY_SECONDS = 2.0  # without a failure: then the next one is another trouble
PROBE_ID = "shardctl-probe"  # no ack id: that the service refuses it, or ignores it, is an answer
MAX_LETTERS = 50_000  # held at once: beyond, a person works through them in parts
HEARTBEAT_SECONDS = 30.0  # the service closes a stream that says nothing
CLOSE_SECONDS = 2.0  # for what is on its way when the streams are closed
LOOK_SECONDS = 0.05
COUNT_SECONDS = 0.5  # between two questions how many there are
MAX_IDS = 1_000  # ack ids a request, well inside its 512 KiB
WAITING_RESPONSES = 8
RETRY_SECONDS = 0.5
_TIMEOUT_SECONDS = 10.0

Held = tuple[str, str]  # subscription, message id


class GoneError(ShardctlError):
    """A subscription isn't there."""


class _TroubleError(PubsubError):
    """A stream failed in a way that may pass."""


class LeasedReader:
    """Reads subscriptions of `project` by name. `left` asks how many messages they hold, out or not; None: unknown."""

    def __init__(
        self,
        client: Any,
        project: str,
        subscriptions: Sequence[str],
        *,
        left: Callable[[], int | None] = lambda: None,
        silence_seconds: float = SILENCE_SECONDS,
        lease_seconds: int = LEASE_SECONDS,
        max_letters: int = MAX_LETTERS,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._tell = tell  # reports what the reader waits for
        self._client, self._project = client, project
        self._left, self._silence_seconds = left, silence_seconds
        self.lease_seconds, self._max_letters = lease_seconds, max_letters
        self._ack_ids: dict[Held, str] = {}  # the newest ack id of each
        self._seen: set[Held] = set()  # also those that were taken off: some come once more
        self._lock = Lock()
        self._read_enough, self._closing = Event(), Event()
        self._arrived: Queue[tuple[str, list[Message]] | Exception] = Queue(WAITING_RESPONSES)
        self._calls: dict[str, Any] = {}
        self._subscriptions = tuple(subscriptions)
        self._readers = [self._thread(partial(self._read, name)) for name in subscriptions]
        self._keeper, self._counter = self._thread(self._keep), self._thread(self._count)
        self._last_count: int | None = None
        self.whole = True  # whether reading ended because nothing more came, and not at the bound
        self.unreturned = 0  # letters that could not be handed back, and come when their lease ends

    def __enter__(self) -> Self:
        """Nothing is leased yet: a Ctrl-C in here would leave the block without its end."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def read(self) -> Iterator[tuple[str, list[Message]]]:
        """Subscription and messages, each message once, until nothing more comes. Once: what comes later isn't read.

        Raises PubsubError and GoneError.
        """
        try:
            for thread in (*self._readers, self._keeper, self._counter):
                thread.start()
            yield from self._until_silence()
        finally:
            self._end_streams()

    def _until_silence(self) -> Iterator[tuple[str, list[Message]]]:
        quiet_since, seen, trouble = time.monotonic(), 0, _Failures(self._tell)
        probe: Thread | None = None
        while True:
            try:
                arrived = self._arrived.get(timeout=LOOK_SECONDS)
            except Empty:
                if self._nothing_left(seen, self._last_count):
                    return
                if time.monotonic() - quiet_since < self._silence_seconds:
                    continue
                if probe is None:  # in a thread: Ctrl-C may come to nothing inside a call of gRPC
                    probe = self._thread(self._ask)
                    probe.start()
                elif not probe.is_alive() and self._arrived.empty():  # what it raised would have arrived
                    return
                continue
            probe = None  # what it was to prove doesn't hold any more
            if isinstance(arrived, _TroubleError):
                trouble.count(arrived)
                quiet_since = time.monotonic()
                continue
            if isinstance(arrived, Exception):
                raise arrived
            name, messages = arrived
            seen += len(messages)
            yield name, messages
            quiet_since = time.monotonic()
            if seen >= self._max_letters:
                self.whole = self._nothing_left(seen, self._left())
                return

    @staticmethod
    def _nothing_left(seen: int, left: int | None) -> bool:
        return left is not None and seen >= left

    def _ask(self) -> None:
        """A round trip for each subscription. Raises PubsubError and GoneError."""
        for name in self._subscriptions:
            try:
                self._client.modify_ack_deadline(
                    subscription=self._path(name),
                    ack_ids=[PROBE_ID],
                    ack_deadline_seconds=self.lease_seconds,
                    retry=None,
                    timeout=_TIMEOUT_SECONDS,
                )
            except InvalidArgument:
                continue  # the service knows the subscription, and not the id
            except (GoogleAPICallError, RetryError) as error:
                raise _error_of(name, error) from error

    def _count(self) -> None:
        """In a thread: Ctrl-C may come to nothing inside a call of gRPC, and the main thread is the one that gets it."""
        while not self._read_enough.is_set():
            self._last_count = self._left()
            self._read_enough.wait(COUNT_SECONDS)

    def take_off(self, letters: Iterable[Held]) -> int:
        """Ack for good; how many acks were lost. Those come again, and a replay finds them done."""
        lost = 0
        for name, message_ids in self._by_subscription(letters):
            for some in _parts(message_ids):
                with self._lock:
                    ids = [
                        self._ack_ids[name, message_id] for message_id in some if (name, message_id) in self._ack_ids
                    ]
                try:
                    self._client.acknowledge(
                        subscription=self._path(name), ack_ids=ids, retry=AGAIN, timeout=_TIMEOUT_SECONDS
                    )
                except (GoogleAPICallError, RetryError):
                    lost += len(ids)
                with self._lock:
                    for message_id in some:
                        self._ack_ids.pop((name, message_id), None)
        return lost

    def close(self) -> None:
        """Close the streams, and hand back all that is held."""
        self._end_streams()
        self._closing.set()
        if self._keeper.is_alive():
            self._keeper.join(CLOSE_SECONDS)
        with self._lock:
            letters = list(self._ack_ids)
        for name, message_ids in self._by_subscription(letters):
            for some in _parts(message_ids):
                self._give_back(name, some)

    def _thread(self, work: Callable[[], None]) -> Thread:
        """Not started. Its failure ends the reading: else a stream that nobody reads any more would look like an empty one."""

        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - raised where the letters are read
                self._put(error)

        return Thread(target=run, daemon=True)

    def _end_streams(self) -> None:
        """What is in flight is received first, and so can be handed back: left unread it would wait for its lease's end."""
        self._read_enough.set()  # which half-closes the streams
        end = time.monotonic() + CLOSE_SECONDS
        while any(reader.is_alive() for reader in self._readers) and time.monotonic() < end:
            with suppress(Empty):
                self._arrived.get(timeout=LOOK_SECONDS / 10)
        for call in list(self._calls.values()):
            call.cancel()

    def _give_back(self, name: str, some: Sequence[str]) -> None:
        try:
            self._lease(name, some, 0)
        except (GoogleAPICallError, RetryError):
            self.unreturned += len(some)
        with self._lock:
            for message_id in some:
                self._ack_ids.pop((name, message_id), None)

    def _lease(self, name: str, some: Sequence[str], seconds: int) -> None:
        with self._lock:
            ids = [self._ack_ids[name, message_id] for message_id in some if (name, message_id) in self._ack_ids]
        if ids:
            self._client.modify_ack_deadline(
                subscription=self._path(name),
                ack_ids=ids,
                ack_deadline_seconds=seconds,
                retry=None,
                timeout=_TIMEOUT_SECONDS,
            )

    def _keep(self) -> None:
        while not self._closing.wait(self.lease_seconds * RENEW_AT):
            with self._lock:
                letters = list(self._ack_ids)
            for name, message_ids in self._by_subscription(letters):
                for some in _parts(message_ids):
                    with suppress(GoogleAPICallError, RetryError):  # the next renewal still comes in time
                        self._lease(name, some, self.lease_seconds)

    def _read(self, name: str) -> None:
        """In a thread: the stream, opened again whenever the service ends it."""
        while not self._read_enough.is_set():
            try:
                self._stream(name)
            except grpc.RpcError as error:
                if self._read_enough.is_set():
                    return
                failure = from_grpc_error(error)
                if not isinstance(failure, TRANSIENT):
                    self._put(_error_of(name, failure))
                    return
                self._put(_TroubleError(_error_of(name, failure)))
            self._read_enough.wait(RETRY_SECONDS)

    def _stream(self, name: str) -> None:
        # The bare call: the client's own would block until a first message comes.
        metadata = (("x-goog-request-params", f"subscription={self._path(name)}"),)
        call = self._calls[name] = self._client.transport.streaming_pull(self._requests(name), metadata=metadata)
        for response in call:
            messages = self._take_in(name, response._pb.received_messages)  # noqa: SLF001 - wrapping costs more than all else
            if messages:
                self._put((name, messages))

    def _put(self, arrived: tuple[str, list[Message]] | Exception) -> None:
        while not self._read_enough.is_set():
            with suppress(Full):
                self._arrived.put(arrived, timeout=LOOK_SECONDS)
                return

    def _requests(self, name: str) -> Iterator[StreamingPullRequest]:
        yield StreamingPullRequest(
            subscription=self._path(name),
            stream_ack_deadline_seconds=self.lease_seconds,
            client_id=str(
                uuid.uuid4()
            ),  # new for each stream, so that the service starts again with what a lost one had
            max_outstanding_messages=2 * self._max_letters,  # all stay out until the end
        )
        while not self._read_enough.wait(HEARTBEAT_SECONDS):
            yield StreamingPullRequest()

    def _take_in(self, name: str, received: Any) -> list[Message]:
        """What wasn't seen before. Also what comes again is held, under its newest ack id."""
        fresh = []
        with self._lock:
            for delivery in received:
                message = delivery.message
                identity = name, message.message_id
                self._ack_ids[identity] = delivery.ack_id
                if identity not in self._seen:
                    self._seen.add(identity)
                    fresh.append(_message(message))
        return fresh

    def _path(self, name: str) -> str:
        return f"projects/{self._project}/subscriptions/{name}"

    @staticmethod
    def _by_subscription(letters: Iterable[Held]) -> Iterator[tuple[str, list[str]]]:
        ids_by_name: dict[str, list[str]] = defaultdict(list)
        for name, message_id in letters:
            ids_by_name[name].append(message_id)
        yield from ids_by_name.items()


class _Failures:
    """Transient failures that follow each other closely are one trouble, which is an error when it lasts."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._since = self._last = float("-inf")

    def count(self, trouble: _TroubleError) -> None:
        """Raises the trouble when it lasts too long."""
        now = time.monotonic()
        if now - self._last > STEADY_SECONDS:
            self._since = now
            self._tell(f"{trouble} Trying again for {TROUBLE_SECONDS:.0f} s.")
        self._last = now
        if now - self._since >= TROUBLE_SECONDS:
            raise trouble


def _message(message: Any) -> Message:
    published = message.publish_time
    return Message(
        message.message_id,
        published.seconds * 1_000_000 + published.nanos // 1_000,
        message.ordering_key,
        dict(message.attributes),
        message.data,
    )


def _parts(message_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(message_ids), MAX_IDS):
        yield message_ids[start : start + MAX_IDS]


def _error_of(name: str, failure: GoogleAPICallError | RetryError) -> ShardctlError:
    if isinstance(failure, NotFound):
        return GoneError(f"the subscription {name} isn't there. `shardctl provision` makes what is missing.")
    return PubsubError(f"the subscription {name} can't be read: {failure.message}.")
