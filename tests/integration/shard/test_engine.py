"""Engines on real databases: what a transaction costs in requests, and what becomes of a connection that died unseen."""

from __future__ import annotations

import re
import socket
import time
from datetime import timedelta

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from shardctl.shard import engine as engines
from shardctl.shard.engine import Limits, open_engine

pytestmark = pytest.mark.slow
LIMITS = Limits("engine-test", *[timedelta(seconds=20)] * 4)


@pytest.fixture(params=["postgresql", "mariadb"])
def url(request, postgres_server, mariadb_server):
    server = {"postgresql": postgres_server, "mariadb": mariadb_server}[request.param]
    name = f"engine_{request.param}"
    yield make_url(server.create_database(name))
    server.drop_database(name)


@pytest.fixture
def opened():
    made = []

    def opened(url, **options):
        made.append(open_engine(url, LIMITS, 1, **options))
        return made[-1]

    yield opened
    for engine in made:
        engine.dispose()


def test_a_server_that_never_greets_is_given_up_soon(opened, monkeypatch):
    """As a stopped MariaDB, or a server of another product, at which MySQL's driver waits for the first word."""
    monkeypatch.setattr(engines, "CONNECT_TIMEOUT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = opened(make_url(f"mysql+pymysql://u:p@127.0.0.1:{silent.getsockname()[1]}/db"))
        began = time.monotonic()
        with pytest.raises(DBAPIError), engine.connect():
            pass
    assert time.monotonic() - began < LIMITS.answer.total_seconds() / 2


def test_a_session_waits_for_an_answer_as_long_as_its_limit_says(mariadb_server, opened, monkeypatch):
    monkeypatch.setattr(engines, "CONNECT_TIMEOUT_SECONDS", 1)
    url = mariadb_server.create_database("answers")
    with opened(make_url(url)).connect() as connection:
        assert connection.exec_driver_sql("SELECT SLEEP(1.5)").scalar() == 0
    mariadb_server.drop_database("answers")


def requests_of(engine, path, *statements):
    """How many requests a transaction with these statements sends, and the results of the last one."""
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
    with path.open("wb") as file:
        driver.pgconn.trace(file.fileno())
        with engine.begin() as connection:
            for statement, parameters in statements:
                rows = connection.exec_driver_sql(statement, parameters).all()
        driver.pgconn.untrace()
    return len(re.findall(r"^.*\tF\t\d+\t(?:Query|Sync)\b", path.read_text(errors="replace"), re.MULTILINE)), rows


LIMIT, PLUS = ("SHOW statement_timeout", None), ("SELECT CAST(%s AS integer) + 1", (1,))


@pytest.mark.parametrize(
    ("statements", "requests", "rows"),
    [([LIMIT], 2, [("20s",)]), ([LIMIT, PLUS], 3, [(2,)]), ([PLUS, LIMIT], 4, [("20s",)])],
    ids=["without parameters", "and then with", "with parameters first"],
)
def test_begin_goes_with_the_first_statement(opened, database_url, tmp_path, statements, requests, rows):
    engine = opened(make_url(database_url), begins_with_statement=True)
    assert requests_of(engine, tmp_path / "trace", *statements) == (requests, rows)


def test_a_first_statement_that_fails_leaves_no_transaction_behind(opened, database_url):
    engine = opened(make_url(database_url), begins_with_statement=True)
    with pytest.raises(DBAPIError, match="nowhere"), engine.begin() as connection:
        connection.exec_driver_sql("SELECT 1 FROM nowhere")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE somewhere (n integer)")
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM somewhere").scalar_one() == 0


def test_what_follows_a_statement_that_could_not_be_parsed_is_in_a_transaction(opened, database_url):
    """The server parses a request whole, and does nothing of one that it can't."""
    engine = opened(make_url(database_url), begins_with_statement=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE somewhere (n integer)")
    with engine.connect() as connection:
        transaction = connection.begin()
        with pytest.raises(DBAPIError, match="syntax error"):
            connection.exec_driver_sql("SELEKT 1")
        connection.exec_driver_sql("INSERT INTO somewhere VALUES (1)")
        transaction.rollback()
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM somewhere").scalar_one() == 0


def end_sessions(url, opened):
    """As a fail-over does, or a server's time-out."""
    with opened(url).connect() as connection:
        if url.get_backend_name() == "postgresql":
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        else:
            mine = connection.execute(text("SELECT connection_id()")).scalar_one()
            for number in connection.scalars(
                text("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> :mine"),
                {"mine": mine},
            ).all():
                connection.exec_driver_sql(f"KILL {number}")


def test_a_connection_that_died_while_it_was_idle_is_replaced(url, opened, monkeypatch):
    monkeypatch.setattr(engines, "PING_AFTER_SECONDS", 0)
    engine = opened(url)
    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
    end_sessions(url, opened)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_one_that_died_in_use_fails_a_transaction_and_is_replaced_then(url, opened, monkeypatch):
    monkeypatch.setattr(engines, "PING_AFTER_SECONDS", 3_600)
    engine = opened(url)
    connects = []
    event.listen(engine, "connect", lambda *_: connects.append(1))
    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
    end_sessions(url, opened)
    with pytest.raises(DBAPIError), engine.begin() as connection:
        connection.execute(text("SELECT 1"))
    with engine.begin() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    assert len(connects) == 2
