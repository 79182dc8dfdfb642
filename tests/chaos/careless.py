"""A producer that breaks the rules: no ordering key, and whatever wasn't answered is published again, at times without need."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime

import grpc

from shardctl.broker import protos
from shardctl.fleet.topology import topic_of
from shardctl.local.fleet import LocalFleet
from shardctl.wire.message import Encoded, Write, encode
from tests.chaos.producer import RETRY_SECONDS, TIMEOUT_SECONDS, Producer
from tests.chaos.writes import Operation, Stream

AGAIN_RATE = 0.15  # the same at once, as after a timeout that was too short

_PublishRequest, _PublishResponse = protos.of("PublishRequest"), protos.of("PublishResponse")


class Careless(Producer):
    """Its entities have slots in common with those of others; their order is nobody's concern."""

    NAME = "careless producer"

    def __init__(self, local: LocalFleet, stream: Stream, writes_per_second: float) -> None:
        super().__init__(local, stream, writes_per_second)
        self._draw = random.Random(f"{stream.seed}/careless/{stream.producer}")

    def _run(self) -> None:
        try:
            with grpc.insecure_channel(self._local.broker.host) as channel:
                path = "/google.pubsub.v1.Publisher/Publish"
                self._call = channel.unary_unary(path, _PublishRequest.SerializeToString, _PublishResponse.FromString)
                due = time.monotonic()
                for operation, duplicate in self._stream:
                    if operation.poison:
                        continue  # what can't succeed is another producer's part
                    if self._stopping.wait(max(0.0, due - time.monotonic())):
                        return
                    due = max(due + self._seconds_a_write, time.monotonic() - 1.0)
                    self._publish(operation, again=duplicate)
        except Exception as error:  # noqa: BLE001 - shown in the report
            self.error = error

    def _publish(self, operation: Operation, *, again: bool) -> None:
        self.begun.setdefault(operation.key, operation)
        write = Write(operation.type, operation.body, idempotency_key=operation.key)
        request = self._request(encode(self._local.spec, write, datetime.now(UTC)))
        copies = 2 if self._draw.random() < AGAIN_RATE else 1
        self.duplicates += copies - 1 + again
        for _ in range(copies):
            self._send(request)
        self.acked.add(operation.key)

    def _send(self, request: object) -> None:
        while True:
            try:
                self._call(request, timeout=TIMEOUT_SECONDS)
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                time.sleep(RETRY_SECONDS)
            else:
                self.published += 1
                return

    def _request(self, encoded: Encoded) -> object:
        topic = topic_of(self._local.spec, encoded.slot).id
        request = _PublishRequest(topic=f"projects/{self._local.spec.project}/topics/{topic}")
        request.messages.add(data=encoded.data, attributes=encoded.attributes)
        return request
