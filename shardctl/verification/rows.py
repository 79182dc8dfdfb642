"""Checks that a table's rows are in the right database: one query for each table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, select

from shardctl.fleet.keyspace import SlotRule, SlotSet
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.rebalance.rows.checksum import MODULUS, expected_slot, key_of, prepare, sum_of_rows
from shardctl.rebalance.rows.shape import SlotTable, quoted
from shardctl.shard.schema import parked, parked_keys


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong and where, and what to do about it."""

    shard: str
    what: str
    do: str
    table: str = ""
    slots: SlotSet = SlotSet()  # noqa: RUF009 - frozen
    rows: int = 0
    example: str = ""  # a key
    of_keys: bool = False  # about the keys that producers gave; the rows are on the right shard


@dataclass(frozen=True, slots=True)
class TableCheck:
    """`rows` and `checksum` are of slots that are active here. `waiting`: rows to be deleted, of slots that have moved away."""

    table: str
    rows: int
    checksum: int
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Slot:
    slot: int | None
    rows: int
    checksum: int
    wrong: int  # rows whose key gives another slot


def check_table(
    connection: Connection,
    shard: str,
    table: SlotTable,
    kinds: Sequence[MessageType],
    active: SlotSet,
    elsewhere: SlotSet,
    rule: SlotRule,
) -> tuple[TableCheck, list[Fault]]:
    """`kinds` are the message types that the table is mapped for; rows of slots in `elsewhere` wait to be deleted."""
    prepare(connection)
    expected = _expected(connection.dialect.name, table, kinds, rule)
    wrong = f"({expected}) <> {table.slot_sql}" if expected else ""
    active_slots, moved_slots = frozenset(active), frozenset(elsewhere)
    active_rows: list[_Slot] = []
    waiting: list[_Slot] = []
    lost: list[_Slot] = []
    for counted in _by_slot(connection, table, wrong):
        if counted.slot in active_slots:
            active_rows.append(counted)
        elif counted.slot in moved_slots:
            waiting.append(counted)
        else:
            lost.append(counted)
    check = TableCheck(
        table.name,
        sum(counted.rows for counted in active_rows),
        sum(counted.checksum for counted in active_rows) % MODULUS,
        sum(counted.rows for counted in waiting),
    )
    misrouted = [counted for counted in active_rows if counted.wrong]
    faults = [*_slotless(connection, shard, table, lost), *_lost(connection, shard, table, lost)]
    return check, [*faults, *_misrouted(connection, shard, table, misrouted, wrong)]


def _slotless(connection: Connection, shard: str, table: SlotTable, lost: Sequence[_Slot]) -> Iterator[Fault]:
    for counted in lost:
        if counted.slot is None:
            yield Fault(
                shard,
                "rows without a slot, which no rebalance would move",
                f"Set their {table.slot_column.name}, or delete them.",
                table.name,
                rows=counted.rows,
                example=_example(connection, table, f"{table.slot_sql} IS NULL"),
            )


def _lost(connection: Connection, shard: str, table: SlotTable, lost: Sequence[_Slot]) -> Iterator[Fault]:
    slots = [counted.slot for counted in lost if counted.slot is not None]
    if slots:
        yield Fault(
            shard,
            "rows of slots that aren't active here",
            "If a rebalance moved the slots away, its `shardctl rebalance finish` deletes them; else find who wrote them, "
            "and move them to the shard that `shardctl route` names.",
            table.name,
            SlotSet.of(slots),
            sum(counted.rows for counted in lost if counted.slot is not None),
            _example(connection, table, f"{table.slot_sql} = {slots[0]}"),
        )


def _misrouted(
    connection: Connection, shard: str, table: SlotTable, misrouted: Sequence[_Slot], wrong: str
) -> Iterator[Fault]:
    """`wrong` is true, in SQL, of a row whose key gives another slot."""
    slots = [counted.slot for counted in misrouted if counted.slot is not None]
    if slots:
        yield Fault(
            shard,
            "rows whose routing key or time gives another slot than the one they have",
            "Find the producer that hashes differently or gives another key than the row's; see `shardctl route`. "
            "Then write the rows again.",
            table.name,
            SlotSet.of(slots),
            sum(counted.wrong for counted in misrouted),
            _example(connection, table, f"{wrong} AND {table.slot_sql} = {slots[0]}"),
            of_keys=True,
        )


def _expected(product: str, table: SlotTable, kinds: Sequence[MessageType], rule: SlotRule) -> str | None:
    """None where the types that share the table disagree."""
    expressions = {expected_slot(product, table, kind, rule) for kind in kinds}
    return expressions.pop() if len(expressions) == 1 else None


def _by_slot(connection: Connection, table: SlotTable, wrong: str) -> Iterator[_Slot]:
    total = sum_of_rows(connection.dialect.name, table)
    counted = f"sum(CASE WHEN {wrong} THEN 1 ELSE 0 END)" if wrong else "0"
    query = f"SELECT {table.slot_sql}, count(*), {total}, {counted} FROM {table.sql} GROUP BY {table.slot_sql}"  # noqa: S608
    for slot, rows, checksum, odd in connection.exec_driver_sql(query):
        yield _Slot(slot, rows, int(checksum) % MODULUS, int(odd))


def _example(connection: Connection, table: SlotTable, condition: str) -> str:
    """The key of one row, its slot left out."""
    product = connection.dialect.name
    names = [name for name in (table.unique[0] if table.unique else ()) if name != table.named.slot_column]
    if not names:
        return ""
    listed = ", ".join(quoted(product, name) for name in names)
    row = connection.exec_driver_sql(f"SELECT {listed} FROM {table.sql} WHERE {condition} LIMIT 1").first()  # noqa: S608
    return "" if row is None else key_of(tuple(row))


def check_parked(connection: Connection, shard: str, active: SlotSet) -> Iterator[Fault]:
    """Every parked message has its key, every key its messages. Slots that aren't active are ignored."""
    same_key = and_(
        parked.c.slot == parked_keys.c.slot,
        parked.c.message_type == parked_keys.c.message_type,
        parked.c.partition_key == parked_keys.c.partition_key,
    )
    messages = (
        select(parked.c.slot, func.count(), func.min(parked.c.partition_key))
        .where(~select(parked_keys.c.slot).where(same_key).exists())
        .group_by(parked.c.slot)
    )
    keys = (
        select(parked_keys.c.slot, func.count(), func.min(parked_keys.c.partition_key))
        .where(~select(parked.c.position).where(same_key).exists())
        .group_by(parked_keys.c.slot)
    )
    active_slots = frozenset(active)
    for query, table, what, do in (
        (messages, parked, "parked messages without their key, which no consumer will apply", _MAKE_KEY),
        (keys, parked_keys, "parked keys without messages, which block later writes needlessly", _DELETE_KEY),
    ):
        rows = [row for row in connection.execute(query).all() if row[0] in active_slots]
        if rows:
            slots = SlotSet.of(row[0] for row in rows)
            yield Fault(shard, what, do, table.name, slots, sum(row[1] for row in rows), key_of(rows[0][2:]))


_MAKE_KEY = "Insert the missing row into shardctl_parked_keys; then `shardctl parked list` shows it."
_DELETE_KEY = "Delete the row from shardctl_parked_keys while no consumer of the shard runs."
