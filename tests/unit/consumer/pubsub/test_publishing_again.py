"""What is published once more is always something the service takes."""

import asyncio

from consumer_kit import CONFIG, raw
from google.pubsub_v1 import PubsubMessage

from consumer.pubsub.publishing import Again
from shardctl.broker.protos import of
from shardctl.broker.publishing import check_publish
from shardctl.wire import identity
from shardctl.wire.message import MAX_ATTRIBUTES


class Topic:
    """Takes what the broker takes."""

    def __init__(self):
        self.messages = []

    async def publish(self, *, topic, messages, **_):
        check_publish(of("PublishRequest")(topic=topic, messages=messages))
        self.messages += messages


def test_a_copy_of_a_message_that_is_full_of_attributes_has_room_for_its_identity():
    delivery, topic = raw("customer", b"{}", "1"), Topic()
    routing = {"slot": "0", "zone": "z", CONFIG.attributes.message_type: "customer"}
    others = {f"a{number:03d}": "x" for number in range(MAX_ATTRIBUTES - len(routing))}
    delivery.message = PubsubMessage.pb(PubsubMessage(data=b"{}", attributes=routing | others))
    asyncio.run(Again(topic, CONFIG).publish([delivery]))
    [copy] = topic.messages
    assert copy.attributes[identity.COPY_OF] == delivery.message_id
    assert copy.attributes[CONFIG.attributes.message_type] == "customer"
    assert len(copy.attributes) == MAX_ATTRIBUTES
