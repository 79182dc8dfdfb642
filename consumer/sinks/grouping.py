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
    tables = {name: kind.table for name, kind in kinds.items()}
    by_shape: dict[Shape, list[int]] = {}
    by_names: dict[tuple[str, ...], list[int]] = {}  # the same lists, found without a set of each write's columns
    last_of_key: dict[tuple[int, str], int] = {}
    last_of_row: dict[tuple[Any, ...], int] = {}
    for write in writes:
        names = (write.message_type, write.operation, *write.body)
        places = by_names.get(names)
        if places is None:
            places = by_names[names] = by_shape.setdefault(_shape(write), [])
        identity = (tables[write.message_type], *write.row)
        key = (write.slot, write.partition_key)
        earliest = max(last_of_key.get(key, 0), last_of_row.get(identity, 0))
        for at in range(bisect_left(places, earliest), len(places)):
            number = places[at]
            other = groups[number].rows.get(write.row)
            if other is None or _may_join(other, write, kinds):
                break
        else:
            number, other = len(groups), None
            groups.append(Group(_shape(write)))
            places.append(number)
        if other is None or not _is_stale(write, other, kinds):
            groups[number].rows[write.row] = write
        last_of_key[key] = last_of_row[identity] = number
    return groups


def _shape(write: Delivery) -> Shape:
    return write.message_type, write.operation, frozenset(write.body)


def _may_join(other: Delivery, write: Delivery, kinds: dict[str, MessageType]) -> bool:
    """Whether the database would see no difference if a write shared a statement with an earlier one of its row.

    A second insert of one row must fail there, so it never shares a statement with the first. Of two versions the database
    must say which is higher where we can't. A delete's version may be null: it then deletes less than one with a version.
    """
    if write.operation == "insert" or _is_versioned(write, kinds) != _is_versioned(other, kinds):
        return False
    return not _is_versioned(write, kinds) or None not in (_version(write, kinds), _version(other, kinds))


def _is_stale(write: Delivery, than: Delivery, kinds: dict[str, MessageType]) -> bool:
    """Of equal versions the first counts, as it does in the database."""
    if not _is_versioned(write, kinds):
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
