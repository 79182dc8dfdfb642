"""How a replica begins to read, so that a message that kills its process costs few others a delivery attempt. Pure.

Whatever is outstanding when a process dies is delivered again, and each time counts towards the dead letters. A process knows
nothing of what killed the one before it but `Delivery.attempt`. So it takes messages in in rounds: one message, and twice as many
after each round that it survives. Only then does it read as much as it may.

Of a round, messages that have failed twice before come last and one at a time: when one of them kills the process, nothing else
is outstanding but what waits behind it in its lane.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from consumer.delivery import Delivery

AGAIN = 2  # the attempt that says: somebody had this message and didn't finish it
SUSPECT = 3  # the attempt from which on a message is handled alone
DEATHS = 2  # of processes that had a message alone: then it is to blame
LAST_WINDOW = 64  # messages a round; a replica that has survived such a round reads as much as it may


class Window:
    """How many messages the next round may take. `wide` once no more rounds are needed."""

    def __init__(self, most: int) -> None:
        self._most = min(most, LAST_WINDOW)
        self.messages, self.wide = 1, False

    def survived(self, deliveries: Sequence[Delivery]) -> None:
        """A round is over: the next may be larger, unless it would bring others into the company of a suspect."""
        worst = max(delivery.attempt for delivery in deliveries)
        self.wide = self.messages >= self._most and worst < AGAIN
        self.messages = 1 if worst >= SUSPECT else min(self.messages * 2, self._most)


def parts(deliveries: Sequence[Delivery]) -> Iterator[list[Delivery]]:
    """A round's messages as they may be tried one part after another: first all that stand before a suspect of their lane, then
    each lane with a suspect, the one that has failed least first. In order within each lane.
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
