"""A realistic stream of writes for any fleet. Seeded: the same seed gives the same writes again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

from shardctl.fleet.settings.columns import ColumnType, type_of
from shardctl.fleet.settings.messagetypes import MessageType, Operation
from shardctl.fleet.spec import Fleet
from shardctl.wire.message import Write
from shardctl.wire.values import base64_of

DUPLICATE_RATE = 0.02
LATEST_DUPLICATE = 2_000  # publications after the first, at most
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
HEAD = 2.0  # how uneven the traffic is; 1 is even
NEW_ENTITY_EVERY = 4  # writes, in a stream without end
INSERT_FIRST, UPDATE, DELETE = 0.7, 0.35, 0.01  # shares; what is left are upserts


@dataclass(frozen=True, slots=True)
class Publication:
    """One message to publish. A duplicate carries a write that was published before, idempotency key and all."""

    write: Write
    duplicate: bool = False


@dataclass(slots=True)
class _Entity:
    """`fixed` never changes: the key, and whatever else decides the slot."""

    type: str
    name: str
    fixed: dict[str, Any] = field(default_factory=dict)
    exists: bool = False
    revision: int = 0


@dataclass(slots=True)
class Stream:
    """Every entity is written at least once; a few favourites get much of the traffic, as in life.

    Operations are ones that can succeed: an insert of what isn't there, an update or a delete of what is. Every write has an
    idempotency key. With `writes` None the stream has no end. The share of duplicates is `duplicate_rate`.
    """

    fleet: Fleet
    writes: int | None
    entities: int
    seed: int = 1
    duplicate_rate: float = DUPLICATE_RATE
    _draw: random.Random = field(init=False)
    _known: list[_Entity] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    def __iter__(self) -> Iterator[Publication]:
        again: list[tuple[int, int, Write]] = []  # duplicates still to come, by when
        at = 0
        for number, write in enumerate(self._writes()):
            yield Publication(write)
            at += 1
            if self._draw.random() < self.duplicate_rate:
                heappush(again, (at + self._draw.randint(0, LATEST_DUPLICATE), number, write))
            while again and again[0][0] <= at:
                yield Publication(heappop(again)[2], duplicate=True)
                at += 1
        while again:
            yield Publication(heappop(again)[2], duplicate=True)

    def _writes(self) -> Iterator[Write]:
        planned = self.entities * NEW_ENTITY_EVERY if self.writes is None else self.writes
        number = 0
        while self.writes is None or number < self.writes:
            left, unborn = max(1, planned - number), self.entities - len(self._known)
            if not self._known or (unborn and self._draw.random() * left < unborn):
                entity = self._born()
            else:
                entity = self._known[int(len(self._known) * self._draw.random() ** HEAD)]
            yield self._write(entity)
            number += 1

    def _born(self) -> _Entity:
        types = list(self.fleet.message_types)
        number = len(self._known)
        name = types[number % len(types)]
        entity = _Entity(name, f"{name}-{number // len(types):05d}")
        kind = self.fleet.message_types[name]
        fixed = {*kind.key, kind.routing_field, *([kind.time_bucket.field] if kind.time_bucket else [])}
        if not kind.columns:  # of a sink or a backend: nothing more is known of its bodies
            entity.fixed[kind.routing_field] = entity.name
        for column in kind.columns:
            if column in kind.key:
                value = _identity(entity, kind.types[column], number // len(types))
                entity.fixed[column] = value[-kind.lengths[column] :] if column in kind.lengths else value
            elif column in fixed:
                friend = self._entity_with_key(column) if kind.columns[column] == "text" else None
                entity.fixed[column] = friend or self._drawn(column, kind)
        self._known.append(entity)
        return entity

    def _write(self, entity: _Entity) -> Write:
        kind = self.fleet.message_types[entity.type]
        entity.revision += 1
        operation = self._operation(entity)
        entity.exists = operation != "delete"
        changing = [column for column in kind.columns if column not in entity.fixed]
        if operation == "delete":
            changing = []
        elif operation == "update":  # some of the columns
            changing = [
                column for column in changing if self._draw.random() < 0.5 or _counts(column, kind)
            ] or changing[:1]
        body = {**entity.fixed, **{column: self._value(entity, column, kind) for column in changing}}
        if kind.version_column:
            body[kind.version_column] = _version(entity.revision, kind.version_column, kind)
        return Write(entity.type, body, operation=operation, idempotency_key=f"{entity.name}#{entity.revision}")

    def _operation(self, entity: _Entity) -> Operation:
        draw = self._draw.random()
        if not entity.exists:
            return "insert" if draw < INSERT_FIRST else "upsert"
        if draw < DELETE:
            return "delete"
        has_more = len(entity.fixed) < len(self.fleet.message_types[entity.type].columns)
        return "update" if draw < DELETE + UPDATE and has_more else "upsert"

    def _value(self, entity: _Entity, column: str, kind: MessageType) -> Any:
        column_type = type_of(kind.columns[column])
        if _counts(column, kind):
            return entity.revision if column_type != "text" else str(entity.revision)
        friend = self._entity_with_key(column) if column_type == "text" else None
        if friend:
            return friend
        maker = _TELLING.get((column, column_type)) if column not in kind.precisions else None
        value = maker(self._draw) if maker else self._drawn(column, kind)
        return value[: kind.lengths[column]] if column in kind.lengths else value

    def _drawn(self, column: str, kind: MessageType) -> Any:
        if column in kind.precisions:
            precision, scale = kind.precisions[column]
            places = min(scale, 2)
            number = self._draw.randrange(10 ** (min(precision - scale, 3) + places))
            return f"{number / 10**places:.{places}f}"
        return _PLAIN[type_of(kind.columns[column])](self._draw)

    def _entity_with_key(self, column: str) -> str | None:
        """A column named like another type's key refers to one of its entities: an order to its customer."""
        for name, kind in self.fleet.message_types.items():
            if kind.key == (column,) and kind.columns[column] == "text":  # a shorter one may be cut
                most = max(1, self.entities // len(self.fleet.message_types))
                return f"{name}-{self._draw.randrange(most):05d}"
        return None


def _counts(column: str, kind: MessageType) -> bool:
    """Whether the column holds the entity's revision, which grows with each write."""
    return column == kind.version_column or (
        column == "revision" and kind.columns[column] in ("integer", "bigint", "text")
    )


def _version(revision: int, column: str, kind: MessageType) -> Any:
    """A value that is higher than that of any earlier revision."""
    match type_of(kind.columns[column]):
        case "text":
            return f"{revision:0{min(8, kind.lengths.get(column, 8))}d}"  # compared as text
        case "timestamp":
            return _timestamp(revision)
        case "date":
            return str(FIRST_DAY.date() + timedelta(days=revision))
        case _:
            return revision


def _identity(entity: _Entity, column_type: ColumnType, number: int) -> Any:
    """A key's value, different for each entity of a type."""
    match column_type:
        case "integer" | "bigint" | "number" | "decimal":
            return number
        case "boolean":
            return bool(number % 2)
        case "date":
            return str(FIRST_DAY.date() + timedelta(days=number))
        case "uuid":
            return str(uuid5(NAMESPACE_OID, entity.name))
        case "timestamp":
            return _timestamp(number * 3_600)  # hours apart, so that time buckets differ
        case _:
            return entity.name


def _timestamp(seconds: int) -> str:
    return (FIRST_DAY + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


Draw = Callable[[random.Random], Any]

_FIRST = ("Ada", "Alan", "Barbara", "Edsger", "Frances", "Grace", "Jürgen", "Ken", "Leslie", "Niklaus", "Radia", "Zoë")
_LAST = ("Allen", "Dijkstra", "Hopper", "Lamport", "Liskov", "Lovelace", "Perlman", "Thompson", "Turing", "Wirth", "李")
_GOODS = ("tea", "lamp", "desk", "pen", "map", "bell", "kite", "clock")


def _lines(draw: random.Random) -> list[dict[str, Any]]:
    return [{"sku": draw.choice(_GOODS), "quantity": draw.randint(1, 5)} for _ in range(draw.randint(1, 3))]


_TELLING: dict[tuple[str, ColumnType], Draw] = {
    ("name", "text"): lambda draw: f"{draw.choice(_FIRST)} {draw.choice(_LAST)}",
    ("email", "text"): lambda draw: f"{draw.choice(_FIRST).lower()}{draw.randrange(1_000)}@example.com",
    ("tier", "text"): lambda draw: draw.choice(("free", "silver", "gold")),
    ("status", "text"): lambda draw: draw.choice(("placed", "paid", "packed", "shipped", "delivered")),
    ("lines", "json"): _lines,
    ("amount", "decimal"): lambda draw: f"{draw.randrange(100, 50_000) / 100:.2f}",
}

# Whole seconds: every database keeps them exactly.
_PLAIN: dict[ColumnType, Draw] = {
    "text": lambda draw: " ".join(draw.choices(_GOODS, k=3)),
    "integer": lambda draw: draw.randrange(10_000),
    "bigint": lambda draw: draw.randrange(10_000),
    "number": lambda draw: draw.randrange(100_000) / 8,
    "decimal": lambda draw: f"{draw.randrange(100_000) / 100:.2f}",
    "boolean": lambda draw: draw.random() < 0.5,
    "timestamp": lambda draw: _timestamp(draw.randrange(200 * 86_400)),
    "date": lambda draw: str(FIRST_DAY.date() + timedelta(days=draw.randrange(200))),
    "uuid": lambda draw: str(UUID(int=draw.getrandbits(128), version=4)),
    "bytes": lambda draw: base64_of(draw.randbytes(draw.randrange(12))),
    "json": lambda draw: {"tags": draw.sample(_GOODS, 2), "count": draw.randrange(10)},
}
