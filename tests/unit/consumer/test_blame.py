"""Data is to blame where no later attempt can succeed; everything else is tried again."""

from __future__ import annotations

import sqlite3

import psycopg
import pymysql
import pytest
from sqlalchemy.exc import DBAPIError

from consumer.blame import fault_in


def mysql(number, state=None):
    return pymysql.err.OperationalError(number, "…", sqlstate=state)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (psycopg.errors.UniqueViolation(), "constraint"),
        (psycopg.errors.NumericValueOutOfRange(), "bad_value"),
        (psycopg.errors.RaiseException(), "constraint"),
        (psycopg.errors.DeadlockDetected(), None),
        (psycopg.errors.UndefinedTable(), None),
        (psycopg.OperationalError(), None),
        (sqlite3.IntegrityError(), "constraint"),
        (sqlite3.OperationalError(), None),
        (mysql(1062, "23000"), "constraint"),
        (mysql(1062), "constraint"),
        (mysql(1452), "constraint"),
        (mysql(4025), "constraint"),
        (mysql(3819), "constraint"),
        (mysql(1644, "45000"), "constraint"),
        (mysql(31001, "45123"), "constraint"),
        (mysql(1406, "22001"), "bad_value"),
        (mysql(1366, "22007"), "bad_value"),
        (mysql(1052, "23000"), None),
        (mysql(1205), None),
        (mysql(1213, "40001"), None),
        (mysql(1040), None),
        (mysql(1290), None),
        (mysql(1146, "42S02"), None),
        (mysql(1054, "42S22"), None),
        (mysql(1142, "42000"), None),
        (mysql(2006), None),
        (mysql(2013), None),
        (pymysql.err.InterfaceError(0, ""), None),
        (pymysql.err.OperationalError(), None),
    ],
    ids=repr,
)
def test_what_blames_the_data(error, reason):
    assert fault_in(DBAPIError("statement", {}, error)) == reason


def test_an_error_that_lost_the_connection_blames_nobody():
    assert fault_in(DBAPIError("statement", {}, mysql(1062), connection_invalidated=True)) is None
