"""What is written by hand is what the generated classes read."""

import pytest
from google.pubsub_v1 import PublishRequest
from hypothesis import given
from hypothesis import strategies as st

from shardctl.gateway import wire

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@given(
    TEXTS, st.lists(st.tuples(TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=4), st.binary(max_size=300)), max_size=4)
)
def test_a_request_reads_back(topic, messages):
    text = wire.topic(topic) + b"".join(
        wire.message(wire.ordering_key(key) + wire.attributes(attributes), data) for key, attributes, data in messages
    )
    request = PublishRequest.pb().FromString(text)
    assert request.topic == topic
    assert [(m.ordering_key, dict(m.attributes), m.data) for m in request.messages] == messages


@pytest.mark.parametrize("size", [0, 1, 127, 128, 4_095, 4_096, 16_383, 16_384, 3_000_000])
def test_bodies_of_any_length_read_back(size):
    request = PublishRequest.pb().FromString(wire.topic("t") + wire.message(b"", b"x" * size))
    assert len(request.messages[0].data) == size
