"""Settings of a consumer: read, or refused by an error that names the setting and shows no password."""

from __future__ import annotations

import socket

import pytest
from consumer_kit import CONFIG

from consumer.process.settings import load
from shardctl.errors import UsageError
from shardctl.fleet.settings.redis import Sentinel

ENVIRONMENT = {"DATABASE_URL": "postgresql://u:secret@h/d", "REDIS_URL": "redis://:secret@h:6379/0"}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "shard.json"
    path.write_text(CONFIG.model_dump_json())
    return path


def test_settings_are_read(config_file):
    settings = load(config_file, ENVIRONMENT | {"PORT": "9", "POD_NAME": "p"})
    assert settings.config == CONFIG
    assert settings.database_url.drivername == "postgresql+psycopg"
    assert (settings.port, settings.replica, settings.pubsub_emulator) == (9, "p", None)
    assert settings.host == ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")
    assert load(config_file, ENVIRONMENT | {"HOST": "127.0.0.1"}).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        pytest.param({"DATABASE_URL": ""}, "DATABASE_URL", id="no database"),
        pytest.param({"DATABASE_URL": "secret"}, "DATABASE_URL", id="database no URL"),
        pytest.param({"DATABASE_URL": "postgresql://u:secret@h:secret/d"}, "DATABASE_URL", id="database port"),
        pytest.param({"DATABASE_URL": "postgresql+nodriver://u:secret@h/d"}, "DATABASE_URL", id="database driver"),
        pytest.param({"DATABASE_URL": "oracle+secret://u:secret@h/d"}, "DATABASE_URL", id="database unknown"),
        pytest.param({"DATABASE_URL_FILE": "/secret"}, "DATABASE_URL and DATABASE_URL_FILE are both set", id="both"),
        pytest.param({"REDIS_URL": ""}, "REDIS_URL", id="no Redis"),
        pytest.param({"REDIS_URL": "secret"}, "REDIS_URL", id="Redis no URL"),
        pytest.param({"REDIS_URL": "redis://:secret/x@h:1"}, "REDIS_URL", id="Redis port"),
        pytest.param({"REDIS_URL": "http://secret@h"}, "REDIS_URL", id="Redis scheme"),
        pytest.param({"PORT": "secret"}, "PORT", id="port no number"),
        pytest.param({"PORT": "65536"}, "PORT", id="port too high"),
    ],
)
def test_bad_settings_are_named_and_no_password_is_shown(config_file, environment, named):
    with pytest.raises(UsageError, match=named) as refused:
        load(config_file, ENVIRONMENT | environment)
    if named != "PORT":
        assert "secret" not in str(refused.value)
        assert refused.value.__suppress_context__ or refused.value.__cause__ is None


def test_urls_come_from_files_where_the_environment_names_them(config_file, tmp_path):
    (tmp_path / "database").write_text("postgresql://u:secret@h/d\n")
    (tmp_path / "redis").write_text("redis://:secret@h:6379/0\n")
    settings = load(
        config_file,
        {"DATABASE_URL_FILE": str(tmp_path / "database"), "REDIS_URL_FILE": str(tmp_path / "redis")},
    )
    assert (settings.database_url.host, settings.redis_url.options["host"]) == ("h", "h")
    assert (settings.database_login(), settings.redis_logins()) == (("u", "secret"), (None, "secret"))


def test_urls_of_the_environment_have_no_file_to_read_again(config_file):
    settings = load(config_file, ENVIRONMENT)
    assert (settings.database_login, settings.redis_logins) == (None, None)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"fleet": 1}'])
def test_a_file_that_is_no_configuration(tmp_path, content):
    path = tmp_path / "shard.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"shard\.json"):
        load(path, ENVIRONMENT)


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="can't be read"):
        load(tmp_path / "nothing", ENVIRONMENT)


def written(path, **settings):
    path.write_text(CONFIG.model_copy(update=settings).model_dump_json())
    return path


SENTINEL_URL = "redis://u:secret@/0?sentinel_username=s&sentinel_password=secret2"


def test_the_nodes_of_redis_are_in_the_file_and_the_logins_in_the_url(tmp_path):
    file, url = written(tmp_path / "s.json", redis_sentinel=Sentinel(master="m", nodes=("a:1",))), tmp_path / "url"
    url.write_text(SENTINEL_URL)
    environment = {"DATABASE_URL": ENVIRONMENT["DATABASE_URL"], "REDIS_URL_FILE": str(url)}
    settings = load(file, environment)
    assert settings.redis_url.sentinel_login == ("s", "secret2")
    url.write_text(SENTINEL_URL.replace("secret2", "rotated"))
    assert (settings.redis_logins(), settings.sentinel_logins()) == (("u", "secret"), ("s", "rotated"))
    with pytest.raises(UsageError, match=r"in `redis\.sentinel`\. Leave the host out"):
        load(file, ENVIRONMENT)


def test_a_login_in_the_url_is_refused_where_consumers_log_in_by_iam(tmp_path):
    file = written(tmp_path / "s.json", redis_iam=True)
    with pytest.raises(UsageError, match="leave it out of the URL") as refused:
        load(file, ENVIRONMENT)
    assert "secret" not in str(refused.value)
    assert load(file, ENVIRONMENT | {"REDIS_URL": "redis://h:6379/0"}).config.redis_iam
