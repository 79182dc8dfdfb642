"""A table's columns as the database has them: what they hold, and in which form they take a value of the file's type.

A table that was there before may have narrower columns than `shardctl provision` would make, or other types for the same values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from shardctl.fleet.settings.columns import ColumnType
from shardctl.shard.engine import MYSQL
from shardctl.shard.jsonrows import Form


@dataclass(frozen=True, slots=True)
class TableColumn:
    """`native`: its type's name without a size, in lower case. None: no limit of this kind, or it has no such size."""

    name: str
    native: str
    places: int | None = None  # to which it rounds a decimal, or the seconds of a time
    characters: int | None = None
    octets: int | None = None
    labels: frozenset[str] | None = None  # of an enum
    cast: str = ""  # PostgreSQL: its type, as SQL; MySQL: character set and collation, as SQL
    is_padded: bool = False  # text loses its trailing blanks, bytes are filled up

    def form_of(self, product: str, column_type: ColumnType) -> Form | None:
        """What makes of a value, as `shardctl.shard.jsonrows` unfolds it, one that the column takes. None: nothing needs to."""
        if product == "postgresql":
            wants_cast = (
                self.labels is not None if column_type == "text" else column_type == "uuid" and self.native != "uuid"
            )
            return ("CAST(", f" AS {self.cast})") if wants_cast else None
        if column_type != "uuid" or product not in MYSQL:
            return None
        if self.native in {"binary", "varbinary"}:
            return "unhex(replace(", ", '-', ''))"
        if self.native == "uuid":
            return "CAST(", " AS uuid)"
        # In the column's own collation, so that its index is used.
        return ("CONVERT(", f" USING {self.cast}") if self.cast else None


def read(connection: Connection, table: str) -> Mapping[str, TableColumn]:
    """The columns of a table, which may be called `schema.table`. Empty where there is none, and on SQLite: it has no limits."""
    reader = _READERS.get(connection.dialect.name)
    return {column.name: column for column in reader(connection, table)} if reader else {}


# A numeric's scale is in its type's modifier: eleven bits with a sign. A text's is its length and four.
_POSTGRESQL = """
SELECT a.attname, base.typname, greatest(a.atttypmod, type.typtypmod), format_type(a.atttypid, NULL),
       (SELECT array_agg(enumlabel) FROM pg_enum WHERE enumtypid = base.oid)
FROM pg_attribute a JOIN pg_type type ON type.oid = a.atttypid
     JOIN pg_type base ON base.oid = CASE WHEN type.typtype = 'd' THEN type.typbasetype ELSE type.oid END
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped"""
_POSTGRESQL_INTEGERS = ("int2", "int4", "int8")


def _postgresql(connection: Connection, table: str) -> Iterator[TableColumn]:
    quoted = ".".join(f'"{part}"' for part in table.split("."))
    for name, native, modifier, cast, labels in connection.exec_driver_sql(_POSTGRESQL, (quoted,)):
        is_text = native in {"varchar", "bpchar"}
        places = 0 if native in _POSTGRESQL_INTEGERS else None
        if native == "numeric" and modifier >= 0:
            places = (((modifier - 4) & 2047) ^ 1024) - 1024
        elif native in {"timestamp", "timestamptz"} and modifier >= 0:
            places = modifier
        yield TableColumn(
            name, native, places,
            characters=modifier - 4 if is_text and modifier >= 0 else None,
            labels=None if labels is None else frozenset(labels),
            cast="bpchar" if cast == "character" else cast.replace("%", "%%"),  # the other would cut after one character
            is_padded=native == "bpchar",
        )  # fmt: skip


_MYSQL = """
SELECT column_name, lower(data_type), coalesce(datetime_precision, numeric_scale), character_maximum_length,
       character_octet_length, column_type, character_set_name, collation_name
FROM information_schema.columns
WHERE table_name = %s AND table_schema = coalesce(nullif(%s, ''), database())"""
_TEXTS = frozenset(("tinytext", "text", "mediumtext"))  # which hold so many bytes
_ROUNDED = frozenset(("decimal", "datetime", "timestamp"))
_LABEL = re.compile(r"'((?:[^']|'')*)'")


def _mysql(connection: Connection, table: str) -> Iterator[TableColumn]:
    space, _, table_name = table.rpartition(".")
    for row in connection.exec_driver_sql(_MYSQL, (table_name, space)):
        name, native, scale, characters, octets, column_type, character_set, collation = row
        is_sized = native in {"varchar", "char"}
        in_utf8 = (character_set or "").startswith("utf8")
        yield TableColumn(
            name, native,
            places=scale if native in _ROUNDED or native.endswith("int") else None,
            characters=characters if is_sized or (native in _TEXTS and not in_utf8) else None,
            octets=octets if native.endswith("binary") or (native in _TEXTS and in_utf8) else None,
            labels=frozenset(label.replace("''", "'") for label in _LABEL.findall(column_type)) if native == "enum" else None,
            cast=f"{character_set}) COLLATE {collation}" if collation else "",
            is_padded=native in {"char", "binary"},
        )  # fmt: skip


_Reader = Callable[[Connection, str], Iterator[TableColumn]]
_READERS: Mapping[str, _Reader] = {"postgresql": _postgresql, **dict.fromkeys(MYSQL, _mysql)}
READ = frozenset(_READERS)  # the products whose tables are read
