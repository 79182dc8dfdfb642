"""Slow start: small rounds first, and what has failed several times apart from all else."""

from __future__ import annotations

import asyncio

from consumer_kit import CONFIG, write
from hypothesis import given
from hypothesis import strategies as st
from virtualtime import run

from consumer.delivery import Delivery
from consumer.intake.pull import QUIET_SECONDS, Intake
from consumer.intake.slowstart import LAST_WINDOW, SUSPECT, Window, parts
from consumer.observability.metrics import Metrics


def delivery(number: int, lane: int, attempt: int = 1) -> Delivery:
    return Delivery(str(number), "", None, str(number), 0, 10, 0.0, lane, lane=lane, attempt=attempt)


def named(listed):
    return [[int(delivery.message_id) for delivery in part] for part in parts(listed)]


def rounds(window, *attempts):
    sizes = []
    for attempt in attempts:
        sizes.append(window.messages)
        window.survived([delivery(1, 1), delivery(2, 2, attempt)])
    return sizes, window.wide


def test_rounds_double_until_the_stream_may_be_opened():
    assert rounds(Window(20_000), *[1] * 7) == ([1, 2, 4, 8, 16, 32, 64], True)
    assert rounds(Window(20_000), *[1] * 6) == ([1, 2, 4, 8, 16, 32], False)


def test_a_subscription_that_counts_no_attempts_starts_slowly_too():
    assert rounds(Window(20_000), *[0] * 7) == ([1, 2, 4, 8, 16, 32, 64], True)


def test_no_round_is_larger_than_what_may_be_outstanding():
    assert rounds(Window(3), 1, 1, 1) == ([1, 2, 3], True)


def test_while_messages_come_again_rounds_stay_small():
    sizes, wide = rounds(Window(20_000), *[2] * 10)
    assert sizes[-3:] == [LAST_WINDOW] * 3
    assert not wide


def test_after_a_suspect_the_next_round_is_one_message():
    assert rounds(Window(20_000), 1, 1, SUSPECT, SUSPECT, 1) == ([1, 2, 4, 1, 1], False)


def test_suspects_come_last_and_one_at_a_time_the_worst_at_the_end():
    listed = [delivery(1, 1), delivery(2, 2, 4), delivery(3, 3, 3), delivery(4, 3, 3), delivery(5, 4, 2)]
    assert named(listed) == [[1, 5], [3], [4], [2]]


def test_what_stands_behind_a_suspect_in_its_lane_follows_it():
    assert named([delivery(1, 1), delivery(2, 1, 3), delivery(3, 1), delivery(4, 1), delivery(5, 2)]) == [
        [1, 5],
        [2],
        [3, 4],
    ]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=12))
def test_every_message_comes_once_and_in_the_order_of_its_lane(given_):
    listed = [delivery(number, lane, attempt) for number, (lane, attempt) in enumerate(given_)]
    tried = [delivery for part in parts(listed) for delivery in part]
    assert sorted(map(id, tried)) == sorted(map(id, listed))
    for lane in range(4):
        assert [delivery for delivery in tried if delivery.lane == lane] == [
            delivery for delivery in listed if delivery.lane == lane
        ]
    assert all(len(part) == 1 for part in parts(listed) if any(delivery.attempt >= SUSPECT for delivery in part))


def test_a_message_that_is_held_ends_a_round_once_nothing_else_happens():
    """A lane that is due holds its messages, and may wait for a barrier that another stream of this replica is to bring.

    Its batches are tried again and again meanwhile, and settle nothing each time.
    """

    async def scenario():
        intake = Intake(None, CONFIG, asyncio.get_running_loop().time, Metrics())
        delivery = write("customer", {"customer_id": "1", "name": "x"})
        intake._leases.held[delivery.ack_id] = delivery

        async def try_again_and_again():
            while True:
                await intake.ack([])
                await asyncio.sleep(0.1)

        trying = asyncio.create_task(try_again_and_again())
        await asyncio.wait_for(intake._wait_settled([delivery]), 10 * QUIET_SECONDS)
        trying.cancel()

    run(scenario())
