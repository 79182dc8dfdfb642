"""An independent judge: compares what was published with what the tables hold, and names each anomaly as Jepsen does.

It shares no code with what it judges: it hashes slots itself, reads with plain SQL, and is told the fleet's layout as numbers.
`read` touches databases, `judge` nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

from sqlalchemy import create_engine, text

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
    """What producers did: the operations they began, each once, and the keys of those that were acknowledged."""

    begun: Sequence[Operation]
    acked: Collection[str]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of `journal` or `counter`. `position` orders the journal's rows and the log's lines of one database."""

    entity: str
    number: int
    value: int
    slot: int
    position: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """One upsert that took effect."""

    entity: str
    number: int
    position: int


@dataclass(frozen=True, slots=True)
class Record:
    """A row of the inbox."""

    slot: int
    key: str
    outcome: str


@dataclass(slots=True)
class Database:
    """All that one shard's database holds."""

    journal: list[Row] = field(default_factory=list)
    counter: list[Row] = field(default_factory=list)
    log: list[Line] = field(default_factory=list)
    inbox: list[Record] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Observed:
    """`dead` are the idempotency keys on the dead-letter topic with their reasons, `backlog` the messages left of each shard."""

    databases: Mapping[str, Database]
    dead: Mapping[str, str] = field(default_factory=dict)
    backlog: Mapping[str, int] = field(default_factory=dict)


def read(urls: Mapping[str, str]) -> dict[str, Database]:
    """Every row of every shard's database."""
    return {shard: _read(url) for shard, url in urls.items()}


def _read(url: str) -> Database:
    engine = create_engine(url)
    with engine.connect() as connection:

        def rows(what: str, table: str) -> Iterator[Sequence[Any]]:
            return iter(connection.execute(text(f"SELECT {what} FROM {table}")))

        found = Database(
            [Row(*row) for row in rows("entity, number, value, slot, position", "journal")],
            [Row(*row) for row in rows("entity, number, value, slot", "counter")],
            [Line(*row) for row in rows("entity, number, position", "counter_log")],
            [Record(*row) for row in rows("slot, idempotency_key, outcome", "shardctl_inbox")],
        )
    engine.dispose()
    return found


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


class _Judge:
    def __init__(self, truth: Truth, observed: Observed, layout: Layout) -> None:
        self._observed, self._layout = observed, layout
        self._acked = frozenset(truth.acked)
        self._by_key = {operation.key: operation for operation in truth.begun}
        self._journal = {(op.entity, op.number): op for op in truth.begun if op.type == "journal"}
        self._counter = {(op.entity, op.number): op for op in truth.begun if op.type == "counter"}

    # -- the inbox -----------------------------------------------------------------------------------------------------

    def records(self) -> Iterator[Finding]:
        """Each write is recorded once, in its slot on its shard, as applied; a poisoned one as dead."""
        found: dict[str, list[tuple[str, Record]]] = defaultdict(list)
        for shard, database in self._observed.databases.items():
            for record in database.inbox:
                found[record.key].append((shard, record))
        for key, places in found.items():
            operation = self._by_key.get(key)
            if operation is None:
                yield Finding(Anomaly.PHANTOM, key, f"{key} is recorded on {places[0][0]}: nobody published it")
                continue
            yield from self._record(operation, places)
        for key in self._acked - found.keys():
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
            if seen.get(entity, 0) < operation.number:
                shown = f"the row shows #{seen[entity]}" if entity in seen else "there is no row"
                yield self._missing(operation, f"is the last of its counter, and {shown}")

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
        """An entity's writes, of both tables together, took effect in the order of their numbers.

        Positions of two databases can't be compared, so each is judged by itself.
        """
        for shard, database in self._observed.databases.items():
            effects: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
            for row in database.journal:
                effects[row.entity].append((row.position, row.number, "journal"))
            for line in database.log:
                effects[line.entity].append((line.position, line.number, "counter"))
                if (line.entity, line.number) not in self._counter:
                    what = f"counter {line.entity}#{line.number} took effect on {shard}: nobody wrote it"
                    yield Finding(Anomaly.PHANTOM, line.entity, what)
            for entity, of_entity in effects.items():
                yield from _order(entity, shard, sorted(of_entity))

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


def _order(entity: str, shard: str, effects: Iterable[tuple[int, int, str]]) -> Iterator[Finding]:
    for (_, before, first), (position, after, then) in pairwise(effects):
        if after == before:
            what = f"{then} {entity}#{after} took effect twice on {shard}, again at position {position}"
            yield Finding(Anomaly.DUPLICATED, entity, what)
        elif after < before:
            what = f"{then} {entity}#{after} took effect on {shard} at position {position}, after {first} #{before}"
            yield Finding(Anomaly.REORDERED, entity, what)
