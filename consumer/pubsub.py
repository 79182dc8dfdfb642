"""Clients of Pub/Sub: the service with the pod's own credentials, or an emulator without any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc.aio
from google.auth.exceptions import DefaultCredentialsError
from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport

from shardctl.errors import UsageError

# A pull response may be far larger than gRPC's 4 MiB default.
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
)


def subscriber(endpoint: str | None) -> SubscriberAsyncClient:
    if endpoint is None:
        with _credentials():
            return SubscriberAsyncClient()
    channel = grpc.aio.insecure_channel(endpoint, options=OPTIONS)
    return SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))


def publisher(endpoint: str | None) -> PublisherAsyncClient:
    if endpoint is None:
        with _credentials():
            return PublisherAsyncClient()
    channel = grpc.aio.insecure_channel(endpoint, options=OPTIONS)
    return PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))


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
