"""Whether a database's error blames the data: then some message can never succeed. All else may pass, and is tried again."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError

# SQLSTATE classes: two writes of one statement met in one row (21), data exception, integrity constraint violation, a trigger
# that changed the row under way (27), WITH CHECK OPTION violation, an error of the user's own (45, the standard's), a limit of
# the server such as the size of an index entry (54), and whatever PL/pgSQL raises in a trigger. Not: connections, resources,
# locks, missing tables and rights, operator intervention.
_DATA_CLASSES = ("21", "22", "23", "27", "44", "45", "54", "P0")

# MySQL's and MariaDB's numbers, since many of these have the SQLSTATE HY000, and 23000 is also an ambiguous column's.
_VALUE_NUMBERS = frozenset(
    (
        1264, 1690,  # out of range
        1265, 1292, 1366, 1367, 1411, 1416,  # not a value of the column's type
        1365,  # division by zero, in a trigger
        1406, 1118,  # too long
        3140, 3141, 3156, 3157, 3669, 4037, 4038, 4176, 4177, 4178,  # JSON that isn't, doesn't fit or is too deep
    )
)  # fmt: skip
_CONSTRAINT_NUMBERS = frozenset(
    (
        1022, 1062, 1169, 1557, 1586, 1761, 1762,  # duplicate key
        1048, 1263, 1364,  # NOT NULL
        1216, 1217, 1451, 1452,  # foreign key
        3819, 4025,  # CHECK
        1369,  # WITH CHECK OPTION
        1526, 1748,  # no partition for it
        1643, 1644,  # SIGNAL, in a trigger
    )
)  # fmt: skip
_USERS_OWN = "45"  # a SIGNAL with a number of its own


def fault_in(error: DBAPIError) -> str | None:
    """A stable word for what is wrong with the data; None when the data isn't to blame."""
    if error.connection_invalidated or error.orig is None:
        return None
    if isinstance(error.orig, sqlite3.Error):
        return "constraint" if isinstance(error.orig, sqlite3.IntegrityError | sqlite3.DataError) else None
    number = error.orig.args[0] if error.orig.args else None
    state = getattr(error.orig, "sqlstate", None) or ""
    return _of_number(number, state) if isinstance(number, int) else _of_state(state)


def _of_state(state: str) -> str | None:
    if not state.startswith(_DATA_CLASSES):
        return None
    return "bad_value" if state.startswith("22") else "constraint"


def _of_number(number: int, state: str) -> str | None:
    if number in _VALUE_NUMBERS:
        return "bad_value"
    return "constraint" if number in _CONSTRAINT_NUMBERS or state.startswith(_USERS_OWN) else None
