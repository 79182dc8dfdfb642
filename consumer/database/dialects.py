"""A batch as one parameter: JSON text that the database itself unfolds into typed rows.

One parameter instead of thousands keeps the consumer's CPU out of the way, and a body's numbers reach the database as they were
written. Each database has its own table function for this; the statements around it are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import CursorResult

from shardctl.fleet.settings.columns import ColumnType
from shardctl.shard.engine import HOLDS_MYSQL_SETTINGS, UNHEX
from shardctl.shard.jsonrows import Form, rows_of
from shardctl.shard.lanes import sharing_fence
from shardctl.wire.values import LIMITS, Limits, moment_of


def utc_text(text: str | None) -> str | None:
    """A timestamp in UTC and without an offset: as SQLAlchemy's DateTime writes it into SQLite, and as MySQL reads it."""
    moment = None if text is None else moment_of(text)
    return None if moment is None else moment.replace(tzinfo=None).isoformat(" ", "microseconds")


Result = CursorResult[Any]


@dataclass(frozen=True, slots=True)
class Inserted:
    """What `Dialect.insert_new` did: how many rows it inserted, whether no key was parked, and which rows, in hexadecimal
    digits of their identities, where they are fewer than it was given.
    """

    count: int
    none_parked: bool
    identities: Collection[str] = ()


class Dialect(Protocol):
    """What differs between databases in the consumer's statements. Each statement takes one parameter: the JSON text."""

    @property
    def share_fence(self) -> str:
        """Reads the fence's version and shares its row until the transaction ends. A second column: the session still has our
        settings.
        """

    @property
    def begin(self) -> tuple[str, ...]:
        """What opens a transaction, where the driver doesn't."""

    @property
    def reads_json_as_written(self) -> bool:
        """Reads a producer's JSON as we do: the last of two equal names, escapes in names, times with an offset, all digits.

        Else it is sent plain rows: texts, numbers and booleans; times by `utc_text`; decimals and JSON values as text.
        """

    @property
    def limits(self) -> Limits:
        """What it keeps exactly."""

    @property
    def has_on_conflict(self) -> bool:
        """Inserts rows, or else updates or skips them, in one statement, and returns which."""

    @property
    def lock_limit(self) -> str | None:
        """Limits how long a statement of the transaction waits for a lock: a template of `seconds`, and `least` and
        `most`, the whole ones beside it.
        """

    @property
    def usual_lock_limit(self) -> str | None:
        """Restores the session's own limit, where the end of the transaction doesn't."""

    @property
    def check_deferred(self) -> str | None:
        """Checks deferred constraints now."""

    def source(self, columns: Sequence[tuple[str, ColumnType]], forms: Mapping[str, Form] = {}) -> str:
        """A FROM item named `r` that yields one row for each object in the JSON array, with these columns in their forms."""

    def identity_of(self, digits: str) -> str:
        """The identity, as the inbox holds it, that an expression gives as hexadecimal digits."""

    def insert_new(self, insert: str, none_parked: str) -> str:
        """Inserts rows of the inbox that aren't there; to be run by `inserted`. Where it `has_on_conflict`."""

    def inserted(self, run: Callable[[tuple[Any, ...]], Result], text: str, count: int) -> Inserted:
        """Run what `insert_new` made, with its parameters, for `count` rows in the JSON text."""

    def same(self, column: str, kind: ColumnType) -> str:
        """Whether `t` and `r` hold the same in a quoted column: false for any two keys that we distinguish."""

    def update(self, table: str, columns: Sequence[str], source: str, where: str) -> str:
        """Sets quoted columns of `table`, called `t`, to those of `r`."""

    def delete(self, table: str, source: str, where: str) -> str:
        """Deletes the rows of `table`, called `t`, that have one in `r`."""

    def quote(self, identifier: str) -> str:
        """An identifier, or a dotted pair, as this database quotes it."""


def quoted(identifier: str, mark: str) -> str:
    return ".".join(f"{mark}{part}{mark}" for part in identifier.split("."))


class _Standard:
    """What PostgreSQL and SQLite agree on."""

    __slots__ = ()

    def same(self, column: str, kind: ColumnType) -> str:  # noqa: ARG002 - texts are equal by their bytes here
        return f"t.{column} = r.{column}"

    def update(self, table: str, columns: Sequence[str], source: str, where: str) -> str:
        assigned = ", ".join(f"{column} = r.{column}" for column in columns)
        return f"UPDATE {table} AS t SET {assigned} FROM {source} WHERE {where}"  # noqa: S608

    def delete(self, table: str, source: str, where: str) -> str:
        return f"DELETE FROM {table} AS t WHERE EXISTS (SELECT 1 FROM {source} WHERE {where})"  # noqa: S608

    def quote(self, identifier: str) -> str:
        return quoted(identifier, '"')


@dataclass(frozen=True, slots=True)
class PostgreSQL(_Standard):
    share_fence: str = sharing_fence("postgresql")
    begin: tuple[str, ...] = ()
    reads_json_as_written: bool = True
    limits: Limits = LIMITS["postgresql"]
    has_on_conflict: bool = True
    # A deferred constraint would fail at the commit, when it is too late to find which message violates it.
    check_deferred: str | None = "SET CONSTRAINTS ALL IMMEDIATE"
    lock_limit: str | None = "SET LOCAL lock_timeout = '{seconds}s'"
    usual_lock_limit: str | None = None

    def source(self, columns: Sequence[tuple[str, ColumnType]], forms: Mapping[str, Form] = {}) -> str:
        return rows_of("postgresql", columns, forms)

    def identity_of(self, digits: str) -> str:
        return f"CAST({digits} AS uuid)"

    def insert_new(self, insert: str, none_parked: str) -> str:
        """One row in answer to a batch: to send and to read one for each of a thousand costs more than to insert them."""
        return (
            f"WITH fresh AS ({insert} ON CONFLICT DO NOTHING RETURNING identity) SELECT count(*), {none_parked}, "  # noqa: S608
            "CASE WHEN count(*) < %s THEN replace(string_agg(CAST(identity AS text), ' '), '-', '') END FROM fresh"
        )

    def inserted(self, run: Callable[[tuple[Any, ...]], Result], text: str, count: int) -> Inserted:
        fresh, none_parked, identities = tuple[Any, ...](run((text, count)).one())
        return Inserted(fresh, none_parked, frozenset((identities or "").split()))


@dataclass(frozen=True, slots=True)
class SQLite(_Standard):
    share_fence: str = sharing_fence("sqlite")
    begin: tuple[str, ...] = ("BEGIN IMMEDIATE",)
    reads_json_as_written: bool = False
    limits: Limits = LIMITS["sqlite"]
    has_on_conflict: bool = True
    check_deferred: str | None = None
    lock_limit: str | None = None
    usual_lock_limit: str | None = None

    def source(self, columns: Sequence[tuple[str, ColumnType]], forms: Mapping[str, Form] = {}) -> str:
        return rows_of("sqlite", columns, forms)

    def identity_of(self, digits: str) -> str:
        return f"{UNHEX}({digits})"

    def insert_new(self, insert: str, none_parked: str) -> str:
        return f"{insert} ON CONFLICT DO NOTHING RETURNING identity, {none_parked}"

    def inserted(self, run: Callable[[tuple[Any, ...]], Result], text: str, count: int) -> Inserted:  # noqa: ARG002 - every row answers
        rows: list[tuple[Any, ...]] = [tuple(row) for row in run((text,))]
        none_parked = bool(rows and rows[0][1])
        return Inserted(len(rows), none_parked, frozenset(row[0].hex() for row in rows))


@dataclass(frozen=True, slots=True)
class MySQL:
    """MariaDB from 10.6 and MySQL from 8.0."""

    share_fence: str = sharing_fence("mysql", HOLDS_MYSQL_SETTINGS)
    begin: tuple[str, ...] = ()
    reads_json_as_written: bool = False
    limits: Limits = LIMITS["mariadb"]
    # There is `ON DUPLICATE KEY UPDATE`, but it fires on any unique index, and so would overwrite another key's row.
    has_on_conflict: bool = False
    check_deferred: str | None = None
    lock_limit: str | None = (
        "SET @shardctl_row_limit = @@innodb_lock_wait_timeout, @shardctl_table_limit = @@lock_wait_timeout, "
        "SESSION innodb_lock_wait_timeout = {most}, SESSION lock_wait_timeout = {most} "
        "/*M! , SESSION innodb_lock_wait_timeout = {least} */"  # MariaDB takes 0, which MySQL refuses
    )
    usual_lock_limit: str | None = (
        "SET SESSION innodb_lock_wait_timeout = @shardctl_row_limit, SESSION lock_wait_timeout = @shardctl_table_limit"
    )

    def source(self, columns: Sequence[tuple[str, ColumnType]], forms: Mapping[str, Form] = {}) -> str:
        return rows_of("mysql", columns, forms)

    def same(self, column: str, kind: ColumnType) -> str:
        if kind != "text":
            return f"t.{column} = r.{column}"
        # Whatever the column's character set and collation. Most pad, which makes 'a' and 'a ' equal but for their length.
        length = f"length(CONVERT(t.{column} USING utf8mb4)) = length(r.{column})"
        return f"t.{column} = r.{column} COLLATE utf8mb4_bin AND {length}"

    def update(self, table: str, columns: Sequence[str], source: str, where: str) -> str:
        assigned = ", ".join(f"t.{column} = r.{column}" for column in columns)
        return f"UPDATE {table} AS t JOIN {source} ON {where} SET {assigned}"  # noqa: S608

    def delete(self, table: str, source: str, where: str) -> str:
        return f"DELETE t FROM {table} AS t JOIN {source} ON {where}"

    def quote(self, identifier: str) -> str:
        return quoted(identifier, "`")

    def identity_of(self, digits: str) -> str:
        return f"unhex({digits})"

    def insert_new(self, insert: str, none_parked: str) -> str:
        raise NotImplementedError  # see `has_on_conflict`

    def inserted(self, run: Callable[[tuple[Any, ...]], Result], text: str, count: int) -> Inserted:
        raise NotImplementedError


DIALECTS: dict[str, Dialect] = {
    "postgresql": PostgreSQL(),
    "sqlite": SQLite(),
    "mysql": MySQL(),
    "mariadb": MySQL(),
}
