"""Refusals as RFC 9457 describes them: `application/problem+json`. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Self

import orjson

from shardctl.gateway.claims import Claim
from shardctl.gateway.fields import FieldError
from shardctl.gateway.pubsub import NotTakenError, PublishRefusedError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1

Headers = tuple[tuple[bytes, bytes], ...]


class Problem(Exception):  # noqa: N818 - the RFC's word
    """A request ends with this answer."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: tuple[Mapping[str, str], ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, errors
        self.headers = dict(headers or {})

    @classmethod
    def of_field(cls, error: FieldError) -> Self:
        return cls(HTTPStatus.BAD_REQUEST, str(error), errors=({"detail": str(error), error.kind: error.where},))

    @classmethod
    def not_taken(cls, error: NotTakenError) -> Self:
        if isinstance(error, PublishRefusedError):
            return cls(HTTPStatus.BAD_REQUEST, str(error))
        if not error.sent:
            return cls.later(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        again = "It may have arrived nevertheless: send it again with the same Idempotency-Key."
        return cls.later(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}. {again}")

    @classmethod
    def key_reused(cls, claim: Claim) -> Self:
        """As Stripe and the IETF's draft of the Idempotency-Key header have it."""
        kind, name = claim.where
        detail = (
            "this idempotency key was sent before with another operation, routing key or body: each write needs its own"
        )
        return cls(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=({"detail": detail, kind: name},))

    @classmethod
    def later(cls, status: int, detail: str, seconds: float = RETRY_AFTER_SECONDS) -> Self:
        return cls(status, detail, headers={"Retry-After": str(max(1, math.ceil(seconds)))})

    def members(self) -> dict[str, Any]:
        members: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": int(self.status),
            "detail": self.detail,
        }
        return {**members, "errors": list(self.errors)} if self.errors else members

    def body(self) -> bytes:
        return orjson.dumps(self.members())
