"""Tables that 0.1.0 made, brought to this version: its inbox knew a write by its idempotency key alone, and it parked a routing
key for all message types at once. The lanes' table only has a new name and a column more.

`begin` takes as long as there are parked messages, and no write commits meanwhile. From then on consumers of this version run,
while `finish` moves the inbox's rows:

    shardctl_inbox ──rename──▶ shardctl_inbox_0_1 ──rows, some a transaction──▶ shardctl_inbox ◀── consumers insert
                                      ▲ consumers look here first

Why no write is applied twice: nothing is inserted into the old table, and a row leaves it in the transaction that puts it into
the new one. So a row that was there when `begin` ended is visible in exactly one of both to each statement, and moves one way. A
consumer's statements each see what is committed when they begin. It looks a message up in the old table first, and inserts it
into the new one after that. If the move was committed before the first statement, the second meets the row; if not, the first
finds it. Nothing in between is left out, since the second statement sees no less than the first.

Why nobody goes by an old look at the tables: whether rows are left is read with the lanes, under the shared fence, and kept for
one version of it. `begin` renames under the fence taken alone, and `finish` raises its version once the old table is empty,
before it drops it. Parked messages' rows come over in `begin`, since a release changes them in the new table.

Consumers of 0.1.0 must not run beside either: `begin` is refused while one has been seen. Each step is a transaction, or changes
nothing when it is done again: all of it may be killed anywhere and run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Column, Connection, Engine, MetaData, Table, and_, delete, func, insert, inspect, select, tuple_

from shardctl.errors import ShardctlError
from shardctl.shard import database, inbox_0_1, schema
from shardctl.shard.engine import MYSQL
from shardctl.shard.lanes import take_fence_alone
from shardctl.shard.schema import InboxOutcome, published
from shardctl.wire import identity

ROWS_AT_ONCE = 2_000  # SQLite takes 32,766 parameters a statement
SEEN_WITHIN = timedelta(seconds=15)  # a consumer says every three that it is there
OLD, NEW = "_0_1", "_new"
NAMED_SEEN = 3
_AGAIN = (
    "{old} is being upgraded, and there is another {name} of 0.1.0: its `shardctl provision` was run meanwhile. Where no "
    "consumer has written to {name} since, drop it and run `shardctl provision` again."
)

Progress = Callable[[str, int], None]  # a table's name, and how many of its rows are done
Values = dict[str, Any]  # of one row, by column
MadeOf = Callable[[Connection, Values], list[Values]]  # the new rows of an old one


class UpgradeError(ShardctlError):
    """The tables can't be upgraded now: says why, and what to do first."""


def is_due(engine: Engine) -> bool:
    """Whether the database has tables of 0.1.0, or some on their way."""
    return bool(_due(engine)) or inspect(engine).has_table(inbox_0_1.NAME)


def begin(engine: Engine) -> tuple[str, ...]:
    """All that must be done before consumers of this version run; the names of the tables for which there was something to do.

    Safe to run again, wherever it ended before. `engine` is of `shardctl.shard.database`. Raises UpgradeError and DatabaseError.
    """
    due = _due(engine)
    if due:
        _refuse_beside_consumers(engine)
    elif _lacks(engine, schema.inbox.c.reason):  # consumers that don't know the column write beside it
        _add(engine, schema.inbox.c.reason)
        return (schema.inbox.name,)
    for table in due:
        if table is schema.lanes:
            if inspect(engine).has_table(schema.LANES_OF_0_1):
                _rename_lanes(engine)
            _add(engine, schema.lanes.c.log)
        elif table is schema.inbox:
            _put_inbox_beside(engine)
        else:
            _rewrite(engine, table, _MADE_OF[table])
    return tuple(table.name for table in due)


def finish(engine: Engine, progress: Progress = lambda _, __: None) -> bool:
    """Move what `begin` left in 0.1.0's inbox, while consumers run, and drop it; whether there was one. Likewise safe."""
    if not inspect(engine).has_table(inbox_0_1.NAME):
        return False
    old = Table(inbox_0_1.NAME, MetaData(), autoload_with=engine)
    done = 0
    for slot in _slots(engine, old):
        key = None
        while True:
            count, key = _move_some(engine, old, slot, key)
            if not count:
                break
            done += count
            progress(schema.inbox.name, done)
    with database.writing(engine) as connection:
        take_fence_alone(connection)  # from the commit on nobody looks there
        if inbox_0_1.has_rows(connection):
            raise UpgradeError(f"{old.name} still has rows: another tool writes to it. Stop it and run this again.")
    with database.writing(engine) as connection:
        old.drop(connection, checkfirst=True)
    return True


def _due(engine: Engine) -> list[Table]:
    """What `begin` has to do, in this order. The inbox last: from then on consumers may run."""
    inspector = inspect(engine)
    lanes = [schema.lanes] if inspector.has_table(schema.LANES_OF_0_1) or _lacks(engine, schema.lanes.c.log) else []
    rewritten = [table for table in _MADE_OF if inspector.has_table(table.name + OLD) or _is_old(engine, table)]
    return lanes + rewritten + ([schema.inbox] if _is_old(engine, schema.inbox) else [])


def _is_old(engine: Engine, table: Table) -> bool:
    inspector = inspect(engine)
    if not inspector.has_table(table.name):
        return False
    columns = {column["name"] for column in inspector.get_columns(table.name)}
    if table is schema.inbox:
        return inbox_0_1.KEY in columns
    return ("message_type" if table is schema.parked_keys else "identity") not in columns


def _refuse_beside_consumers(engine: Engine) -> None:
    if seen := seen_consumers(engine):
        raise UpgradeError(
            f"the tables are of shardctl 0.1.0, and consumers of that version run: {seen}. Scale "
            f"them to 0, wait {SEEN_WITHIN.seconds} s, run `shardctl provision` again, and deploy this version as soon as it "
            "says so. Writes wait in Pub/Sub meanwhile."
        )


def seen_consumers(engine: Engine) -> str:
    """The consumers that were there a moment ago, by the database's own clock, for people; "" where none has."""
    if not inspect(engine).has_table(schema.replicas.name):
        return ""
    with database.writing(engine) as connection:
        now = _utc(connection.execute(select(func.now())).scalar_one())
        replicas = connection.execute(select(schema.replicas.c.replica, schema.replicas.c.seen_time)).all()
    seen = sorted(row.replica for row in replicas if now - _utc(row.seen_time) < SEEN_WITHIN)
    more = f" and {len(seen) - NAMED_SEEN} more" if len(seen) > NAMED_SEEN else ""
    return f"{', '.join(seen[:NAMED_SEEN])}{more}"


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


def _lacks(engine: Engine, column: Column[Any]) -> bool:
    """Whether the column's table is there without it."""
    with engine.connect() as connection:
        return inspect(connection).has_table(column.table.name) and schema.lacks(connection, column)


def _add(engine: Engine, column: Column[Any]) -> None:
    """Without writing to a row: it is NULL in all of them."""
    with database.writing(engine) as connection:
        if schema.lacks(connection, column):
            kind = column.type.compile(engine.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {column.name} {kind}")


def _drop_empty(engine: Engine, old: str, new: str) -> None:
    """What a `shardctl provision` of 0.1.0 makes beside the renamed table has no rows."""
    with database.writing(engine) as connection:
        if connection.exec_driver_sql(f"SELECT 1 FROM {old} LIMIT 1").first():  # noqa: S608
            raise UpgradeError(
                f"{old}, of 0.1.0, has rows, and {new} is there: a tool of 0.1.0 wrote to it meanwhile. Look which of them says "
                f"what the shard owns, drop or empty the other, and run `shardctl provision` again."
            )
        connection.exec_driver_sql(f"DROP TABLE {old}")


def _put_inbox_beside(engine: Engine) -> None:
    """An inbox of this version in the place of the old one, with the rows of parked messages in it."""
    if inspect(engine).has_table(inbox_0_1.NAME):
        raise UpgradeError(_AGAIN.format(old=inbox_0_1.NAME, name=schema.inbox.name))
    old = Table(schema.inbox.name, MetaData(), autoload_with=engine)
    new = schema.inbox_called(schema.inbox.name + NEW)
    with database.writing(engine) as connection:
        for index in old.indexes:  # moving rows out would write to it
            index.drop(connection, checkfirst=True)
        new.create(connection, checkfirst=True)
    _move_parked(engine, old, new)
    with database.writing(engine) as connection:
        take_fence_alone(connection)
        if engine.dialect.name in MYSQL:
            with database.writing(engine) as other:  # its DDL would end the transaction that holds the fence
                other.exec_driver_sql(
                    f"RENAME TABLE {schema.inbox.name} TO {inbox_0_1.NAME}, {new.name} TO {schema.inbox.name}"
                )
            return
        _rename(connection, schema.inbox.name, inbox_0_1.NAME)
        if engine.dialect.name == "postgresql":
            key = old.primary_key.name
            connection.exec_driver_sql(f"ALTER TABLE {inbox_0_1.NAME} RENAME CONSTRAINT {key} TO {inbox_0_1.NAME}_pkey")
        _rename(connection, new.name, schema.inbox.name)
        if engine.dialect.name == "postgresql":
            _give_names(connection, schema.inbox.name, new.name)


def _move_parked(engine: Engine, old: Table, new: Table) -> None:
    """Found by their keys, so that this takes as long as there are parked messages, whatever the inbox's size."""
    with database.snapshot(engine) as connection:
        parked = connection.execute(select(schema.parked.c.slot, schema.parked.c.idempotency_key)).all()
    keys_by_slot: dict[int, list[str]] = {}
    for slot, key in parked:
        keys_by_slot.setdefault(slot, []).append(key)
    for slot, keys in keys_by_slot.items():
        for start in range(0, len(keys), ROWS_AT_ONCE):
            some = and_(old.c.slot == slot, _is_one_of(engine, old, keys[start : start + ROWS_AT_ONCE]))
            with database.writing(engine) as connection:
                _put(connection, new, connection.execute(select(old).where(some)).mappings().all())
                connection.execute(delete(old).where(some))


def _is_one_of(engine: Engine, old: Table, keys: Iterable[str]) -> Any:
    mysql = engine.dialect.name in MYSQL  # there the column holds bytes
    return old.c[inbox_0_1.KEY].in_([key.encode() if mysql else key for key in keys])


def _slots(engine: Engine, old: Table) -> list[int]:
    with database.snapshot(engine) as connection:
        return list(connection.scalars(select(old.c.slot).distinct().order_by(old.c.slot)))


def _move_some(engine: Engine, old: Table, slot: int, after: Any) -> tuple[int, Any]:
    """One transaction, in the order of the slot's keys; how many rows it had, and the last one's key."""
    key = old.c[inbox_0_1.KEY]
    rest = old.c.slot == slot if after is None else and_(old.c.slot == slot, key > after)
    with database.writing(engine) as connection:
        rows = connection.execute(select(old).where(rest).order_by(key).limit(ROWS_AT_ONCE)).mappings().all()
        if not rows:
            return 0, after
        last = rows[-1][inbox_0_1.KEY]
        _put(connection, schema.inbox, rows)
        connection.execute(delete(old).where(rest, key <= last))  # nothing is inserted there any more
        return len(rows), last


def _put(connection: Connection, new: Table, rows: Iterable[Mapping[Any, Any]]) -> None:
    _insert_missing(connection, new, [made for row in rows for made in _of_inbox(dict(row))])


def _rewrite(engine: Engine, table: Table, made_of: MadeOf) -> None:
    new = table.to_metadata(MetaData(), name=table.name + NEW)
    names = set(inspect(engine).get_table_names())
    if table.name + OLD not in names:
        with database.writing(engine) as connection:
            _rename(connection, table.name, table.name + OLD)
    elif _is_old(engine, table):
        raise UpgradeError(_AGAIN.format(old=table.name + OLD, name=table.name))
    old = Table(table.name + OLD, MetaData(), autoload_with=engine)
    if table.name not in names or table.name + OLD not in names:  # else only the last step is left
        _make(engine, old, new)
        while _move(engine, old, new, made_of):
            pass
        with database.writing(engine) as connection:
            _rename(connection, new.name, table.name)
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
            connection.execute(insert(new), [made for row in rows for made in made_of(connection, dict(row))])
            connection.execute(
                delete(old).where(tuple_(*key).in_([tuple(row[column.name] for column in key) for row in rows]))
            )
    return len(rows)


def _insert_missing(connection: Connection, new: Table, rows: list[Values]) -> None:
    """Two old rows may be one write: then the first stays."""
    by_key = {(row["slot"], row["identity"]): row for row in reversed(rows)}
    for slot in {slot for slot, _ in by_key}:
        identities = [its_identity for of_slot, its_identity in by_key if of_slot == slot]
        places = select(new.c.identity).where(new.c.slot == slot, new.c.identity.in_(identities))
        there = set(connection.scalars(places))
        if missing := [by_key[slot, its_identity] for its_identity in identities if its_identity not in there]:
            connection.execute(insert(new), sorted(missing, key=lambda row: row["identity"]))


def _rename(connection: Connection, name: str, to: str) -> None:
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


def _of_inbox(old: Values) -> list[Values]:
    """One row, or two: see `inbox_0_1.identities`. A replay's note doesn't say any more which write it is of."""
    key, outcome = _text(old[inbox_0_1.KEY]), InboxOutcome(old["outcome"])
    moment = _utc(old["publish_time"])
    kept = {
        "slot": old["slot"],
        "fingerprint": None,
        "published": published(int(moment.timestamp()) * 1_000_000),
    }
    if key.startswith(inbox_0_1.NOTE) and outcome == InboxOutcome.REPLAYED:
        note = identity.in_slot(identity.of_note(key), old["slot"])
        return [{**kept, "identity": note, "key_hash": 0, "outcome": outcome}]
    kept["key_hash"] = identity.key_hash(old["message_type"], old["partition_key"])
    first, *second = inbox_0_1.identities(old["slot"], key, old["message_type"], old["message_id"])
    # What is parked is settled under the first alone; the second must not wait for ever.
    of_second = InboxOutcome.APPLIED if outcome == InboxOutcome.PARKED else outcome
    return [
        {**kept, "identity": first, "outcome": outcome},
        *({**kept, "identity": its_identity, "outcome": of_second} for its_identity in second),
    ]


def _of_parked(_: Connection, old: Values) -> list[Values]:
    """In the order of their positions, which start again at one."""
    del old["position"]
    key = old["idempotency_key"] = _text(old["idempotency_key"])
    old["partition_key"] = _text(old["partition_key"])
    known_by = inbox_0_1.identities(old["slot"], key, old["message_type"], old["message_id"])[0]
    return [{**old, "identity": known_by}]


def _of_parked_key(connection: Connection, old: Values) -> list[Values]:
    """One row for each message type that waits there, with the key's reason: a person looks at each."""
    key = old["partition_key"] = _text(old["partition_key"])
    waiting = select(schema.parked.c.message_type).where(
        schema.parked.c.slot == old["slot"], schema.parked.c.partition_key == key
    )
    return [{**old, "message_type": kind} for kind in sorted(set(connection.scalars(waiting)))]


# Parked keys first: their types are read from the parked messages.
_MADE_OF: Mapping[Table, MadeOf] = {schema.parked_keys: _of_parked_key, schema.parked: _of_parked}


def _text(value: str | bytes) -> str:
    """MySQL's tables hold keys as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _utc(moment: datetime) -> datetime:
    """SQLite and MySQL keep UTC without saying so."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
