"""What the tables hold when all is over: every row of every database, read with plain SQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import create_engine, text

OUTCOMES = {None: "applied", 1: "dead", 2: "parked", 3: "replayed"}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of `journal` or `counter`.

    `position`: of a row of the journal, the how-manieth of its entity's writes it was to take effect; see `witnesses`.
    """

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
    """All that one shard's database holds. `effects` counts those of each entity."""

    journal: list[Row] = field(default_factory=list)
    counter: list[Row] = field(default_factory=list)
    log: list[Line] = field(default_factory=list)
    inbox: list[Record] = field(default_factory=list)
    effects: dict[str, int] = field(default_factory=dict)


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

        database = Database(
            [Row(*row) for row in rows("entity, number, value, slot, position", "journal")],
            [Row(*row) for row in rows("entity, number, value, slot", "counter")],
            [Line(*row) for row in rows("entity, number, position", "counter_log")],
            [_record(*row) for row in rows("slot, identity, outcome", "shardctl_inbox")],
            dict(rows("entity, effects", "witness")),
        )
    engine.dispose()
    return database


def _record(slot: int, identity: bytes | UUID, code: int | None) -> Record:
    """The slot is folded into the end of an identity, so that equal ones of two slots differ."""
    digits = identity.hex if isinstance(identity, UUID) else identity.hex()
    return Record(slot, f"{int(digits, 16) ^ slot:0{len(digits)}x}", OUTCOMES[code])


def lanes_not_active(url: str) -> list[str]:
    """What a database knows of slots that it doesn't have."""
    engine = create_engine(url)
    query = "SELECT slot, generation, state FROM shardctl_lanes WHERE state <> 'active' ORDER BY slot, generation"
    with engine.connect() as connection:
        lanes = [f"{slot} g{generation} {state}" for slot, generation, state in connection.execute(text(query))]
    engine.dispose()
    return lanes
