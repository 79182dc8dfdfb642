"""An independent judge: replays the writes in memory, reads every database with plain SQL, and names each difference.

It shares no code with what it judges: neither the consumer's, nor the keyspace's, nor the tables' definitions. Its inputs are the
fleet's description, the writes in the order of their first publication, and the databases.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, create_engine, select, text

from shardctl.fleet.settings.columns import type_of
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec import Fleet, Shard
from shardctl.local import history
from shardctl.shard.schema import InboxOutcome, inbox
from shardctl.wire import identity
from shardctl.wire.message import Write
from shardctl.wire.values import base64_of

APPLIED = "applied"


class Difference(StrEnum):
    """How the databases can differ from what they should hold."""

    LOST = "lost"  # a write, or its row, is missing
    DOUBLED = "doubled"  # one write is recorded more than once
    MISPLACED = "misplaced"  # on a shard that isn't the write's
    PHANTOM = "phantom"  # nobody wrote it
    REORDERED = "reordered"  # took effect after a later write of its row
    WRONG_VALUE = "wrong value"
    DEAD_LETTERED = "dead-lettered"  # although it can succeed


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference: what kind, in which shard's database, and what exactly."""

    difference: Difference
    shard: str
    what: str

    def __str__(self) -> str:
        return f"{self.difference}: {self.shard}: {self.what}"


@dataclass(frozen=True, slots=True)
class ShardVerdict:
    """`writes` are the unique ones published to the shard, `rows_expected` what they should have left."""

    shard: str
    slots: int
    writes: int
    applied: int
    rows_expected: int
    rows: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.findings and self.applied == self.writes


@dataclass(frozen=True, slots=True)
class Verdict:
    shards: tuple[ShardVerdict, ...]

    @property
    def ok(self) -> bool:
        return all(shard.ok for shard in self.shards)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for shard in self.shards for finding in shard.findings)

    @property
    def counts(self) -> dict[str, int]:
        """How many findings of each kind there are."""
        return {str(kind): count for kind, count in Counter(finding.difference for finding in self.findings).items()}


Row = tuple[str, tuple[Any, ...]]  # a table, and the row's key


@dataclass(slots=True)
class _Expected:
    """What one row should be. `values` is None when it should be gone."""

    shard: str
    slot: int
    kind: MessageType
    last: str  # the write that decided it, as people read it
    values: dict[str, Any] | None = None
    revisions: list[str] = field(default_factory=list)  # written since the row was made, in order


@dataclass(slots=True)
class _Truth:
    """What the databases should hold."""

    rows: dict[Row, _Expected] = field(default_factory=dict)
    placed: dict[str, tuple[str, int]] = field(default_factory=dict)  # idempotency key → shard and slot
    keys: dict[bytes, str] = field(default_factory=dict)  # of each write, by what the inbox knows it by


def verify(fleet: Fleet, writes: Iterable[Write], databases: Mapping[str, str]) -> Verdict:
    """Judge the databases (URL by shard) by `writes`: each unique write once, in the order of its first publication.

    Every write needs an idempotency key, since that is how its record is found. Reads whole tables: rows that these writes
    didn't leave count as phantoms. Of a fleet whose rows keep their history (see `history`) the order of all writes is judged,
    of others that of each row's last one.
    """
    truth = _replay(fleet, writes)
    findings: dict[str, list[Finding]] = defaultdict(list)
    applied: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    seen_rows: set[Row] = set()
    records: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for shard in fleet.shards:
        engine = create_engine(databases[shard.name])
        with engine.connect() as connection:
            applied[shard.name] = _read_records(connection, shard.name, truth, records, findings[shard.name])
            for row, kind, values in _read_rows(fleet, shard, connection):
                rows[shard.name] += 1
                if _judge_row(shard.name, row, kind, values, truth, findings[shard.name]):
                    seen_rows.add(row)
        engine.dispose()
    _judge_records(truth, records, findings)
    _name_missing_rows(truth, seen_rows, findings)
    return Verdict(
        tuple(
            ShardVerdict(
                shard.name,
                _slots_of(shard),
                sum(1 for owner, _ in truth.placed.values() if owner == shard.name),
                applied[shard.name],
                sum(1 for row in truth.rows.values() if row.shard == shard.name and row.values is not None),
                rows[shard.name],
                tuple(findings[shard.name]),
            )
            for shard in fleet.shards
        )
    )


# --- what should be ---------------------------------------------------------------------------------------------------


def _replay(fleet: Fleet, writes: Iterable[Write]) -> _Truth:
    """The last write wins, in the order of publication."""
    truth = _Truth()
    for write in writes:
        if write.idempotency_key is None or write.idempotency_key in truth.placed:
            raise ValueError(f"the oracle needs each write once, with an idempotency key: {write}")
        kind = fleet.message_types[write.type]
        slot = _slot(fleet, kind, write)
        owner = _owner(fleet, slot, write.type)
        truth.placed[write.idempotency_key] = (owner, slot)
        truth.keys[identity.of_key("", write.type, write.idempotency_key)] = write.idempotency_key
        key = (kind.table, tuple(_plain(write.body[column], type_of(kind.columns[column])) for column in kind.key))
        row = truth.rows.setdefault(key, _Expected(owner, slot, kind, ""))
        row.last = f"{write.operation or kind.operation} {write.idempotency_key}"
        given = {column: _plain(value, type_of(kind.columns[column])) for column, value in write.body.items()}
        match write.operation or kind.operation:
            case "delete":
                row.values, row.revisions = None, []
                continue
            case "update":
                if row.values is not None:
                    row.values |= given
            case _:
                row.values = {**dict.fromkeys(kind.columns), **(row.values or {}), **given}
        row.revisions.append(str(given.get(history.REVISION)))
    return truth


def _slot(fleet: Fleet, kind: MessageType, write: Write) -> int:
    """By the published rule, computed another way than the keyspace does: the whole digest, shifted."""
    bits = fleet.routing.slot_bits
    if kind.time_bucket is not None:
        return _bucket(write.body[kind.time_bucket.field], kind.time_bucket.unit) % (1 << bits)
    key = write.key if write.key is not None else str(write.body[kind.routing_field])
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) >> (256 - bits)


def _bucket(value: Any, unit: str) -> int:
    moment = datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else datetime.fromisoformat(value)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    days = moment.date().toordinal() - date(1970, 1, 1).toordinal()
    match unit:
        case "hour":
            return days * 24 + moment.hour
        case "day":
            return days
        case "week":  # from Monday, 1969-12-29
            return (days + 3) // 7
        case _:
            return moment.year * 12 + moment.month - (1970 * 12 + 1)


def _owner(fleet: Fleet, slot: int, message_type: str) -> str:
    for shard in fleet.shards:
        if _takes(shard, message_type) and any(first <= slot <= last for first, last in shard.slots.ranges):
            return shard.name
    raise ValueError(f"no shard takes slot {slot} of type {message_type}")


def _takes(shard: Shard, message_type: str) -> bool:
    return message_type in shard.types if shard.types else message_type not in shard.except_types


def _slots_of(shard: Shard) -> int:
    return sum(last - first + 1 for first, last in shard.slots.ranges)


# --- what is ----------------------------------------------------------------------------------------------------------


def _read_records(
    connection: Connection,
    shard: str,
    truth: _Truth,
    records: dict[str, list[tuple[str, int]]],
    findings: list[Finding],
) -> int:
    """Collect where each write is recorded; how many of this shard's records say `applied`."""
    applied = 0
    for slot, its_identity, outcome in connection.execute(select(inbox.c.slot, inbox.c.identity, inbox.c.outcome)):
        if outcome == InboxOutcome.REPLAYED:
            continue  # a letter's, not a write's
        key = truth.keys.get(identity.in_slot(its_identity, slot))  # which is its own inverse
        if key is None:
            key = its_identity.hex()
            findings.append(Finding(Difference.PHANTOM, shard, f"write {key} in slot {slot}: nobody published it"))
        else:
            records[key].append((shard, slot))
        if outcome == APPLIED:
            applied += 1
        else:
            findings.append(Finding(Difference.DEAD_LETTERED, shard, f"write {key}: recorded as {outcome}"))
    return applied


def _read_rows(fleet: Fleet, shard: Shard, connection: Connection) -> Iterator[tuple[Row, MessageType, dict[str, Any]]]:
    quote, dialect = connection.dialect.identifier_preparer.quote, connection.dialect.name
    kinds = {kind.table: kind for name, kind in fleet.message_types.items() if _takes(shard, name)}
    for kind in kinds.values():
        columns, types = [*kind.columns, kind.slot_column], kind.types
        listed = ", ".join(quote(column) for column in columns)
        table = ".".join(quote(part) for part in kind.table.split("."))
        for row in connection.execute(text(f"SELECT {listed} FROM {table}")):  # noqa: S608 - names from the spec
            values = {
                column: _plain(_parsed(value, types.get(column), dialect), types.get(column))
                for column, value in zip(columns, row, strict=True)
            }
            yield (kind.table, tuple(values[column] for column in kind.key)), kind, values


def _judge_row(
    shard: str, row: Row, kind: MessageType, values: dict[str, Any], truth: _Truth, findings: list[Finding]
) -> bool:
    """Report what is wrong with a row; True when it is on the right shard."""
    expected = truth.rows.get(row)
    if expected is None:
        findings.append(Finding(Difference.PHANTOM, shard, f"{_shown(row)}: nobody wrote it"))
        return False
    if expected.shard != shard:
        findings.append(Finding(Difference.MISPLACED, shard, f"{_shown(row)}: it belongs on {expected.shard}"))
        return False
    if expected.values is None:
        findings.append(Finding(Difference.LOST, shard, f"{_shown(row)}: still there after {expected.last}"))
        return True
    for column, wanted in {**expected.values, kind.slot_column: expected.slot}.items():
        if column == history.COLUMN:
            findings += _judge_history(shard, row, values[column], expected.revisions)
        elif values[column] != wanted:
            what = f"{_shown(row)}: {column} is {values[column]!r}, not {wanted!r} as after {expected.last}"
            findings.append(Finding(Difference.WRONG_VALUE, shard, what))
    return True


def _judge_history(shard: str, row: Row, recorded: Any, written: Sequence[str]) -> Iterator[Finding]:
    doubled, disordered = history.faults(recorded, written)
    for kind, revisions in ((Difference.DOUBLED, doubled), (Difference.REORDERED, disordered)):
        if revisions:
            what = f"{_shown(row)}: revision {', '.join(revisions)} in the history {recorded}, not as in {' '.join(written)}"
            yield Finding(kind, shard, what)


def _judge_records(
    truth: _Truth, records: Mapping[str, Sequence[tuple[str, int]]], findings: dict[str, list[Finding]]
) -> None:
    for key, (owner, slot) in truth.placed.items():
        placements = records.get(key, ())
        if not placements:
            findings[owner].append(Finding(Difference.LOST, owner, f"write {key}: not applied"))
        for shard, at in placements:
            if (shard, at) != (owner, slot):
                what = f"write {key}: recorded in slot {at}; it belongs on {owner} in slot {slot}"
                findings[shard].append(Finding(Difference.MISPLACED, shard, what))
        if len(placements) > 1:
            places = " and ".join(f"{shard} slot {at}" for shard, at in placements)
            findings[owner].append(Finding(Difference.DOUBLED, owner, f"write {key}: applied on {places}"))


def _name_missing_rows(truth: _Truth, seen: set[Row], findings: dict[str, list[Finding]]) -> None:
    for row, expected in truth.rows.items():
        if expected.values is not None and row not in seen:
            what = f"{_shown(row)}: no row; {expected.last} should have left one"
            findings[expected.shard].append(Finding(Difference.LOST, expected.shard, what))


def _shown(row: Row) -> str:
    return f"{row[0]} {', '.join(map(str, row[1]))}"


def _parsed(value: Any, column_type: str | None, dialect: str) -> Any:
    """JSON comes parsed from PostgreSQL's driver alone."""
    return json.loads(value) if column_type == "json" and isinstance(value, str) and dialect != "postgresql" else value


def _plain(value: Any, column_type: str | None) -> Any:
    """A value in one form, whether it comes from a body or from any database: so that values can be compared."""
    if value is None:
        return None
    convert = _PLAIN.get(column_type or "")
    return convert(value) if convert else value


def _moment(value: Any) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "decimal": lambda value: Decimal(str(value)),
    "number": float,
    "boolean": bool,
    "timestamp": _moment,
    "date": str,
    "uuid": str,
    "bytes": lambda value: value if isinstance(value, str) else base64_of(value),
}
