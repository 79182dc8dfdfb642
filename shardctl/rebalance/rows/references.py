"""Foreign keys between tables whose rows belong to slots: which ones a slot's rows can be moved under."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from sqlalchemy import Connection

from shardctl.rebalance.rows.shape import ForeignKey, SlotTable, crossing
from shardctl.rebalance.rows.values import MYSQL


def faulty_references(connection: Connection, tables: Iterable[SlotTable]) -> Iterator[str]:
    """Why rows can't be moved under the foreign keys there are, each reason with the way out. Reads all rows under them."""
    by_identity = {table.identity: table for table in tables}
    for table in by_identity.values():
        for key in table.foreign_keys:
            parent = by_identity.get(key.table)
            if parent is None:
                continue
            if _impossible_order(connection.dialect.name, table, key, by_identity):
                yield (
                    f"table {table.name}: its foreign key to {parent.name} closes a ring, and is checked row by row, so no "
                    "order of inserting satisfies it. Drop it, or make it DEFERRABLE where the database can."
                )
            apart = f"c.{table.slot_sql} <> p.{parent.slot_sql}"
            if connection.exec_driver_sql(crossing(connection.dialect.name, table, key, parent, apart)).first():
                yield (
                    f"table {table.name}: rows refer to rows of {parent.name} in other slots, which may come to lie in another "
                    "database. Give both one routing key, or drop the foreign key."
                )


def doubtful_references(tables: Collection[SlotTable]) -> Iterator[str]:
    """What rows refer to that isn't moved with them."""
    identities = {table.identity for table in tables}
    for table in tables:
        for key in table.foreign_keys:
            if key.table not in identities:
                yield (
                    f"table {table.name} refers to {key.table.rpartition('.')[2]}, whose rows aren't moved: each database must "
                    "have those that any slot refers to."
                )


def _impossible_order(product: str, table: SlotTable, key: ForeignKey, by_identity: Mapping[str, SlotTable]) -> bool:
    if product == "sqlite":
        return False  # all its checks can wait for the commit
    if key.table == table.identity:
        return product in MYSQL  # PostgreSQL checks after the statement
    return not (product == "postgresql" and key.deferrable) and _reaches(key.table, table.identity, by_identity)


def _reaches(start: str, end: str, by_identity: Mapping[str, SlotTable]) -> bool:
    seen, waiting = {start}, [start]
    while waiting:
        table = by_identity.get(waiting.pop())
        for key in table.foreign_keys if table else ():
            if key.table == end:
                return True
            if key.table not in seen:
                seen.add(key.table)
                waiting.append(key.table)
    return False
