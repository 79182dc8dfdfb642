"""Pub/Sub as the desk uses it: its clients, which subscriptions hold what, and publishing that keeps order and is confirmed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.api_core import exceptions as api
from google.api_core.retry import Retry, if_exception_type
from google.pubsub_v1 import PublisherClient, PubsubMessage, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from shardctl.deadletter.letter import Message
from shardctl.errors import ShardctlError
from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet
from shardctl.topicclient import TRANSIENT
from shardctl.wire.requests import in_requests

AGAIN = Retry(if_exception_type(*TRANSIENT), initial=0.1, maximum=5.0, timeout=60.0)
TIMEOUT_SECONDS = 30.0
SLOTS_AT_ONCE = 8
# A response may be far larger than gRPC's 4 MiB default.
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class PubsubError(ShardctlError):
    """Pub/Sub refused, or doesn't answer."""


@contextmanager
def clients(endpoint: str | None = None) -> Iterator[tuple[PublisherClient, SubscriberClient]]:
    """The generated clients, closed at the end. Honours PUBSUB_EMULATOR_HOST.

    `endpoint` is a fleet's `topic.endpoint`; by default Pub/Sub's global one.

    Raises `google.auth.exceptions.DefaultCredentialsError` where there are no credentials.
    """
    if host := os.environ.get("PUBSUB_EMULATOR_HOST"):
        with grpc.insecure_channel(host, options=_OPTIONS) as channel:
            publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
            yield publisher, SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        return
    client_options = {"api_endpoint": endpoint} if endpoint else {}
    with (
        PublisherClient(client_options=client_options) as publisher,
        SubscriberClient(client_options=client_options) as subscriber,
    ):
        yield publisher, subscriber


def subscriptions(fleet: Fleet, subscriber: Any, *, strays: bool) -> tuple[str, ...]:
    """The names of the subscriptions to read: the one for dead letters, or those for strays, of earlier slots too."""
    if not strays:
        return (topology.dead_letter_subscription(fleet),)
    wanted = [subscription.id for subscription in topology.strays(fleet)]
    try:
        project = f"projects/{fleet.project}"
        there = subscriber.list_subscriptions(project=project, retry=AGAIN, timeout=TIMEOUT_SECONDS)
        listed = [subscription.name.rpartition("/")[2] for subscription in there]
    except api.PermissionDenied:
        return tuple(wanted)  # those of now can be read without the right to list all
    except (api.GoogleAPICallError, api.RetryError) as error:
        raise PubsubError(f"Pub/Sub, project {fleet.project}: {error}") from error
    return tuple(dict.fromkeys((*wanted, *(name for name in listed if topology.is_strays(fleet, name)))))


class Outlet:
    """Publishes to the fleet's topics. What is returned is confirmed."""

    def __init__(self, client: Any, project: str) -> None:
        self._client, self._project = client, project

    def publish(self, topics: Mapping[str, str], messages: Sequence[Message]) -> dict[int, str]:
        """Publish in order within each ordering key; `topics` gives its topic. Which were refused for what they are, and why.

        Raises PubsubError: then some may have been published, and others behind them not.
        """
        by_key: dict[str, list[tuple[int, Message]]] = {}
        for number, message in enumerate(messages):
            by_key.setdefault(message.ordering_key, []).append((number, message))
        refused: dict[int, str] = {}
        with ThreadPoolExecutor(min(SLOTS_AT_ONCE, len(by_key) or 1), thread_name_prefix="publish") as pool:
            for some in pool.map(lambda key: self._publish(topics[key], by_key[key]), by_key):
                refused |= some
        return refused

    def _publish(self, topic: str, messages: Sequence[tuple[int, Message]]) -> dict[int, str]:
        path = f"projects/{self._project}/topics/{topic}"
        refused: dict[int, str] = {}
        sent = [(number, _as_sent(message)) for number, message in messages]
        for request in in_requests(sent, lambda numbered: int(PubsubMessage.pb(numbered[1]).ByteSize())):
            try:
                self._send(path, [message for _, message in request])
            except api.InvalidArgument:
                refused |= self._one_by_one(path, request)
        return refused

    def _one_by_one(self, path: str, request: Sequence[tuple[int, PubsubMessage]]) -> dict[int, str]:
        """One message spoils its whole request."""
        refused: dict[int, str] = {}
        for number, sent in request:
            try:
                self._send(path, [sent])
            except api.InvalidArgument as error:
                refused[number] = error.message
        return refused

    def _send(self, path: str, messages: Sequence[PubsubMessage]) -> None:
        try:
            self._client.publish(topic=path, messages=messages, retry=AGAIN, timeout=TIMEOUT_SECONDS)
        except api.InvalidArgument:
            raise
        except (api.GoogleAPICallError, api.RetryError) as error:
            raise PubsubError(
                f"the topic {path} takes nothing: {error}. What wasn't confirmed stays where it was: run it again."
            ) from error


def _as_sent(message: Message) -> PubsubMessage:
    return PubsubMessage(data=message.data, attributes=dict(message.attributes), ordering_key=message.ordering_key)
