"""What took effect on a row, in the order in which it did: recorded by the database itself, in a column of the row.

A final value shows only the last write. The history shows a write that took effect twice, or after a later one, even when the
next write hides it. It is in the row, so it moves with the row; a trigger fills it, so the judged code can't influence it. A row
that is copied whole, with a history, keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shardctl.fleet.spec import Fleet, Shard

COLUMN = "shardctl_history"
REVISION = "revision"  # of the entity: grows with each write of it; the stream of writes fills it
_COUNTING = ("integer", "bigint", "text")

_POSTGRESQL = (
    """CREATE OR REPLACE FUNCTION {column}() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'UPDATE' THEN NEW.{column} := concat_ws(' ', OLD.{column}, NEW.{revision});
        ELSIF NEW.{column} IS NULL THEN NEW.{column} := NEW.{revision};
        END IF;
        RETURN NEW;
    END $$""",
    """CREATE OR REPLACE TRIGGER {column} BEFORE INSERT OR UPDATE OF {revision} ON {table}
    FOR EACH ROW EXECUTE FUNCTION {column}()""",
)
_SQLITE = (  # its triggers can't change the new row, and don't fire each other
    """CREATE TRIGGER IF NOT EXISTS {column}_insert_{number} AFTER INSERT ON {table} WHEN NEW.{column} IS NULL
    BEGIN UPDATE {table} SET {column} = NEW.{revision} WHERE rowid = NEW.rowid; END""",
    """CREATE TRIGGER IF NOT EXISTS {column}_update_{number} AFTER UPDATE OF {revision} ON {table}
    BEGIN UPDATE {table} SET {column} = OLD.{column} || ' ' || NEW.{revision} WHERE rowid = NEW.rowid; END""",
)


def numbered(fleet: Fleet) -> Fleet:
    """The fleet with a revision in each table, as publishers use it."""
    return _with_columns(fleet, lambda columns: {REVISION: "bigint", **columns})


def recorded(fleet: Fleet) -> Fleet:
    """The same with the history in each table whose revision grows: as the databases and the oracle use it."""
    return _with_columns(
        numbered(fleet), lambda columns: {**columns, COLUMN: "text"} if columns[REVISION] in _COUNTING else columns
    )


Columns = dict[str, str]


def _with_columns(fleet: Fleet, changed: Callable[[Columns], Columns]) -> Fleet:
    kinds = {
        name: kind.model_copy(update={"columns": changed(kind.columns)}) if kind.table else kind
        for name, kind in fleet.message_types.items()
    }
    return fleet.model_copy(update={"message_types": kinds})


def keep(fleet: Fleet, shard: Shard, url: str) -> None:
    """From now on every row of the shard's database has a history. Safe to run again. `fleet` is a recorded one."""
    from sqlalchemy import create_engine

    engine = create_engine(url)
    quote = engine.dialect.identifier_preparer.quote
    statements = _POSTGRESQL if engine.dialect.name == "postgresql" else _SQLITE
    kinds = [kind for name, kind in fleet.message_types.items() if shard.takes(name) and COLUMN in kind.columns]
    try:
        with engine.begin() as connection:
            for number, kind in enumerate(kinds):
                table = ".".join(quote(part) for part in kind.table.split("."))
                for statement in statements:
                    connection.exec_driver_sql(
                        statement.format(table=table, column=COLUMN, revision=quote(REVISION), number=number)
                    )
    finally:
        engine.dispose()


def faults(history: str | None, written: Sequence[str]) -> tuple[list[str], list[str]]:
    """What took effect twice, and what took effect out of order, in the history of a row.

    `written` are the revisions that were written since the row was made, in order. Not each has to be in the history: writes that
    could share a statement are folded, and the last alone is sent.
    """
    place = {revision: number for number, revision in enumerate(written)}
    doubled, disordered, latest = [], [], -1
    seen: set[str] = set()
    for revision in (history or "").split():
        at = place.get(revision, -1)  # written before the row was made, or never: it doesn't belong here
        if revision in seen:
            doubled.append(revision)
        elif at < latest or at < 0:
            disordered.append(revision)
        seen.add(revision)
        latest = max(latest, at)
    if not seen:
        disordered += written[-1:]
    return doubled, disordered
