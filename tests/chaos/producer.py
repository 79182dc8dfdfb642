"""A producer under fire: publishes its stream in order with the project's publisher, and remembers what was acknowledged."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import grpc

from shardctl.broker import protos
from shardctl.errors import ShardctlError
from shardctl.fleet.topology import topic_of
from shardctl.local.fleet import LocalFleet
from shardctl.publisher import Outcome, Publisher, connect
from shardctl.wire.message import Write, encode
from tests.chaos.writes import Operation, Poison, Stream

MOST_DEBT_SECONDS = 1.0  # what a slow moment cost is made up, but not at once
RETRY_SECONDS = 0.1
TIMEOUT_SECONDS = 10.0

_PublishRequest, _PublishResponse = protos.of("PublishRequest"), protos.of("PublishResponse")


class Producer:
    """One thread. `begun` are its operations in the order of first publication; those in `acked` the broker has for sure."""

    NAME = "producer"

    def __init__(self, local: LocalFleet, stream: Stream, writes_per_second: float) -> None:
        self.begun: dict[str, Operation] = {}
        self.acked: set[str] = set()
        self.published = 0
        self.duplicates = 0
        self.error: Exception | None = None
        self._local, self._stream, self._seconds_a_write = local, stream, 1 / writes_per_second
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{self.NAME} {stream.producer}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Begin nothing more; what was begun is still published."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with self._local.as_emulator():
                client = connect()
            with (
                Publisher(self._local.spec, client) as publisher,
                grpc.insecure_channel(self._local.broker.host) as channel,
            ):
                self._raw = channel.unary_unary(
                    "/google.pubsub.v1.Publisher/Publish",
                    _PublishRequest.SerializeToString,
                    _PublishResponse.FromString,
                )
                for outcome in publisher.publish_all(self._writes()):
                    self._settle(outcome)
        except Exception as error:  # noqa: BLE001 - shown in the report
            self.error = error

    def _settle(self, outcome: Outcome) -> None:
        if outcome.message_id is None:
            raise ShardctlError(f"the publisher refused {outcome.write}: {outcome.refused}")
        self.acked.add(str(outcome.write.idempotency_key))
        self.published += 1

    def _writes(self) -> Iterator[Write]:
        """The stream at its pace. The publisher takes no malformed body, so those go out by another way, out of turn."""
        due = time.monotonic()
        for operation, duplicate in self._stream:
            if self._stopping.wait(max(0.0, due - time.monotonic())):
                return
            due = max(due + self._seconds_a_write, time.monotonic() - MOST_DEBT_SECONDS)
            self.begun.setdefault(operation.key, operation)
            self.duplicates += duplicate
            write = Write(operation.type, operation.body, idempotency_key=operation.key)
            if operation.poison is Poison.MALFORMED:
                self._publish_malformed(write)
            else:
                yield write

    def _publish_malformed(self, write: Write) -> None:
        encoded = encode(self._local.spec, write, datetime.now(UTC))
        topic = topic_of(self._local.spec, encoded.slot).id
        request = _PublishRequest(topic=f"projects/{self._local.spec.project}/topics/{topic}")
        half = encoded.data[: len(encoded.data) // 2]
        request.messages.add(data=half, attributes=encoded.attributes, ordering_key=encoded.ordering_key)
        while True:
            try:
                self._raw(request, timeout=TIMEOUT_SECONDS)
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                time.sleep(RETRY_SECONDS)
            else:
                break
        self.acked.add(str(write.idempotency_key))
        self.published += 1
