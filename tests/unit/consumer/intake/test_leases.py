"""When acks are sent, and which share a request. Time is virtual."""

from __future__ import annotations

import asyncio

import pytest
from virtualtime import run

from consumer.delivery import Delivery
from consumer.intake.leases import ACK_SECONDS, MOST_UNSENT, Leases
from consumer.observability.metrics import Metrics

PATHS = ("projects/p/subscriptions/one", "projects/p/subscriptions/two")


class Client:
    """`acked`: when each request came, its subscription, and how many ack ids it had."""

    def __init__(self):
        self.acked = []

    async def acknowledge(self, subscription, ack_ids, timeout_seconds):
        await asyncio.sleep(0.001)
        self.acked.append((round(asyncio.get_running_loop().time(), 3), subscription, len(ack_ids)))


def held(count, path=PATHS[0]):
    return [Delivery(f"ack{number}", path, None, str(number), 0, 1) for number in range(count)]


def acked_by(scenario):
    """The requests of acks of a scenario with leases."""
    client = Client()

    async def played():
        await scenario(Leases(client, 10, asyncio.get_running_loop().time, Metrics()))

    run(played())
    return client.acked


def test_the_first_acks_are_sent_at_once_and_those_that_follow_share_a_request():
    async def scenario(leases):
        for _ in range(5):
            leases.ack(held(2))
            await asyncio.sleep(0.01)
        await asyncio.sleep(10)
        leases.ack(held(3))
        await asyncio.sleep(1)

    first, second, later = acked_by(scenario)
    assert (first, later) == ((0.001, PATHS[0], 2), (10.051, PATHS[0], 3))
    assert second == (pytest.approx(ACK_SECONDS + 0.001), PATHS[0], 8)


def test_many_acks_wait_for_no_others():
    async def scenario(leases):
        for _ in range(3):
            leases.ack(held(MOST_UNSENT))
            await asyncio.sleep(0.002)

    assert acked_by(scenario) == [(at, PATHS[0], MOST_UNSENT) for at in (0.001, 0.003, 0.005)]


@pytest.mark.parametrize("end", ["acks_sent", "close"])
def test_the_end_of_a_round_and_a_drain_send_what_waits(end):
    async def scenario(leases):
        leases.ack(held(1))
        leases.ack(held(2))
        leases.ack(held(3, PATHS[1]))
        await getattr(leases, end)(5.0)

    assert acked_by(scenario) == [(0.001, PATHS[0], 1), (0.001, PATHS[0], 2), (0.001, PATHS[1], 3)]
