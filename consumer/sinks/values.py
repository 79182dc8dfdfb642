"""How a body's key compares, and its values in the plainest form. `shardctl.wire.values` defines what a body may hold."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from consumer.database.dialects import utc_text
from consumer.delivery import Delivery
from consumer.errors import PermanentError
from shardctl.fleet.settings.columns import ColumnType
from shardctl.wire import bodies
from shardctl.wire.bodies import BodyError, Rules
from shardctl.wire.jsontext import digits_of, exact, is_plain, text_of
from shardctl.wire.values import moment_of


def read(delivery: Delivery, rules: Rules) -> None:
    """Set the delivery's `body` and `row`. Raises PermanentError where the database can't take them as they are."""
    kind, data = rules.kind, delivery.message.data
    try:
        body = bodies.read(data)
        rules.check(body, data, delivery.operation)
        bodies.check_key(kind, body, data, delivery.partition_key)
    except BodyError as error:
        raise PermanentError(error.reason, str(error)) from error
    delivery.body = body
    for column in kind.key:
        if rules.types[column] not in _AS_GIVEN:
            delivery.row = tuple(_comparable(delivery, name, rules.types[name]) for name in kind.key)
            return
    delivery.row = tuple([body[column] for column in kind.key])


def plain(write: Delivery, rules: Rules) -> dict[str, Any]:
    """The row with its slot, in values that every database's JSON functions read alike; see `Dialect`."""
    row: dict[str, Any] = {rules.kind.slot_column: write.slot}
    written: Any = None  # what the text holds, where its digits matter
    for column, value in write.body.items():
        kind = rules.types[column]
        if value is None or kind not in _NOT_PLAIN:
            row[column] = value
        elif kind == "number":
            row[column] = float(value)  # SQLite would compare a long whole number with the double that the column holds
        elif kind == "timestamp":
            row[column] = utc_text(value)
        else:
            if type(value) in _MAY_LOSE_DIGITS and written is None:
                data = write.message.data
                written = write.body if kind == "json" and is_plain(data, write.body) else exact(data)
            part = value if written is None else written[column]
            row[column] = text_of(part).decode() if kind == "json" else _plain_decimal(str(part))
    return row


def plain_key(write: Delivery, rules: Rules) -> tuple[Any, ...]:
    """The key's values as the log of changes has them: see `shardctl.shard.changes.Change`."""
    key = []
    for column in rules.kind.key:
        value = write.body[column]
        match rules.types[column]:
            case "timestamp":
                value = utc_text(value)
            case "decimal":
                value = _plain_decimal(digits_of(column, write.body, write.message.data))
            case "number":
                value = float(value)
        key.append(value)
    return tuple(key)


_NOT_PLAIN: frozenset[ColumnType] = frozenset(("number", "timestamp", "json", "decimal"))
_MAY_LOSE_DIGITS = frozenset((float, dict, list))


def _plain_decimal(digits: str) -> str:
    """Without an exponent, and a whole number without a point: SQLite would read either as a double."""
    if "e" in digits or "E" in digits:
        number = Decimal(digits)
        digits = format(number, "f") if number else "0"
    whole, _, fraction = digits.partition(".")
    return digits if fraction.strip("0") else f"{whole}0" if whole in _BARE_SIGNS else whole


_BARE_SIGNS = ("", "-", "+")


# Types of key columns whose values are equal exactly if the database's are.
_AS_GIVEN: frozenset[str] = frozenset(("text", "integer", "bigint", "boolean", "date", "uuid"))


def _comparable(delivery: Delivery, column: str, kind: ColumnType) -> Any:
    """The value as the database compares it, however it was written: 1.0 and 1, or one moment in two time zones.

    To take two rows for one would lose a write.
    """
    value = delivery.body[column]
    match kind:
        case "number":
            return float(value)
        case "decimal":
            return Decimal(digits_of(column, delivery.body, delivery.message.data))
        case "timestamp":
            return moment_of(value)
        case _:
            return value
