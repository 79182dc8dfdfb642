"""What one subscription's stream holds, and whether there is room for more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from consumer.delivery import Delivery
from consumer.intake.slowstart import AGAIN


class Stream:
    """One subscription's stream and what it holds. `room` is open while both bounds are kept.

    A stream of an older generation `may_end`: a rebalance deletes its subscription once all of it is handed over.
    """

    def __init__(self, path: str, generation: int, max_messages: int, max_bytes: int, *, may_end: bool = False) -> None:
        self.path, self.generation, self.may_end = path, generation, may_end
        self.max_messages, self.max_bytes = max_messages, max_bytes
        self.ended = False
        self.messages = self.bytes = 0
        self.connected = False
        self.opened = 0  # grows with each stream opened and each ended
        self.room = asyncio.Event()
        self.room.set()
        self.leave = asyncio.Event()  # set: the stream is to end after the messages on their way
        # Messages that came since then and were tried before, with those behind them in their lanes.
        self.apart: list[Delivery] = []

    def without_apart(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """The messages that may be tried at once; the others go to `apart`."""
        lanes = {delivery.lane for delivery in self.apart}
        at_once: list[Delivery] = []
        for delivery in deliveries:
            if delivery.attempt >= AGAIN or delivery.lane in lanes:
                lanes.add(delivery.lane)
                self.apart.append(delivery)
            else:
                at_once.append(delivery)
        return at_once

    def hold(self, deliveries: Sequence[Delivery]) -> None:
        self.messages += len(deliveries)
        self.bytes += sum([delivery.size for delivery in deliveries])
        if self.messages >= self.max_messages or self.bytes >= self.max_bytes:
            self.room.clear()

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self.messages -= len(deliveries)
        self.bytes -= sum([delivery.size for delivery in deliveries])
        if self.messages < self.max_messages and self.bytes < self.max_bytes:
            self.room.set()
