"""The client of Redis: it tries once, and closes a connection on each of its errors.

Redis may move while its old connections live on: a demoted primary keeps them, and answers READONLY for ever. So the client
closes a connection on READONLY, MOVED, LOADING, CLUSTERDOWN, MASTERDOWN, NOAUTH, MISCONF and any other error. The next call opens
a new connection, and reaches the server that has the address, the name or the keys by then. If the error had another cause, that
costs a handshake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError

from consumer.redis.discovery import Directory, DiscoveredConnection, DiscoveredTlsConnection, Discovery, Node
from consumer.redis.url import Login, RedisUrl

Logins = Callable[[], Login]  # asked for each new connection: a password may have been rotated


def connect(
    url: RedisUrl,
    timeout_seconds: float,
    directory: Directory | None = None,
    *,
    logins: Logins | None = None,
    sentinel_logins: Logins | None = None,
) -> Redis:
    """A client that waits no longer than this for an answer, and tries once: a batch doesn't wait for Redis to come back.

    With a `directory`, each new connection asks there which server to use; that may take as long again.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        # The client closes the connection on these errors and, without retries, does nothing more. By default it would do so
        # only for a few of them. All of them, since Redis 6 reports a script's READONLY as an error without a class of its own.
        "retry_on_error": [RedisError],
        "driver_info": None,  # or each connection would send CLIENT SETINFO, which Redis 7.0 doesn't know and few users may run
        **url.options,
    }
    login = logins or (lambda: url.login)
    if directory is None:
        return _client({**options, "credential_provider": _Asking(login)})
    asked = {name: value for name, value in options.items() if name != "db"}
    sentinel_login = sentinel_logins or (lambda: url.sentinel_login)
    asked_as = sentinel_login if directory.beside else login

    def open_node(node: Node) -> Redis:
        host, port = node
        return _client({**asked, "host": host, "port": port, "credential_provider": _Asking(asked_as)})

    tls = options.pop("connection_class", None) is SSLConnection
    options["connection_class"] = DiscoveredTlsConnection if tls else DiscoveredConnection
    options["discovery"] = Discovery(directory, open_node, timeout_seconds)
    return _client({**options, "credential_provider": _Asking(login)})


def _client(options: dict[str, Any]) -> Redis:
    return Redis.from_pool(ConnectionPool(**options))


class _Asking(CredentialProvider):
    def __init__(self, logins: Logins) -> None:
        self._logins = logins

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        user, password = self._logins()
        if password is None:
            return cast("tuple[str]", ())  # then the client doesn't log in
        return (user, password) if user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()  # inherited, it would log a warning for each connection
