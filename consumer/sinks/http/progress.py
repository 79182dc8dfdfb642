"""What is known of each write: done or not, however often the store asks. In one process; the inbox is what lasts."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from consumer.delivery import Delivery
from consumer.errors import PermanentError

MAX_WRITES = 20_000
LONGEST_SECONDS = 3_600.0  # far below the inbox's memory: a key that is used again after that must not find itself done


@dataclass(slots=True)
class Progress:
    """`failures` are the calls that count against the write; `unsure`, whether one that failed may have reached the backend."""

    since: float
    done: bool = False
    fault: PermanentError | None = None
    calls: int = 0
    failures: int = 0
    unsure: bool = False
    not_before: float = 0.0

    @property
    def settled(self) -> bool:
        return self.done or self.fault is not None


class Memory:
    """The progress of the writes that were asked for last, for deliveries that come again.

    A write keeps its own as long as it is in hand, in `Delivery.row`, however many others come meanwhile.
    """

    def __init__(self, most: int = MAX_WRITES, longest_seconds: float = LONGEST_SECONDS) -> None:
        self._known: OrderedDict[tuple[int, bytes, int], Progress] = OrderedDict()
        self._most, self._longest_seconds = most, longest_seconds

    def __len__(self) -> int:
        return len(self._known)

    def of(self, delivery: Delivery, now: float) -> Progress:
        if delivery.row:
            known: Progress = delivery.row[0]
            return known
        identity = _identity(delivery)
        found = self._known.get(identity)
        if found is None or now - found.since > self._longest_seconds:
            found = self._known[identity] = Progress(now)
        self._known.move_to_end(identity)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        delivery.row = (found,)
        return found

    def forget(self, delivery: Delivery) -> None:
        """It is set aside: whoever brings it again, by a replay or a release, wants it tried again."""
        self._known.pop(_identity(delivery), None)


def _identity(delivery: Delivery) -> tuple[int, bytes, int]:
    """As the inbox has it."""
    return delivery.slot, delivery.identity, delivery.fingerprint
