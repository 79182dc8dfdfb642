"""Who writes, and what they may write: nobody is asked, or a key, or an issuer's token."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import orjson

from shardctl.errors import UsageError
from shardctl.gateway.problems import Problem
from shardctl.gateway.ratelimit import Bucket, Buckets
from shardctl.oidc import KeysUnavailableError, TokenError, Verifier
from shardctl.settings.gateway import Auth, Client, Gateway
from shardctl.trouble import Trouble

RELOAD_SECONDS = 2.0
MAX_KEYS_BYTES = 4 * 1024**2

_NAME, _DIGITS = re.compile(r"[!-~]{1,254}"), re.compile(r"[0-9a-fA-F]{64}")
_BEARER = re.compile(rb"bearer +([!-~]+) *", re.IGNORECASE)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. `types` is empty where it may write all; `bucket` is None where it may write without end.

    `client` is the name that a key or a token proves, and empty where nobody is asked: idempotency keys are each client's own.
    """

    name: str
    types: frozenset[str] = frozenset()
    bucket: Bucket | None = None
    client: str = ""

    def may_write(self, message_type: str) -> bool:
        return not self.types or message_type in self.types


class Door(Protocol):
    """Tells who sent a request by its Authorization header and its address. Raises Problem."""

    async def caller(self, authorization: bytes | None, address: str) -> Caller: ...


class Open:
    """Anybody, told apart by address."""

    def __init__(self, settings: Gateway, buckets: Buckets) -> None:
        self._rate_limit, self._buckets = settings.rate_limit, buckets

    async def caller(self, authorization: bytes | None, address: str) -> Caller:  # noqa: ARG002 - the door's form
        if self._rate_limit is None:
            return _ANYBODY
        return Caller(address, bucket=self._buckets.of(address, self._rate_limit))


_ANYBODY = Caller("anybody")


class ByKey:
    """A key of each client's own, of which only the SHA-256 is known here. The file is read anew when it changes."""

    def __init__(self, path: Path, settings: Gateway, buckets: Buckets) -> None:
        """Raises UsageError where the file can't be read or isn't such a file."""
        self._path, self._settings, self._buckets = path, settings, buckets
        self._text = _read(path)
        self._names = keys_of(self._text, str(path))

    async def caller(self, authorization: bytes | None, address: str) -> Caller:  # noqa: ARG002 - the door's form
        digest = sha256(_bearer(authorization).encode()).digest()
        found = self._names.get(digest)
        # Looking up a digest tells nothing of the key; the comparison says outright that no time depends on it.
        if found is None or not hmac.compare_digest(found[1], digest):
            raise _unknown("the key isn't one of this gateway's")
        return _caller(found[0], self._settings.auth.clients.get(found[0], _MAY_ALL), self._settings, self._buckets)

    async def watch(self) -> None:
        """Read the file again and again; a Secret's new version comes as a new file. One at fault changes nothing."""
        trouble = Trouble("the clients' keys", log, "keys_refused")
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            try:
                text = await asyncio.to_thread(_read, self._path)
                if text == self._text:
                    trouble.over("the file is as it was", "keys_accepted")
                    continue
                names = keys_of(text, str(self._path))
            except UsageError as error:
                trouble.met(error, "they stay as they were")
                continue
            trouble.over("the file can be read again", "keys_accepted")
            self._text, self._names = text, names
            log.info("%d clients' keys read", len(names), extra={"action": "keys_read"})


class ByToken:
    """An OpenID Connect issuer's token, for a client that the file names by its verified email or its subject."""

    def __init__(self, verifier: Verifier, settings: Gateway, buckets: Buckets) -> None:
        self._verifier, self._settings, self._buckets = verifier, settings, buckets

    async def caller(self, authorization: bytes | None, address: str) -> Caller:  # noqa: ARG002 - the door's form
        try:
            claims = await self._verifier.claims(_bearer(authorization))
        except TokenError as error:
            raise _unknown(str(error)) from None
        except KeysUnavailableError as error:
            log.warning("%s", error, extra={"action": "keys_unavailable"})
            raise Problem.later(HTTPStatus.SERVICE_UNAVAILABLE, "the token's issuer can't be reached") from None
        for name in _names_in(claims):
            client = self._settings.auth.clients.get(name)
            if client is not None:
                return _caller(name, client, self._settings, self._buckets)
        raise Problem(HTTPStatus.FORBIDDEN, "the token is good, but its subject may not write here")


_MAY_ALL = Client()


def door(settings: Gateway, keys_file: Path | None, buckets: Buckets) -> Open | ByKey | ByToken:
    """Raises UsageError where the keys can't be had."""
    auth: Auth = settings.auth
    if auth.kind == "none":
        return Open(settings, buckets)
    if auth.kind == "oidc":
        return ByToken(Verifier(auth.issuer, auth.audience or "", auth.jwks_url), settings, buckets)
    if keys_file is None:
        raise UsageError("gateway.auth is keys: name the file that holds them with --keys FILE, a line a client.")
    return ByKey(keys_file, settings, buckets)


def keys_of(text: bytes, where: str) -> Mapping[bytes, tuple[str, bytes]]:
    """Names by digest, from lines `name sha256` or a JSON object. Raises UsageError that never repeats what it read."""
    try:
        written = text.decode()
        pairs = _of_json(text) if written.lstrip().startswith("{") else _of_lines(written)
    except ValueError as error:
        raise UsageError(
            f"{where}: {error}. Write a line for each client, its name and the SHA-256 of its key in hexadecimal "
            "digits, or a JSON object of the same."
        ) from None
    if not pairs:
        raise UsageError(f"{where}: holds no client's key, so nobody could write.")
    found: dict[bytes, tuple[str, bytes]] = {}
    for name, digits in pairs:
        digest = bytes.fromhex(digits)
        if digest in found:
            raise UsageError(f"{where}: {found[digest][0]} and {name} have the same key.")
        found[digest] = (name, digest)
    return found


def _of_lines(text: str) -> list[tuple[str, str]]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) != 2 or not _is_client(*parts):
            raise ValueError(f"line {number} isn't a name and a SHA-256")
        found.append((parts[0], parts[1]))
    return found


def _of_json(text: bytes) -> list[tuple[str, str]]:
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise ValueError("not JSON") from None
    for name, digits in data.items():
        if not isinstance(digits, str) or not _is_client(name, digits):
            raise ValueError(f"the value of {name!r:.60} isn't a SHA-256, or the name isn't one")
    return list(data.items())


def _is_client(name: str, digits: str) -> bool:
    return bool(_NAME.fullmatch(name) and _DIGITS.fullmatch(digits))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEYS_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}.") from error


def _bearer(authorization: bytes | None) -> str:
    if authorization is None:
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "an Authorization header is wanted: Bearer, and a key or a token",
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
    found = [email] if isinstance(email, str) and claims.get("email_verified") in (True, "true") else []
    return [*found, subject] if isinstance(subject, str) else found


def _caller(name: str, client: Client, settings: Gateway, buckets: Buckets) -> Caller:
    rate = client.rate_limit or settings.rate_limit
    return Caller(name, frozenset(client.types), buckets.of(name, rate), name)
