"""The calls of Pub/Sub that a consumer makes: of the service with the pod's own credentials, or of an emulator without any.

Each is made once, through the plain channel: the caller decides whether to retry. The generated client would do so for a
minute without the caller's knowledge, and costs several times the CPU.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import grpc.aio
from google.api_core.exceptions import from_grpc_error
from google.auth.exceptions import DefaultCredentialsError
from google.protobuf.empty_pb2 import Empty

from consumer.pubsub import protos
from shardctl.errors import UsageError

# A pull response may be far larger than gRPC's 4 MiB default.
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
)


class Subscriber:
    """Every call raises GoogleAPICallError. Paths are `projects/…/subscriptions/…`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel  # its calls don't hold a reference, and without one it closes
        service = "/google.pubsub.v1.Subscriber"
        self._pull = channel.unary_unary(
            f"{service}/Pull", protos.PullRequest.SerializeToString, protos.PullResponse.FromString
        )
        self._streaming_pull = channel.stream_stream(
            f"{service}/StreamingPull",
            protos.StreamingPullRequest.SerializeToString,
            protos.StreamingPullResponse.FromString,
        )
        self._acknowledge = channel.unary_unary(
            f"{service}/Acknowledge", protos.AcknowledgeRequest.SerializeToString, Empty.FromString
        )
        self._modify_ack_deadline = channel.unary_unary(
            f"{service}/ModifyAckDeadline", protos.ModifyAckDeadlineRequest.SerializeToString, Empty.FromString
        )

    async def pull(self, subscription: str, max_messages: int, timeout_seconds: float) -> Any:
        """A `PullResponse`."""
        request = protos.PullRequest(subscription=subscription, max_messages=max_messages)
        return await _answer(self._pull, request, "subscription", subscription, timeout_seconds)

    async def streaming_pull(self, requests: AsyncIterator[Any]) -> Responses:
        with _translated():
            call = self._streaming_pull(requests)
            await call.wait_for_connection()
        return Responses(call)

    async def acknowledge(self, subscription: str, ack_ids: Sequence[str], timeout_seconds: float) -> None:
        request = protos.AcknowledgeRequest(subscription=subscription, ack_ids=ack_ids)
        await _answer(self._acknowledge, request, "subscription", subscription, timeout_seconds)

    async def modify_ack_deadline(
        self, subscription: str, ack_ids: Sequence[str], ack_deadline_seconds: int, timeout_seconds: float
    ) -> None:
        request = protos.ModifyAckDeadlineRequest(
            subscription=subscription, ack_ids=ack_ids, ack_deadline_seconds=ack_deadline_seconds
        )
        await _answer(self._modify_ack_deadline, request, "subscription", subscription, timeout_seconds)


class Responses:
    """The `StreamingPullResponse`s of a stream. Raises GoogleAPICallError if it ends with an error."""

    def __init__(self, call: grpc.aio.StreamStreamCall[Any, Any]) -> None:
        self._call = call

    async def __aiter__(self) -> AsyncIterator[Any]:
        with _translated():
            async for response in self._call:
                yield response

    def cancel(self) -> None:
        self._call.cancel()


class Publisher:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._publish = channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish",
            protos.PublishRequest.SerializeToString,
            protos.PublishResponse.FromString,
        )

    async def publish(self, topic: str, messages: Sequence[Any], timeout_seconds: float) -> None:
        """`PubsubMessage`s, of at most one ordering key, to `projects/…/topics/…`. Raises GoogleAPICallError."""
        await _answer(
            self._publish, protos.PublishRequest(topic=topic, messages=messages), "topic", topic, timeout_seconds
        )


def subscriber(emulator: str | None, endpoint: str | None = None) -> Subscriber:
    """Of the emulator at that address, else of the service at `endpoint`, or at its global one.

    Raises UsageError where there are no credentials.
    """
    if emulator is not None:
        return Subscriber(grpc.aio.insecure_channel(emulator, options=OPTIONS))
    from google.pubsub_v1 import SubscriberAsyncClient

    # The package's own client opens the channel: it knows where credentials, client certificates and other universes come from.
    with _credentials():
        return Subscriber(SubscriberAsyncClient(client_options=_client_options(endpoint)).transport.grpc_channel)


def publisher(emulator: str | None, endpoint: str | None = None) -> Publisher:
    """As `subscriber`."""
    if emulator is not None:
        return Publisher(grpc.aio.insecure_channel(emulator, options=OPTIONS))
    from google.pubsub_v1 import PublisherAsyncClient

    with _credentials():
        return Publisher(PublisherAsyncClient(client_options=_client_options(endpoint)).transport.grpc_channel)


def _client_options(endpoint: str | None) -> dict[str, str]:
    return {"api_endpoint": endpoint} if endpoint else {}


async def _answer(call: Any, request: Any, kind: str, path: str, timeout_seconds: float) -> Any:
    with _translated():
        # By this header Google's front ends find where a subscription or a topic is.
        routing = (("x-goog-request-params", urlencode({kind: path}, safe="/")),)
        return await call(request, timeout=timeout_seconds, metadata=routing)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise from_grpc_error(error) from error


@contextmanager
def _credentials() -> Iterator[None]:
    try:
        yield
    except DefaultCredentialsError as error:
        first_line = str(error).partition("\n")[0]
        raise UsageError(
            f"no Google credentials: {first_line} In a pod, bind its service account for Workload Identity; on this machine, "
            "run `gcloud auth application-default login`, or name an emulator in PUBSUB_EMULATOR_HOST."
        ) from error
