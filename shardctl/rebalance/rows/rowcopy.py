"""Copying the rows of slots from one shard's database to another's, and the proof that they came over whole.

The rows are read from the source's snapshot, stored, and read back from where they are stored. Both readings are summed up in
values that all databases share, in whichever order they come; so a row that was lost, doubled or changed on the way shows.
Two PostgreSQL databases sum up their rows themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, select

from shardctl.errors import ShardctlError
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.rebalance.rows.catalog import columns_of_all
from shardctl.rebalance.rows.effects import mark
from shardctl.rebalance.rows.paired import Paired, pair
from shardctl.rebalance.rows.removal import delete_leftovers
from shardctl.rebalance.rows.shape import SlotTable, SlotTableError
from shardctl.rebalance.rows.tables import slot_tables
from shardctl.rebalance.rows.transfer import Digest, Slots, read_back, read_there, send, sums_back, sums_there
from shardctl.shard import schema
from shardctl.shard.schema import LaneState


class CopyError(ShardctlError):
    """A slot can't be copied. The caller's transaction is to be rolled back; nothing was handed over."""


class CopyCancelledError(CopyError):
    """`cancelled` returned true."""


class CopyMismatchError(CopyError):
    """What is stored isn't what was read."""

    def __init__(self, table: str, slots: Slots, sent: Digest, stored: Digest) -> None:
        self.table, self.slots, self.sent, self.stored = table, slots, sent, stored
        if sent.rows != stored.rows:
            difference = f"{sent.rows:,} rows were read and {stored.rows:,} are stored"
        else:
            difference = f"{sent.rows:,} rows came over, but not all as they were (checksums {sent} and {stored})"
        super().__init__(
            f"table {table}, {_named(slots)}: {difference}. Nothing was handed over and the source is as it was. Look for a "
            "trigger at the destination that changes rows, or a column there that can't hold every value."
        )


@dataclass(frozen=True, slots=True)
class Copied:
    rows: Mapping[str, int]  # by table
    bytes: int  # or so
    digest: str

    @property
    def total_rows(self) -> int:
        return sum(self.rows.values())


def copy_slots(
    source: Connection,
    destination: Connection,
    kinds: Mapping[str, MessageType],
    slots: Slots,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    active: bool = False,
) -> Copied:
    """Put the rows, inbox and parked messages of slots into `destination` as they are in `source`, in the caller's transactions.

    `source` is a `database.snapshot` from after the slots have left there, or where they are `active` of lanes that are logged.
    `destination` is a `database.writing` transaction; its commit is the caller's, who makes the lanes active in it. What the
    slots had left at the destination is deleted first. Memory stays bounded, whatever the slots' size. `cancelled` is asked every
    thousand rows or so. Several slots need as many statements as one.

    Raises CopyMismatchError where what is stored then differs from what was read, CopyError, SlotTableError, RemovalError where
    deleting leftovers might take more than them, DatabaseError, and CopyCancelledError.
    """
    if not active:
        _check_nobody_writes(source, slots, "at the source: wait until its barrier is met there")
    _check_nobody_writes(destination, slots, "at the destination: it has arrived already")
    pairs, go_on = pairs_of(source, destination, kinds), stopping(slots, cancelled)
    mark(destination)
    check_later(destination)
    delete_leftovers(destination, [paired.destination for paired in pairs], slots)
    there, sent = sums_there(source, pairs, slots), []
    for paired in pairs:
        with refusing(paired, slots):
            sent.append(send(source, destination, paired, slots, go_on, known=there.get(paired.name)))
    check_deferred(destination)
    here = sums_back(destination, pairs, slots)
    for paired, digest in zip(pairs, sent, strict=True):
        stored = here.get(paired.name) or read_back(destination, paired, slots, go_on)
        if stored != digest:
            raise CopyMismatchError(paired.name, slots, digest, stored)
    return Copied(
        {paired.name: digest.rows for paired, digest in zip(pairs, sent, strict=True)},
        sum(digest.bytes for digest in sent),
        f"{sum(digest.sum for digest in sent) % (1 << 128):032x}",
    )


def has_same_rows(
    source: Connection,
    destination: Connection,
    kinds: Mapping[str, MessageType],
    slot: int,
    cancelled: Callable[[], bool] = lambda: False,
) -> bool:
    """Whether a slot's rows and parked messages are the same in both: reads all of them. Each forgets inbox rows by itself."""
    slots, go_on = (slot,), stopping((slot,), cancelled)
    pairs = [paired for paired in pairs_of(source, destination, kinds) if paired.name != schema.inbox.name]
    return all(
        read_there(source, paired, slots, go_on) == read_back(destination, paired, slots, go_on) for paired in pairs
    )


def stopping(slots: Slots, cancelled: Callable[[], bool]) -> Callable[[], None]:
    """Raises CopyCancelledError once `cancelled` returns true."""

    def go_on() -> None:
        if cancelled():
            raise CopyCancelledError(f"{_named(slots)}: stopped while rows were copied. Nothing was handed over.")

    return go_on


@contextmanager
def refusing(pair: Paired, slots: Slots) -> Iterator[None]:
    """Raises CopyError for what a database can't be given: text that isn't UTF-8, a number beyond 64 bits."""
    try:
        yield
    except (ValueError, ArithmeticError, TypeError) as error:
        raise CopyError(f"table {pair.name}, {_named(slots)}: the destination can't hold a value: {error}") from error


def check_later(destination: Connection) -> None:
    """Let foreign keys wait for the end, where the database can."""
    if statement := _CHECK_LATER.get(destination.dialect.name):
        destination.exec_driver_sql(statement)


def check_deferred(destination: Connection) -> None:
    """What a deferred trigger does is read back too."""
    if destination.dialect.name == "postgresql":
        destination.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")


# Tables may refer to each other in a ring, and rows to later rows of their own table.
_CHECK_LATER = {"postgresql": "SET CONSTRAINTS ALL DEFERRED", "sqlite": "PRAGMA defer_foreign_keys = ON"}


def _check_nobody_writes(connection: Connection, slots: Slots, where: str) -> None:
    lane = select(schema.lanes.c.slot).where(schema.lanes.c.slot.in_(slots), schema.lanes.c.state == LaneState.ACTIVE)
    if (slot := connection.scalar(lane)) is not None:
        raise CopyError(f"slot {slot} is active {where}.")


def _named(slots: Slots) -> str:
    return f"slot {slots[0]}" if len(slots) == 1 else f"slots {SlotSet.of(slots)}"


def pairs_of(source: Connection, destination: Connection, kinds: Mapping[str, MessageType]) -> list[Paired]:
    """The tables, each after those that it refers to. Raises SlotTableError where they aren't what they were when looked at."""
    there = {table.name: table for table in slot_tables(source, kinds)}
    pairs = [pair(source, there[table.name], destination, table) for table in slot_tables(destination, kinds)]
    _check_unchanged(source, [paired.source for paired in pairs])
    return pairs


def prepare(source: Connection, destination: Connection, kinds: Mapping[str, MessageType]) -> None:
    """Look at the tables of both now, so that no slot's pause waits for it. Raises SlotTableError."""
    pairs_of(source, destination, kinds)


def _check_unchanged(connection: Connection, tables: Sequence[SlotTable]) -> None:
    """A column that was added since would silently stay behind."""
    for table, names in zip(tables, columns_of_all(connection, tables), strict=True):
        if names != table.every_column:
            raise SlotTableError(
                f"table {table.name}: its columns have changed since they were looked at. Run it again."
            )
