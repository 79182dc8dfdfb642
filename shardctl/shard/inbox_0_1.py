"""The inbox of 0.1.0, as far as its rows still count: each is known by what it becomes in the inbox of this version.

0.1.0 knew a write by its slot and idempotency key alone. While `shardctl.shard.upgrade` moves rows, those that are left lie in a
table of this name.
"""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from shardctl.shard.engine import MYSQL
from shardctl.wire import identity

NAME = "shardctl_inbox_0_1"
KEY = "idempotency_key"  # the column that no later inbox has
NOTE = "shardctl-letter:"  # what the key of a replay's note begins with


def identities(slot: int, key: str | bytes, message_type: str, message_id: str) -> tuple[bytes, ...]:
    """Under what the write of a row is known now: one identity, or two.

    A message without a key was known by its id, and a copy of it that a consumer published again has that as its key; that can't
    be distinguished from a key of digits.
    """
    text = key.decode() if isinstance(key, bytes) else key  # MySQL's table holds keys as bytes
    by_key, by_message = identity.of_key("", message_type, text), identity.of_message(text)
    if text == message_id:
        of_write: tuple[bytes, ...] = (by_message, by_key)
    elif text.isdecimal():
        of_write = (by_key, by_message)
    else:
        of_write = (by_key,)
    return tuple(identity.in_slot(its_identity, slot) for its_identity in of_write)


def has_rows(connection: Connection) -> bool:
    """Whether some are left. Share the fence to rely on it until the transaction ends: see `shardctl.shard.upgrade`."""
    if not connection.dialect.has_table(connection, NAME):
        return False
    try:
        return connection.exec_driver_sql(f"SELECT 1 FROM {NAME} LIMIT 1").first() is not None  # noqa: S608
    except ProgrammingError:
        if connection.dialect.name in MYSQL:  # which drops a table without the fence
            return False
        raise
