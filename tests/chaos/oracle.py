"""An independent judge: compares what was published with what the tables hold, and names each anomaly as Jepsen does.

It shares no code with what it judges: it hashes slots itself, receives the fleet's layout as numbers, and what the databases hold
as plain rows. Pure.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from tests.chaos.observed import Observed, Record, Row
from tests.chaos.writes import Operation


class Anomaly(StrEnum):
    LOST = "lost"  # acknowledged to the producer, and its effect or its record isn't there
    DUPLICATED = "duplicated"  # took effect, or is recorded, more than once
    REORDERED = "reordered"  # took effect after a later write of its entity
    MISPLACED = "misplaced"  # on another shard, or under another slot, than its entity's
    PHANTOM = "phantom"  # nobody wrote it, or it should have been refused
    STUCK = "stuck"  # still waiting when the fleet had all the time it needed


@dataclass(frozen=True, slots=True)
class Finding:
    anomaly: Anomaly
    entity: str
    what: str

    def __str__(self) -> str:
        return f"{self.anomaly}: {self.what}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things belong: each shard's ranges of slots, from the first to the last."""

    slot_bits: int
    shards: Mapping[str, Sequence[tuple[int, int]]]

    def slot(self, entity: str) -> int:
        """The first bits of the SHA-256 of the routing key."""
        return int.from_bytes(hashlib.sha256(entity.encode()).digest(), "big") >> (256 - self.slot_bits)

    def shard(self, slot: int) -> str:
        return next(
            name for name, ranges in self.shards.items() if any(first <= slot <= last for first, last in ranges)
        )


@dataclass(frozen=True, slots=True)
class Truth:
    """What producers did: the operations they began, each once, and the keys of those that were acknowledged.

    `unordered` are the entities of producers that keep no order, so nobody else has to.
    """

    begun: Sequence[Operation]
    acked: Collection[str]
    unordered: Collection[str] = frozenset()


def judge(truth: Truth, observed: Observed, layout: Layout) -> list[Finding]:
    """Every anomaly, none when all is well."""
    judge_ = _Judge(truth, observed, layout)
    return [
        *judge_.records(),
        *judge_.journals(),
        *judge_.counters(),
        *judge_.order(),
        *judge_.dead_letters(),
    ]


def identity(operation: Operation) -> str:
    """How an inbox names a write that nobody vouches for: 16 bytes of a SHA-256, as hexadecimal digits."""
    text = f"shardctl key 0 {len(operation.type)}\n{operation.type}{operation.key}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class _Judge:
    def __init__(self, truth: Truth, observed: Observed, layout: Layout) -> None:
        self._observed, self._layout = observed, layout
        self._acked, self._unordered = frozenset(truth.acked), frozenset(truth.unordered)
        self._by_key = {operation.key: operation for operation in truth.begun}
        self._names = {identity(operation): operation.key for operation in truth.begun}
        self._journal = {(op.entity, op.number): op for op in truth.begun if op.type == "journal"}
        self._counter = {(op.entity, op.number): op for op in truth.begun if op.type == "counter"}

    # -- the inbox -----------------------------------------------------------------------------------------------------

    def records(self) -> Iterator[Finding]:
        """Each write is recorded once, in its slot on its shard, as applied; a poisoned one as dead."""
        places_of: dict[str, list[tuple[str, Record]]] = defaultdict(list)
        for shard, database in self._observed.databases.items():
            for record in database.inbox:
                places_of[self._names.get(record.key, record.key)].append((shard, record))
        for key, places in places_of.items():
            operation = self._by_key.get(key)
            if operation is None:
                yield Finding(Anomaly.PHANTOM, key, f"{key} is recorded on {places[0][0]}: nobody published it")
                continue
            yield from self._record(operation, places)
        for key in self._acked - places_of.keys():
            yield self._missing(self._by_key[key], "isn't recorded in any inbox")

    def _record(self, operation: Operation, places: Sequence[tuple[str, Record]]) -> Iterator[Finding]:
        slot, shard = self._place(operation.entity)
        if len(places) > 1:
            where = " and ".join(f"on {at} in slot {record.slot}" for at, record in places)
            yield Finding(Anomaly.DUPLICATED, operation.entity, f"{operation} is recorded {where}")
        for at, record in places:
            if (at, record.slot) != (shard, slot):
                what = f"{operation} is recorded on {at} in slot {record.slot}, not on {shard} in slot {slot}"
                yield Finding(Anomaly.MISPLACED, operation.entity, what)
            if operation.poison and record.outcome == "applied":
                what = f"{operation} is {operation.poison} and recorded as applied"
                yield Finding(Anomaly.PHANTOM, operation.entity, what)
            elif not operation.poison and record.outcome != "applied":
                what = f"{operation} is recorded as {record.outcome}: {self._observed.dead.get(operation.key, '')}"
                yield Finding(Anomaly.LOST, operation.entity, what)

    # -- effects -------------------------------------------------------------------------------------------------------

    def journals(self) -> Iterator[Finding]:
        """Each write of the journal is one row, with its own value, where its entity belongs."""
        seen: Counter[tuple[str, int]] = Counter()
        for shard, database in self._observed.databases.items():
            for row in database.journal:
                seen[row.entity, row.number] += 1
                yield from self._row("journal", shard, row, self._journal.get((row.entity, row.number)))
        for (entity, number), times in seen.items():
            if times > 1:
                yield Finding(Anomaly.DUPLICATED, entity, f"journal {entity}#{number} has {times} rows")
        for identity, operation in self._journal.items():
            if identity not in seen and operation.key in self._acked and not operation.poison:
                yield self._missing(operation, "has no row")

    def counters(self) -> Iterator[Finding]:
        """Each counter shows its entity's last write; an upsert that a later one replaced may have left no trace."""
        last: dict[str, Operation] = {}
        for operation in self._counter.values():
            if operation.key in self._acked and not operation.poison:
                last[operation.entity] = max(last.get(operation.entity, operation), operation, key=lambda op: op.number)
        seen: dict[str, int] = {}
        for shard, database in self._observed.databases.items():
            for row in database.counter:
                if row.entity in seen:
                    yield Finding(Anomaly.DUPLICATED, row.entity, f"counter {row.entity} has more than one row")
                seen[row.entity] = max(row.number, seen.get(row.entity, 0))
                yield from self._row("counter", shard, row, self._counter.get((row.entity, row.number)))
        for entity, operation in last.items():
            if entity not in seen:
                yield self._missing(operation, "is the last of its counter, and there is no row")
            elif seen[entity] < operation.number and entity not in self._unordered:
                yield self._missing(operation, f"is the last of its counter, and the row shows #{seen[entity]}")

    def _row(self, table: str, at: str, row: Row, operation: Operation | None) -> Iterator[Finding]:
        name = f"{table} {row.entity}#{row.number}"
        slot, shard = self._place(row.entity)
        if operation is None:
            yield Finding(Anomaly.PHANTOM, row.entity, f"{name} on {at}: nobody wrote it")
        elif operation.poison:
            yield Finding(Anomaly.PHANTOM, row.entity, f"{name} on {at}: it is {operation.poison} and took effect")
        elif operation.value != row.value:
            what = f"{name} on {at} holds {row.value}: {operation.value} was written"
            yield Finding(Anomaly.PHANTOM, row.entity, what)
        if (at, row.slot) != (shard, slot):
            what = f"{name} lies on {at} under slot {row.slot}, not on {shard} under slot {slot}"
            yield Finding(Anomaly.MISPLACED, row.entity, what)

    # -- order ---------------------------------------------------------------------------------------------------------

    def order(self) -> Iterator[Finding]:
        """An entity's writes, of both tables and all databases together, took effect once and in the order of their numbers.

        Their positions are counted without a gap, wherever the entity's slot was at the time.
        """
        effects: dict[str, list[Effect]] = defaultdict(list)
        counted: Counter[str] = Counter()
        for shard, database in self._observed.databases.items():
            for row in database.journal:
                effects[row.entity].append(Effect(row.position, row.number, "journal", shard))
            for line in database.log:
                effects[line.entity].append(Effect(line.position, line.number, "counter", shard))
                if (line.entity, line.number) not in self._counter:
                    what = f"counter {line.entity}#{line.number} took effect on {shard}: nobody wrote it"
                    yield Finding(Anomaly.PHANTOM, line.entity, what)
            for entity, count in database.effects.items():
                counted[entity] = max(counted[entity], count)
        for entity in effects.keys() | counted.keys():
            yield from _positions(entity, sorted(effects[entity]), counted[entity])
            yield from _sequence(entity, sorted(effects[entity]), ordered=entity not in self._unordered)

    # -- dead letters --------------------------------------------------------------------------------------------------

    def dead_letters(self) -> Iterator[Finding]:
        """Poisoned writes are on the dead-letter topic, and no others."""
        dead = self._observed.dead
        for key in self._acked:
            operation = self._by_key[key]
            if operation.poison and key not in dead:
                yield self._missing(operation, f"is {operation.poison} and not on the dead-letter topic")
        for key, reason in dead.items():
            operation = self._by_key.get(key)
            if operation is None:
                yield Finding(Anomaly.PHANTOM, key, f"{key} is on the dead-letter topic: nobody published it")
            elif not operation.poison:
                yield Finding(Anomaly.LOST, operation.entity, f"{operation} is on the dead-letter topic: {reason}")

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _place(self, entity: str) -> tuple[int, str]:
        slot = self._layout.slot(entity)
        return slot, self._layout.shard(slot)

    def _missing(self, operation: Operation, what: str) -> Finding:
        """Stuck as long as its shard still has a backlog, else lost."""
        slot, shard = self._place(operation.entity)
        waits = self._observed.backlog.get(shard, 0) > 0
        anomaly = Anomaly.STUCK if waits else Anomaly.LOST
        return Finding(anomaly, operation.entity, f"{operation} (slot {slot}, {shard}) {what}")


class Effect(NamedTuple):
    """One that an entity's write had."""

    position: int
    number: int
    table: str
    shard: str


def _positions(entity: str, effects: Sequence[Effect], counted: int) -> Iterator[Finding]:
    """Each from the first to the last is there, and once."""
    for effect, other in pairwise(effects):
        if effect.position == other.position and (effect.table, effect.number) != (other.table, other.number):
            what = (
                f"{effect.table} {entity}#{effect.number} on {effect.shard} and {other.table} #{other.number} on "
                f"{other.shard} both took effect as number {effect.position} of {entity}: "
                "one was written without knowing of the other"
            )
            yield Finding(Anomaly.REORDERED, entity, what)
    counted = max(counted, *(effect.position for effect in effects), 0)
    gone = sorted(set(range(1, counted + 1)) - {effect.position for effect in effects})
    if gone:
        what = f"{len(gone)} of the {counted} writes of {entity} that took effect have vanished: number {gone[0]} and so on"
        yield Finding(Anomaly.LOST, entity, what)


def _sequence(entity: str, effects: Iterable[Effect], *, ordered: bool) -> Iterator[Finding]:
    """No write twice and, where order was kept, none after a later one."""
    firsts: dict[tuple[str, int], Effect] = {}
    for effect in effects:
        first = firsts.setdefault((effect.table, effect.number), effect)
        if effect.table == "counter" and effect is not first:
            what = f"counter {entity}#{effect.number} took effect twice, on {first.shard} as number {first.position}"
            yield Finding(Anomaly.DUPLICATED, entity, f"{what} and on {effect.shard} as number {effect.position}")
    for before, after in pairwise(firsts.values()) if ordered else ():
        if after.number < before.number:
            what = f"{after.table} {entity}#{after.number} took effect on {after.shard} as number {after.position}"
            yield Finding(Anomaly.REORDERED, entity, f"{what}, after {before.table} #{before.number} on {before.shard}")
