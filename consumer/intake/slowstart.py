"""How a replica begins to read, so that a message that kills its process costs few others a delivery attempt. Pure.

All messages that are outstanding when a process dies are redelivered, and each redelivery counts towards the dead letters. All
that a process knows of what killed the one before it is `Delivery.attempt`. So it receives messages in rounds: one message, and
twice as many after each round that it survives. After the last round it reads as much as the bounds allow.

In a round, messages that have failed twice before come last and one at a time: if one of them kills the process, only the
messages behind it in its lane are outstanding as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from consumer.delivery import Delivery

AGAIN = 2  # at this attempt a process has had the message and not finished it
SUSPECT = 3  # from this attempt on a message is handled alone
DEATHS = 2  # of processes that had the message alone: then it is the cause
LAST_WINDOW = 64  # messages a round; a replica that has survived such a round reads as much as it may


class Window:
    """How many messages the next round may take. `wide` once no more rounds are needed."""

    def __init__(self, most: int) -> None:
        self._most = min(most, LAST_WINDOW)
        self.messages, self.wide = 1, False

    def survived(self, deliveries: Sequence[Delivery]) -> None:
        """A round is over: the next may be larger, unless it would add other messages to a suspect's."""
        worst = max(delivery.attempt for delivery in deliveries)
        self.wide = self.messages >= self._most and worst < AGAIN
        self.messages = 1 if worst >= SUSPECT else min(self.messages * 2, self._most)


def parts(deliveries: Sequence[Delivery]) -> Iterator[list[Delivery]]:
    """A round's messages in the parts to try one after another: first all that come before a suspect of their lane, then each
    lane with a suspect, the one that has failed least first. In order within each lane.
    """
    lanes: dict[int, list[Delivery]] = {}
    first: list[Delivery] = []
    for delivery in deliveries:
        if delivery.attempt >= SUSPECT or delivery.lane in lanes:
            lanes.setdefault(delivery.lane, []).append(delivery)
        else:
            first.append(delivery)
    if first:
        yield first
    for lane in sorted(lanes.values(), key=lambda lane: max(delivery.attempt for delivery in lane)):
        harmless: list[Delivery] = []
        for delivery in lane:
            if delivery.attempt < SUSPECT:
                harmless.append(delivery)
                continue
            if harmless:
                yield harmless
            harmless = []
            yield [delivery]
        if harmless:
            yield harmless
