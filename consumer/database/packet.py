"""What fits into one request to the database.

MySQL and MariaDB close the connection of a client that sends more than `max_allowed_packet`. A write that needs more could never
succeed, and would stop its slot for good: so what a statement takes on the wire is known before it is sent. The engine reads the
limit at each connect. Elsewhere nothing comes near a limit: PostgreSQL takes 1 GB in a parameter and 256 MB in a jsonb, SQLite
1 GB, and a message has 10 MB and a batch 64 MB at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from consumer.errors import DataFaultError
from shardctl.shard.engine import MAX_PACKET

Row = TypeVar("Row")

TOO_LARGE = "too_large"  # the reason of a write that alone doesn't fit
LEAST_BYTES = 2 * 1024**2  # statements with many parameters go out in requests of one megabyte
ANY_MESSAGE_BYTES = 64 * 1024**2  # of 10 MB, each quote of which may be escaped more than once
AROUND_BYTES = 1024  # the protocol's own, and the other columns of a row that is sent as parameters

_ESCAPED = "\0\n\r\x1a\"'\\"  # the driver puts a backslash before each
_MOST_BYTES_A_CHARACTER = 4


def room(connection: Connection) -> int | None:
    """How many bytes one request may have. None where nothing of ours comes near."""
    limit: int | None = connection.info.get(MAX_PACKET)
    return limit


def wire_bytes(value: str | bytes) -> int:
    """How long a parameter is, at most, as the driver writes it into a statement: bytes may be sent as hexadecimal digits."""
    if isinstance(value, bytes):
        return 2 * len(value)
    return (len(value) if value.isascii() else len(value.encode())) + sum(map(value.count, _ESCAPED))


def fits(connection: Connection, statement: str, *values: str | bytes) -> bool:
    """Whether the statement with these parameters may be sent."""
    most = room(connection)
    if most is None:
        return True
    left = most - AROUND_BYTES - len(statement)
    most_characters = left // (2 * _MOST_BYTES_A_CHARACTER)
    return sum(map(len, values)) <= most_characters or sum(map(wire_bytes, values)) <= left


def parts(
    connection: Connection, statements: Sequence[str], rows: Sequence[Row], written: Callable[[Sequence[Row]], str]
) -> Iterator[tuple[Sequence[Row], str]]:
    """The rows as written, in as many parts as it takes to send each with any of the statements; in order.

    Raises DataFaultError, with the reason `too_large`, for a row that alone doesn't fit.
    """
    text = written(rows)
    if fits(connection, max(statements, key=len), text):
        yield rows, text
    elif len(rows) == 1:
        raise too_large(connection, text)
    else:
        middle = len(rows) // 2
        yield from parts(connection, statements, rows[:middle], written)
        yield from parts(connection, statements, rows[middle:], written)


def too_large(connection: Connection, *values: str | bytes) -> DataFaultError:
    size = sum(map(wire_bytes, values))
    return DataFaultError(
        TOO_LARGE,
        f"the write takes {size:,} bytes of a request, and the server's max_allowed_packet is {room(connection):,}",
    )
