"""A gateway as a process of its own, beside a broker that is one too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
import httpx
from google.pubsub_v1 import PublisherClient, SubscriberClient, Subscription
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from patience import PATIENCE_SECONDS

from shardctl.fleet import topology
from shardctl.fleet.spec import Fleet
from shardctl.render.gateway import config_text

START_SECONDS = PATIENCE_SECONDS


def until(condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS, what: str = "it") -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} never came true"
        time.sleep(0.02)
    return value


class Process:
    def __init__(self, log: Path, *arguments: str, **environment: str) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shardctl", *arguments], env=os.environ | environment, stderr=file
            )

    def found(self, begin: str) -> str | None:
        """What follows `begin` in the log, up to a blank or a quote."""
        assert self.process.poll() is None, self.log.read_text()
        rest = self.log.read_text().partition(begin)[2]
        return rest.replace('"', " ").split()[0] if "\n" in rest else None

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


class Broker(Process):
    def __init__(self, folder: Path, fleet: Fleet, port: int = 0) -> None:
        super().__init__(folder / "broker.log", "broker", "--port", str(port))
        self.host = until(lambda: self.found("PUBSUB_EMULATOR_HOST="), START_SECONDS, "the broker")
        channel = grpc.insecure_channel(self.host)
        self._publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        self._subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        self._names = []
        for topic in topology.topics(fleet):
            path = f"projects/{fleet.project}/topics/{topic.id}"
            self._names.append(f"projects/{fleet.project}/subscriptions/all-{topic.id}")
            self._publisher.create_topic(name=path)
            request = Subscription(name=self._names[-1], topic=path, enable_message_ordering=True)
            self._subscriber.create_subscription(request=request)

    def subscribe(self, name: str, fleet: Fleet) -> None:
        """One more subscription of the fleet's only topic, and its dead letters' topic."""
        (topic,) = topology.topics(fleet)
        path = f"projects/{fleet.project}"
        self._publisher.create_topic(name=f"{path}/topics/{topology.dead_letter_topic(fleet)}")
        request = Subscription(
            name=f"{path}/subscriptions/{name}", topic=f"{path}/topics/{topic.id}", enable_message_ordering=True
        )
        self._subscriber.create_subscription(request=request)

    def pulled(self, wanted: int) -> list[Any]:
        """So many messages, in the order of each topic."""
        messages: list[Any] = []

        def enough() -> bool:
            for name in self._names:
                answer = self._subscriber.pull(subscription=name, max_messages=1_000, return_immediately=True)
                if answer.received_messages:
                    acks = [received.ack_id for received in answer.received_messages]
                    self._subscriber.acknowledge(subscription=name, ack_ids=acks)
                    messages.extend(received.message for received in answer.received_messages)
            return len(messages) >= wanted

        until(enough, what=f"{wanted} messages")
        return messages


class Gateway(Process):
    """Runs on the slice that a pod would have."""

    def __init__(self, folder: Path, fleet: Fleet, broker: str, *more: str, **environment: str) -> None:
        file = folder / "gateway.json"
        file.write_text(config_text(fleet))
        super().__init__(
            folder / "gateway.log",
            "gateway",
            "-f",
            str(file),
            "--port",
            "0",
            *more,
            PUBSUB_EMULATOR_HOST=broker,
            **environment,
        )
        self.url = until(lambda: self.found("serving "), START_SECONDS, "the gateway")
        self.address = ("127.0.0.1", int(self.url.rpartition(":")[2]))
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS, trust_env=False)

    def write(self, kind: str, body: Any, *, key: str | None = None, **more: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **more.pop("headers", {})}
        if key is not None:
            headers["Idempotency-Key"] = key
        return self.http.post(f"/v1/writes/{kind}", content=content, headers=headers, **more)

    def batch(self, *lines: Any, **more: Any) -> list[dict[str, Any]]:
        text = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        headers = {"Content-Type": "application/x-ndjson", **more.pop("headers", {})}
        answer = self.http.post("/v1/writes", content=text, headers=headers, **more)
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    def metric(self, name: str) -> float:
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(f"shardctl_gateway_{name} "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def errors(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if '"ERROR"' in line]


@contextmanager
def running(folder: Path, fleet: Fleet, *more: str, **environment: str) -> Iterator[tuple[Broker, Gateway]]:
    with Broker(folder, fleet) as broker, Gateway(folder, fleet, broker.host, *more, **environment) as gateway:
        yield broker, gateway
