"""`GET /v1/writes/{type}/{key}/{idempotency_key}`: what became of a write.

A client finds its own writes alone: what is looked for is made of its own authenticated name. Of parked and dead writes it learns
a reason in one word, never the text of an error, which may quote another client's write.
"""

from __future__ import annotations

from http import HTTPStatus

import orjson
from starlette.types import Receive, Scope, Send

from shardctl.gateway.context import GatewayContext
from shardctl.gateway.encoding import MessageKind
from shardctl.gateway.fields import FieldError
from shardctl.gateway.outcomes import Outcomes
from shardctl.gateway.paths import WritePath
from shardctl.gateway.preferences import wait_of
from shardctl.gateway.problems import Problem
from shardctl.gateway.requests import Headers, query_of, respond
from shardctl.gateway.times import time_of
from shardctl.gateway.writes import answer
from shardctl.outcomes.effect import Sought, State, members
from shardctl.wire.bodies import BodyError, check_spelling
from shardctl.wire.message import slot_for

THERE_IS = "there is GET /v1/writes/{type}/{key}/{idempotency_key}, each part percent-encoded"


class Lookup:
    """An ASGI application for the paths of single writes."""

    def __init__(self, context: GatewayContext, outcomes: Outcomes) -> None:
        self._context, self._outcomes = context, outcomes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - it has no body
        context, headers = self._context, Headers(scope)
        headers.content_length = headers.content_length or 0  # nothing more comes on the connection
        wait = wait_of(headers.prefer)
        seconds = self._outcomes.bounded(wait or 0)
        try:
            write = await self._sought(scope, headers)
            effect = await self._outcomes.effect(write, seconds)
            if effect.state is State.UNKNOWN:
                raise Problem.later(
                    HTTPStatus.SERVICE_UNAVAILABLE, f"what became of the write is unknown: {effect.reason}"
                )
        except Problem as problem:
            await answer(send, context, headers, problem)
            return
        body = orjson.dumps({**members(effect), "slot": write.slot, "shard": effect.shard})
        pairs = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        pairs.append((b"cache-control", b"no-store"))
        if wait is not None:
            pairs.append((b"preference-applied", b"wait=%d" % seconds))
        await respond(send, HTTPStatus.OK, pairs, body)

    async def _sought(self, scope: Scope, headers: Headers) -> Sought:
        """Raises Problem."""
        context = self._context
        caller = await context.caller(scope, headers)
        try:
            path = WritePath.read(scope["raw_path"])
            if path is None:
                raise Problem(HTTPStatus.NOT_FOUND, THERE_IS)
            kind = context.kind(path.type)
            context.check_leave(caller, kind)
            if caller.bucket is not None and (pause := caller.bucket.take()):
                raise Problem.later(HTTPStatus.TOO_MANY_REQUESTS, "this client asks faster than it may", pause)
            slot = self._slot(kind, path.key, query_of(scope, ("at",)).get("at"))
        except FieldError as error:
            raise Problem.of_field(error) from None
        return Sought.of_key(caller.client, kind.name, path.key, path.idempotency_key, slot)

    def _slot(self, kind: MessageKind, key: str, at: str | None) -> int:
        """Raises FieldError, and Problem for a key that no write can have."""
        by_time = kind.type.time_bucket
        if (at is None) is (by_time is not None):
            need = "needs the time of its writes, as their body has it" if by_time else "isn't routed by time"
            raise FieldError("at", f"type {kind.name} {need}", "parameter")
        try:
            check_spelling(kind.type, key)
        except BodyError as error:
            raise Problem(HTTPStatus.NOT_FOUND, str(error)) from error
        body = {}
        try:
            if by_time:
                body = {by_time.field: time_of(at or "").isoformat()}
            return slot_for(kind.type, key, body, self._context.fleet.routing.rule)
        except ValueError as error:
            raise FieldError("at" if by_time else "key", str(error), "parameter") from error
