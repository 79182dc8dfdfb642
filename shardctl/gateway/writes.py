"""`POST /v1/writes/{type}`: one write, answered once Pub/Sub has it."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from shardctl.gateway.context import GatewayContext
from shardctl.gateway.encoding import Message, MessageKind
from shardctl.gateway.fields import FieldError
from shardctl.gateway.problems import MEDIA_TYPE, Problem
from shardctl.gateway.pubsub import NotTakenError
from shardctl.gateway.requests import ClientGoneError, Headers, body_of, query_of, respond
from shardctl.wire.jsontext import JsonBody, JsonError

WRITES = "/v1/writes/"
PARAMETERS = ("key", "operation", "timestamp")
DISCARDED_BYTES = 64 * 1024  # of an unread body, which is skipped so that the connection stays usable

_JSON = frozenset({b"application/json"})
_CONTENT_TYPE = (b"content-type", b"application/json")


class SingleWrite:
    """An ASGI application for the paths below WRITES."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context, begun = self._context, self._context.clock()
        headers = Headers(scope)
        try:
            kind, message = await self._read(scope, headers, receive)
            claim = message.claim
            context.check_claim(claim)
            receipt = Awaited()
            context.outbox.put(message.slot, message.wire, receipt)
            message_id = await receipt.message_id
        except ClientGoneError:
            context.metrics.abandoned.inc()
            return
        except NotTakenError as error:
            context.not_taken(claim, error)
            await answer(send, context, headers, Problem.not_taken(error))
            return
        except Problem as problem:
            await answer(send, context, headers, problem)
            return
        context.metrics.accepted[kind.name].inc()
        context.metrics.write_seconds.observe(context.clock() - begun)
        body = b'{"id":%b,%b' % (orjson.dumps(message_id), kind.placement(message.slot))
        pairs = [_CONTENT_TYPE, (b"content-length", b"%d" % len(body))]
        if not await respond(send, 202, pairs, body):
            context.metrics.abandoned.inc()

    async def _read(self, scope: Scope, headers: Headers, receive: Receive) -> tuple[MessageKind, Message]:
        """Raises Problem and ClientGoneError. The cheapest checks come first."""
        context = self._context
        caller = await context.caller(scope, headers)
        kind = context.kind(scope["path"].removeprefix(WRITES))
        context.check_leave(caller, kind)
        headers.check_type(_JSON, "application/json")
        if caller.bucket is not None and (wait := caller.bucket.take()):
            raise Problem.later(HTTPStatus.TOO_MANY_REQUESTS, "this client writes faster than it may", wait)
        if not context.outbox.has_room(headers.content_length or 0):
            raise Problem.later(HTTPStatus.TOO_MANY_REQUESTS, "too many writes wait for Pub/Sub already")
        try:
            parameters: dict[str, Any] = query_of(scope, PARAMETERS)
            parameters["idempotency_key"] = headers.key_given()
            text = await body_of(receive, headers, context.settings.max_body_bytes, context.outbox)
            body = JsonBody(text)
            return kind, context.encoder.encode(
                kind, body.data, body.text, context.now(), parameters, client=caller.client
            )
        except JsonError as error:
            raise Problem.of_field(FieldError.of_body(error)) from None
        except FieldError as error:
            raise Problem.of_field(error) from None


class Awaited:
    """The receipt of a write that one request waits for. A request that is cancelled leaves it alone."""

    __slots__ = ("message_id",)

    def __init__(self) -> None:
        self.message_id: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def settle(self, number: int, message_id: str | None, error: NotTakenError | None) -> None:  # noqa: ARG002 - there is one
        if self.message_id.done():
            return
        if message_id is not None:
            self.message_id.set_result(message_id)
        else:
            self.message_id.set_exception(error or NotTakenError("Pub/Sub gave no id"))


async def answer(send: Send, context: GatewayContext, headers: Headers, problem: Problem) -> None:
    """Send a problem. Where a long body may still come, the connection closes behind it."""
    context.metrics.refused(problem.status)
    body = problem.body()
    pairs = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(body))]
    pairs += ((name.lower().encode(), value.encode("latin-1")) for name, value in problem.headers.items())
    if headers.content_length is None or headers.content_length > DISCARDED_BYTES:
        pairs.append((b"connection", b"close"))
    if not await respond(send, int(problem.status), pairs, body):
        context.metrics.abandoned.inc()
