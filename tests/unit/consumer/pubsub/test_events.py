"""What a sink has emitted, on its way to the fleet's topics."""

import asyncio

import pytest
from consumer_kit import config

from consumer.pubsub.events import EventTopics
from shardctl.outbox.sending import RefusedError


@pytest.mark.parametrize("slot", ["four", 5.5, -1, 1 << 16])
def test_a_slot_that_the_fleet_does_not_have_is_refused(slot):
    """SQLite's columns hold values of any type: such a row must not end the relay, at each start."""
    with pytest.raises(RefusedError, match="no slot"):
        asyncio.run(EventTopics(None, config()).publish(slot, [], 1.0))
