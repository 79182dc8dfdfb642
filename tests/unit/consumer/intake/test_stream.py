"""The bounds of one stream. Against a broker: tests/integration/consumer/intake."""

from __future__ import annotations

import pytest
from consumer_kit import raw

from consumer.intake.stream import Stream


@pytest.mark.parametrize(("max_messages", "max_bytes"), [(2, 1_000), (100, 25)], ids=["messages", "bytes"])
def test_a_stream_has_room_while_both_bounds_are_kept(max_messages, max_bytes):
    messages = [raw("customer", b"x" * 15, "1") for _ in range(2)]
    stream = Stream(messages[0].subscription, 1, max_messages, max_bytes)
    stream.hold(messages[:1])
    assert stream.room.is_set()
    stream.hold(messages[1:])
    assert not stream.room.is_set()
    stream.release(messages[:1])
    assert stream.room.is_set()
