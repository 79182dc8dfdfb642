"""`POST /v1/writes/{type}`: one write, answered once Pub/Sub has it, or once it has taken effect."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode

import orjson
from starlette.types import Receive, Scope, Send

from shardctl.gateway.context import GatewayContext
from shardctl.gateway.encoding import Message, MessageKind
from shardctl.gateway.fields import FieldError
from shardctl.gateway.paths import WRITES, WritePath
from shardctl.gateway.preferences import wait_of
from shardctl.gateway.problems import MEDIA_TYPE, Problem
from shardctl.gateway.pubsub import NotTakenError
from shardctl.gateway.requests import ClientGoneError, Headers, body_of, query_of, respond
from shardctl.outcomes.effect import TOO_MANY_WAIT, Sought, members
from shardctl.wire import identity
from shardctl.wire.jsontext import JsonBody, JsonError
from shardctl.wire.message import moment_in, time_text

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
            write = await self._read(scope, headers, receive)
            kind, message = write.kind, write.message
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
        placement = b'{"id":%b,%b' % (orjson.dumps(message_id), kind.placement(message.slot))
        status, body, pairs = HTTPStatus.ACCEPTED, placement, [_CONTENT_TYPE]
        if context.outcomes is not None:
            pairs.append((b"location", write.path.encode()))
            if (wait := wait_of(headers.prefer)) is not None:
                seconds = context.outcomes.bounded(wait)
                effect = await context.outcomes.effect(write.sought, seconds)
                status = HTTPStatus.OK if effect else HTTPStatus.ACCEPTED
                body = b"%b,%b" % (placement[:-1], orjson.dumps(members(effect))[1:])
                if effect is not TOO_MANY_WAIT:
                    pairs.append((b"preference-applied", b"wait=%d" % seconds))
        pairs.append((b"content-length", b"%d" % len(body)))
        if not await respond(send, status, pairs, body):
            context.metrics.abandoned.inc()

    async def _read(self, scope: Scope, headers: Headers, receive: Receive) -> _Write:
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
            message = context.encoder.encode(
                kind, body.data, body.text, context.now(), parameters, client=caller.client
            )
            return _Write(kind, message, body, caller.client)
        except JsonError as error:
            raise Problem.of_field(FieldError.of_body(error)) from None
        except FieldError as error:
            raise Problem.of_field(error) from None


class _Write(NamedTuple):
    kind: MessageKind
    message: Message
    body: JsonBody
    client: str

    @property
    def path(self) -> str:
        """Where this gateway says what became of it."""
        message, by_time = self.message, self.kind.type.time_bucket
        path = WritePath(self.kind.name, message.key, message.idempotency_key).text
        return f"{path}?{urlencode({'at': time_text(moment_in(self.body.data, by_time.field))})}" if by_time else path

    @property
    def sought(self) -> Sought:
        message, kind = self.message, self.kind.name
        fingerprint = identity.fingerprint(message.operation, message.key, self.body.text)
        return Sought.of_key(
            self.client, kind, message.key, message.idempotency_key, message.slot, fingerprint=fingerprint
        )


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
