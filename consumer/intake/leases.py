"""Messages under lease: extended while they are held, and in the end acked or handed back. Nothing else acks a pulled message."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

from google.api_core.exceptions import GoogleAPICallError

from consumer.delivery import Delivery
from consumer.observability.metrics import Metrics
from consumer.pubsub.calls import Subscriber
from shardctl.supervision.background import Background
from shardctl.supervision.backoff import backoff

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.1, 5.0
RENEW_AT = 1 / 3  # of the lease, so that one lost renewal costs nothing: the next still comes in time
MAX_IDS = 2_500  # ack ids a request, well inside its 512 KiB
ACK_TRIES = 4
# Between two requests of acks, as in Google's clients: what is settled meanwhile shares one. If the process is killed before it,
# these messages are redelivered, and the inbox knows them.
ACK_SECONDS = 0.1
MOST_UNSENT = 500  # ack ids that wait for it


class Leases:
    """`held` has the messages by ack id, the one leased longest ago first."""

    def __init__(self, client: Subscriber, lease_seconds: int, clock: Callable[[], float], metrics: Metrics) -> None:
        self._client, self._lease_seconds, self._clock, self._metrics = client, lease_seconds, clock, metrics
        self.held: dict[str, Delivery] = {}
        self._acks = Background(log)
        self._acking: set[asyncio.Task[None]] = set()
        self._unsent: dict[str, list[str]] = {}  # ack ids of what is settled and not acked yet, by subscription
        self._next_acks: asyncio.TimerHandle | None = None  # while a request of acks has just been sent

    def add(self, deliveries: Iterable[Delivery]) -> None:
        """Hold messages that were leased just now."""
        for delivery in deliveries:
            self.held[delivery.ack_id] = delivery

    async def keep(self) -> None:
        """Extend the leases of held messages well before they end. Most messages are settled long before."""
        renew_after = self._lease_seconds * RENEW_AT
        while True:
            await asyncio.sleep(min(1.0, renew_after / 4))
            now = self._clock()
            await self.extend(self._leased_again(now - renew_after, now))

    def _leased_again(self, before: float, now: float) -> list[Delivery]:
        """The messages leased at or before a moment, moved behind those leased since."""
        due = list(takewhile(lambda delivery: delivery.leased_at <= before, self.held.values()))
        for delivery in due:
            del self.held[delivery.ack_id]
            delivery.leased_at = now
            self.held[delivery.ack_id] = delivery
        return due

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Lease messages for the whole time from now on. A failure is logged: they may be redelivered."""
        for path, ids in _ids_by_subscription(deliveries):
            try:
                await self._client.modify_ack_deadline(
                    subscription=path, ack_ids=ids, ack_deadline_seconds=self._lease_seconds, timeout_seconds=2
                )
            except GoogleAPICallError as error:
                log.info("the leases of %s messages weren't extended (%s): they may be redelivered", len(ids), error)

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Hold messages no longer, and acknowledge them in the background: at once, or `ACK_SECONDS` after the acks before."""
        self._drop(deliveries)
        _add_ids(self._unsent, deliveries)
        if self._next_acks is None or sum(map(len, self._unsent.values())) >= MOST_UNSENT:
            self._send_acks()

    async def hand_back(self, deliveries: Sequence[Delivery]) -> None:
        """Hold messages no longer, and let other replicas have them at once."""
        self._drop(deliveries)
        for path, ids in _ids_by_subscription(deliveries):
            try:
                await self._client.modify_ack_deadline(
                    subscription=path, ack_ids=ids, ack_deadline_seconds=0, timeout_seconds=2
                )
            except GoogleAPICallError as error:
                log.info("messages couldn't be handed back (%s): they will be redelivered when their lease ends", error)

    async def acks_sent(self, timeout_seconds: float) -> None:
        """Send all acks, and wait for those in flight, but no longer than this."""
        self._send_acks()
        if self._acking:
            await asyncio.wait(set(self._acking), timeout=timeout_seconds)

    async def close(self, timeout_seconds: float) -> None:
        """Send all acks, wait for those in flight, but no longer than this, and cancel the others."""
        await self.acks_sent(timeout_seconds)
        self._rest()
        unsent = set(self._acking)
        for task in unsent:
            task.cancel()
        await asyncio.gather(*unsent, return_exceptions=True)

    def _drop(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.held.pop(delivery.ack_id, None)

    def _send_acks(self) -> None:
        self._rest()
        if not self._unsent:
            return
        unsent, self._unsent = self._unsent, {}
        for path, ids in _requests(unsent):
            task = self._acks.once("acks", self._send_ack(path, ids))
            self._acking.add(task)
            task.add_done_callback(self._acking.discard)
        self._next_acks = asyncio.get_running_loop().call_later(ACK_SECONDS, self._send_acks)

    def _rest(self) -> None:
        """Send no acks until there are some."""
        if self._next_acks:
            self._next_acks.cancel()
            self._next_acks = None

    async def _send_ack(self, path: str, ids: list[str]) -> None:
        for attempt in range(1, ACK_TRIES + 1):
            try:
                await self._client.acknowledge(subscription=path, ack_ids=ids, timeout_seconds=5)
            except GoogleAPICallError as error:
                why = str(error)
                if attempt < ACK_TRIES:
                    await asyncio.sleep(retry_seconds(attempt))
            else:
                self._metrics.acked.inc(len(ids))
                return
        log.warning(
            "%s acks were lost (%s): these messages will be redelivered, and the inbox will know them",
            len(ids),
            why,
            extra={"action": "acks_lost"},
        )


def retry_seconds(failures: int) -> float:
    """How long to wait before the next try of a call of Pub/Sub."""
    return backoff(failures, FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, random.random())


def _ids_by_subscription(deliveries: Iterable[Delivery]) -> Iterable[tuple[str, list[str]]]:
    by_path: dict[str, list[str]] = {}
    _add_ids(by_path, deliveries)
    return _requests(by_path)


def _add_ids(by_path: dict[str, list[str]], deliveries: Iterable[Delivery]) -> None:
    for delivery in deliveries:
        ids = by_path.get(delivery.subscription)
        if ids is None:
            ids = by_path[delivery.subscription] = []
        ids.append(delivery.ack_id)


def _requests(by_path: Mapping[str, list[str]]) -> Iterator[tuple[str, list[str]]]:
    for path, ids in by_path.items():
        for start in range(0, len(ids), MAX_IDS):
            yield path, ids[start : start + MAX_IDS]
