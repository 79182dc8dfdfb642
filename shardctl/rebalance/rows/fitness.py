"""Whether rows can be moved from one database to another at all: asked before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from sqlalchemy import Connection, Engine, inspect
from sqlalchemy import types as sa

from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.rebalance.rows.obstacles import obstacles
from shardctl.rebalance.rows.references import doubtful_references, faulty_references
from shardctl.rebalance.rows.shape import Column, Named, SlotTable, SlotTableError, look_at
from shardctl.rebalance.rows.tables import named, remember, slot_tables
from shardctl.rebalance.rows.values import MYSQL, Kind, meeting
from shardctl.shard import database
from shardctl.shard.engine import MAX_PACKET
from shardctl.shard.keys import given_out


def unfit(source: Engine, destination: Engine, kinds: Mapping[str, MessageType]) -> list[str]:
    """Why rows of these message types can't be moved, each reason with the way out. Empty where they can.

    Looks at every table again, which spares the first slot that; and at all rows of tables that refer to each other.
    """
    try:
        wanted = named(kinds)
    except SlotTableError as error:
        return [str(error)]
    reasons: list[str] = []
    with database.snapshot(source) as old_side, database.snapshot(destination) as new_side:
        here, there = _look(old_side, wanted, "source", reasons), _look(new_side, wanted, "destination", reasons)
        for name, table in here.items():
            if name in there:
                reasons += differences(old_side.dialect.name, table, new_side.dialect.name, there[name])
        reasons += _smaller_packets(old_side, new_side)
        for connection, tables in ((old_side, here), (new_side, there)):
            reasons += given_out(connection, kinds)
            reasons += [reason for table in tables.values() for reason in _of_one_side(connection.dialect.name, table)]
            if in_the_way := list(obstacles(connection, tuple(tables.values()))):
                reasons += in_the_way
            else:  # else not all rows may be seen
                reasons += faulty_references(connection, tables.values())
        if not reasons:
            remember(source, wanted, here.values())
            remember(destination, wanted, there.values())
    return list(dict.fromkeys(reasons))


def _smaller_packets(source: Connection, destination: Connection) -> Iterator[str]:
    """A row that the source took in one request, the destination must take in one as well."""
    here, there = source.info.get(MAX_PACKET), destination.info.get(MAX_PACKET)
    if here and there and there < here:
        yield (
            f"the destination's max_allowed_packet is {there:,} and the source's {here:,}: a large row could not be copied. "
            f"Set it to at least {here:,} there."
        )


def doubts(source: Engine, destination: Engine, kinds: Mapping[str, MessageType]) -> list[str]:
    """What may go wrong or be slow, though rows can be moved. For databases where `unfit` finds nothing."""
    reasons: list[str] = []
    with database.snapshot(source) as old_side, database.snapshot(destination) as new_side:
        here, there = slot_tables(old_side, kinds), {table.name: table for table in slot_tables(new_side, kinds)}
        for table in here:
            reasons += _doubtful(old_side.dialect.name, table, new_side.dialect.name, there[table.name])
        reasons += doubtful_references(there.values())
        reasons += [
            f"table {name} has a trigger at the destination. It fires for each row that is moved there; where it changes the "
            "row, the slot is not handed over."
            for name in _with_triggers(new_side, there.values())
        ]
    return list(dict.fromkeys(reasons))


def _look(connection: Connection, wanted: Iterable[Named], side: str, reasons: list[str]) -> dict[str, SlotTable]:
    inspector, tables = inspect(connection), {}
    for entry in wanted:
        try:
            table = look_at(inspector, entry)
        except SlotTableError as error:
            reasons.append(str(error))
            continue
        if table is None:
            reasons.append(
                f"table {entry.name} is missing at the {side}. `shardctl provision` creates those of message types."
            )
        else:
            tables[entry.name] = table
    return tables


def differences(source: str, table: SlotTable, destination: str, other: SlotTable) -> Iterator[str]:
    """Why the rows of one table can't all lie in the other, each with the way out. `source` and `destination` are products."""
    here = {column.name: column for column in table.columns}
    there = {column.name: column for column in other.columns}
    for name in sorted(here.keys() ^ there.keys()):
        side = "destination" if name in here else "source"
        generated = name in (table.every_column & other.every_column)
        fault = "is generated at one side alone" if generated else f"is missing at the {side}"
        yield f"table {table.name}: column {name} {fault}. Make the table the same in both databases."
    if source == destination:
        made_here, made_there = dict(table.generated), dict(other.generated)
        for name in sorted(made_here.keys() & made_there.keys()):
            if made_here[name] != made_there[name]:
                yield (
                    f"table {table.name}: column {name} is generated as {made_there[name]} at the destination, and as "
                    f"{made_here[name]} at the source. Make it the same in both databases."
                )
    for name in sorted(here.keys() & there.keys()):
        column, to = here[name], there[name]
        what = f"table {table.name}, column {name}"
        if Kind.UNKNOWN in {column.kind, to.kind} and not source == destination == "sqlite":
            yield f"{what}: its type is one that shardctl can't move. Change it, or keep the table out of slot_tables."
        elif meeting(column.kind, to.kind) is None:
            yield f"{what}: {column.native} can't become {to.native}. Give it one type in both databases."
        elif not table.named.own and _narrower(source, column, destination, to):
            yield (
                f"{what}: {to.native} at the destination can't hold all of {column.native} at the source. "
                "Give it one type in both databases."
            )


def _narrower(source: str, column: Column, destination: str, to: Column) -> bool:
    """Whether `to` holds less. Where the products differ, a type without a bound is taken to hold what a bounded one can."""
    same = source == destination
    if destination == "sqlite" or (same and column.native == to.native):
        return False
    if column.kind is to.kind is Kind.INTEGER:
        return _integer_bytes(to.type) < _integer_bytes(column.type)
    if column.kind is to.kind is Kind.MOMENT:
        return to.precision < column.precision
    if column.kind is to.kind is Kind.DOUBLE:
        return isinstance(column.type, sa.Double) and not isinstance(to.type, sa.Double)
    if column.kind is to.kind is Kind.DECIMAL:
        return _less(_whole_digits(column.type), _whole_digits(to.type), same=same) or _less(
            getattr(column.type, "scale", None), getattr(to.type, "scale", None), same=same
        )
    return _less(getattr(column.type, "length", None), getattr(to.type, "length", None), same=same)


def _less(wanted: int | None, there: int | None, *, same: bool) -> bool:
    if there is None:
        return False
    return same if wanted is None else there < wanted


def _whole_digits(column_type: sa.TypeEngine[object]) -> int | None:
    precision: int | None = getattr(column_type, "precision", None)
    return None if precision is None else precision - (getattr(column_type, "scale", None) or 0)


def _integer_bytes(column_type: sa.TypeEngine[object]) -> int:
    names = {"TINYINT": 1, "SMALLINT": 2, "MEDIUMINT": 3, "BIGINT": 8}
    return names.get(type(column_type).__name__.upper(), 4)


def _of_one_side(product: str, table: SlotTable) -> Iterator[str]:
    slot = table.slot_column
    if slot.kind is not Kind.INTEGER:
        yield f"table {table.name}: its slot column {slot.name} is {slot.native}. Make it an integer."
    in_keys = {column for key in table.unique for column in key}
    for column in table.columns:
        if product == "postgresql" and column.native.rpartition(".")[2] in {"oid", "lo"}:
            yield (
                f"table {table.name}: column {column.name} is {column.native}, which names a large object of its own database, "
                "and these aren't moved. Store the bytes in a bytea column."
            )
        if column.numbered and column.name in in_keys and column.name not in table.named.given:
            yield (
                f"table {table.name}: the database itself numbers column {column.name}, so rows of two shards have equal "
                "numbers and can't lie in one table. Let the message or the sink give it, such as a UUID."
            )


def _doubtful(source: str, table: SlotTable, destination: str, other: SlotTable) -> Iterator[str]:
    there = {column.name: column for column in other.columns}
    for side, side_table in (("source", table), ("destination", other)):
        if not side_table.indexed:
            yield (
                f"table {side_table.name}: no index at the {side} begins with {side_table.slot_column.name}, so moving a slot "
                "reads the whole table while its writes wait. Make one."
            )
    for column in table.columns:
        to = there[column.name]
        if column.nullable and not to.nullable:
            yield f"table {table.name}: column {column.name} may be NULL at the source, not at the destination."
        if destination == "sqlite" != source and column.kind is Kind.DECIMAL:
            yield f"table {table.name}: SQLite keeps 15 digits of {column.name}; a slot with a longer number isn't moved."


def _with_triggers(connection: Connection, tables: Iterable[SlotTable]) -> list[str]:
    product = connection.dialect.name
    with_triggers = []
    for table in tables:
        space, _, name = table.name.rpartition(".")
        if product == "postgresql":
            query = "SELECT 1 FROM pg_trigger WHERE tgrelid = CAST(%s AS regclass) AND NOT tgisinternal"
            parameters: tuple[str, ...] = (table.sql.replace("%%", "%"),)
        elif product in MYSQL:
            query = (
                "SELECT 1 FROM information_schema.triggers WHERE event_object_table = %s "
                "AND event_object_schema = coalesce(nullif(%s, ''), database())"
            )
            parameters = (name, space)
        else:
            query = "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE"
            parameters = (name,)
        if connection.exec_driver_sql(query, parameters).first() is not None:
            with_triggers.append(table.name)
    return with_triggers
