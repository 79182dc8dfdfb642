"""The fleet's topics as the gateway publishes into them: the service with the process's own credentials, or an emulator."""

from __future__ import annotations

from typing import Self
from urllib.parse import quote

import grpc
import grpc.aio
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.types import GetTopicRequest, PublishResponse

from shardctl.errors import UsageError
from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet
from shardctl.gateway import wire

PROBE_SECONDS = 3.0

_GLOBAL = "pubsub.googleapis.com"
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),  # its own 2 minutes would be longer than many outages
)
_REFUSED = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE})
# With any other code Pub/Sub has answered, so it is reachable even if it refuses writes.
_NO_ANSWER = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)
_GOES_AWAY = _NO_ANSWER | {grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED}


class NotTakenError(Exception):
    """Pub/Sub hasn't confirmed the write: says why. `sent` is False where it can't have arrived."""

    def __init__(self, why: str, *, sent: bool = True) -> None:
        super().__init__(why)
        self.sent = sent

    @classmethod
    def behind(cls) -> Self:
        return cls("not sent, since an earlier write of its slot failed and must not be overtaken", sent=False)


class TransientError(NotTakenError):
    """It may succeed when it is tried again."""


class PublishRefusedError(NotTakenError):
    """Pub/Sub refuses this write; a retry would be refused too."""


class Topics:
    """Publishes to the topic of each slot. Its calls skip the generated client, whose wrapping costs more than the call."""

    def __init__(self, fleet: Fleet, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._publish = channel.unary_unary("/google.pubsub.v1.Publisher/Publish", None, None)
        self._get = channel.unary_unary(
            "/google.pubsub.v1.Publisher/GetTopic", GetTopicRequest.pb().SerializeToString, None
        )
        paths = [f"projects/{fleet.project}/topics/{topic.id}" for topic in topology.topics(fleet)]
        self._begins = [(wire.topic(path), _routing(path)) for path in paths]
        self._probed = paths[0]
        self._shift = fleet.routing.slot_bits - fleet.routing.topic_bits
        self._response = PublishResponse.pb()

    async def publish(self, slot: int, messages: bytes, timeout_seconds: float) -> list[str]:
        """The messages' ids. Raises TransientError, PublishRefusedError, or NotTakenError for what only an operator can fix."""
        begin, metadata = self._begins[slot >> self._shift]
        try:
            answer = await self._publish(begin + messages, timeout=timeout_seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        except (GoogleAuthError, GoogleAPICallError) as error:
            raise TransientError(f"no credentials for Pub/Sub: {type(error).__name__}") from None
        return list(self._response.FromString(answer).message_ids)

    async def probe(self) -> str | None:
        """Why Pub/Sub can't be reached, or None. A refusal counts as an answer."""
        request = GetTopicRequest.pb()(topic=self._probed)
        try:
            await self._get(request, timeout=PROBE_SECONDS, metadata=self._begins[0][1])
        except grpc.aio.AioRpcError as error:
            if error.code() in _NO_ANSWER:
                return f"Pub/Sub doesn't answer: {error.code().name}"
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return f"there is no {self._probed}"
        except (GoogleAuthError, GoogleAPICallError) as error:
            return f"no credentials for Pub/Sub: {type(error).__name__}"
        return None

    async def close(self) -> None:
        await self._channel.close(None)


def connect(fleet: Fleet, emulator: str | None) -> Topics:
    """`emulator` is an emulator's address. Raises UsageError where there are no credentials. To be called in the event loop."""
    if emulator is not None:
        return Topics(fleet, grpc.aio.insecure_channel(emulator, options=_OPTIONS))
    try:
        host = fleet.topic.endpoint or _GLOBAL
        host = host if ":" in host else f"{host}:443"
        return Topics(fleet, PublisherGrpcAsyncIOTransport.create_channel(host, options=_OPTIONS))
    except DefaultCredentialsError as error:
        raise UsageError(
            "no Google credentials. In a pod, bind its service account for Workload Identity; on this machine, run "
            "`gcloud auth application-default login`, or name an emulator in PUBSUB_EMULATOR_HOST."
        ) from error


def _routing(path: str) -> tuple[tuple[str, str], ...]:
    """The header by which Google's front ends find the topic's place."""
    return (("x-goog-request-params", f"topic={quote(path, safe='')}"),)


def _translated(error: grpc.aio.AioRpcError) -> NotTakenError:
    code = error.code()
    if code in _REFUSED:
        return PublishRefusedError(f"Pub/Sub refuses it: {error.details()}")
    if code in _GOES_AWAY:
        return TransientError(f"Pub/Sub is unavailable: {code.name}")
    return NotTakenError(f"Pub/Sub doesn't take writes from this gateway: {code.name}", sent=False)
