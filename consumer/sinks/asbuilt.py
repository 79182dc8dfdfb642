"""Values against the table as it was built: what its columns would change silently, and the form in which they take a value.

A database rounds a decimal, cuts blanks off a text's end, takes '1' for the first label of an enum, and fills bytes up, all
without an error. What it refuses itself isn't asked for here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from consumer.database import tablecolumns
from consumer.database.tablecolumns import TableColumn
from consumer.delivery import Delivery
from consumer.errors import DataFaultError
from shardctl.shard.jsonrows import Form
from shardctl.wire.bodies import Rules
from shardctl.wire.jsontext import digits_of
from shardctl.wire.values import MAX_EXPONENT, Room, bytes_of, moment_of

Forms = tuple[tuple[str, Form], ...]  # by column
_BYTES_OF_CHARACTER = 4  # at most
_MICROSECOND_PLACES = 6


@dataclass(frozen=True, slots=True)
class _Check:
    """`holds`: whether the column keeps a value as it is; `fault`: what it would do to another."""

    holds: Callable[[Any], bool]
    fault: str


@dataclass(frozen=True, slots=True)
class _Table:
    checks: Mapping[str, _Check]
    forms: Forms


class AsBuilt:
    """Reads each table's columns once, before the first write to it, and again before it refuses a write."""

    def __init__(self) -> None:
        self._tables: dict[str, _Table] = {}

    def forms(self, connection: Connection, rules: Rules) -> Forms:
        """How the columns that need it take a value."""
        return (self._tables.get(rules.kind.table) or self._read(connection, rules)).forms

    def check(self, connection: Connection, rules: Rules, writes: Iterable[Delivery]) -> None:
        """Raise DataFaultError where one of the writes has a value that its column would change."""
        table = self._tables.get(rules.kind.table) or self._read(connection, rules)
        if table.checks and _changed(writes, rules, table.checks):
            checks = self._read(connection, rules).checks  # the column may have been altered since
            if column := _changed(writes, rules, checks):
                raise DataFaultError("bad_value", f"{column!r} {checks[column].fault} in {rules.kind.table}")

    def forget(self, rules: Rules) -> None:
        """Read the table again before its next write."""
        self._tables.pop(rules.kind.table, None)

    def _read(self, connection: Connection, rules: Rules) -> _Table:
        columns = tablecolumns.read(connection, rules.kind.table)
        types = {name: rules.types[name] for name in columns if name in rules.types}
        checks = {name: check for name in types if (check := _check_of(columns[name], rules))}
        product = connection.dialect.name
        forms = [
            (name, form) for name, column_type in types.items() if (form := columns[name].form_of(product, column_type))
        ]
        table = _Table(checks, tuple(forms))
        if columns or product not in tablecolumns.READ:  # otherwise the statement's error says what is wrong
            self._tables[rules.kind.table] = table
        return table


def _check_of(column: TableColumn, rules: Rules) -> _Check | None:
    """None where the column holds all that its type in the file takes, or refuses what it doesn't."""
    match rules.types[column.name]:
        case "decimal" if column.places is not None and column.places < rules.room(column.name).places:
            room = Room(MAX_EXPONENT, column.places)
            return _Check(room.takes, "has more places than its column holds, which would round it,")
        case "text":
            return _check_of_text(column, rules.kind.lengths.get(column.name))
        case "timestamp" if column.native == "date":
            return _Check(
                _is_midnight, "is a time, and its column would keep the day alone: make it a `date` in shards.yaml;"
            )
        case "timestamp" if column.places is not None and column.name in {*rules.kind.key, rules.kind.version_column}:
            least = 10 ** (_MICROSECOND_PLACES - column.places)
            return _Check(
                lambda text: (moment := moment_of(text)) is not None and moment.microsecond % least == 0,
                "has more places than its column holds, which would round it,",
            )
        case "bytes" if column.is_padded and column.octets is not None:
            size = column.octets
            return _Check(lambda text: len(bytes_of(text) or b"") == size, f"hasn't the {size:,} bytes of its column")
    return None


def _check_of_text(column: TableColumn, stated: int | None) -> _Check | None:
    if column.labels is not None:
        labels = column.labels
        return _Check(labels.__contains__, "isn't a label of its column's type")
    if column.is_padded:
        most = column.characters or 1
        return _Check(lambda text: len(text) <= most and text[-1:] != " ", f"ends in a blank or has over {most:,} characters: "
                      "its column doesn't hold it")  # fmt: skip
    if column.characters is not None and (stated is None or column.characters < stated):
        characters = column.characters
        return _Check(
            lambda text: len(text) <= characters, f"has more than the {characters:,} characters of its column"
        )
    if column.octets is not None:
        octets = column.octets
        return _Check(
            lambda text: len(text) * _BYTES_OF_CHARACTER <= octets or len(text.encode()) <= octets,
            f"has more than the {octets:,} bytes of its column",
        )
    return None


def _is_midnight(text: str) -> bool:
    moment = moment_of(text)
    return moment is not None and (moment.hour, moment.minute, moment.second, moment.microsecond) == (0, 0, 0, 0)


def _changed(writes: Iterable[Delivery], rules: Rules, checks: Mapping[str, _Check]) -> str | None:
    for write in writes:
        for column, check in checks.items():
            value = write.body.get(column)
            if value is None:
                continue
            if rules.types[column] == "decimal":
                value = digits_of(column, write.body, write.message.data)
            if not check.holds(value):
                return column
    return None
