"""Bringing a copy of a slot up to date: its rows with the keys that the source's log names are made what the source has now.

Idempotent: whatever was done before, after it the destination has the source's rows under these keys and no others. A key may be
in the log without a change, or many times.

Rows of a table that no other refers to are deleted and inserted: so unique values may pass from one row to another, and rows to
other parents. Those that others refer to must stay where they are: they are updated, or inserted where they are missing, and
deleted where the source has none. Deletions go from children to parents, insertions from parents to children. What no such order
brings about is refused by the database; then the caller copies the slot as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.rebalance.rows.effects import mark
from shardctl.rebalance.rows.keys import Keys
from shardctl.rebalance.rows.paired import Paired
from shardctl.rebalance.rows.rowcopy import CopyMismatchError, check_deferred, check_later, pairs_of, refusing, stopping
from shardctl.rebalance.rows.shape import quoted
from shardctl.rebalance.rows.transfer import (
    Digest,
    begins_alike,
    read_back,
    read_there,
    rests,
    rows_there,
    send,
    send_rest,
)
from shardctl.shard.schema import changes

KEYS_BY_THEMSELVES = 20  # of rows in an order: with more, each by itself would take more statements than it saves


@dataclass(frozen=True, slots=True)
class Log:
    """Some of a slot's changes: their positions, and their keys by the name under which the log has each table."""

    positions: tuple[int, ...] = ()
    keys: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_log(source: Connection, slot: int, after: int, most: int) -> Log:
    """The first changes of a slot behind a position."""
    query = select(changes.c.position, changes.c.table_name, changes.c.key)
    query = query.where(changes.c.slot == slot, changes.c.position > after).order_by(changes.c.position).limit(most)
    positions, keys = [], dict[str, dict[str, None]]()
    for position, table, key in source.execute(query):
        positions.append(position)
        keys.setdefault(table, {})[key] = None
    return Log(tuple(positions), {table: tuple(its_keys) for table, its_keys in keys.items()})


def apply_delta(
    source: Connection,
    destination: Connection,
    kinds: Mapping[str, MessageType],
    slot: int,
    log: Log,
    cancelled: Callable[[], bool] = lambda: False,
) -> int:
    """Make the destination's rows of a slot under the log's keys what `source` shows, and read them back; how many there are.

    `source` is a `database.snapshot` that shows the log. In the caller's transactions, as `copy_slots` is; raises the same.
    """
    parts = [_Part(source, destination, pair, slot, log.keys.get(pair.source.named.logged_as, ())) for pair in
             pairs_of(source, destination, kinds)]  # fmt: skip
    go_on = stopping((slot,), cancelled)
    referred = {key.table for part in parts for key in part.pair.destination.foreign_keys}
    mark(destination)
    check_later(destination)
    for part in reversed(parts):
        with refusing(part.pair, (slot,)):
            part.delete(kept=part.pair.destination.identity in referred)
        go_on()
    for part in parts:
        with refusing(part.pair, (slot,)):
            part.insert(go_on, kept=part.pair.destination.identity in referred)
    check_deferred(destination)
    return sum(part.compare(go_on) for part in parts)


@dataclass(frozen=True, slots=True)
class _Part:
    """One table's rows that may have changed."""

    source: Connection
    destination: Connection
    pair: Paired
    slot: int
    keys: Sequence[str]
    stored: dict[Keys, int] = field(default_factory=dict)  # of keys whose first rows are there: how many
    sent: dict[Keys, Digest] = field(default_factory=dict)  # what all rows of these keys come to

    def _parts(self) -> Iterator[Keys]:
        keys = Keys(self.destination.dialect.name, tuple(self.keys))
        return keys.parts(1) if self._is_appended_to else keys.parts()

    @property
    def _is_appended_to(self) -> bool:
        """Whether to look at each key by itself. A parked key may have any number of messages, and most changes add one."""
        return self.pair.verbatim and bool(self.pair.order) and len(self.keys) <= KEYS_BY_THEMSELVES

    def _has_first_rows(self, keys: Keys) -> bool:
        stored = (
            begins_alike(self.source, self.destination, self.pair, (self.slot,), keys) if self._is_appended_to else None
        )
        if stored is not None:
            self.stored[keys] = stored
        return stored is not None

    def delete(self, *, kept: bool) -> None:
        """All of them; where they are `kept`, those that are gone at the source; none where only rows at the end are missing."""
        for keys in self._parts():
            if self._has_first_rows(keys):
                continue
            for some in self._gone(keys) if kept else (keys,):
                table = self.pair.destination
                statement = (
                    f"DELETE FROM {table.sql} WHERE {table.slot_sql} = {self.slot:d} AND {some.condition(table)}"  # noqa: S608
                )
                self.destination.exec_driver_sql(statement, some.values(table))

    def _gone(self, keys: Keys) -> Iterator[Keys]:
        """Keys without a row at the source, by halves: most are all there, or all gone."""
        table, asked = self.pair.source, keys.of(self.source.dialect.name)
        query = f"SELECT count(*) FROM {table.sql} WHERE {table.slot_sql} = {self.slot:d} AND {asked.condition(table)}"  # noqa: S608
        there = self.source.exec_driver_sql(query, asked.values(table)).scalar_one()
        if there == 0:
            yield keys
        elif there < len(keys.keys):
            for half in keys.parts((len(keys.keys) + 1) // 2):
                yield from self._gone(half)

    def insert(self, go_on: Callable[[], None], *, kept: bool) -> None:
        for keys in self._parts():
            there = keys.of(self.source.dialect.name)
            if (after := self.stored.get(keys)) is not None:
                send_rest(self.source, self.destination, self.pair, (self.slot,), go_on, there, after)
                continue
            if not kept:
                self.sent[keys] = send(self.source, self.destination, self.pair, (self.slot,), go_on, there)
                continue
            for row in rows_there(self.source, self.pair, (self.slot,), there):
                self._put(row)
            go_on()

    def _put(self, row: list[object]) -> None:
        product, table = self.destination.dialect.name, self.pair.destination
        names = [column.name for column in self.pair.source.columns]
        value_of = dict(zip(names, row, strict=True))
        mark_ = "?" if product == "sqlite" else "%s"
        settable = [name for name in names if name not in table.named.key]
        assigned = ", ".join(f"{quoted(product, name)} = {mark_}" for name in settable)
        its = " AND ".join(f"{quoted(product, name)} = {mark_}" for name in table.named.key)
        update = f"UPDATE {table.sql} SET {assigned} WHERE {table.slot_sql} = {self.slot:d} AND {its}"  # noqa: S608
        parameters = tuple(value_of[name] for name in (*settable, *table.named.key))
        if self.destination.exec_driver_sql(update, parameters).rowcount == 0:
            marks = ", ".join(mark_ for _ in names)
            insert = f"INSERT INTO {table.sql} ({self.pair.columns_sql}) VALUES ({marks})"  # noqa: S608
            self.destination.exec_driver_sql(insert, tuple(row))

    def compare(self, go_on: Callable[[], None]) -> int:
        rows = 0
        for keys in self._parts():
            if (after := self.stored.get(keys)) is not None:
                sent, stored = rests(self.source, self.destination, self.pair, (self.slot,), keys, after)
            else:
                there = keys.of(self.source.dialect.name)
                sent = self.sent.get(keys) or read_there(self.source, self.pair, (self.slot,), go_on, there)
                stored = read_back(self.destination, self.pair, (self.slot,), go_on, keys)
            if sent != stored:
                raise CopyMismatchError(self.pair.name, (self.slot,), sent, stored)
            rows += stored.rows
        return rows
