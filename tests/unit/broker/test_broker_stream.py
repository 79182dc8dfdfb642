"""When a stream's responses are sent, what shares one, and how much waits for a client that reads none. Time is virtual."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from virtualtime import run

from shardctl.broker.protos import of
from shardctl.broker.registry import Registry
from shardctl.broker.stream import (
    END,
    MAX_UNSENT_BYTES,
    RESPONSE_SECONDS,
    StreamingPull,
    StreamingPullResponse,
    Waiters,
)

TOPIC, SUB = "projects/p/topics/writes", "projects/p/subscriptions/shard"


class Call:
    """A call whose client reads all and says nothing more. `sent`: when each response was sent, and its messages."""

    def __init__(self):
        self.sent = []

    async def read(self):
        await asyncio.Event().wait()

    async def write(self, response):
        messages = StreamingPullResponse.FromString(response).received_messages
        self.sent.append((asyncio.get_running_loop().time(), [received.message.data for received in messages]))


async def responses_to(*moments):
    """Those of an open stream to a message published at each of these moments, in seconds."""
    registry, waiters, call, clock = Registry(), Waiters(), Call(), asyncio.get_running_loop().time
    registry.create_topic(of("Topic")(name=TOPIC))
    registry.create_subscription(of("Subscription")(name=SUB, topic=TOPIC))
    subscription = registry.subscription(SUB)
    first = of("StreamingPullRequest")(subscription=SUB, stream_ack_deadline_seconds=10)
    stream = asyncio.create_task(StreamingPull(subscription, first, call, waiters, clock).run())
    for moment in moments:
        await asyncio.sleep(moment - clock())
        message = of("PubsubMessage")(data=str(moment).encode())
        registry.publish(of("PublishRequest")(topic=TOPIC, messages=[message]), clock())
        waiters.wake(subscription.core)
    await asyncio.sleep(1)
    stream.cancel()
    return call.sent


def test_a_lone_message_is_sent_at_once():
    assert run(responses_to(1.0, 2.0, 3.0)) == [(1.0, [b"1.0"]), (2.0, [b"2.0"]), (3.0, [b"3.0"])]


def test_what_comes_within_milliseconds_of_a_response_shares_the_next_one():
    first, second = run(responses_to(1.0, 1.001, 1.002, 1.004))
    assert first == (1.0, [b"1.0"])
    assert second == (pytest.approx(1.0 + RESPONSE_SECONDS), [b"1.001", b"1.002", b"1.004"])


class Acks:
    """A call whose client acks so many times and then closes its side. `stuck`: it reads nothing, so its first response waits."""

    def __init__(self, ack_ids, times, *, stuck=False):
        self.request = of("StreamingPullRequest")(ack_ids=ack_ids)
        self.requests = 0
        self.confirmed = []
        self._times, self._stuck = times, stuck

    async def read(self):
        if self.requests == self._times:
            return END
        self.requests += 1
        return self.request

    async def write(self, response):
        if self._stuck:
            await asyncio.Event().wait()
        self.confirmed += StreamingPullResponse.FromString(response).acknowledge_confirmation.invalid_ack_ids


async def stream_of(call):
    """The task of an exactly-once subscription's stream."""
    registry, waiters, clock = Registry(), Waiters(), asyncio.get_running_loop().time
    registry.create_topic(of("Topic")(name=TOPIC))
    registry.create_subscription(of("Subscription")(name=SUB, topic=TOPIC, enable_exactly_once_delivery=True))
    first = of("StreamingPullRequest")(subscription=SUB, stream_ack_deadline_seconds=10)
    await StreamingPull(registry.subscription(SUB), first, call, waiters, clock).run()


ACK_IDS = ["1-1-".ljust(176, "_")] * 1000


def test_a_client_that_closes_its_side_gets_the_confirmations_of_all_that_it_sent():
    call = Acks(ACK_IDS, times=2)
    run(stream_of(call))
    assert call.confirmed == 2 * ACK_IDS


def test_a_client_that_reads_no_confirmations_may_not_send_for_ever():
    async def left_alone(call):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stream_of(call), 60)

    call = Acks(ACK_IDS, times=100, stuck=True)
    run(left_alone(call))
    unsent_bytes = call.requests * call.request.ByteSize()
    assert (
        MAX_UNSENT_BYTES < unsent_bytes < 3 * MAX_UNSENT_BYTES
    )  # what is being sent, what waits, and the last request
