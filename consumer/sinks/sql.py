"""Writes as rows of mapped tables, in few statements."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

import orjson
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from consumer.database import packet, sessions
from consumer.database.dialects import Dialect
from consumer.database.sqlstate import column_without_value, judge
from consumer.delivery import Delivery
from consumer.errors import DataFaultError, TableNotReadyError
from consumer.sinks import statements, values
from consumer.sinks.asbuilt import AsBuilt, Forms
from consumer.sinks.grouping import Group, Shape, group
from shardctl.fleet.keyspace import MAX_SLOT_BITS
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.shard import changes
from shardctl.shard.changes import Change
from shardctl.wire.bodies import Rules

MAX_SHAPES = 1_000  # whose statements are cached: a client chooses which columns a write names


class SqlSink:
    """Insert, upsert, update and delete. An update of a row that isn't there is a fault; a delete of one is not."""

    def __init__(self, dialect: Dialect, kinds: dict[str, MessageType]) -> None:
        self._dialect, self._kinds = dialect, kinds
        self._rules = {name: Rules(kind, dialect.limits) for name, kind in kinds.items() if kind.table}
        self._as_built = AsBuilt()
        self._writing = functools.lru_cache(MAX_SHAPES)(self._statements)

    def check(self, delivery: Delivery) -> None:
        values.read(delivery, self._rules[delivery.message_type])

    def apply(self, connection: Connection, writes: Sequence[Delivery]) -> int:
        stale = 0
        for statement_group in group(writes, self._kinds):
            with sessions.needed_by(statement_group.shape[:1]):
                stale += self._apply_group(connection, statement_group)
        return stale

    def _apply_group(self, connection: Connection, statement_group: Group) -> int:
        message_type, operation, _ = statement_group.shape
        rules, stale = self._rules[message_type], 0
        forms = self._as_built.forms(connection, rules)
        writing = self._writing(statement_group.shape, forms)
        self._as_built.check(connection, rules, statement_group.rows.values())
        written = functools.partial(self._text, rules=rules)
        for rows, text in packet.parts(connection, writing, [*statement_group.rows.values()], written):
            missed = len(rows)
            for statement in writing:
                missed -= self._write(connection, statement, text, message_type)
            if missed and operation == "update":
                stale += self._explain_missed(connection, rules.kind, text, len(rows), missed, forms)
            elif missed and operation == "upsert":
                if missed < 0:
                    table, key = rules.kind.table, rules.kind.key
                    why = f"{table} has several rows of one key: make {key} its primary key"
                    raise TableNotReadyError([message_type], why)
                stale += missed
        return stale

    def changes(self, writes: Sequence[Delivery]) -> Iterator[Change]:
        """The row that each write may have touched. Where a trigger fills other tables, also the write's routing key."""
        for write in writes:
            rules = self._rules[write.message_type]
            yield Change(write.slot, rules.kind.table, values.plain_key(write, rules))
            if rules.kind.slot_tables:
                yield changes.of_routing_key(write.slot, write.partition_key)

    def _text(self, writes: Iterable[Delivery], rules: Rules) -> str:
        if self._dialect.reads_json_as_written:
            column = rules.kind.slot_column
            return (b"[" + b",".join([_with_slot(write, column) for write in writes]) + b"]").decode()
        return orjson.dumps([values.plain(write, rules) for write in writes]).decode()

    def _explain_missed(
        self, connection: Connection, kind: MessageType, text: str, rows: int, missed: int, forms: Forms
    ) -> int:
        """How many of the updates that touched no row are stale: those whose row exists. Raises DataFaultError for the others.

        Also for two keys that we distinguish and the database doesn't, for instance with a collation that ignores case: one
        statement would apply either of them, and the search sends them one by one.
        """
        keys = connection.exec_driver_sql(statements.finding(self._dialect, kind, dict(forms)), (text,)).all()
        if len(keys) < rows:
            raise DataFaultError("no_row", f"{rows - len(keys)} of the rows to update aren't in {kind.table}")
        if len(set(map(tuple, keys))) < len(keys):
            raise DataFaultError("no_row", f"two updates of one statement meet in one row of {kind.table}")
        return missed

    def _statements(self, shape: Shape, forms: Forms) -> tuple[str, ...]:
        return statements.writing(self._dialect, self._kinds[shape[0]], shape, dict(forms))

    def _write(self, connection: Connection, statement: str, text: str, message_type: str) -> int:
        """How many rows it touched. After an error that isn't the data's, the table is read again: it may have been altered."""
        rules = self._rules[message_type]
        try:
            return _write(connection, statement, text, message_type, rules.kind)
        except DBAPIError as error:
            if judge(error).reason is None:
                self._as_built.forget(rules)
            raise


def _write(connection: Connection, statement: str, text: str, message_type: str, kind: MessageType) -> int:
    """How many rows it touched. Raises TableNotReadyError for a column that no message can give a value."""
    try:
        return connection.exec_driver_sql(statement, (text,)).rowcount
    except DBAPIError as error:
        column = column_without_value(error)
        if column is None or column in kind.columns or column == kind.slot_column:
            raise
        raise TableNotReadyError(
            [message_type],
            f"{kind.table}.{column} is NOT NULL, has no default, and isn't among the type's columns in shards.yaml: "
            "give it a default, or add it there",
        ) from error


def _with_slot(write: Delivery, slot_column: str) -> bytes:
    """The body with its slot in front. The text is otherwise the producer's own, so numbers keep every digit."""
    data: bytes = write.message.data
    return _with_slot_alone(slot_column, write.slot) + data.lstrip()[1:]


@functools.lru_cache(maxsize=1 << MAX_SLOT_BITS)
def _with_slot_alone(slot_column: str, slot: int) -> bytes:
    return f'{{"{slot_column}":{slot},'.encode()
