"""Checking rows where they lie: SQL that sums up a table's rows, and that says which slot a row belongs to.

A table is read once and nothing of it is sent, so millions of rows take seconds. SQLite is given Python's own functions instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import md5
from typing import Any

from sqlalchemy import Connection

from shardctl.fleet.keyspace import SlotRule, TimeUnit, slot_of_time
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.rebalance.rows.shape import Column, SlotTable, quoted
from shardctl.rebalance.rows.values import MICROSECONDS, MYSQL, Kind

HASH_BITS = 60
MODULUS = 1 << 64
_DIGITS = HASH_BITS // 4
_HASH_START_BITS = 32


def prepare(connection: Connection) -> None:
    """What SQLite needs for the statements made here."""
    if connection.dialect.name == "sqlite":
        driver: Any = connection.connection.driver_connection
        driver.create_aggregate("shardctl_sum", -1, _Sum)
        driver.create_function("shardctl_slot", 3, _slot, deterministic=True)
        driver.create_function("shardctl_bucket", 3, _bucket, deterministic=True)


def sum_of_rows(product: str, table: SlotTable) -> str:
    """An aggregate: each row's hash as a number, summed up, so that the order doesn't matter. Compares on one product alone.

    It is of all columns that move with a slot.
    """
    names = [quoted(product, column.name) for column in table.columns]
    if product == "sqlite":
        return f"shardctl_sum({', '.join(names)})"
    if product in MYSQL:
        # As bytes, since texts of several collations don't mix.
        parts = ", ".join(f"coalesce(hex(CAST({name} AS BINARY)), '-')" for name in names)
        return f"sum(CAST(conv(left(md5(concat_ws(',', {parts})), {_DIGITS}), 16, 10) AS UNSIGNED))"
    row = f"CAST(ROW({', '.join(names)}) AS text)"
    return f'sum(hashtextextended({row} COLLATE "C", 0))'


def expected_slot(product: str, table: SlotTable, kind: MessageType, rule: SlotRule) -> str | None:
    """The slot that a row's routing key or time gives; None where the table doesn't say. NULL for a row that doesn't."""
    columns = {column.name: column for column in table.columns}
    column = columns.get(kind.time_bucket.field if kind.time_bucket else kind.routing_field)
    if column is None:
        return None
    if kind.time_bucket:
        return _slot_by_time(product, column, kind.time_bucket.unit, rule.bits)
    if kind.types[column.name] not in {"text", "integer", "bigint", "uuid"} and not _is_whole(kind, column):
        return None  # 1.5 is 1.50 in a column of two places, and its key is 1.5
    name = quoted(product, column.name)
    if product in MYSQL and column.kind is Kind.BYTES and kind.types[column.name] == "uuid":
        name = _text_of_uuid(name)
    if product == "sqlite":
        return f"shardctl_slot({name}, {rule.bits}, {rule.modulo})"
    if product in MYSQL:
        text = (
            name
            if column.kind is Kind.BYTES and kind.types[column.name] == "text"
            else f"CONVERT({name} USING utf8mb4)"
        )
        start = f"CAST(conv(left(sha2({text}, 256), 8), 16, 10) AS SIGNED)"
        number = f"CAST({text} AS SIGNED)"
        is_number = f"CAST({text} AS CHAR) REGEXP '^(0|[1-9][0-9]{{0,17}})$'"
    else:
        text = f"CAST({name} AS text)"
        digits = f"encode(substr(sha256(convert_to({text}, 'UTF8')), 1, 4), 'hex')"
        start = f"CAST(CAST('x' || lpad({digits}, 16, '0') AS bit(64)) AS bigint)"
        number = f"CAST({text} AS bigint)"
        is_number = f"{text} ~ '^(0|[1-9][0-9]{{0,17}})$'"
    if not rule.modulo:
        return f"({start} >> {_HASH_START_BITS - rule.bits})"
    return f"(CASE WHEN {is_number} THEN {_in_run(product, start, number, rule)} END)"


def _is_whole(kind: MessageType, column: Column) -> bool:
    """Whether file and table both say `numeric(p,0)`, or the table an integer: its text is the key."""
    _, places = kind.precisions.get(column.name) or (0, None)
    return places == 0 and (
        column.kind is Kind.INTEGER or (column.kind is Kind.DECIMAL and getattr(column.type, "scale", None) == 0)
    )


def _text_of_uuid(name: str) -> str:
    """Of 16 bytes."""
    digits = f"lower(hex({name}))"
    for place in (9, 14, 19, 24):
        digits = f"insert({digits}, {place}, 0, '-')"
    return digits


def _in_run(product: str, start: str, number: str, rule: SlotRule) -> str:
    """As `SlotRule.slot_of` has it. `start` is the hash's first 32 bits."""
    divided = "DIV" if product in MYSQL else "/"
    slots_a_grain = (1 << rule.bits) // rule.grains
    remainder = f"({number} %% {rule.modulo})"
    first = f"({remainder} * {rule.grains} {divided} {rule.modulo} * {slots_a_grain})"
    end = f"(({remainder} + 1) * {rule.grains} {divided} {rule.modulo} * {slots_a_grain})"
    return f"({first} + ({start} * ({end} - {first}) >> {_HASH_START_BITS}))"


def _slot_by_time(product: str, column: Column, unit: TimeUnit, slot_bits: int) -> str | None:
    name = quoted(product, column.name)
    if product == "sqlite":
        return f"shardctl_bucket({name}, '{unit}', {slot_bits})"
    is_moment = column.kind is Kind.MOMENT
    if is_moment and column.precision < MICROSECONDS:
        return None  # rounded, it may have come into the next bucket
    if not is_moment and column.kind not in {Kind.INTEGER, Kind.DOUBLE, Kind.DECIMAL}:
        return None
    buckets = (
        _mysql_bucket(name, unit, is_moment=is_moment) if product in MYSQL else _postgresql_bucket(name, unit, column)
    )
    slots = 1 << slot_bits
    return f"(({buckets} %% {slots} + {slots}) %% {slots})"


def _postgresql_bucket(name: str, unit: TimeUnit, column: Column) -> str:
    is_moment = column.kind is Kind.MOMENT
    if unit == "month":
        moment = name if is_moment else f"to_timestamp({name})"
        utc = f"{moment} AT TIME ZONE 'UTC'" if getattr(column.type, "timezone", True) else moment
        return f"CAST((extract(year FROM {utc}) - 1970) * 12 + extract(month FROM {utc}) - 1 AS bigint)"
    seconds = f"extract(epoch FROM {name})" if is_moment else name
    whole = f"CAST(floor({seconds}) AS numeric)"
    if unit == "hour":
        return f"CAST(floor({whole} / 3600) AS bigint)"
    days = f"CAST(floor({whole} / 86400) AS bigint)"
    return days if unit == "day" else f"CAST(floor(({days} + 3) / 7.0) AS bigint)"


def _mysql_bucket(name: str, unit: TimeUnit, *, is_moment: bool) -> str:
    """Counted from the year 1, since MySQL's whole division rounds to zero, and its other division to four digits."""
    if unit == "month":
        moment = name if is_moment else f"(TIMESTAMP'1970-01-01 00:00:00' + INTERVAL floor({name}) SECOND)"
        return f"((extract(year FROM {moment}) - 1970) * 12 + extract(month FROM {moment}) - 1)"
    if is_moment:
        seconds = f"timestampdiff(SECOND, TIMESTAMP'0001-01-01 00:00:00', {name})"
    else:
        seconds = f"(floor({name}) + {_DAYS_BEFORE_1970 * 86_400})"
    if unit == "hour":
        return f"({seconds} DIV 3600 - {_DAYS_BEFORE_1970 * 24})"
    if unit == "day":
        return f"({seconds} DIV 86400 - {_DAYS_BEFORE_1970})"
    # Week 0 began on Monday 1969-12-29, a whole number of weeks after Monday 0001-01-01.
    return f"({seconds} DIV {7 * 86_400} - {(_DAYS_BEFORE_1970 - 3) // 7})"


_DAYS_BEFORE_1970 = 719_162  # from 0001-01-01


class _Sum:
    """An aggregate for SQLite: the sum of the rows' hashes, as text since it may pass 63 bits."""

    def __init__(self) -> None:
        self._sum = 0

    def step(self, *row: Any) -> None:
        self._sum += int(md5(repr(row).encode(), usedforsecurity=False).hexdigest()[:_DIGITS], 16)

    def finalize(self) -> str:
        return str(self._sum % MODULUS)


def _slot(key: Any, bits: int, modulo: int) -> int | None:
    try:
        return None if key is None else SlotRule(bits, modulo).slot_of(str(key))
    except ValueError:  # no number, where a modulo wants one
        return None


def _bucket(value: Any, unit: TimeUnit, slot_bits: int) -> int | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(float(value), UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return slot_of_time(moment if moment.tzinfo else moment.replace(tzinfo=UTC), unit, slot_bits)


def key_of(row: Sequence[Any]) -> str:
    """A row's key for a person to read."""
    return ", ".join(_shown(value) for value in row)


def _shown(value: Any) -> str:
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()  # MySQL's texts
    except UnicodeDecodeError:
        return value.hex()
