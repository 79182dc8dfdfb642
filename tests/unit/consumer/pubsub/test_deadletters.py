"""What is published of a write that can't succeed is always something the service takes."""

import asyncio

import pytest
from consumer_kit import CONFIG, raw
from google.api_core.exceptions import NotFound
from google.pubsub_v1 import PubsubMessage

from consumer.errors import PermanentError, TransientError
from consumer.pubsub.deadletters import SHORTENED, DeadLetterTopic
from shardctl.broker.protos import of
from shardctl.broker.publishing import check_publish


class Topic:
    """Takes what the broker takes, and keeps each request."""

    def __init__(self, fault=None):
        self.requests, self.fault = [], fault

    async def publish(self, *, topic, messages, **_):
        if self.fault:
            raise self.fault
        assert topic == "projects/test-project/topics/data-writes-dead"
        check_publish(of("PublishRequest")(topic=topic, messages=messages))
        self.requests.append(list(messages))


def dead(data=b"{}", detail="it's no JSON", **attributes):
    delivery = raw("customer", data, "1")
    delivery.message = PubsubMessage.pb(PubsubMessage(data=data, attributes=attributes, ordering_key="01"))
    delivery.fault = PermanentError("bad_json", detail)
    return delivery


def published(*deliveries):
    topic = Topic()
    asyncio.run(DeadLetterTopic(topic, CONFIG).publish(deliveries))
    return topic.requests


LARGEST = 10_000_000 - 200  # what a request can carry beside its topic and a few attributes


@pytest.mark.parametrize(
    ("bytes_of_data", "attributes"),
    [
        pytest.param(LARGEST, {}, id="largest"),
        pytest.param(LARGEST - 41_500, {f"a{number}": "x" * 1024 for number in range(40)}, id="many attributes"),
    ],
)
def test_a_message_that_the_reason_makes_too_large_is_shortened_and_marked(bytes_of_data, attributes):
    data = bytes(range(256)) * (bytes_of_data // 256)
    [[letter]] = published(dead(data, "é" * 2_000, **attributes))
    assert data.startswith(letter.data)
    assert len(data) - len(letter.data) < 20_000
    assert letter.attributes[SHORTENED] == f"{len(letter.data):,} of {len(data):,} bytes"
    assert letter.attributes["shardctl-reason"] == "bad_json"


def test_a_dead_letter_carries_its_reason_and_the_original_message():
    [[letter]] = published(dead(b"data", color="red", idempotency_key="mine"))
    assert (letter.data, letter.ordering_key) == (b"data", "01")
    assert letter.attributes["color"] == "red"
    assert letter.attributes["shardctl-reason"] == "bad_json"
    assert letter.attributes["shardctl-error"] == "it's no JSON"
    assert letter.attributes["shardctl-shard"] == "s0"


def test_a_dead_letter_stays_within_what_the_service_takes():
    attributes = {f"a{number}": "ü" * 512 for number in range(99)} | {"googclient_schemaencoding": "JSON"}
    [[letter]] = published(dead(detail="ü" * 5_000, **attributes))
    assert len(letter.attributes) == 100
    assert all(len(value.encode()) <= 1024 for value in letter.attributes.values())
    assert not any(name.startswith("goog") for name in letter.attributes)


@pytest.mark.parametrize(
    ("count", "size", "requests"),
    [
        pytest.param(1_001, 2, 2, id="messages"),
        pytest.param(5, 4_000_000, 3, id="bytes"),
        pytest.param(1, 9_990_000, 1, id="one"),
    ],
)
def test_requests_stay_within_what_the_service_takes_and_in_order(count, size, requests):
    sent = published(*(dead(b"x" * size, number=str(number)) for number in range(count)))
    assert len(sent) == requests
    assert [int(letter.attributes["number"]) for request in sent for letter in request] == list(range(count))


def test_a_missing_dead_letter_topic_means_again():
    with pytest.raises(TransientError, match="data-writes-dead"):
        asyncio.run(DeadLetterTopic(Topic(NotFound("…")), CONFIG).publish([dead()]))
