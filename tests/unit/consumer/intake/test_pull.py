"""What a stream's reader does with responses, between fake responses and a fake replica."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from consumer_kit import CONFIG, config
from google.pubsub_v1.types import PubsubMessage, ReceivedMessage
from virtualtime import run

from consumer.delivery import Delivery
from consumer.intake.pull import Intake
from consumer.observability.metrics import Metrics


async def responses(count):
    """A message in each, and then the end of the stream, all at one moment."""
    for number in range(count):
        message = PubsubMessage(data=b"{}", message_id=str(number))
        received = ReceivedMessage.pb(ReceivedMessage(ack_id=f"ack{number}", message=message))
        yield SimpleNamespace(received_messages=[received])


def test_what_waits_to_be_read_when_a_stream_ends_is_delivered_with_its_end():
    """Else it would be neither written nor handed back at a drain."""

    async def scenario():
        parts = []
        intake = Intake(None, CONFIG, asyncio.get_running_loop().time, Metrics())
        intake._deliver = lambda deliveries: parts.append([delivery.message_id for delivery in deliveries])
        intake._pause_left = lambda: 10.0
        await intake._take_until_left(intake._streams[0], responses(4))
        assert parts == [["0", "1", "2", "3"]]
        assert [*intake._leases.held] == ["ack0", "ack1", "ack2", "ack3"]

    run(scenario())


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        ({}, 5_000),
        ({"batch_max_rows": 100}, 5_000),
        ({"batch_max_rows": 10_000}, 20_000),
        ({"concurrency": 8}, 11_000),
        ({"batch_max_rows": 10_000, "max_outstanding_messages": 7}, 7),
    ],
    ids=str,
)
def test_a_stream_holds_several_batches(settings, messages):
    """With room for fewer than two, none would get full, and each would wait for `batch_max_age_ms`."""
    intake = Intake(None, config(**settings), lambda: 0.0, Metrics())
    assert [stream.max_messages for stream in intake._streams] == [messages]


def test_a_stream_holds_more_while_slots_move():
    """Messages of slots that aren't here yet must not keep those of slots that have come waiting."""
    (own,) = CONFIG.generations
    later = own.model_copy(update={"number": own.number + 1, "subscriptions": ("later",)})
    moving = CONFIG.model_copy(update={"generations": (own, later)})
    intake = Intake(None, moving, lambda: 0.0, Metrics())
    assert [stream.max_messages for stream in intake._streams] == [20_000, 20_000]


def test_messages_are_settled_at_the_same_cost_however_many_streams_there_are():
    looks = []

    class Counted(Delivery):
        subscription = property(lambda self: looks.append(1) or self.message, lambda self, path: None)

    names = tuple(f"shop-s0-g1-t{number}" for number in range(256))
    generation = CONFIG.generations[0].model_copy(update={"subscriptions": names})
    of_many = CONFIG.model_copy(update={"generations": (generation,)})
    intake = Intake(None, of_many, lambda: 0.0, Metrics())
    messages = [Counted(stream.path, "", stream.path, stream.path, 0, 10) for stream in intake._streams]
    for stream, message in zip(intake._streams, messages, strict=True):
        stream.hold([message])
    intake._settle(messages)
    assert {(stream.messages, stream.bytes) for stream in intake._streams} == {(0, 0)}
    assert len(looks) <= 2 * len(messages)
