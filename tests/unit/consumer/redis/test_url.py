"""The URL of Redis, by the kind that the configuration names."""

from __future__ import annotations

import pytest
from redis.asyncio.connection import SSLConnection

from consumer.redis.url import parse
from shardctl.errors import UsageError

TLS = "ssl_ca_certs=/ca.crt"


@pytest.mark.parametrize(
    ("kind", "text", "options", "login", "sentinel_login"),
    [
        ("server", "redis://h", {"host": "h"}, (None, None), (None, None)),
        ("server", "redis://:p%40@h:1/2", {"host": "h", "port": 1, "db": 2}, (None, "p@"), (None, None)),
        ("server", "unix:///run/redis.sock", {"path": "/run/redis.sock"}, (None, None), (None, None)),
        ("cluster", f"rediss://u:p@/?{TLS}", {"ssl_ca_certs": "/ca.crt"}, ("u", "p"), (None, None)),
        ("cluster", "redis://u:p@/0", {"db": 0}, ("u", "p"), (None, None)),
        (
            "sentinel",
            f"rediss://u:p@/3?{TLS}&sentinel_username=s&sentinel_password=q%26",
            {"db": 3, "ssl_ca_certs": "/ca.crt"},
            ("u", "p"),
            ("s", "q&"),
        ),
    ],
)
def test_it_is_taken_apart(kind, text, options, login, sentinel_login):
    url = parse(text, kind)
    connection_class = url.options.get("connection_class")
    assert {name: value for name, value in url.options.items() if name != "connection_class"} == options
    assert (connection_class is SSLConnection) == text.startswith("rediss:")
    assert (url.login, url.sentinel_login) == (login, sentinel_login)


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("server", "http://secret@h", r"isn't a Redis URL such as redis://:password@host:6379/0"),
        ("cluster", "secret", r"isn't a Redis URL such as redis://:password@/0"),
        ("server", "redis://h?ssl_ca_cert=secret", "has a parameter after its [?]"),
        ("server", "rediss://h?ssl_cert_reqs=secret", "has a parameter after its [?]"),
        ("server", "redis://h?ssl_ca_certs=secret", "has a parameter after its [?]"),
        ("server", "redis://h?sentinel_password=secret", "has no `redis.sentinel`"),
        ("cluster", "redis://h?sentinel_password=secret", "in `redis.cluster`. Leave the host out"),
        ("cluster", "redis://:secret@h/0", "in `redis.cluster`. Leave the host out: redis://:password@/0"),
        ("cluster", "unix:///secret", "in `redis.cluster`. Leave the host out"),
        ("cluster", "redis://:secret@/1", "a Redis Cluster has number 0 alone"),
        ("sentinel", "redis://:secret@:6379/0", "in `redis.sentinel`. Leave the host out"),
    ],
)
def test_what_is_wrong_is_said_without_the_secret(kind, text, says):
    with pytest.raises(UsageError, match=says) as refused:
        parse(text, kind)
    assert "secret" not in str(refused.value)
