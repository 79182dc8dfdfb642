"""Bearer tokens of an OpenID Connect issuer, verified by PyJWT against its published keys."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from typing import Any

import httpx
import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.exceptions import InvalidSubjectError

from shardctl.errors import ShardctlError
from shardctl.fleet.settings.gateway import GOOGLE_ISSUERS, GOOGLE_KEYS_URL

__all__ = ["GOOGLE_ISSUERS", "GOOGLE_KEYS_URL", "KeysUnavailableError", "TokenError", "Verifier"]


ALGORITHMS = frozenset({"RS256", "ES256"})
LEEWAY_SECONDS = 30.0
MAX_TOKEN_CHARACTERS = 16_384
MAX_KEYS_BYTES = 1024**2
MIN_RSA_BITS = 2048
FETCH_TIMEOUT_SECONDS = 5.0
KEYS_FRESH_SECONDS = 3_600.0  # then they are fetched again
GRACE_SECONDS = 82_800.0  # how much longer they are used while the issuer can't be reached
REFETCH_PAUSE_SECONDS = 10.0  # between two fetches for tokens with unknown keys
FAILURE_PAUSE_SECONDS = 1.0  # after a failed fetch
MAX_REMEMBERED = 4_096  # verified tokens


class TokenError(ShardctlError):
    """The token proves nothing: says why, and never holds the token."""


class KeysUnavailableError(ShardctlError):
    """The issuer's keys can't be fetched, so the token may be valid or not: retry later."""


class Verifier:
    """Checks tokens for one audience. Keys are fetched when first needed, and again for a key id they don't hold.

    A token that was verified is remembered until it expires, or until the issuer's keys change. For one event loop.
    """

    def __init__(
        self,
        issuers: Collection[str],
        audience: str,
        jwks_url: str,
        *,
        grace_seconds: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuers = frozenset(issuers)
        self._audience = audience
        self._clock = clock
        self._keys = _Keys(jwks_url, grace_seconds, clock)
        self._generation = 0  # of the keys that the remembered tokens were verified with
        self._remembered: OrderedDict[bytes, tuple[float, Mapping[str, Any]]] = OrderedDict()

    @property
    def keys_failing(self) -> str | None:
        """Why the issuer's keys can't be fetched again, though they should be; None where they are fresh."""
        return self._keys.failing

    async def claims(self, token: str) -> Mapping[str, Any]:
        """The token's claims; don't modify them. Raises TokenError or KeysUnavailableError."""
        if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
            raise TokenError("the token is no JSON Web Token")
        await self._keys.refresh()
        if self._generation != self._keys.generation:
            self._remembered.clear()
            self._generation = self._keys.generation
        digest = sha256(token.encode()).digest()
        remembered = self._remembered.get(digest)
        if remembered is not None:
            if self._clock() >= remembered[0] + LEEWAY_SECONDS:
                raise TokenError("the token has expired")
            self._remembered.move_to_end(digest)
            return remembered[1]
        claims = await self._verified(token)
        self._remembered[digest] = float(claims["exp"]), claims
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return claims

    async def _verified(self, token: str) -> Mapping[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
            raise TokenError("the token is no JSON Web Token") from error
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise TokenError(f"the token isn't signed with {' or '.join(sorted(ALGORITHMS))}")
        if "crit" in header:
            raise TokenError("the token's header has critical extensions, and none is known here")
        key = await self._keys.find(kid, algorithm)
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuers,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError) as error:
            raise TokenError(_why(error)) from error
        if not isinstance(claims["exp"], int | float) or isinstance(claims["exp"], bool):
            raise TokenError("the token's exp is no time")  # PyJWT takes a number written as text
        return claims


def _why(error: Exception) -> str:
    """What is wrong with a token, without quoting any of it."""
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"the token has no {error.claim}"
    for kind, text in _REASONS.items():
        if isinstance(error, kind):
            return text
    return "the token can't be verified with its issuer's key"


# The first that fits.
_REASONS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token isn't valid yet, by its iat or nbf",
    jwt.InvalidIssuerError: "the token is from another issuer",
    jwt.InvalidAudienceError: "the token is for another audience",
    jwt.InvalidIssuedAtError: "the token's iat is no time",
    InvalidSubjectError: "the token's sub is no text",
    jwt.InvalidSignatureError: "the token's signature doesn't fit the issuer's key",
    jwt.DecodeError: "the token's times, or its claims altogether, can't be read",
}


class _Keys:
    """The issuer's keys. At most one fetch at a time; `generation` grows when what was fetched differs."""

    def __init__(self, url: str, grace_seconds: float, clock: Callable[[], float]) -> None:
        self._url, self._stale_seconds, self._clock = url, KEYS_FRESH_SECONDS + grace_seconds, clock
        self._keys: dict[str | None, jwt.PyJWK] | None = None
        self._text = b""
        self._fetched_at = self._tried_at = -math.inf
        self._failed: str | None = None
        self._fetching = asyncio.Lock()
        self.generation = 0

    @property
    def failing(self) -> str | None:
        return self._failed if self._clock() - self._fetched_at >= KEYS_FRESH_SECONDS else None

    async def refresh(self) -> None:
        """Fetch keys if there are none, or if they are old."""
        age = self._clock() - self._fetched_at
        if age < KEYS_FRESH_SECONDS:
            return
        if self._keys is not None and age < self._stale_seconds:
            if not self._fetching.locked() and self._pause_over(REFETCH_PAUSE_SECONDS):
                await self._fetch(REFETCH_PAUSE_SECONDS)  # whether it succeeds or not, the present keys will do
            return
        await self._fetch(FAILURE_PAUSE_SECONDS)
        if self._failed is not None:
            raise KeysUnavailableError(f"the issuer's keys at {self._url} can't be fetched: {self._failed}")

    async def find(self, kid: Any, algorithm: str) -> jwt.PyJWK:
        """The key of that id. Raises TokenError, or KeysUnavailableError when it may be newer than the present keys."""
        key = self._key_of(kid)
        if key is None:
            await self._fetch(REFETCH_PAUSE_SECONDS)
            key = self._key_of(kid)
        if key is None and self._failed is not None:
            raise KeysUnavailableError(f"the issuer's keys at {self._url} can't be fetched: {self._failed}")
        if key is None:
            raise TokenError("the token is signed with a key that its issuer doesn't publish")
        if key.algorithm_name != algorithm:
            raise TokenError("the token's algorithm isn't that of its key")
        return key

    def _key_of(self, kid: Any) -> jwt.PyJWK | None:
        keys = self._keys or {}
        if kid is None and len(keys) == 1:  # an issuer with one key need not name it
            return next(iter(keys.values()))
        return keys.get(kid) if isinstance(kid, str) else None

    def _pause_over(self, seconds: float) -> bool:
        return not 0 <= self._clock() - self._tried_at < seconds

    async def _fetch(self, pause_seconds: float) -> None:
        """Fetch the keys, unless that was tried within the pause. Sets `_failed` to the reason of a failure, or None."""
        async with self._fetching:
            if not self._pause_over(FAILURE_PAUSE_SECONDS if self._failed is not None else pause_seconds):
                return
            self._tried_at = self._clock()
            try:
                async with asyncio.timeout(FETCH_TIMEOUT_SECONDS):
                    text = await _download(self._url)
                keys = _usable(text)
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
                self._failed = f"{type(error).__name__}: {error}".rstrip(": ")
                return
            except asyncio.CancelledError:
                self._tried_at = -math.inf  # the caller was cancelled, which says nothing about the issuer
                raise
            self._failed = None
            if text != self._text:
                self._keys, self._text = keys, text
                self.generation += 1
            self._fetched_at = self._clock()


async def _download(url: str) -> bytes:
    body = bytearray()
    async with httpx.AsyncClient(timeout=FETCH_TIMEOUT_SECONDS) as client, client.stream("GET", url) as answer:
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"status {answer.status_code}")
        async for part in answer.aiter_bytes():
            body += part
            if len(body) > MAX_KEYS_BYTES:
                raise ValueError(f"over {MAX_KEYS_BYTES:,} bytes")
    return bytes(body)


def _usable(text: bytes) -> dict[str | None, jwt.PyJWK]:
    """The signature keys of a JSON Web Key Set, by id; others are ignored."""
    data = orjson.loads(text)
    listed = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no JSON Web Key Set")  # noqa: TRY004 - what came over the network, not a wrong call
    keys: dict[str | None, jwt.PyJWK] = {}
    for entry in listed:
        if not isinstance(entry, dict) or entry.get("kty") not in {"RSA", "EC"} or entry.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        short = isinstance(key.key, RSAPublicKey) and key.key.key_size < MIN_RSA_BITS
        if key.algorithm_name in ALGORITHMS and not short:
            keys[key.key_id if isinstance(key.key_id, str) else None] = key
    if not keys:
        raise ValueError(f"no key for {' or '.join(sorted(ALGORITHMS))} in the set")
    return keys
