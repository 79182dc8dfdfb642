"""What a consumer dead-letters is read by the desk as the write that it was."""

import asyncio

import pytest
from consumer_kit import CONFIG, raw

from consumer.errors import PermanentError
from consumer.pubsub.deadletters import DeadLetterTopic
from shardctl.broker.protos import of
from shardctl.broker.publishing import check_publish
from shardctl.wire import deadletters
from shardctl.wire.identity import COPY_OF

ROUTING = {"message_type": "customer", "partition_key": "1", "slot": "000000", "operation": "upsert", "timestamp": "t"}


def dead_lettered(attributes):
    class Topic:
        async def publish(self, *, topic, messages, **_):
            check_publish(of("PublishRequest")(topic=topic, messages=messages))
            self.letters = messages

    delivery = raw("customer", b"{", "1")
    delivery.message.attributes.update(attributes)
    delivery.fault = PermanentError("bad_json", "x")
    topic = Topic()
    asyncio.run(DeadLetterTopic(topic, CONFIG).publish([delivery]))
    return dict(topic.letters[0].attributes)


def test_its_own_attributes_come_back_as_they_were():
    letter = dead_lettered(ROUTING | {"color": "red"})
    assert deadletters.by_consumer(letter)
    assert deadletters.original(letter) == ROUTING | {"color": "red", COPY_OF: letter[deadletters.MESSAGE_ID]}


@pytest.mark.parametrize("others", [93, 95])
def test_of_too_many_attributes_those_that_route_the_write_stay_and_the_letter_says_so(others):
    letter = dead_lettered(ROUTING | {f"a{number:02}": "v" for number in range(others)})
    assert len(letter) == 100
    assert letter.items() >= ROUTING.items()
    assert "attributes left out" in letter[deadletters.SHORTENED]


def test_as_many_attributes_as_there_is_room_for_are_all_kept():
    letter = dead_lettered(ROUTING | {f"a{number:02}": "v" for number in range(87)})
    assert len(letter) == 100
    assert deadletters.SHORTENED not in letter
