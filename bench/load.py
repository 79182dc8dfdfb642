"""Writes of two types for the fleet of `bench.rig`, and two ways to publish them: all at once, or one by one at a steady rate.

Each write has the key that a publisher gives where the producer gives none, a UUIDv7. Requests are made by hand: what the load
itself costs is taken from the processors that are measured.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from datetime import UTC, datetime
from itertools import islice

import grpc

from shardctl.broker import protos
from shardctl.fleet.keyspace import slot_of
from shardctl.fleet.topology import topic_of
from shardctl.local.feed import identity_of
from shardctl.wire.identity import new_key
from shardctl.wire.message import Write, encode

ENTITIES = 50_000
SLOTS = 1_024
REQUEST_MESSAGES = 500  # at most, all of one slot
AT_ONCE = 64
LONGEST_SECONDS = 60.0

_PublishRequest, _PublishResponse = protos.of("PublishRequest"), protos.of("PublishResponse")


def writes(spread=SLOTS, seed=1):
    """Without end: customers and orders by turns, of entities whose slots are the first `spread` ones."""
    draw = random.Random(seed)
    customers, orders = (_entities(kind, spread) for kind in ("customer", "order"))
    number = 0
    while True:
        if number % 2:
            entity = draw.choice(orders)
            body = {
                "order_id": f"order-{entity}",
                "customer_id": f"customer-{entity % 1000}",
                "status": draw.choice(("placed", "paid", "sent")),
                "amount": draw.randrange(1, 100_000) / 100,
                "placed_at": "2026-01-02T03:04:05Z",
                "revision": number,
            }
            yield Write("order", body, idempotency_key=new_key())
        else:
            entity = draw.choice(customers)
            body = {
                "customer_id": f"customer-{entity}",
                "name": f"Customer {entity}",
                "email": f"customer{entity}@example.com",
                "credit": draw.randrange(10_000),
                "revision": number,
            }
            yield Write("customer", body, idempotency_key=new_key())
        number += 1


def _entities(kind, spread):
    bits = (SLOTS - 1).bit_length()
    return [number for number in range(ENTITIES) if slot_of(f"{kind}-{number}", bits) < spread]


class Requests:
    """Sends requests without waiting for their answers; `join` waits for all, and raises what one of them failed of."""

    def __init__(self, fleet, host):
        self._fleet = fleet
        self._channel = grpc.insecure_channel(host)
        self._publish = self._channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish", _PublishRequest.SerializeToString, _PublishResponse.FromString
        )
        self._answered = threading.Condition()
        self._waiting = 0
        self._fault = None

    def send(self, messages, at_most=None):
        """One request; with `at_most`, not before fewer than so many are waiting for their answers."""
        topic = topic_of(self._fleet, messages[0].slot).id
        request = _PublishRequest(topic=f"projects/{self._fleet.project}/topics/{topic}")
        for message in messages:
            request.messages.add(data=message.data, attributes=message.attributes, ordering_key=message.ordering_key)
        with self._answered:
            if at_most:
                self._answered.wait_for(lambda: self._waiting < at_most)
            self._waiting += 1
        self._publish.future(request, timeout=LONGEST_SECONDS).add_done_callback(self._settle)

    def _settle(self, answer):
        with self._answered:
            self._waiting -= 1
            self._fault = self._fault or answer.exception()
            self._answered.notify_all()

    def join(self):
        with self._answered:
            self._answered.wait_for(lambda: not self._waiting)
        self._channel.close()
        if self._fault:
            raise SystemExit(f"the broker didn't take a write: {self._fault}")


def publish_backlog(local, count, spread=None):
    """Publish `count` writes and wait until the broker has them.

    Slot by slot, in full requests, as a bulk load does; with `spread`, one by one over so many slots, in no order.
    """
    now, requests = datetime.now(UTC), Requests(local.spec, local.broker.host)
    messages = (encode(local.spec, write, now) for write in islice(writes(spread or SLOTS), count))
    if spread:
        for message in messages:
            requests.send([message], AT_ONCE)
    else:
        by_slot = defaultdict(list)
        for message in messages:
            by_slot[message.slot].append(message)
        for share in by_slot.values():
            for start in range(0, len(share), REQUEST_MESSAGES):
                requests.send(share[start : start + REQUEST_MESSAGES], AT_ONCE)
    requests.join()


class Steady:
    """Publishes one write a request at an even rate, whatever the answers say: an open loop. `with Steady(local, 100):`."""

    def __init__(self, local, rate, spread=SLOTS):
        self._local, self._rate, self._writes = local, rate, writes(spread)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.published = 0
        self.published_at = {}  # when each write was sent, in seconds since 1970, by its identity in its slot
        self.latest_seconds = 0.0  # the most that a write came later than its turn

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._thread.join()

    def _run(self):
        requests, began = Requests(self._local.spec, self._local.broker.host), time.monotonic()
        while not self._stopping.is_set():
            early = began + self.published / self._rate - time.monotonic()
            if early > 0:
                time.sleep(early)
            self.latest_seconds = max(self.latest_seconds, -early)
            message = encode(self._local.spec, next(self._writes), datetime.now(UTC))
            self.published_at[identity_of(message)] = time.time()
            requests.send([message])
            self.published += 1
        requests.join()
