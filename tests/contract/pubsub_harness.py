"""Brokers in processes, and real clients of them."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core.exceptions import GoogleAPICallError
from google.auth.credentials import AnonymousCredentials
from google.cloud import pubsub_v1
from google.pubsub_v1.services.publisher import PublisherClient as GeneratedPublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from patience import PATIENCE_SECONDS

OFFICIAL = "cloud-pubsub-emulator"
START_SECONDS = 30
_SDK_HOMES = (
    "/usr/lib/google-cloud-sdk",
    "/usr/share/google-cloud-sdk",
    "/opt/google-cloud-sdk",
    "/snap/google-cloud-cli/current",
)
_numbers = itertools.count(1)


def find_official() -> str | None:
    """SHARDCTL_PUBSUB_EMULATOR, the PATH, the SDK that `gcloud` belongs to, or one in a usual place."""
    named = os.environ.get("SHARDCTL_PUBSUB_EMULATOR") or shutil.which(OFFICIAL)
    if named:
        return named
    gcloud = shutil.which("gcloud")
    homes = [Path(gcloud).resolve().parent.parent] if gcloud else []
    homes += [Path(os.environ.get("CLOUDSDK_ROOT_DIR", "/nonexistent")), Path.home() / "google-cloud-sdk"]
    for home in [*homes, *map(Path, _SDK_HOMES)]:
        program = home / "platform" / "pubsub-emulator" / "bin" / OFFICIAL
        if program.is_file():
            return str(program)
    return None


class Server:
    """A broker in a process group of its own; `host` and `rest_host` are address:port."""

    def __init__(self, command: Sequence[str], port: int, rest_port: int) -> None:
        self.host, self.rest_host = f"127.0.0.1:{port}", f"127.0.0.1:{rest_port}"
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            with grpc.insecure_channel(self.host) as channel:
                grpc.channel_ready_future(channel).result(timeout=START_SECONDS)
        except grpc.FutureTimeoutError:
            self.stop()
            raise

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def official_differs(pubsub: PubSub, how: str) -> None:
    """Skips on the official emulator, where it is known to behave otherwise than the service's documents say."""
    if pubsub.kind == "official":
        pytest.skip(f"the official emulator {how}")


@dataclass
class PubSub:
    """Real clients of one broker, in a project of its own for each test."""

    kind: str
    host: str
    project: str = field(default_factory=lambda: f"project-{next(_numbers)}")

    def __post_init__(self) -> None:
        channel = grpc.insecure_channel(self.host, options=[("grpc.max_receive_message_length", -1)])
        self.publisher = pubsub_v1.PublisherClient(
            publisher_options=pubsub_v1.types.PublisherOptions(enable_message_ordering=True),
            transport=PublisherGrpcTransport(channel=channel, credentials=AnonymousCredentials()),
        )
        self.subscriber = pubsub_v1.SubscriberClient(
            transport=SubscriberGrpcTransport(channel=channel, credentials=AnonymousCredentials())
        )
        self.raw_publisher = GeneratedPublisherClient(
            transport=PublisherGrpcTransport(channel=channel, credentials=AnonymousCredentials())
        )
        self.channel = channel

    def topic(self, name: str = "writes", **options: Any) -> str:
        return self.publisher.create_topic(request={"name": self.topic_name(name), **options}).name

    def topic_name(self, name: str = "writes") -> str:
        return f"projects/{self.project}/topics/{name}"

    def subscription_name(self, name: str = "shard") -> str:
        return f"projects/{self.project}/subscriptions/{name}"

    def snapshot_name(self, name: str = "before") -> str:
        return f"projects/{self.project}/snapshots/{name}"

    def subscribe(self, topic: str, name: str = "shard", **options: Any) -> str:
        request = {"name": self.subscription_name(name), "topic": topic, **options}
        return self.subscriber.create_subscription(request=request).name

    def publish(self, topic: str, *bodies: str, key: str = "", **attributes: str) -> list[str]:
        """One request through the generated client: ids in order of the bodies."""
        messages = [{"data": body.encode(), "ordering_key": key, "attributes": attributes} for body in bodies]
        return list(self.raw_publisher.publish(topic=topic, messages=messages).message_ids)

    def pull(self, subscription: str, count: int, *, seconds: float = PATIENCE_SECONDS) -> list[Any]:
        """Pulls until `count` messages are there or the time is up: give `seconds` where fewer are expected."""
        messages: list[Any] = []
        end = time.monotonic() + seconds
        while len(messages) < count and time.monotonic() < end:
            request = {"subscription": subscription, "max_messages": count - len(messages), "return_immediately": True}
            fresh = self.subscriber.pull(request=request).received_messages
            messages += fresh
            if not fresh:
                time.sleep(0.02)
        return messages

    def ack(self, subscription: str, received: Sequence[Any]) -> None:
        self.subscriber.acknowledge(subscription=subscription, ack_ids=[message.ack_id for message in received])

    def deadline(self, subscription: str, received: Sequence[Any], seconds: int) -> None:
        self.subscriber.modify_ack_deadline(
            subscription=subscription, ack_ids=[message.ack_id for message in received], ack_deadline_seconds=seconds
        )

    def close(self) -> None:
        self.channel.close()


def _refuses(call: Any) -> bool:
    try:
        call()
    except GoogleAPICallError as error:
        return error.code != 501  # unimplemented is not a refusal
    return False


def _works(call: Any) -> bool:
    try:
        call()
    except GoogleAPICallError:
        return False
    return True


def _attached(probe: PubSub, **options: Any) -> str:
    return probe.subscribe(probe.topic(), **options)


def _exactly_once(probe: PubSub) -> bool:
    topic = probe.topic()
    subscription = probe.subscribe(topic, enable_exactly_once_delivery=True)
    probe.publish(topic, "x")
    received = probe.pull(subscription, 1)
    probe.ack(subscription, received)
    return _refuses(lambda: probe.ack(subscription, received))


PROBES = {
    "filters": lambda probe: _refuses(lambda: _attached(probe, filter="nonsense")),
    "update topic": lambda probe: _works(
        lambda: probe.publisher.update_topic(
            request={"topic": {"name": probe.topic(), "labels": {"a": "b"}}, "update_mask": {"paths": ["labels"]}}
        )
    ),
    "detach": lambda probe: _works(
        lambda: probe.publisher.detach_subscription(request={"subscription": _attached(probe)})
    ),
    "exactly-once": _exactly_once,
}


class Collector:
    """A callback for `SubscriberClient.subscribe` that acks, and remembers what came until `count` are there."""

    def __init__(self, count: int) -> None:
        self.bodies: list[str] = []
        self.done: Future[None] = Future()
        self._count = count
        self._lock = threading.Lock()

    def __call__(self, message: Any) -> None:
        with self._lock:
            self.bodies.append(message.data.decode())
            if len(self.bodies) == self._count:
                self.done.set_result(None)
        message.ack()
