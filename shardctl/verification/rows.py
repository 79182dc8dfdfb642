"""Whether a table's rows lie where they belong: one look at each table, done by the database."""

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
    of_keys: bool = False  # about the keys that producers gave: where the rows lie is right


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
    wrong = f"({expected}) <> {table.slot_sql}" if expected else None
    here = frozenset(active)
    waiting_for = frozenset(elsewhere)
    rows = checksum = waiting = 0
    lost: list[_Slot] = []
    misrouted: list[_Slot] = []
    for each in _by_slot(connection, table, wrong):
        if each.slot in here:
            rows += each.rows
            checksum += each.checksum
            if each.wrong:
                misrouted.append(each)
        elif each.slot in waiting_for:
            waiting += each.rows
        else:
            lost.append(each)
    checked = TableCheck(table.name, rows, checksum % MODULUS, waiting)
    faults = []
    without = [each for each in lost if each.slot is None]
    lost = [each for each in lost if each.slot is not None]
    if without:
        faults.append(
            Fault(
                shard,
                "rows without a slot, which no rebalance would move",
                f"Set their {table.slot_column.name}, or delete them.",
                table.name,
                rows=without[0].rows,
                example=_example(connection, table, f"{table.slot_sql} IS NULL"),
            )
        )
    if lost:
        faults.append(
            Fault(
                shard,
                "rows of slots that aren't active here",
                "If a rebalance moved the slots away, its `shardctl rebalance finish` deletes them; else find who wrote them, "
                "and move them to the shard that `shardctl route` names.",
                table.name,
                SlotSet.of(each.slot for each in lost if each.slot is not None),
                sum(each.rows for each in lost),
                _example(connection, table, f"{table.slot_sql} = {lost[0].slot}"),
            )
        )
    if misrouted:
        faults.append(
            Fault(
                shard,
                "rows whose routing key or time gives another slot than the one they have",
                "Find the producer that hashes otherwise or gives another key than the row's; see `shardctl route`. "
                "Then write the rows anew.",
                table.name,
                SlotSet.of(each.slot for each in misrouted if each.slot is not None),
                sum(each.wrong for each in misrouted),
                _example(connection, table, f"{wrong} AND {table.slot_sql} = {misrouted[0].slot}"),
                of_keys=True,
            )
        )
    return checked, faults


def _expected(product: str, table: SlotTable, kinds: Sequence[MessageType], rule: SlotRule) -> str | None:
    """None where the types that share the table disagree."""
    found = {expected_slot(product, table, kind, rule) for kind in kinds}
    return found.pop() if len(found) == 1 else None


def _by_slot(connection: Connection, table: SlotTable, wrong: str | None) -> Iterator[_Slot]:
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
    found = connection.exec_driver_sql(f"SELECT {listed} FROM {table.sql} WHERE {condition} LIMIT 1").first()  # noqa: S608
    return "" if found is None else key_of(tuple(found))


def check_parked(connection: Connection, shard: str, active: SlotSet) -> Iterator[Fault]:
    """Every parked message has its key, every key its messages. Of slots that aren't active, nobody asks."""
    same = and_(
        parked.c.slot == parked_keys.c.slot,
        parked.c.message_type == parked_keys.c.message_type,
        parked.c.partition_key == parked_keys.c.partition_key,
    )
    messages = (
        select(parked.c.slot, func.count(), func.min(parked.c.partition_key))
        .where(~select(parked_keys.c.slot).where(same).exists())
        .group_by(parked.c.slot)
    )
    keys = (
        select(parked_keys.c.slot, func.count(), func.min(parked_keys.c.partition_key))
        .where(~select(parked.c.position).where(same).exists())
        .group_by(parked_keys.c.slot)
    )
    here = frozenset(active)
    for query, table, what, do in (
        (messages, parked, "parked messages without their key, which nobody will apply", _MAKE_KEY),
        (keys, parked_keys, "parked keys without messages, which hold up later writes for nothing", _DELETE_KEY),
    ):
        found = [row for row in connection.execute(query).all() if row[0] in here]
        if found:
            slots = SlotSet.of(row[0] for row in found)
            yield Fault(shard, what, do, table.name, slots, sum(row[1] for row in found), key_of(found[0][2:]))


_MAKE_KEY = "Insert the missing row into shardctl_parked_keys; then `shardctl parked list` shows it."
_DELETE_KEY = "Delete the row from shardctl_parked_keys while no consumer of the shard runs."
