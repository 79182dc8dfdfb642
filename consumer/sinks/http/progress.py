"""What is known of each write, done or not, however often the store asks. Only in this process; the inbox is what lasts."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from consumer.delivery import Delivery
from consumer.errors import PermanentError

MAX_WRITES = 20_000
LONGEST_SECONDS = 3_600.0  # far below the inbox's retention: a key that is used again after that must not count as done


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
    """The progress of the most recent writes, for deliveries that come again.

    While a write is in flight it keeps its own in `Delivery.row`, however many others come meanwhile.
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
        progress = self._known.get(identity)
        if progress is None or now - progress.since > self._longest_seconds:
            progress = self._known[identity] = Progress(now)
        self._known.move_to_end(identity)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        delivery.row = (progress,)
        return progress

    def forget(self, delivery: Delivery) -> None:
        """The write is dead-lettered or parked: a replay or a release of it is to try again."""
        self._known.pop(_identity(delivery), None)


def _identity(delivery: Delivery) -> tuple[int, bytes, int]:
    """As the inbox has it."""
    return delivery.slot, delivery.identity, delivery.fingerprint
