"""Publishes a stream in the background, as fast as this machine can or at a given rate.

The publisher that producers use sends each write at once, a request each. Here many writes are ready at once: those of a slot
share a request, and requests of different slots are in flight together.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice

import grpc

from shardctl.broker import protos
from shardctl.errors import ShardctlError
from shardctl.fleet.spec import Fleet
from shardctl.fleet.topology import topic_of
from shardctl.local.load import Publication
from shardctl.wire import identity
from shardctl.wire.message import Encoded, Write, encode

WINDOW_WRITES = 4_096
WINDOWS_A_SECOND = 10  # at a given rate
MAX_REQUEST_MESSAGES = 500
TIMEOUT_SECONDS = 30.0

_PublishRequest, _PublishResponse = protos.of("PublishRequest"), protos.of("PublishResponse")


class Feed:
    """One thread that publishes to the broker at `host`, in order within each slot, until the stream ends or `stop`.

    `writes` are the unique ones, in the order of publication, unless `remember` is off; `duplicates` counts the others.
    `published_at` has the moment at which each write was sent first, in seconds since 1970, by its identity in its slot.
    """

    def __init__(
        self,
        fleet: Fleet,
        host: str,
        stream: Iterable[Publication],
        *,
        writes_per_second: float | None = None,
        remember: bool = True,
    ) -> None:
        self.writes: list[Write] = []
        self.published_at: dict[bytes, float] = {}
        self.published = 0
        self.duplicates = 0
        self._fleet, self._host, self._stream, self._rate = fleet, host, iter(stream), writes_per_second
        self._remember = remember
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Finish the requests in flight, and publish no more."""
        self._stopping.set()
        self.join()

    def join(self) -> None:
        """Wait for the end. Raises ShardctlError when the broker didn't take everything."""
        self._thread.join()
        if self._error is not None:
            raise ShardctlError(f"the broker at {self._host} didn't take a write: {self._error}") from self._error

    def _run(self) -> None:
        try:
            with grpc.insecure_channel(self._host) as channel:
                self._channel = channel
                for window in self._windows():
                    self._publish(window)
        except Exception as error:  # noqa: BLE001 - raised by join, in the thread of the caller
            self._error = error

    def _windows(self) -> Iterator[list[Publication]]:
        size = WINDOW_WRITES if self._rate is None else max(1, round(self._rate / WINDOWS_A_SECOND))
        due = time.monotonic()
        while not self._stopping.is_set() and (window := list(islice(self._stream, size))):
            yield window
            if self._rate is not None:
                due = max(due + size / self._rate, time.monotonic() - 1)  # part of a delay is made up
                self._stopping.wait(max(0.0, due - time.monotonic()))

    def _publish(self, window: list[Publication]) -> None:
        now = datetime.now(UTC)
        by_slot: dict[int, list[Encoded]] = defaultdict(list)
        for publication in window:
            encoded = encode(self._fleet, publication.write, now)
            by_slot[encoded.slot].append(encoded)
            if publication.duplicate:
                self.duplicates += 1
            elif self._remember:
                self.writes.append(publication.write)
        while by_slot:
            self._send([messages[:MAX_REQUEST_MESSAGES] for messages in by_slot.values()])
            by_slot = {slot: rest for slot, messages in by_slot.items() if (rest := messages[MAX_REQUEST_MESSAGES:])}

    def _send(self, groups: list[list[Encoded]]) -> None:
        """A request for each group, all at once; every group's messages share a slot."""
        call = self._channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish", _PublishRequest.SerializeToString, _PublishResponse.FromString
        )
        on_their_way = [(call.future(self._request(group), timeout=TIMEOUT_SECONDS), len(group)) for group in groups]
        for future, count in on_their_way:
            future.result()
            self.published += count

    def _request(self, group: list[Encoded]) -> protos.Proto:
        if self._remember:
            now = time.time()
            for write in group:
                self.published_at.setdefault(identity_of(write), now)
        request = _PublishRequest(
            topic=f"projects/{self._fleet.project}/topics/{topic_of(self._fleet, group[0].slot).id}"
        )
        for write in group:
            request.messages.add(data=write.data, attributes=write.attributes, ordering_key=write.ordering_key)
        return request


def identity_of(encoded: Encoded) -> bytes:
    """As the inbox has it. Every write of a stream has an idempotency key, and none a caller."""
    names = encoded.attributes
    return identity.in_slot(identity.of_key("", names["message_type"], names["idempotency_key"]), encoded.slot)
