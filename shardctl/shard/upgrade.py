"""Tables that 0.1.0 made, rewritten for this version: its inbox knew a write by its idempotency key alone, and it
parked a routing key for all message types at once. The lanes' table only has a new name and a column more.

    shardctl_inbox ──rename──▶ shardctl_inbox_0_1 ──rows, a batch a transaction──▶ shardctl_inbox_new ──rename──▶ shardctl_inbox

Invariant: while rows are on their way there is no table with the name that a consumer uses, so no write commits without the whole
inbox to compare it with. A rename waits for every transaction that has used the table. Consumers of 0.1.0 that still run would
only fail and try again, but that is an outage: the upgrade is refused while one has been seen.

Rows go from one table to the other, and each batch commits with its deletion: the upgrade may be killed anywhere and run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, Table, delete, func, insert, inspect, select, tuple_

from shardctl.errors import ShardctlError
from shardctl.shard import database, schema
from shardctl.shard.schema import InboxOutcome
from shardctl.wire import identity

ROWS_AT_ONCE = 500  # SQLite takes 32,766 parameters a statement
SEEN_WITHIN = timedelta(seconds=15)  # a consumer says every three that it is there
OLD, NEW = "_0_1", "_new"
NOTE = "shardctl-letter:"  # what 0.1.0 began the key of a replay's note with
NAMED_SEEN = 3

Progress = Callable[[str, int], None]  # a table's name, and how many of its rows are done
Values = dict[str, Any]  # of one row, by column
MadeOf = Callable[[Connection, Values], list[Values]]  # the new rows of an old one


class UpgradeError(ShardctlError):
    """The tables can't be upgraded now: says why, and what to do first."""


def is_due(engine: Engine) -> bool:
    """Whether the database has tables of 0.1.0, or some on their way."""
    return bool(_due(engine))


def upgrade(engine: Engine, progress: Progress = lambda _, __: None) -> tuple[str, ...]:
    """Bring the tables of 0.1.0 to this version; the names of those that were due. Safe to run again, wherever it ended before.

    `engine` is of `shardctl.shard.database`. Raises UpgradeError and DatabaseError.
    """
    due = _due(engine)
    if due:
        _refuse_beside_consumers(engine)
    for table in due:
        if table is schema.lanes:
            if inspect(engine).has_table(schema.LANES_OF_0_1):
                _rename_lanes(engine)
            _add_log(engine)
        else:
            _rewrite(engine, table, _MADE_OF[table], progress)
    return tuple(table.name for table in due)


def _due(engine: Engine) -> list[Table]:
    """In the order in which they are upgraded."""
    lanes = [schema.lanes] if inspect(engine).has_table(schema.LANES_OF_0_1) or _lacks_log(engine) else []
    return lanes + [table for table in _MADE_OF if _is_due(engine, table)]


def _is_due(engine: Engine, table: Table) -> bool:
    return inspect(engine).has_table(table.name + OLD) or _is_old(engine, table)


def _is_old(engine: Engine, table: Table) -> bool:
    new_column = "message_type" if table is schema.parked_keys else "identity"
    inspector = inspect(engine)
    return inspector.has_table(table.name) and not any(
        each["name"] == new_column for each in inspector.get_columns(table.name)
    )


def _refuse_beside_consumers(engine: Engine) -> None:
    """By the database's own clock."""
    if not inspect(engine).has_table(schema.replicas.name):
        return
    with database.writing(engine) as connection:
        now = _utc(connection.execute(select(func.now())).scalar_one())
        told = connection.execute(select(schema.replicas.c.replica, schema.replicas.c.seen_time)).all()
    seen = sorted(row.replica for row in told if now - _utc(row.seen_time) < SEEN_WITHIN)
    if seen:
        more = f" and {len(seen) - NAMED_SEEN} more" if len(seen) > NAMED_SEEN else ""
        raise UpgradeError(
            f"the tables are of shardctl 0.1.0, and consumers of that version run: {', '.join(seen[:NAMED_SEEN])}{more}. Scale "
            f"them to 0, wait {SEEN_WITHIN.seconds} s, run `shardctl provision` again, then deploy this version. Writes wait in "
            "Pub/Sub meanwhile."
        )


def _rename_lanes(engine: Engine) -> None:
    """One transaction; on MySQL and MariaDB one statement."""
    old, new = schema.LANES_OF_0_1, schema.lanes.name
    if inspect(engine).has_table(new):
        _drop_empty(engine, old, new)
        return
    with database.writing(engine) as connection:
        connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")
        if engine.dialect.name == "postgresql":
            _give_names(connection, new, old)


def _lacks_log(engine: Engine) -> bool:
    with engine.connect() as connection:
        return inspect(connection).has_table(schema.lanes.name) and schema.lacks_log(connection)


def _add_log(engine: Engine) -> None:
    column = schema.lanes.c.log
    with database.writing(engine) as connection:
        if schema.lacks_log(connection):
            kind = column.type.compile(engine.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {schema.lanes.name} ADD COLUMN {column.name} {kind}")


def _drop_empty(engine: Engine, old: str, new: str) -> None:
    """What a `shardctl provision` of 0.1.0 makes beside the renamed table has no rows."""
    with database.writing(engine) as connection:
        if connection.exec_driver_sql(f"SELECT 1 FROM {old} LIMIT 1").first():  # noqa: S608
            raise UpgradeError(
                f"{old}, of 0.1.0, has rows, and {new} is there: a tool of 0.1.0 wrote to it meanwhile. Look which of them says "
                f"what the shard owns, drop or empty the other, and run `shardctl provision` again."
            )
        connection.exec_driver_sql(f"DROP TABLE {old}")


def _rewrite(engine: Engine, table: Table, made_of: MadeOf, progress: Progress) -> None:
    new = table.to_metadata(MetaData(), name=table.name + NEW)
    names = set(inspect(engine).get_table_names())
    if table.name + OLD not in names:
        _rename(engine, table.name, table.name + OLD)
    elif _is_old(engine, table):
        raise UpgradeError(
            f"{table.name}{OLD} is being upgraded, and there is another {table.name} of 0.1.0: its `shardctl provision` was run "
            f"meanwhile. Where no consumer has written to {table.name} since, drop it and run `shardctl provision` again."
        )
    old = Table(table.name + OLD, MetaData(), autoload_with=engine)
    if table.name not in names or table.name + OLD not in names:  # else only the last step is left
        _make(engine, old, new)
        done = 0
        while count := _move(engine, old, new, made_of):
            done += count
            progress(table.name, done)
        _rename(engine, new.name, table.name)
    with database.writing(engine) as connection:
        if connection.execute(select(old).limit(1)).first():
            raise UpgradeError(
                f"{old.name} still has rows, and {table.name} is there: move them by hand, or restore a backup."
            )
        old.drop(connection)
        if engine.dialect.name == "postgresql":
            _give_names(connection, table.name, table.name + NEW)


def _make(engine: Engine, old: Table, new: Table) -> None:
    with database.writing(engine) as connection:
        for index in old.indexes:  # PostgreSQL and SQLite want each name once a schema
            index.drop(connection, checkfirst=True)
        new.create(connection, checkfirst=True)
        for index in new.indexes:  # MySQL commits each statement by itself
            index.create(connection, checkfirst=True)


def _move(engine: Engine, old: Table, new: Table, made_of: MadeOf) -> int:
    """One batch, in the order of its key; how many rows it had."""
    key = list(old.primary_key.columns)
    with database.writing(engine) as connection:
        rows = connection.execute(select(old).order_by(*key).limit(ROWS_AT_ONCE)).mappings().all()
        if rows:
            _insert_missing(connection, new, [made for row in rows for made in made_of(connection, dict(row))])
            connection.execute(
                delete(old).where(tuple_(*key).in_([tuple(row[each.name] for each in key) for row in rows]))
            )
    return len(rows)


def _insert_missing(connection: Connection, new: Table, rows: list[Values]) -> None:
    """Two old rows may be one write: then the first stays."""
    if "identity" not in new.primary_key.columns:
        connection.execute(insert(new), rows)
        return
    by_key = {(row["slot"], row["identity"]): row for row in reversed(rows)}
    places = select(new.c.slot, new.c.identity).where(tuple_(new.c.slot, new.c.identity).in_(list(by_key)))
    there = {(slot, bytes(its_identity)) for slot, its_identity in connection.execute(places)}
    if missing := [row for key, row in by_key.items() if key not in there]:
        connection.execute(insert(new), missing)


def _rename(engine: Engine, name: str, to: str) -> None:
    with database.writing(engine) as connection:
        connection.exec_driver_sql(f"ALTER TABLE {name} RENAME TO {to}")


def _give_names(connection: Connection, name: str, before: str) -> None:
    """To what PostgreSQL named after the table when it was called `before`: its constraints, indexes and sequence."""
    like = f"{before}_".replace("_", "\\_") + "%"
    constraints = "SELECT conname FROM pg_constraint WHERE conname LIKE %s AND conrelid = to_regclass(%s)"
    for (constraint,) in connection.exec_driver_sql(constraints, (like, name)).all():
        renamed = constraint.replace(before, name, 1)
        connection.exec_driver_sql(f"ALTER TABLE {name} RENAME CONSTRAINT {constraint} TO {renamed}")
    relations = (
        "SELECT relname FROM pg_class WHERE relname LIKE %s AND relnamespace = to_regnamespace(current_schema()::text)"
    )
    for (relation,) in connection.exec_driver_sql(relations, (like,)).all():
        connection.exec_driver_sql(f"ALTER TABLE {relation} RENAME TO {relation.replace(before, name, 1)}")


# --- what becomes of a row ----------------------------------------------------------------------------------------------


def _of_inbox(_: Connection, old: Values) -> list[Values]:
    """One row, or two: a message without a key was known by its id, and a copy of it that 0.1.0 published has that as its key."""
    key = _text(old.pop("idempotency_key"))
    kept = {**old, "fingerprint": None}
    if key.startswith(NOTE) and old["outcome"] == InboxOutcome.REPLAYED:
        return [{**kept, "identity": identity.of_note(key)}]
    by_key, by_message = identity.of_key("", old["message_type"], key), identity.of_message(key)
    if key == old["message_id"]:
        first, second = by_message, by_key
    elif key.isdecimal():
        first, second = by_key, by_message
    else:
        return [{**kept, "identity": by_key}]
    # What is parked is settled under the first alone; the second must not wait for ever.
    outcome = InboxOutcome.APPLIED if old["outcome"] == InboxOutcome.PARKED else old["outcome"]
    return [{**kept, "identity": first}, {**kept, "identity": second, "outcome": outcome}]


def _of_parked(_: Connection, old: Values) -> list[Values]:
    """In the order of their positions, which are counted anew."""
    del old["position"]
    key = old["idempotency_key"] = _text(old["idempotency_key"])
    old["partition_key"] = _text(old["partition_key"])
    is_id = key == old["message_id"]
    return [{**old, "identity": identity.of_message(key) if is_id else identity.of_key("", old["message_type"], key)}]


def _of_parked_key(connection: Connection, old: Values) -> list[Values]:
    """One row for each message type that waits there, with the key's reason: a person looks at each."""
    key = old["partition_key"] = _text(old["partition_key"])
    waiting = select(schema.parked.c.message_type).where(
        schema.parked.c.slot == old["slot"], schema.parked.c.partition_key == key
    )
    return [{**old, "message_type": kind} for kind in sorted(set(connection.scalars(waiting)))]


# Parked keys first: their types are read from the parked messages. The inbox last: consumers wait for it.
_MADE_OF: Mapping[Table, MadeOf] = {
    schema.parked_keys: _of_parked_key,
    schema.parked: _of_parked,
    schema.inbox: _of_inbox,
}


def _text(value: str | bytes) -> str:
    """MySQL's tables hold keys as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _utc(moment: datetime) -> datetime:
    """SQLite and MySQL keep UTC without saying so."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
