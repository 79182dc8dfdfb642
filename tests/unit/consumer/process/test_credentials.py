"""Logins from files: read again, and kept where a file can't be used."""

from __future__ import annotations

import logging
from functools import partial

import pytest

from consumer.process.credentials import Credentials
from consumer.process.settings import _parsed_database, _parsed_redis
from shardctl.errors import UsageError

URL = "postgresql://{}@db.example.com/orders?sslmode=require"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "url"
    path.write_text(URL.format("u:first") + "\n")
    return path


def test_each_call_reads_the_file_again(file):
    login = Credentials("DATABASE_URL_FILE", file, _parsed_database)
    assert login() == ("u", "first")
    file.write_text(URL.format("other:second%2F"))
    assert login() == ("other", "second/")


def test_redis_has_a_user_or_none(file):
    file.write_text("rediss://:first@h:6378/0?ssl_ca_certs=/ca.crt")
    login = Credentials("REDIS_URL_FILE", file, partial(_parsed_redis, "server"))
    assert login() == (None, "first")
    file.write_text("rediss://u:second@h:6378/0?ssl_ca_certs=/ca.crt")
    assert login() == ("u", "second")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (URL.format("u:secret").replace("db.", "db2."), "leads to another server or database"),
        (URL.format("u:secret").replace("orders", "other"), "leads to another server or database"),
        ("secret", "not a database URL"),
        ("", "not a database URL"),
        (None, "can't be read"),
    ],
    ids=["server", "database", "no URL", "empty", "gone"],
)
def test_the_last_login_stays_where_the_file_cannot_be_used(file, caplog, content, says):
    login = Credentials("DATABASE_URL_FILE", file, _parsed_database)
    file.unlink() if content is None else file.write_text(content)
    with caplog.at_level(logging.INFO):
        assert [login(), login()] == [("u", "first")] * 2
        file.write_text(URL.format("u:back"))
        assert login() == ("u", "back")
    assert says in caplog.records[0].getMessage()
    assert [record.action for record in caplog.records] == ["credentials_unusable", "recovered", "credentials_rotated"]
    assert "secret" not in caplog.text
    assert "back" not in caplog.text


@pytest.mark.parametrize("content", [None, b"\xff", b"postgresql://u:secret@h:secret/d"])
def test_a_start_needs_a_file_that_can_be_used(tmp_path, content):
    path = tmp_path / "url"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        Credentials("DATABASE_URL_FILE", path, _parsed_database)
    assert "secret" not in str(refused.value)
