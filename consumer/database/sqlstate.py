"""What a database's error means for the write that met it: permanent, or to be tried again.

An error that is tried again is `alone` where the server works and other writes succeed: then these don't wait with it. It is
`of_type` where a statement of a sink meets what its message type needs and isn't there: then the type waits alone.

The rule: a write is permanently at fault only where its own values are refused. Whatever an operator can repair without touching
the message is tried again, in order, until it is repaired: dead-lettering would empty a topic for a fault that is not the data's.
An error that isn't listed is tried again, too. Each line says why.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy.exc import DBAPIError


class Verdict(NamedTuple):
    """`reason` is a stable word for what is wrong with the data; None where the write is tried again. `why` is for people.

    `alone`: the server works, and only the writes that meet the error have to wait. Else it concerns them all; one that is
    `of_type`, in a statement of a sink, all writes of the message type and no others.
    """

    reason: str | None
    why: str = ""
    alone: bool = False
    of_type: bool = False


def _value(why: str) -> Verdict:
    return Verdict("bad_value", why)


def _constraint(why: str) -> Verdict:
    return Verdict("constraint", why)


def _again(why: str) -> Verdict:
    return Verdict(None, why)


def _alone(why: str) -> Verdict:
    return Verdict(None, why, alone=True)


def _of_type(why: str) -> Verdict:
    return Verdict(None, why, of_type=True)


_UNKNOWN = _again("")
_NO_TABLE = _of_type("`shardctl provision` makes a missing table of shards.yaml")
_NO_COLUMN = _of_type("`shardctl migrate plan` drafts a missing column, `shardctl migrate apply` adds it")
_NO_RIGHT = _of_type("a right is missing: grant it")

# By SQLSTATE, or else by its class: PostgreSQL, and errors of MySQL whose number is not listed.
STATES: Mapping[str, Verdict] = {
    # --- the write's own values
    "22": _value("a value is not what its column or a function takes"),
    "21": _constraint("two writes of one statement meet in one row, which the search for the fault separates"),
    "23": _constraint("a constraint of the table refuses the row"),
    "44": _constraint("the view's WITH CHECK OPTION refuses the row"),
    "45": _constraint("an error of the user's own, raised to refuse the row"),
    "P0001": _constraint("a trigger raises it to refuse the row"),
    "P0002": _constraint("a trigger looks the row's values up and finds nothing, which is a foreign key by other means"),
    "P0003": _constraint("a trigger looks the row's values up and finds several rows"),
    "54000": _value("a value is over a limit of the server, such as the size of an index entry"),
    # --- what an operator repairs
    "2200H": _alone("a sequence is at its end: raise its MAXVALUE, or make its column and the sequence BIGINT"),
    "27": _alone("a trigger changes the row that is being written: repair the trigger"),
    "P0": _alone("a trigger failed without refusing the row: repair it, or the rows that it reads"),
    "54": _alone("a setting of the server or a trigger that calls itself, as max_stack_depth; no value of the write"),
    "38": _alone("a function failed without refusing the row: repair it"),
    "39": _alone("a function broke its contract with the server: repair it"),
    "2F": _alone("a function failed without refusing the row: repair it"),
    "20": _alone("a CASE in a trigger has no branch for the row: repair the trigger"),
    "0A": _alone("the table is a kind of object that can't be written to so"),
    "42": _of_type("the table isn't as shards.yaml has it, or a function or an index is missing: deploy it"),
    "42P01": _NO_TABLE,
    "42703": _NO_COLUMN,
    "42501": _NO_RIGHT,
    "3D": _again("the database is missing"),
    "3F": _of_type("the table's schema is missing: create it"),
    "28": _again("the user may not connect"),
    "25": _again("the server takes no writes now, or it ended the transaction"),
    "40": _alone("a deadlock or a conflict with another transaction"),
    "53": _again("the server is out of disk, memory or connections"),
    "55": _alone("a lock or an object is in use"),
    "57": _again("an operator ended it"),
    "57014": _alone("a time limit or a person ended the statement"),
    "58": _again("the server's disk or system failed"),
    "08": _again("the connection failed"),
    "F0": _again("the server's configuration is at fault"),
    "HV": _again("a foreign data wrapper failed"),
    "XX": _again("an error inside the server"),
}  # fmt: skip

# Raised by these files of PostgreSQL, 54000 says that transaction numbers or a relation's blocks are used up.
_USED_UP_FILES = frozenset(("varsup.c", "multixact.c", "md.c", "bufmgr.c"))
_USED_UP = _again("transaction numbers or a table's blocks are used up: VACUUM, or partition the table")
# A check violation without a constraint's name comes from partitioning, unless a function of the user's raised it.
_FUNCTIONS_FILES = frozenset(("pl_exec.c", "plpy_elog.c", "plperl.c", "pltcl.c"))
_NO_PARTITION = _alone("no partition takes the row: create it")

# MySQL's and MariaDB's numbers, since many of these have the SQLSTATE HY000, and 23000 is also an ambiguous column's.
NUMBERS: Mapping[int, Verdict] = {
    # --- the write's own values
    **dict.fromkeys((1264, 1690), _value("out of the column's range")),
    **dict.fromkeys((1265, 1292, 1366, 1367, 1411, 1416, 1525), _value("not a value of the column's type")),
    1365: _value("a division by zero of the row's values, in a trigger"),
    **dict.fromkeys((1406, 1118), _value("longer than the column or the row may be")),
    **dict.fromkeys(
        (3140, 3141, 3156, 3157, 3669, 4037, 4038, 4176, 4177, 4178), _value("JSON that is none, doesn't fit or is too deep")
    ),
    **dict.fromkeys((1022, 1062, 1169, 1557, 1586, 1761, 1762), _constraint("a duplicate key")),
    **dict.fromkeys((1048, 1263, 1364), _constraint("NOT NULL")),
    **dict.fromkeys((1216, 1217, 1451, 1452), _constraint("a foreign key")),
    **dict.fromkeys((3819, 4025), _constraint("a CHECK")),
    1369: _constraint("the view's WITH CHECK OPTION"),
    **dict.fromkeys((1643, 1644), _constraint("a trigger's SIGNAL, raised to refuse the row")),
    **dict.fromkeys((1172, 1329), _constraint("a trigger looks the row's values up and finds nothing, or several rows")),
    # --- what an operator repairs
    **dict.fromkeys((1526, 1748), _alone("no partition takes the row: create it")),
    **dict.fromkeys((167, 1467), _alone("AUTO_INCREMENT is at its end: make the column BIGINT")),
    4084: _alone("a sequence is at its end: raise its MAXVALUE"),
    **dict.fromkeys((1242, 1442), _alone("a trigger failed without refusing the row: repair it")),
    **dict.fromkeys((1436, 1456), _alone("a limit on stored programs: raise thread_stack or max_sp_recursion_depth")),
    **dict.fromkeys((1021, 1114), _again("the disk or the table is full")),
    **dict.fromkeys((1037, 1038, 1041, 1135), _again("the server is out of memory or threads")),
    **dict.fromkeys((1040, 1203, 1226), _again("too many connections")),
    **dict.fromkeys((1205, 1213, 3572, 1020), _alone("a lock that took too long, a deadlock or a conflict")),
    **dict.fromkeys((1317, 1969, 3024), _alone("an operator or a time limit ended it")),
    **dict.fromkeys((1290, 1792, 1836), _again("the server takes no writes now")),
    **dict.fromkeys((1044, 1045, 1227), _again("a right is missing: grant it")),
    **dict.fromkeys((1142, 1143, 1370, 1449), _NO_RIGHT),
    1146: _NO_TABLE,
    1054: _NO_COLUMN,
    **dict.fromkeys((1049, 1052, 1267, 1305, 1356), _of_type("the table isn't as shards.yaml has it")),
    **dict.fromkeys((1034, 1194, 1712), _again("a table or an index is damaged")),
    1153: _again("a request over max_allowed_packet, which `consumer.database.packet` should have kept from being sent"),
    **dict.fromkeys((2006, 2013, 1053, 1080, 1152, 1158, 1159, 1160, 1161, 1927), _again("the connection failed")),
}  # fmt: skip

# SQLite's primary result codes. 19 covers every constraint and a trigger's RAISE.
SQLITE_CODES: Mapping[int, Verdict] = {
    sqlite3.SQLITE_CONSTRAINT: _constraint("a constraint of the table, or a trigger, refuses the row"),
    sqlite3.SQLITE_MISMATCH: _value("not a value of the column's type"),
    sqlite3.SQLITE_TOOBIG: _value("longer than SQLite takes"),
    sqlite3.SQLITE_FULL: _again("the disk is full, or AUTOINCREMENT is at its end"),
    sqlite3.SQLITE_READONLY: _again("the file can't be written to"),
    sqlite3.SQLITE_PERM: _again("the file may not be opened"),
    sqlite3.SQLITE_CANTOPEN: _again("the file can't be opened"),
    sqlite3.SQLITE_BUSY: _again("another writer holds the database"),
    sqlite3.SQLITE_LOCKED: _again("another writer holds the table"),
    sqlite3.SQLITE_NOMEM: _again("out of memory"),
    sqlite3.SQLITE_IOERR: _again("the disk failed"),
    sqlite3.SQLITE_CORRUPT: _again("the file is damaged"),
    sqlite3.SQLITE_NOTADB: _again("the file is no database"),
    sqlite3.SQLITE_SCHEMA: _again("the tables changed meanwhile"),
}  # fmt: skip
# For which SQLite has one code, as for any other error of a statement.
_SQLITE_LACKS: Mapping[str, Verdict] = {
    "no such table": _NO_TABLE,
    "no such column": _NO_COLUMN,
    "has no column named": _NO_COLUMN,
    "no such function": _of_type("a trigger's function is missing"),
}


def column_without_value(error: DBAPIError) -> str | None:
    """The NOT NULL column without a default to which the statement gave nothing, or a NULL. None for other errors."""
    diagnostics = getattr(error.orig, "diag", None)
    if getattr(error.orig, "sqlstate", None) == "23502":
        column: str | None = getattr(diagnostics, "column_name", None)
        return column
    match = _WITHOUT_VALUE.search(str(error.orig))
    return match and (match["mysql"] or match["sqlite"])


_WITHOUT_VALUE = re.compile(
    r"Field '(?P<mysql>[^']+)' doesn't have a default value|NOT NULL constraint failed: \S+\.(?P<sqlite>\S+)"
)


def judge(error: DBAPIError) -> Verdict:
    """What the error means. One that ended the connection says nothing about the data."""
    if error.connection_invalidated or error.orig is None:
        return _UNKNOWN
    if isinstance(error.orig, sqlite3.Error):
        return _of_sqlite(error.orig)
    number = error.orig.args[0] if error.orig.args else None
    state = getattr(error.orig, "sqlstate", None) or ""
    if isinstance(number, int):
        users_own = STATES["45"] if state.startswith("45") else _UNKNOWN  # a SIGNAL with a number of its own
        return NUMBERS.get(number, users_own)
    return _of_postgresql(state, getattr(error.orig, "diag", None))


def _of_sqlite(error: sqlite3.Error) -> Verdict:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_ERROR:
        return next((verdict for text, verdict in _SQLITE_LACKS.items() if text in str(error)), _UNKNOWN)
    return SQLITE_CODES.get(code, _UNKNOWN)


def _of_postgresql(state: str, diagnostics: Any) -> Verdict:
    file = getattr(diagnostics, "source_file", None)
    if state == "23514" and getattr(diagnostics, "constraint_name", None) is None and file not in _FUNCTIONS_FILES:
        return _NO_PARTITION
    if state == "54000" and file in _USED_UP_FILES:
        return _USED_UP
    return STATES.get(state) or STATES.get(state[:2], _UNKNOWN)
