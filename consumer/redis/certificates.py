"""TLS to Redis, by the files of certificates as they are when a connection opens: renewed ones need no restart.

redis-py reads the files once for each of its connection objects, and a pool keeps these; it reads them in the event loop, where
the image's authorities alone take a tenth of a second.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis.asyncio.connection import SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from shardctl.supervision.trouble import Trouble

log = logging.getLogger(__name__)

FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")  # the parameters of a URL that name them
Version = tuple[int, int, int]


class Certificates:
    """One context for all connections of a client and of its discovery, made again when a file has changed.

    While the files can't be used, new connections go by what was read last. Kubernetes replaces all keys of a Secret at once,
    but a certificate and its key are read one after the other.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        """`options` are a connection's. Reads nothing yet."""
        self._options = {name: value for name, value in options.items() if name.startswith("ssl_")}
        self._files = [self._options[name] for name in FILES if self._options.get(name)]
        self._lock = threading.Lock()
        self._last: tuple[list[Version], ssl.SSLContext] | None = None
        self._trouble = Trouble("certificates for Redis", log, "certificates_unusable")

    def context(self) -> ssl.SSLContext:
        """Reads files: call it in a thread. Raises RedisError where they can't be used and never could."""
        with self._lock:
            try:
                self._last = self._read(self._last)
            except OSError as error:  # an ssl.SSLError is one
                fault = RedisConnectionError(f"{', '.join(self._files)}: can't be used: {error}")
                if self._last is None:
                    raise fault from error
                self._trouble.met(fault, "new connections use the certificates that were read before")
            else:
                self._trouble.over()
            return self._last[1]

    def _read(self, last: tuple[list[Version], ssl.SSLContext] | None) -> tuple[list[Version], ssl.SSLContext]:
        versions = [_version(file) for file in self._files]  # before the files: what changes meanwhile is read again
        if last and last[0] == versions:
            return last
        context = SSLConnection(**self._options).ssl_context.get()
        if last:
            log.info(
                "new connections to Redis use %s as renewed",
                ", ".join(self._files),
                extra={"action": "certificates_renewed"},
            )
        return versions, context


class TlsConnection(SSLConnection):
    """Takes its context from `certificates` each time it connects."""

    def __init__(self, *, certificates: Certificates, **options: Any) -> None:
        super().__init__(**options)
        self._certificates = certificates

    async def _connect(self) -> None:
        self.ssl_context.context = await asyncio.to_thread(self._certificates.context)
        await super()._connect()  # type: ignore[no-untyped-call]


def _version(file: str) -> Version:
    """Changes when a file is replaced or written, and when a link to it leads elsewhere."""
    status = Path(file).stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
