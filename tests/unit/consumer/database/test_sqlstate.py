"""A write is at fault only where its own values are refused: whatever an operator can repair is tried again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from types import SimpleNamespace

import psycopg
import pymysql
import pytest
from sqlalchemy.exc import DBAPIError

from consumer.database import sqlstate
from consumer.database.sqlstate import judge


def mysql(number, state=None):
    return pymysql.err.OperationalError(number, "…", sqlstate=state)


class FromServer(psycopg.Error):
    """An error as PostgreSQL sends it: with the file that raised it and the constraint's name."""

    diag = None

    def __init__(self, state, file="", constraint=None):
        super().__init__()
        self.sqlstate, self.diag = state, SimpleNamespace(source_file=file, constraint_name=constraint)

    def __repr__(self):
        return f"{self.sqlstate} {self.diag.source_file}"


def sqlite(statement):
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000)
        with pytest.raises(sqlite3.Error) as raised:
            connection.execute(statement)
        return raised.value


PERMANENT = [
    (psycopg.errors.UniqueViolation(), "constraint"),
    (psycopg.errors.NumericValueOutOfRange(), "bad_value"),
    (psycopg.errors.RaiseException(), "constraint"),
    (psycopg.errors.NoDataFound(), "constraint"),
    (psycopg.errors.WithCheckOptionViolation(), "constraint"),
    (FromServer("23514", "execMain.c", "positive"), "constraint"),
    (FromServer("23514", "pl_exec.c"), "constraint"),
    (FromServer("45001", "pl_exec.c"), "constraint"),
    (FromServer("54000", "nbtutils.c"), "bad_value"),
    (sqlite("INSERT INTO t VALUES (1, NULL)"), "constraint"),
    (sqlite("INSERT INTO t VALUES ('text', 'x')"), "bad_value"),
    (sqlite("INSERT INTO t VALUES (1, zeroblob(2000))"), "bad_value"),
    (mysql(1062, "23000"), "constraint"),
    (mysql(1062), "constraint"),
    (mysql(1452), "constraint"),
    (mysql(4025), "constraint"),
    (mysql(3819), "constraint"),
    (mysql(1644, "45000"), "constraint"),
    (mysql(31001, "45123"), "constraint"),
    (mysql(1406, "22001"), "bad_value"),
    (mysql(1366, "22007"), "bad_value"),
]

REPAIRABLE = [
    psycopg.errors.SequenceGeneratorLimitExceeded(),
    FromServer("23514", "execPartition.c"),
    FromServer("54000", "varsup.c"),
    FromServer("54000", "md.c"),
    psycopg.errors.StatementTooComplex(),
    psycopg.errors.TriggeredDataChangeViolation(),
    psycopg.errors.AssertFailure(),
    psycopg.errors.ExternalRoutineException(),
    psycopg.errors.DiskFull(),
    psycopg.errors.OutOfMemory(),
    psycopg.errors.TooManyConnections(),
    psycopg.errors.ReadOnlySqlTransaction(),
    psycopg.errors.DeadlockDetected(),
    psycopg.errors.UndefinedTable(),
    psycopg.errors.UndefinedColumn(),
    psycopg.errors.InsufficientPrivilege(),
    psycopg.errors.DatatypeMismatch(),
    psycopg.errors.InvalidColumnReference(),
    psycopg.errors.QueryCanceled(),
    psycopg.errors.IndexCorrupted(),
    psycopg.OperationalError(),
    sqlite("SELECT * FROM missing"),
    sqlite3.OperationalError(),
    mysql(1526, "HY000"),
    mysql(167, "22003"),
    mysql(1467, "HY000"),
    mysql(4084, "HY000"),
    mysql(1052, "23000"),
    mysql(1205),
    mysql(1213, "40001"),
    mysql(1040),
    mysql(1114),
    mysql(1021),
    mysql(1041),
    mysql(1290),
    mysql(1146, "42S02"),
    mysql(1054, "42S22"),
    mysql(1142, "42000"),
    mysql(1242, "21000"),
    mysql(2006),
    mysql(2013),
    mysql(65_000),
    pymysql.err.InterfaceError(0, ""),
    pymysql.err.OperationalError(),
]


@pytest.mark.parametrize(("error", "reason"), PERMANENT, ids=repr)
def test_what_is_the_writes_own_fault(error, reason):
    assert judge(DBAPIError("statement", {}, error)).reason == reason


@pytest.mark.parametrize("error", REPAIRABLE, ids=repr)
def test_what_an_operator_can_repair_is_tried_again(error):
    assert judge(DBAPIError("statement", {}, error)).reason is None


def test_an_error_that_lost_the_connection_is_no_fault_of_the_data():
    assert judge(DBAPIError("statement", {}, mysql(1062), connection_invalidated=True)).reason is None


@pytest.mark.parametrize("table", [sqlstate.STATES, sqlstate.NUMBERS, sqlstate.SQLITE_CODES])
def test_every_line_has_a_reason(table):
    assert all(verdict.why for verdict in table.values())


def test_every_class_of_postgresql_that_a_write_can_meet_is_decided():
    not_of_a_write = {
        "00",
        "01",
        "02",
        "03",
        "09",
        "0B",
        "0F",
        "0L",
        "0P",
        "0Z",
        "10",
        "24",
        "26",
        "2B",
        "2D",
        "34",
        "3B",
        "72",
    }
    errors = [error for error in vars(psycopg.errors).values() if isinstance(error, type)]
    classes = {error.sqlstate[:2] for error in errors if issubclass(error, psycopg.Error) and error.sqlstate}
    assert len(classes) > 30
    decided = {state[:2] for state in sqlstate.STATES}
    assert classes - decided <= not_of_a_write


@pytest.mark.parametrize(
    ("error", "blocked"),
    [
        (psycopg.errors.LockNotAvailable(), True),
        (psycopg.errors.QueryCanceled(), True),
        (psycopg.errors.DeadlockDetected(), True),
        (psycopg.errors.SerializationFailure(), True),
        (psycopg.errors.AdminShutdown(), False),
        (psycopg.errors.CannotConnectNow(), False),
        (psycopg.errors.DiskFull(), False),
        (psycopg.errors.TooManyConnections(), False),
        (psycopg.errors.ReadOnlySqlTransaction(), False),
        (psycopg.errors.UndefinedTable(), False),
        (psycopg.OperationalError(), False),
        (sqlite3.OperationalError("database is locked"), False),
        (mysql(1205), True),
        (mysql(1213, "40001"), True),
        (mysql(1969, "70100"), True),
        (mysql(3024), True),
        (mysql(1040), False),
        (mysql(1290), False),
        (mysql(2006), False),
        (mysql(2013), False),
        (pymysql.err.OperationalError(), False),
    ],
    ids=repr,
)
def test_what_makes_a_statement_wait_and_what_all_of_them(error, blocked):
    assert judge(DBAPIError("statement", {}, error)).alone == blocked


def test_a_lost_connection_blocks_everything():
    assert not judge(DBAPIError("statement", {}, mysql(1205), connection_invalidated=True)).alone
