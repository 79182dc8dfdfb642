"""What is published of a write that can't succeed is always something the service takes."""

import asyncio

import pytest
from consumer_kit import CONFIG, raw

from consumer.errors import PermanentError
from consumer.pubsub.deadletters import SHORTENED, DeadLetterTopic
from shardctl.broker.protos import of
from shardctl.broker.publishing import check_publish


class Topic:
    """Takes what the broker takes."""

    def __init__(self):
        self.letters = []

    async def publish(self, *, topic, messages, **_):
        request = of("PublishRequest")(topic=topic, messages=messages)
        check_publish(request)
        self.letters.extend(messages)


def dead(data, **attributes):
    delivery = raw("customer", data, "1")
    delivery.message.attributes.update(attributes)
    delivery.fault = PermanentError("bad_json", "é" * 2_000)
    return delivery


def published(*deliveries):
    topic = Topic()
    asyncio.run(DeadLetterTopic(topic, CONFIG).publish(deliveries))
    return topic.letters


LARGEST = 10_000_000 - 200  # what a request can carry beside its topic and a few attributes


@pytest.mark.parametrize(
    ("bytes_of_data", "attributes"),
    [
        pytest.param(LARGEST, {}, id="largest"),
        pytest.param(LARGEST - 41_500, {f"a{number}": "x" * 1024 for number in range(40)}, id="many attributes"),
    ],
)
def test_a_message_that_the_reason_makes_too_large_is_shortened_and_says_so(bytes_of_data, attributes):
    data = bytes(range(256)) * (bytes_of_data // 256)
    (letter,) = published(dead(data, **attributes))
    assert data.startswith(letter.data)
    assert len(data) - len(letter.data) < 20_000
    assert letter.attributes[SHORTENED] == f"{len(letter.data):,} of {len(data):,} bytes"
    assert letter.attributes["shardctl-reason"] == "bad_json"
