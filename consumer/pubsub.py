"""Clients of Pub/Sub: the service with the pod's own credentials, or an emulator without any."""

from __future__ import annotations

import grpc.aio
from google.pubsub_v1 import PublisherAsyncClient, SubscriberAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport

# A pull response may be far larger than gRPC's 4 MiB default.
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
)


def subscriber(endpoint: str | None) -> SubscriberAsyncClient:
    if endpoint is None:
        return SubscriberAsyncClient()
    channel = grpc.aio.insecure_channel(endpoint, options=OPTIONS)
    return SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))


def publisher(endpoint: str | None) -> PublisherAsyncClient:
    if endpoint is None:
        return PublisherAsyncClient()
    channel = grpc.aio.insecure_channel(endpoint, options=OPTIONS)
    return PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
