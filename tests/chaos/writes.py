"""What producers publish: seeded, numbered for each entity, with second copies and writes that can never succeed. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heappop, heappush
from itertools import accumulate

ENTITIES = 40
ZIPF = 1.1
DUPLICATE_RATE = 0.02
LATEST_DUPLICATE = 400  # publications after the first, at most
POISON_RATE = 0.02
COUNTER_SHARE = 0.4


class Poison(StrEnum):
    """Why a write can never succeed."""

    REFUSED = "refused"  # by a constraint of the table
    MALFORMED = "malformed"  # its body is half a JSON object


@dataclass(frozen=True, slots=True)
class Operation:
    """One write. `number` counts the writes of its entity, of both types together."""

    entity: str
    number: int
    type: str  # "journal" or "counter"
    value: int
    poison: Poison | None = None

    @property
    def key(self) -> str:
        """Its idempotency key."""
        return f"{self.entity}#{self.number}"

    @property
    def body(self) -> dict[str, str | int]:
        return {"entity": self.entity, "number": self.number, "value": self.value}

    def __str__(self) -> str:
        return f"{self.type} {self.key}"


@dataclass(slots=True)
class Stream:
    """So many operations of one producer, who shares no entity with another. Yields (operation, whether it is a second copy)."""

    seed: int
    producer: int
    operations: int
    entities: int = ENTITIES
    _draw: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._draw = random.Random(f"{self.seed}/producer/{self.producer}")

    def __iter__(self) -> Iterator[tuple[Operation, bool]]:
        again: list[tuple[int, int, Operation]] = []  # second copies to come, by when
        for at, operation in enumerate(self._operations()):
            yield operation, False
            if self._draw.random() < DUPLICATE_RATE:
                heappush(again, (at + self._draw.randint(0, LATEST_DUPLICATE), at, operation))
            while again and again[0][0] <= at:
                yield heappop(again)[2], True
        while again:
            yield heappop(again)[2], True

    def _operations(self) -> Iterator[Operation]:
        draw = self._draw
        names = [f"p{self.producer}-{rank:02d}" for rank in range(1, self.entities + 1)]
        weights = list(accumulate(rank**-ZIPF for rank in range(1, self.entities + 1)))
        numbers = dict.fromkeys(names, 0)
        for _ in range(self.operations):
            (entity,) = draw.choices(names, cum_weights=weights)
            numbers[entity] += 1
            type_ = "counter" if draw.random() < COUNTER_SHARE else "journal"
            value, poison = draw.randrange(1_000_000), None
            if draw.random() < POISON_RATE:
                poison = draw.choice(list(Poison))
            if poison is Poison.REFUSED:
                # Only an insert must meet the constraint: a refused upsert may be replaced by a later one before it is sent.
                type_, value = "journal", -1
            yield Operation(entity, numbers[entity], type_, value, poison)
