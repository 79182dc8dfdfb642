"""Writes as groups, each one statement: a batch of a thousand upserts is one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from consumer.delivery import Delivery
from shardctl.fleet.settings.columns import type_of
from shardctl.fleet.settings.messagetypes import MessageType, Operation
from shardctl.wire.values import moment_of

# A write's statement depends on its type, its operation, and the columns it sets.
Shape = tuple[str, Operation, frozenset[str]]


@dataclass(slots=True)
class Group:
    """Writes of one shape to different rows: one statement."""

    shape: Shape
    rows: dict[tuple[Any, ...], Delivery] = field(default_factory=dict)


def group(writes: Sequence[Delivery], kinds: dict[str, MessageType]) -> list[Group]:
    """Group writes into statements that have the same effect as the writes one after the other.

    Writes of one routing key, and writes to one row, keep their order across groups. Of writes of one shape to one row that
    could share a group, only the last is sent (with a version column: the highest): nobody can see the ones that it replaces.
    """
    groups: list[Group] = []
    by_shape: dict[Shape, list[int]] = {}
    last_of_key: dict[tuple[int, str], int] = {}
    last_of_row: dict[tuple[Any, ...], int] = {}
    for write in writes:
        shape = (write.message_type, write.operation, frozenset(write.body))
        identity = (kinds[write.message_type].table, *write.row)
        key = (write.slot, write.partition_key)
        earliest = max(last_of_key.get(key, 0), last_of_row.get(identity, 0))
        places = by_shape.setdefault(shape, [])
        possible = range(bisect_left(places, earliest), len(places))
        number = next((places[at] for at in possible if _may_join(groups[places[at]], write, kinds)), None)
        if number is None:
            number = len(groups)
            groups.append(Group(shape))
            places.append(number)
        rows = groups[number].rows
        if not _is_stale(write, rows.get(write.row), kinds):
            rows[write.row] = write
        last_of_key[key] = last_of_row[identity] = number
    return groups


def _may_join(existing: Group, write: Delivery, kinds: dict[str, MessageType]) -> bool:
    """Whether the database would see no difference.

    A second insert of one row must fail there, so it never shares a statement with the first. Of two versions the database
    must say which is higher where we can't.
    """
    other = existing.rows.get(write.row)
    if other is None:
        return True
    if write.operation == "insert":
        return False
    return not _is_versioned(write, kinds) or None not in (_version(write, kinds), _version(other, kinds))


def _is_stale(write: Delivery, than: Delivery | None, kinds: dict[str, MessageType]) -> bool:
    """Of equal versions the first counts, as it does in the database."""
    if than is None or not _is_versioned(write, kinds):
        return False
    return bool(_version(write, kinds) <= _version(than, kinds))


def _is_versioned(write: Delivery, kinds: dict[str, MessageType]) -> bool:
    return write.body.get(kinds[write.message_type].version_column or "") is not None


def _version(write: Delivery, kinds: dict[str, MessageType]) -> Any:
    """The version as a value that compares as it would in the database; None where only the database can compare it."""
    kind = kinds[write.message_type]
    column = kind.version_column or ""
    value = write.body[column]
    match type_of(kind.columns[column]):
        case "integer" | "bigint":
            return value
        case "number":
            return float(value)
        case "decimal":
            return None if type(value) is float else Decimal(value)  # a float has lost what the body's text holds
        case "timestamp":
            return moment_of(value)
        case "date":
            return value  # years have four digits, so that days compare as their texts
        case _:
            return None  # a text's order is its collation's
