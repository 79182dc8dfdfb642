"""Pushing: a subscription with an endpoint sends its messages there, and treats the answer as an ack or a refusal.

As the service does: one message a request; one at a time of an ordering key; without an answer within the ack deadline it counts
as refused; a refused message is redelivered after the subscription's back-off.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from typing import Any

import orjson

from shardctl.broker import config
from shardctl.broker.message import Message
from shardctl.broker.orderingqueue import Reader
from shardctl.broker.protos import Proto, of
from shardctl.broker.registry import RegisteredSubscription, Registry
from shardctl.broker.stream import Clock, Waiter, Waiters
from shardctl.broker.tokens import Signer
from shardctl.supervision.background import Background

_log = logging.getLogger(__name__)

MAX_OUTSTANDING = 100
LEASE_MARGIN_SECONDS = 1.0  # beyond the ack deadline, at which the request itself ends
REFUSED_PAUSE_SECONDS = 0.1  # for a subscription without a back-off; the service doesn't retry at once either
ACKS = frozenset({102, 200, 201, 202, 204})

PubsubMessage = of("PubsubMessage")


class Pushers:
    """A task for each subscription that pushes."""

    def __init__(self, registry: Registry, waiters: Waiters, clock: Clock, signer: Signer) -> None:
        self._registry, self._waiters, self._clock, self._signer = registry, waiters, clock, signer
        self._running: dict[str, tuple[RegisteredSubscription, asyncio.Task[None]]] = {}
        self._beside = Background(_log)

    def settle(self) -> None:
        """Start pushing for subscriptions that push now, and stop for those that no longer do. Call it repeatedly."""
        wanted = {
            name: subscription
            for name, subscription in self._registry.subscriptions.items()
            if subscription.config.push_config.push_endpoint and not subscription.config.detached
        }
        for name, (subscription, task) in list(self._running.items()):
            if wanted.get(name) is not subscription or task.done():
                task.cancel()
                del self._running[name]
        for name, subscription in wanted.items():
            if name not in self._running:
                pusher = Pusher(subscription, self._waiters, self._clock, self._signer)
                self._running[name] = subscription, self._beside.keep(f"push {name}", pusher.run)

    async def stop(self) -> None:
        self._running.clear()
        await self._beside.close()


class Pusher:
    """One subscription's pushes. Its configuration is read again for each request."""

    def __init__(self, subscription: RegisteredSubscription, waiters: Waiters, clock: Clock, signer: Signer) -> None:
        self._subscription, self._core, self._waiters = subscription, subscription.core, waiters
        self._clock, self._signer = clock, signer
        self._waiter = Waiter(Reader(ack_deadline_seconds=0, max_messages=MAX_OUTSTANDING, one_a_lane=True))

    async def run(self) -> None:
        import httpx

        core, reader, event = self._core, self._waiter.reader, self._waiter.event
        longest = config.ACK_DEADLINE_SECONDS[1]  # each request has its own deadline, which is no longer
        limits = httpx.Limits(max_connections=MAX_OUTSTANDING, max_keepalive_connections=MAX_OUTSTANDING)
        core.attach(reader)
        try:
            async with (
                httpx.AsyncClient(timeout=longest, limits=limits, trust_env=False) as client,
                Background(_log) as sending,
            ):
                with self._waiters.waiting(core, self._waiter):
                    while core.gone is None:
                        event.clear()
                        reader.ack_deadline_seconds = core.settings.ack_deadline_seconds + LEASE_MARGIN_SECONDS
                        for ack_id, message, attempt in core.take(reader, self._clock()):
                            sending.once(
                                f"a push of {self._subscription.config.name}",
                                self._send(client, ack_id, message, attempt),
                            )
                        await event.wait()
        finally:
            core.detach(reader)
            self._waiters.wake(core)

    async def _send(self, client: Any, ack_id: str, message: Message, attempt: int) -> None:
        status = 0
        with contextlib.suppress(Exception):  # whatever went wrong, it isn't an ack
            async with asyncio.timeout(self._core.settings.ack_deadline_seconds):
                status = await self._post(client, PubsubMessage.FromString(message.body()), attempt)
        self._core.counts["pushed"] += 1
        if status in ACKS:
            self._core.ack([ack_id], self._clock())
        else:
            _log.debug("push refused: %s", status or "no answer")
            if self._core.settings.backoff is None:
                await asyncio.sleep(REFUSED_PAUSE_SECONDS)
            self._core.modify([ack_id], 0, self._clock())
        self._waiters.wake(self._core)

    async def _post(self, client: Any, message: Proto, attempt: int) -> int:
        """The answer's status."""
        push = self._subscription.config.push_config
        headers: list[tuple[bytes, bytes]] = []
        if push.oidc_token.service_account_email:
            audience = push.oidc_token.audience or push.push_endpoint
            token = self._signer.token(push.oidc_token.service_account_email, audience, self._clock())
            headers.append((b"authorization", f"Bearer {token}".encode()))
        if push.HasField("no_wrapper"):
            body = message.data
            if push.no_wrapper.write_metadata:
                headers += _metadata(self._subscription.config.name, message, attempt)
        else:
            headers.append((b"content-type", b"application/json"))
            body = _envelope(self._subscription.config.name, message, attempt)
        answer = await client.post(push.push_endpoint, content=body, headers=headers, follow_redirects=False)
        return int(answer.status_code)


def _envelope(subscription: str, message: Proto, attempt: int) -> bytes:
    published = message.publish_time.ToJsonString()
    inner: dict[str, Any] = {
        "data": base64.b64encode(message.data).decode(),
        "attributes": dict(message.attributes),
        "messageId": message.message_id,
        "message_id": message.message_id,
        "publishTime": published,
        "publish_time": published,
    }
    if message.ordering_key:
        inner["orderingKey"] = message.ordering_key
    envelope: dict[str, Any] = {"message": inner, "subscription": subscription}
    if attempt:
        envelope["deliveryAttempt"] = attempt
    return orjson.dumps(envelope)


def _metadata(subscription: str, message: Proto, attempt: int) -> list[tuple[bytes, bytes]]:
    headers = {
        **message.attributes,
        "x-goog-pubsub-subscription-name": subscription,
        "x-goog-pubsub-message-id": message.message_id,
        "x-goog-pubsub-publish-time": message.publish_time.ToJsonString(),
    }
    if message.ordering_key:
        headers["x-goog-pubsub-ordering-key"] = message.ordering_key
    if attempt:
        headers["x-goog-pubsub-delivery-attempt"] = str(attempt)
    return [(name.encode(), value.encode()) for name, value in headers.items()]
