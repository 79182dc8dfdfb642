"""Who sends a request, and what they may write: without authentication, by a key, or by an issuer's token.

Where `clients` names clients, no other one may write. A key or token that can't be confirmed stays valid for a grace period and
is then refused.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from shardctl.errors import UsageError
from shardctl.fleet.settings.gateway import ANY_OTHER, Auth, Client, Gateway
from shardctl.gateway import keys
from shardctl.gateway.keys import KeysFile
from shardctl.gateway.problems import Problem
from shardctl.gateway.ratelimit import Bucket, Buckets
from shardctl.oidc import KeysUnavailableError, TokenError, Verifier
from shardctl.supervision.trouble import Trouble

RELOAD_SECONDS = 2.0
NAMES_SHOWN = 20

_BEARER = re.compile(rb"bearer +([!-~]+) *", re.IGNORECASE)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. `types` is empty where it may write all types; `bucket` is None where no rate limit applies.

    `client` is the name that a key or a token proves, and empty without authentication: idempotency keys are each client's own.
    """

    name: str
    types: frozenset[str] = frozenset()
    bucket: Bucket | None = None
    client: str = ""

    def may_write(self, message_type: str) -> bool:
        return not self.types or message_type in self.types


class Authenticator(Protocol):
    """Determines the sender of a request from its Authorization header and its address. Raises Problem."""

    @property
    def failing(self) -> bool:
        """Whether the source that confirms keys or tokens can't be read now."""

    async def caller(self, authorization: bytes | None, address: str) -> Caller: ...


class NoAuth:
    """Any client, identified by its address."""

    failing = False

    def __init__(self, settings: Gateway, buckets: Buckets) -> None:
        self._rate_limit, self._buckets = settings.rate_limit, buckets

    async def caller(self, authorization: bytes | None, address: str) -> Caller:  # noqa: ARG002 - the protocol's form
        if self._rate_limit is None:
            return _ANYBODY
        return Caller(address, bucket=self._buckets.of(address, self._rate_limit))


_ANYBODY = Caller("anybody")


class ApiKeyAuth:
    """A key of each client's own, of which only the SHA-256 is known here. The file is read again when it changes.

    `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        path: Path,
        settings: Gateway,
        buckets: Buckets,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises UsageError where the file can't be read whole, or has no key of a client that `clients` names."""
        self._path, self._settings, self._buckets = path, settings, buckets
        self._file = keys.whole(keys.read(path), path)
        if unknown := _without_key(settings, self._file):
            raise UsageError(f"gateway.auth.clients: {_missing_keys_text(unknown, self._file, path)}")
        self._ring = keys.Keyring(self._file, settings.auth.grace_time.total_seconds(), clock)
        self._warn_of_others()

    async def caller(self, authorization: bytes | None, address: str) -> Caller:  # noqa: ARG002 - the protocol's form
        # The time that looking up a digest takes reveals nothing of the key.
        try:
            name = self._ring.name_of(sha256(_bearer(authorization).encode()).digest())
        except keys.UnconfirmedKeyError:
            raise Problem.later(
                HTTPStatus.SERVICE_UNAVAILABLE, "the key can't be confirmed: the gateway can't read its file of keys"
            ) from None
        if name is None:
            raise _unknown("the key isn't one of this gateway's")
        client = _client(self._settings, name)
        if client is None:
            raise Problem(HTTPStatus.FORBIDDEN, f"the key is good, but gateway.auth.clients doesn't name {name}")
        return _caller(name, client, self._settings, self._buckets)

    async def watch(self) -> None:
        """Read the file repeatedly; a new version of the Secret appears as a new file."""
        trouble = Trouble("the clients' keys", log, "keys_refused")
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            file = await asyncio.to_thread(keys.read, self._path)
            self._ring.take(file)
            if file.faults:
                trouble.met(keys.KeysError(f"{self._path}: {'; '.join(file.faults)}"), self._consequence())
            else:
                trouble.over("the file is readable again", "keys_accepted")
            if file != self._file:
                self._file = file
                log.info("%d clients' keys read", len(file.names), extra={"action": "keys_read"})
                if not file.faults:
                    self._warn_of_others()

    @property
    def failing(self) -> bool:
        return bool(self._file.faults)

    def _consequence(self) -> str:
        grace = self._settings.auth.grace_time.total_seconds()
        names = _listed(self._ring.unconfirmed)
        return f"keys that it doesn't confirm are refused {grace:g} s after it became so: {names or 'none so far'}"

    def _warn_of_others(self) -> None:
        """Log which clients can't write although one of the two files names them."""
        if unknown := _without_key(self._settings, self._file):
            log.warning(
                "gateway.auth.clients: %s",
                _missing_keys_text(unknown, self._file, self._path),
                extra={"action": "client_without_key"},
            )
        if refused := [name for name in self._file.clients if _client(self._settings, name) is None]:
            log.warning(
                "%s: gateway.auth.clients doesn't name %s, so their writes are answered with 403",
                self._path,
                _listed(refused),
                extra={"action": "client_not_named"},
            )


class OidcAuth:
    """An OpenID Connect issuer's token, for a client that the file names by its verified email or its subject."""

    def __init__(self, verifier: Verifier, settings: Gateway, buckets: Buckets) -> None:
        self._verifier, self._settings, self._buckets = verifier, settings, buckets
        self._trouble = Trouble("the issuer's keys", log, "keys_unavailable")

    @property
    def failing(self) -> bool:
        return self._verifier.keys_failing is not None

    async def caller(self, authorization: bytes | None, address: str) -> Caller:  # noqa: ARG002 - the protocol's form
        try:
            claims = await self._verifier.claims(_bearer(authorization))
        except TokenError as error:
            raise _unknown(str(error)) from None
        except KeysUnavailableError as error:
            self._trouble.met(error, "writes are answered with 503")
            raise Problem.later(HTTPStatus.SERVICE_UNAVAILABLE, "the token's issuer can't be reached") from None
        if (failing := self._verifier.keys_failing) is not None:
            grace = self._settings.auth.grace_time
            self._trouble.met(
                KeysUnavailableError(failing), f"the old ones are used until they are {grace} out of date"
            )
        else:
            self._trouble.over()
        for name in _names_in(claims):
            client = self._settings.auth.clients.get(name)
            if client is not None:
                return _caller(name, client, self._settings, self._buckets)
        raise Problem(HTTPStatus.FORBIDDEN, "the token is good, but its subject may not write here")


def authenticator_of(settings: Gateway, keys_file: Path | None, buckets: Buckets) -> NoAuth | ApiKeyAuth | OidcAuth:
    """Raises UsageError where the keys can't be had."""
    auth: Auth = settings.auth
    if auth.kind == "none":
        return NoAuth(settings, buckets)
    if auth.kind == "oidc":
        verifier = Verifier(
            auth.issuer, auth.audience or "", auth.jwks_url, grace_seconds=auth.grace_time.total_seconds()
        )
        return OidcAuth(verifier, settings, buckets)
    if keys_file is None:
        raise UsageError("gateway.auth is keys: name the file that holds them with --keys FILE, a line a client.")
    return ApiKeyAuth(keys_file, settings, buckets)


_MAY_ALL = Client()


def _client(settings: Gateway, name: str) -> Client | None:
    """The rights of a client that has a key; None where it may not write."""
    clients = settings.auth.clients
    return clients.get(name, clients.get(ANY_OTHER)) if clients else _MAY_ALL


def _without_key(settings: Gateway, file: KeysFile) -> list[str]:
    return sorted(settings.auth.clients.keys() - file.clients - {ANY_OTHER})


def _missing_keys_text(unknown: Sequence[str], file: KeysFile, path: Path) -> str:
    return (
        f"{path} has no key of {_listed(unknown)}. It has keys of {_listed(file.clients) or 'nobody'}. Correct the name, add its "
        f"key, or write `NAME {keys.REVOKED}` there for a client without one."
    )


def _listed(names: Iterable[str]) -> str:
    first = sorted(names)
    more = f" and {len(first) - NAMES_SHOWN} more" if len(first) > NAMES_SHOWN else ""
    return ", ".join(first[:NAMES_SHOWN]) + more


def _bearer(authorization: bytes | None) -> str:
    if authorization is None:
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "an Authorization header is required: Bearer, and a key or a token",
            headers={"WWW-Authenticate": "Bearer"},
        )
    match = _BEARER.fullmatch(authorization)
    if match is None:
        raise _unknown("the Authorization header isn't `Bearer` and a key or a token")
    return match[1].decode("ascii")


def _unknown(detail: str) -> Problem:
    return Problem(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})


def _names_in(claims: Mapping[str, Any]) -> list[str]:
    email, subject = claims.get("email"), claims.get("sub")
    names = [email] if isinstance(email, str) and claims.get("email_verified") in (True, "true") else []
    return [*names, subject] if isinstance(subject, str) else names


def _caller(name: str, client: Client, settings: Gateway, buckets: Buckets) -> Caller:
    rate = client.rate_limit or settings.rate_limit
    return Caller(name, frozenset(client.types), buckets.of(name, rate), name)
