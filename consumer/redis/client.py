"""The client of Redis: it tries once, and closes a connection on each of its errors.

Redis may move while its old connections live on: a demoted primary keeps them, and answers READONLY for ever. So the client
closes a connection on READONLY, MOVED, LOADING, CLUSTERDOWN, MASTERDOWN, NOAUTH, MISCONF and any other error. The next call opens
a new connection, and reaches the server that has the address, the name or the keys by then. If the error had another cause, that
costs a handshake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from consumer.redis.certificates import Certificates, TlsConnection
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
    if tls := options.get("connection_class") is SSLConnection:
        options |= {"connection_class": TlsConnection, "certificates": Certificates(options)}
    login = _Asking(logins, timeout_seconds) if logins else _Known(url.login)
    if directory is None:
        return _client({**options, "credential_provider": login})
    asked = {name: value for name, value in options.items() if name != "db"}
    asked["credential_provider"] = login
    if directory.beside:
        known = _Known(url.sentinel_login)
        asked["credential_provider"] = _Asking(sentinel_logins, timeout_seconds) if sentinel_logins else known

    def open_node(node: Node) -> Redis:
        host, port = node
        return _client({**asked, "host": host, "port": port})

    options["connection_class"] = DiscoveredTlsConnection if tls else DiscoveredConnection
    options["discovery"] = Discovery(directory, open_node, timeout_seconds)
    return _client({**options, "credential_provider": login})


def _client(options: dict[str, Any]) -> Redis:
    return Redis.from_pool(ConnectionPool(**options))


class _Known(CredentialProvider):
    def __init__(self, login: Login) -> None:
        self._login = login

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        user, password = self._login
        if password is None:
            return cast("tuple[str]", ())  # then the client doesn't log in
        return (user, password) if user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()  # inherited, it would log a warning for each connection


class _Asking(CredentialProvider):
    """Asks in a thread: a file, or a server of Google's, may take its time, and nothing else waits for it."""

    def __init__(self, logins: Logins, timeout_seconds: float) -> None:
        self._logins, self._timeout_seconds = logins, timeout_seconds

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        try:
            login = await asyncio.wait_for(asyncio.to_thread(self._logins), self._timeout_seconds)
        except TimeoutError:
            raise RedisTimeoutError(f"no login within {self._timeout_seconds:g} s") from None
        return _Known(login).get_credentials()
