"""What both readers share: from a key, a class or a statement to the views of the databases that hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Select, Table, inspect, select
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper, Session

from shardctl.errors import UsageError
from shardctl.fleet.spec import Fleet
from shardctl.reader.active import Active
from shardctl.reader.gathering import Gathering
from shardctl.reader.order import Order
from shardctl.reader.owners import Owners, Sleep
from shardctl.reader.routes import Key, Routes
from shardctl.reader.view import View

PATIENCE = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class One:
    """One row of a mapped class or a Table, by its primary key."""

    entity: Any
    table: Table
    identity: tuple[Any, ...]
    key: Key
    type: str

    def read(self, session: Session) -> Any:
        if self.entity is not self.table:
            return session.get(self.entity, self.identity)
        pairs = zip(self.table.primary_key.columns, self.identity, strict=True)
        return session.execute(select(self.table).where(*(column == value for column, value in pairs))).one_or_none()


class Places:
    """`databases`: an engine for each shard of the file, and for newer shards, if there are any."""

    def __init__(
        self,
        fleet: Fleet,
        databases: Mapping[str, Engine],
        replicas: Mapping[str, Sequence[Engine]],
        patience: timedelta,
        sleep: Sleep,
    ) -> None:
        self._routes = Routes(fleet, databases)
        self._owners = Owners(self._routes, databases, replicas, sleep)
        self._patience_seconds = patience.total_seconds()

    def open(self, key: Key, message_type: str | None, at: datetime | None, max_staleness: timedelta | None) -> View:
        slot = self._routes.slot(key, message_type, at)
        holders = self._routes.holders((message_type,) if message_type else ())
        return self._owners.open(slot, holders, self._patience_seconds, max_staleness)

    def one(self, entity: Any, identity: Any, key: Key | None, message_type: str | None) -> One:
        """Raises UsageError where the routing key doesn't follow from the identity."""
        table = _table_of(entity)
        names = [column.name for column in table.primary_key.columns]
        values = tuple(identity) if isinstance(identity, tuple | list) else (identity,)
        if len(values) != len(names):
            raise UsageError(f"table {table.fullname} has the primary key ({', '.join(names)}): pass a value for each.")
        types = [message_type] if message_type else self._routes.types_of_table(table.fullname)
        if not types:
            raise UsageError(f"no message type has the table {table.fullname}; see message_types in the file.")
        self._routes.holders(types)  # one type stands for all of them
        field = self._routes.kind(types[0]).routing_field
        if key is None:
            if field not in names:
                raise UsageError(
                    f"the routing key of {types[0]!r}, {field!r}, isn't in the primary key of {table.fullname}: "
                    "pass it with key=."
                )
            value = values[names.index(field)]
            if isinstance(value, datetime):
                raise UsageError(
                    f"the routing key of {types[0]!r}, {field!r}, is a time, which has many spellings: pass it with key=, as its "
                    "writes have it."
                )
            key = value if isinstance(value, int) else str(value)
        return One(entity, table, values, key, types[0])

    def gathering(
        self, statement: Select[Any], order: Order, message_type: str | None, max_staleness: timedelta | None
    ) -> Gathering:
        active = Active(statement, self._routes.slot_columns)
        types = {name for table in active.tables for name in self._routes.types_of_table(table)}
        holders = self._routes.holders((message_type,) if message_type else types)
        return Gathering(self._owners, self._routes, holders, active, order, max_staleness)


def _table_of(entity: Any) -> Table:
    if isinstance(entity, Table):
        return entity
    try:
        mapper = inspect(entity)
    except NoInspectionAvailable:
        mapper = None
    if not isinstance(mapper, Mapper) or not isinstance(mapper.local_table, Table):
        raise UsageError(f"get takes a mapped class or a Table, not {entity!r}.")
    return mapper.local_table
