"""Who may push: Pub/Sub, with a token that it signed for the subscription's service account and for this fleet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from shardctl.fleet.settings.delivery import Delivery
from shardctl.oidc import GOOGLE_ISSUERS, GOOGLE_KEYS_URL, Verifier


class NoTokenError(Exception):
    """The request carries no bearer token."""


class WrongCallerError(Exception):
    """The token is valid, but of another account."""


class Tokens(Protocol):
    """Raises TokenError or KeysUnavailableError."""

    async def claims(self, token: str) -> Mapping[str, Any]: ...


class Caller:
    def __init__(self, tokens: Tokens, service_account: str) -> None:
        self._tokens, self._service_account = tokens, service_account

    async def check(self, authorization: str) -> None:
        """Raises NoTokenError, WrongCallerError, TokenError or KeysUnavailableError; none of them holds the token."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise NoTokenError("a bearer token is needed")
        claims = await self._tokens.claims(token.strip())
        if claims.get("email") != self._service_account or claims.get("email_verified") is not True:
            raise WrongCallerError("the token is of another account than this fleet's pushes")


def caller_of(delivery: Delivery, keys_url: str | None) -> Caller:
    """The caller that the fleet's settings name; `keys_url` is where the issuer publishes its keys, if it isn't Google."""
    audience, account = delivery.token_audience, delivery.service_account or ""
    return Caller(Verifier(GOOGLE_ISSUERS, audience, keys_url or GOOGLE_KEYS_URL), account)
